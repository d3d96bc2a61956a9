"""How near is rendering to the GPU's limit, and where does a training step spend its time?

    python benchmarks/gpu.py --output gpu.json

Real architectures with random weights, nothing is downloaded: Stable Diffusion 3 medium with its three text encoders,
OpenCLIP ViT-B/32 and ViT-L/14, Qwen2-VL 2B and 7B with LoRA. On a CPU (or with --small) all of them are tiny: that
shows that the script runs, and nothing about a GPU.

The limit is the machine's own matrix product, measured here; "of the limit" is the TFLOP/s of a way to render, divided
by it. Then come the parts of an image, scorers, and ways to render, compared with one prompt at a time, with the
pipeline's defaults, and in their images with plain batches (gpu_images.py); how the policy trains and writes
(gpu_policy.py); what a step of 8 prompts x 8 rewrites x 1 image adds up to; and whole steps of the trainer. It ends
within nine minutes: a measurement that is not possible here, fails, or has no time left, says so in its row.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from gpu_images import Ways, parts_of_an_image, scorers
from gpu_models import SMALL, Clock, Row, Sizes, build_pipeline
from gpu_policy import AS_TRL, COMPILED, MERGED, training, whole_step, writing

from brushup.common import default_device
from brushup.console import quiet_libraries


# Seconds since the start at which a part has to be done
PLAIN, POLICY, COMPILING, STEPS, TUNING = 240, 340, 440, 490, 530


def matrix_limit(clock: Clock, sizes: Sizes, device: str) -> float:
    """Return the TFLOP/s of a large matrix product in the generator's dtype: the best of five rounds of ten."""
    a, b = (torch.randn(sizes.matrix, sizes.matrix, device=device, dtype=sizes.dtype) for _ in range(2))

    def multiply_ten_times() -> None:
        for _ in range(10):
            a @ b

    multiply_ten_times()
    best = min(clock.measure(multiply_ten_times)["seconds"] for _ in range(5))
    return 10 * 2 * sizes.matrix**3 / best / 1e12


def sum_of_a_step(sizes: Sizes, ways: Ways, results: dict) -> dict[str, Row]:
    """Return, and print, the seconds of steps that are added up from measurements; None where one is missing."""
    count = sizes.prompts * sizes.rewrites
    small, large = (f"micro-batches of {size}" for size in (sizes.micro_batches[0], sizes.micro_batches[-1]))
    few = "4 steps, no guidance (distilled)"
    chosen = {
        "before": (AS_TRL, f"batches of {sizes.batches[1]}", small),
        "after": (COMPILED, f"batches of {ways.best}, compile_generator", large),
        "after, LoRA merged": (MERGED, f"batches of {ways.best}, compile_generator", large),
        f"after, {few}, not compiled": (COMPILED, f"batches of {ways.best}, {few}", large),
    }
    sums: dict[str, Row] = {}
    for name, (write, render, train) in chosen.items():
        rates = {"render": ways.rows[render], "score": list(results["scorers"].values())[-1]}
        row: Row = {part: (rate := rates[part].get("images_per_second")) and count / rate for part in rates}
        row = {"write": results["writing"][write].get("seconds"), **row}
        row["train"] = results["training"][train].get("seconds")
        row["step"] = None if None in row.values() else sum(row.values())
        sums[name] = row
        parts = ", ".join(f"{part} {'not measured' if s is None else f'{s:.2f} s'}" for part, s in row.items())
        print(f"{name:>56}: {parts}", flush=True)
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny models, as on a CPU")
    parser.add_argument("--output", help="a JSON file")
    arguments = parser.parse_args()
    quiet_libraries()
    device = default_device()
    small = arguments.small or device != "cuda"
    sizes = SMALL if small else Sizes()
    clock = Clock(device)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    print(f"{name}; {'tiny models: the figures say nothing about a GPU' if small else 'models of their real size'}")

    limit = matrix_limit(clock, sizes, device)
    results: dict = {"device": name, "torch": torch.__version__, "small": small, "matrix_tflops": limit}
    print(f"\nMatrix product of {sizes.matrix}, {sizes.dtype}: {limit:.3g} TFLOP/s: the limit\n")
    pipeline = build_pipeline(sizes, device)
    pipeline.set_progress_bar_config(disable=True)
    print(f"Parts of an image of {sizes.pixels} px, {sizes.steps} steps, in a batch of {sizes.batches[-2]}")
    parts = results["parts"] = parts_of_an_image(clock, sizes, pipeline, limit)
    print("\nScorers")
    results["scorers"] = scorers(clock, sizes, device)
    print("\nWays to render (differs: mean difference from plain batches, of 255; ranks: rank correlation in a group)")
    ways = Ways(clock, sizes, pipeline, limit, parts)
    results["ways"] = ways.rows
    ways.measure_plain(PLAIN)
    results["fastest_batch"] = ways.best
    count = sizes.prompts * sizes.rewrites
    print(f"\nTraining on {count} completions of {sizes.tokens} tokens, Qwen2-VL {sizes.policies[0]}")
    results["training"] = training(clock, sizes, device, POLICY)
    print("\nWriting them")
    results["writing"] = writing(clock, sizes, device, POLICY)
    print("\nCompiled ways to render")
    ways.measure_compiled(COMPILING)
    print(f"\nA step of {count} completions and images, added up")
    results["sums"] = sum_of_a_step(sizes, ways, results)
    print("\nThe trainer's own step, images of 4 steps without guidance")
    results["steps"] = {
        policy: clock.attempt(
            f"Qwen2-VL {policy}",
            lambda policy=policy: whole_step(clock, sizes, policy, pipeline, ways.best, device),
            STEPS,
        )
        for policy in sizes.policies
    }
    print("\nCompiled with kernels that are tried out")
    ways.measure_tuned(TUNING)
    results["seconds"] = time.perf_counter() - clock.began
    print(f"\n{results['seconds']:.0f} s")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

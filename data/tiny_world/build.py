"""Build the tiny world from scratch: four small models of the real classes and the prompts to train with.

    python data/tiny_world/build.py --output data/tiny_world                     # all: two hours on two CPU cores
    python data/tiny_world/build.py --output data/tiny_world --only generator    # one part

A `StableDiffusion3Pipeline` (generator/) learns to render one style of caption, an OpenCLIP model (scorer/) to match
images with every style, a `Qwen2VLForConditionalGeneration` (judge/) to answer questions about images, and from there
another (policy/) to answer with rewrites of mixed quality, so that GRPO has something to improve. Each has a program
of its own; at the end all are loaded from disk and measured; the report goes to README.md in the output folder. A GPU
is used when there is one. PyTorch 2.9 or newer, for its Muon.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import users
from brushup.console import quiet_libraries
from learning import DEVICE, RANK
from measure import measure
from train_generator import train_generator
from train_language import train_judge, train_policy
from train_scorer import train_scorer


def write_prompts(output: Path, scale: float, seed: int) -> None:
    """Write train.jsonl and validation.jsonl. The scene, which the checker needs, is in validation alone."""
    for name, count, unseen in (("train", 1000, False), ("validation", 300, True)):
        rows = users.prompt_rows(count, unseen, seed + unseen)
        if name == "train":
            rows = [{key: value for key, value in row.items() if key != "scene"} for row in rows]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (output / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{output / name}.jsonl: {count} prompts, e.g. {rows[0]['user_prompt']!r}")


def compact_tokenizers(output: Path) -> None:
    """Write each tokenizer on one line: spaces are two thirds of its file."""
    for file in output.rglob("tokenizer.json"):
        file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False, separators=(",", ":")))


def write_report(output: Path, scale: float, seed: int, seconds: dict[str, float]) -> None:
    count = max(20, int(500 * min(1, scale)))
    results = measure(output, seed, count)
    lines = [
        "| measured on the files in this folder | value | aim | |",
        "| --- | --- | --- | --- |",
        *(f"| {what} | {value:.1%} | {aim} | {'met' if met else 'missed'} |" for what, value, aim, met in results),
    ]
    table = "\n".join(lines)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) / 1e6
    machine = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{os.cpu_count()} CPU cores"
    timing = ", ".join(f"{part} {used:.0f} s" for part, used in seconds.items())
    report = f"""# The tiny world

Made by `python data/tiny_world/build.py --output data/tiny_world --seed {seed}`; nothing in it comes from elsewhere.

- `judge/`: a `Qwen2VLForConditionalGeneration` that answers questions about images, for the reward `questions`.
- `policy/`: the same model, trained on to write rewrites of mixed quality, so that GRPO has something to improve.
- `generator/`: a `StableDiffusion3Pipeline` without T5 that draws 48x48 pictures and knows one caption style.
- `scorer/`: an OpenCLIP model that understands that style and users' words, English and Korean.
- `train.jsonl`, `validation.jsonl`: users' prompts. Each of validation asks for a pair of colour and shape that no
  training prompt asks for; a third of its words and patterns are in no training prompt, either.
- `hand_written.jsonl`, `hand_written_2.jsonl`: 60 prompts each that no pattern made.
- `patterns_en.txt`, `patterns_ko.txt`: whole prompts with slots, by thirteen writers, for pretraining.

![real pictures above, the generator's below](pictures.png)

{table}

Each share is of {count} (of 64 prompts for the different answers); pictures are judged by a checker that reads the
pixels (`world.py`). {size:.1f} MB in all. Trained on {machine}: {timing}.
"""
    (output / "README.md").write_text(report)
    print("\n" + report)


BUILDERS = {
    "prompts": write_prompts,
    "generator": train_generator,
    "scorer": train_scorer,
    "judge": train_judge,
    "policy": train_policy,
}


def build_all(arguments: argparse.Namespace) -> dict[str, float]:
    """Build all parts in two processes, half of the cores each: the models of images, and those of language.

    The judge needs the generator after a third of its training, and waits for it. Halfway through its questions it is
    the start of the policy, which two more processes train beside the rest of them (one on a GPU).

    Returns:
        The seconds that each part took.
    """
    threads = max(1, (os.cpu_count() or 2) // 2)
    torch.set_num_threads(threads)
    settings = ("--output", str(arguments.output), "--seed", str(arguments.seed), "--scale", str(arguments.scale))

    def build_beside(part: str) -> float:
        start, environment = time.time(), os.environ | {"OMP_NUM_THREADS": str(threads)}
        processes = 2 if part == "policy" and DEVICE == "cpu" else 1
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2") if processes == 2 else ()
        subprocess.run([sys.executable, *launch, __file__, *settings, "--only", part], env=environment, check=True)
        return time.time() - start

    seconds = {"prompts": build(arguments, "prompts")}
    with ThreadPoolExecutor(max_workers=1) as beside:
        parts = {part: beside.submit(build_beside, part) for part in ("generator", "scorer")}
        is_half, wait = threading.Event(), {"wait_for_generator": parts["generator"].result}
        parts["policy"] = beside.submit(lambda: is_half.wait() and build_beside("policy"))
        try:
            seconds["judge"] = build(arguments, "judge", **wait, at_half=is_half.set)
        finally:
            is_half.set()  # also after an error, or the other process would wait for ever
        seconds |= {part: built.result() for part, built in parts.items()}
    return seconds


def build(arguments: argparse.Namespace, part: str, **options: Any) -> float:
    """Build a part, and return the seconds that it took."""
    start = time.time()
    BUILDERS[part](arguments.output, arguments.scale, arguments.seed, **options)
    return time.time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--only", choices=BUILDERS, help="build one part, without the report")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the training steps, to try the code out")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    start = time.time()
    if arguments.only:
        build(arguments, arguments.only)
    else:
        seconds = build_all(arguments) | {"all": time.time() - start}
    if RANK == 0:
        compact_tokenizers(arguments.output)
    if not arguments.only:
        write_report(arguments.output, arguments.scale, arguments.seed, seconds)


if __name__ == "__main__":
    quiet_libraries()
    main()

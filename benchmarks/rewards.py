"""What do the image rewards cost, alone and together? Images a second and memory, as ratios within one run.

    python benchmarks/rewards.py --output rewards.json

Each reward is loaded with its default weights, from the Hub's cache or the Hub, in a new process (Linux), so that its
memory can be told apart. It scores the same images in a worker that renders nothing; each prompt has 8 images.

Memory is what loading and scoring add to the process at their peak: resident memory on a CPU, PyTorch's allocations on
a GPU. Time is processor time on a CPU, of all cores, because other work on the machine does not count in it. At last
one worker has all rewards, and scores with one after the other. Its time is the sum of their times, less the work that
they share, and at least that of the slowest.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path


ON_A_CPU = ["aesthetic", "clip", "compression", "image_quality", "ocr", "safety"]
GROUP = 8


def memory(field: str) -> float:
    """Return the GB of resident memory of this process: now ("VmRSS"), or at its peak ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e6


def measure(names: list[str], kwargs: dict[str, dict], count: int, size: int, rounds: int) -> dict[str, float]:
    """Measure one worker that scores `count` images of `size` x `size` with all rewards: its seconds, and its GB."""
    import random

    import torch
    from PIL import ImageDraw

    sys.path.append(str(Path(__file__).parent.parent / "data" / "tiny_world"))
    import world
    from brushup.common import default_device
    from brushup.console import quiet_libraries
    from brushup.render.job import RenderJob
    from brushup.render.renderer import RenderedImage
    from brushup.render.worker import LocalWorker
    from brushup.rewards.registry import RewardSpec

    class Rendered:
        """A stand-in for `Renderer` that has the images already."""

        images_drawn, token_limits = 0, {}

        def draw(self, jobs: list[tuple[str, int]]) -> list[RenderedImage]:
            return [RenderedImage(pixels.clone()) for pixels in rendered[: len(jobs)]]

        def count_tokens(self, prompts: list[str]) -> list[dict]:
            return [{}] * len(prompts)

    quiet_libraries()
    device = default_device()
    rng, rendered, jobs = random.Random(0), [], []
    for number in range(count):
        scene = world.random_scene(rng)
        image = world.draw_scene(scene, rng).resize((size, size))
        ImageDraw.Draw(image).text((size // 8, size // 8), "OPEN", fill="black", font_size=size // 8)
        rendered.append(RenderedImage.of(image).pixels.to(device))
        user_prompt = f'an image with the text "OPEN", number {number // GROUP}'
        rewrite = f"rewrite {min(number // 2, count // 2 - 1)}"  # two images each, which set rewards compare
        jobs.append(RenderJob(rewrite, user_prompt, number))
    before = memory("VmRSS")
    worker = LocalWorker(
        Rendered(),
        {name: RewardSpec(name, kwargs=kwargs.get(name, {})).load(device) for name in names},
    )
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds = []
    for turn in range(rounds + 1):
        begin = clock()
        results = worker.score(jobs[:2] if turn == 0 else jobs)  # the first pass is slower
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - begin)
        assert not any(result.error for result in results), results[0].error
    gigabytes = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else memory("VmHWM") - before
    return {"seconds": min(seconds[1:]), "gigabytes": gigabytes}


def in_a_process(names: list[str], arguments: argparse.Namespace) -> dict[str, float]:
    """Call `measure` in a new process; end this one if that fails."""
    settings = (names, arguments.reward_kwargs, arguments.images, arguments.size, arguments.rounds)
    command = [sys.executable, __file__, "--measure", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"measuring {', '.join(names)} failed (exit status {done.returncode}):\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def show(name: str, measured: dict[str, float], count: int) -> None:
    print(f"{name:>14}: {count / measured['seconds']:8.2f} images/s  {measured['gigabytes']:6.2f} GB", flush=True)


def main() -> None:
    import torch

    from brushup.rewards.registry import REWARDS, RewardSpec

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    everything = [name for name in REWARDS if RewardSpec(name).looks_at_images]
    parser.add_argument("--rewards", nargs="+", default=everything if gpu else ON_A_CPU, choices=everything)
    parser.add_argument(
        "--reward_kwargs",
        type=json.loads,
        default={},
        help="as in a YAML file, here as JSON",
    )
    parser.add_argument("--images", type=int, default=256 if gpu else GROUP)
    parser.add_argument("--size", type=int, default=512, help="width and height of the images")
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="how often all are scored; the fastest round counts, since other work slows a round down",
    )
    parser.add_argument("--output", help="a JSON file")
    arguments = parser.parse_args()

    alone = {}
    for name in arguments.rewards:
        alone[name] = in_a_process([name], arguments)
        show(name, alone[name], arguments.images)
    results = {
        "device": torch.cuda.get_device_name() if gpu else f"cpu, {torch.get_num_threads()} threads",
        "settings": {"images": arguments.images, "size": arguments.size, "rounds": arguments.rounds},
        "alone": alone,
    }
    if len(alone) > 1:
        together = in_a_process(arguments.rewards, arguments)
        show("all together", together, arguments.images)
        ratios = {key: together[key] / sum(cost[key] for cost in alone.values()) for key in together}
        slowest = max(alone, key=lambda name: alone[name]["seconds"])
        share = alone[slowest]["seconds"] / together["seconds"]
        print(f"together over the sum of each alone: time {ratios['seconds']:.2f}, memory {ratios['gigabytes']:.2f}")
        print(f"the slowest is {slowest}: alone it takes {share:.2f} of the time of all together")
        results |= {"together": together, "together_over_sum": ratios, "slowest": slowest}
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(*json.loads(sys.argv[2]))))
    else:
        main()

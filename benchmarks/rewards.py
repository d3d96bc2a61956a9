"""What do the image rewards cost, alone and together? Pictures a second and memory, as ratios within one run.

    python benchmarks/rewards.py --output rewards.json

Each line is measured in a process of its own (Linux), so that its memory is its own: the rewards, loaded with random
weights of the real size (benchmarks/random_rewards.py), score the same pictures in a worker that draws nothing; 8
pictures in turn have one prompt. Memory is the most that loading and scoring took beyond what the process had before:
on a CPU of its resident memory, on a GPU of what PyTorch allocated there. Time on a CPU is the processor's, of all its
cores, since waiting for other work on the machine says nothing. Then all rewards are in one worker. There they score
one after the other: the time of all is the sum, less what they share, and never below that of the slowest.
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
    """GB of this process: "VmRSS" is what it has, "VmHWM" the most it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e6


def measure(names: list[str], kwargs: dict[str, dict], pictures: int, size: int, rounds: int) -> dict[str, float]:
    """Seconds that scoring `pictures` of `size` x `size` with all of `names` takes in one worker, and GB of memory."""
    import random

    import torch
    from PIL import ImageDraw
    from random_rewards import load_random

    from brushup import tiny_world as world
    from brushup.console import quiet_libraries
    from brushup.render import Picture, default_device
    from brushup.rewards import load_reward
    from brushup.worker import LocalWorker, RenderJob

    class Drawn:
        """A stand-in for `Renderer` whose pictures are there already."""

        def draw(self, jobs: list[tuple[str, int]]) -> list[Picture]:
            return [Picture(pixels.clone()) for pixels in drawn[: len(jobs)]]

        def count_tokens(self, prompts: list[str]) -> list[dict]:
            return [{}] * len(prompts)

    quiet_libraries()
    device = default_device()
    rng, drawn, jobs = random.Random(0), [], []
    for number in range(pictures):
        scene = rng.choice(world.all_scenes())
        image = world.draw_scene(scene, rng).resize((size, size))
        ImageDraw.Draw(image).text((size // 8, size // 8), "OPEN", fill="black", font_size=size // 8)
        drawn.append(Picture.of(image).pixels.to(device))
        user_prompt = f'a picture with the text "OPEN", number {number // GROUP}'
        rewrite = f"rewrite {min(number // 2, pictures // 2 - 1)}"  # two pictures each, which some rewards compare
        jobs.append(RenderJob(rewrite, user_prompt, number))
    before = memory("VmRSS")
    worker = LocalWorker(
        Drawn(),
        {
            name: load_reward(name, device=device, **kwargs[name]) if name in kwargs else load_random(name, device)
            for name in names
        },
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
    settings = (names, arguments.reward_kwargs, arguments.pictures, arguments.size, arguments.rounds)
    command = [sys.executable, __file__, "--measure", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"measuring {', '.join(names)} failed (exit status {done.returncode}):\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def show(name: str, measured: dict[str, float], pictures: int) -> None:
    print(f"{name:>14}: {pictures / measured['seconds']:8.2f} pictures/s  {measured['gigabytes']:6.2f} GB", flush=True)


def main() -> None:
    import torch

    from brushup.rewards import REWARDS, is_image_reward

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    everything = [name for name in REWARDS if is_image_reward(name)]
    parser.add_argument("--rewards", nargs="+", default=everything if gpu else ON_A_CPU, choices=everything)
    parser.add_argument(
        "--reward_kwargs",
        type=json.loads,
        default={},
        help="as in a YAML file, here as JSON; a reward named there is loaded with these and its own weights",
    )
    parser.add_argument("--pictures", type=int, default=256 if gpu else GROUP)
    parser.add_argument("--size", type=int, default=512, help="width and height of the pictures")
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="how often all are scored; the fastest counts, as other work slows them down",
    )
    parser.add_argument("--output", help="a JSON file")
    arguments = parser.parse_args()

    alone = {}
    for name in arguments.rewards:
        alone[name] = in_a_process([name], arguments)
        show(name, alone[name], arguments.pictures)
    results = {
        "device": torch.cuda.get_device_name() if gpu else f"cpu, {torch.get_num_threads()} threads",
        "settings": {"pictures": arguments.pictures, "size": arguments.size, "rounds": arguments.rounds},
        "alone": alone,
    }
    if len(alone) > 1:
        together = in_a_process(arguments.rewards, arguments)
        show("all together", together, arguments.pictures)
        ratios = {key: together[key] / sum(one[key] for one in alone.values()) for key in together}
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

"""Does learning suffer from `lookahead: 1`, and what is gained by the minute?

    python benchmarks/lookahead.py --output lookahead.json

Learning: the first steps of recipes/tiny_cpu.yaml with lookahead, where each batch of rewrites is one update old, and
on-policy, from the same weights, in the same order of prompts, with the same seeds of pictures. Time: seconds a step
of both, in turns, with the worker in a process of its own (`worker: spawn`) and a core for each, as it would have its
own GPU; nothing is validated meanwhile, since lookahead would draw then. Minutes to a reward are the steps to it times
the median of these seconds. The limit of the time is max(policy, drawing) over their sum: 0.5 where they take equally
long.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median

import torch
from variance import CountingWorker, compare_curves, read_settings, run, train

from brushup.client import HttpWorker
from brushup.console import quiet_libraries
from brushup.dry_run import StepClock
from brushup.worker import load_worker
from brushup.workers import get_worker


MODES = {"lookahead": ["--lookahead", "1"], "on_policy": []}
WARM_UP = 2  # steps that do not count; with lookahead the first one writes two batches


def curves_of(runs: int, steps: int) -> dict[str, list[list[dict]]]:
    """`runs` curves of each mode, with seeds 0, 1, ...; see `variance.train`."""
    _, render, args, _ = read_settings()
    worker = load_worker(render, args)
    curves = {mode: [] for mode in MODES}
    for seed in range(runs):
        for mode, flags in MODES.items():
            curves[mode].append(train(CountingWorker(worker, "paired", seed), seed, steps, *flags))
            rewards = " ".join(f"{point['reward']:.3f}" for point in curves[mode][-1])
            print(f"seed {seed} {mode:<10} {rewards}", flush=True)
    return curves


def step_seconds(worker: HttpWorker, steps: int, rounds: int) -> dict[str, list[float]]:
    """The median seconds a step of each mode, in each round."""
    seconds = {mode: [] for mode in MODES}
    for turn in range(rounds):
        for mode, flags in MODES.items():
            clock = StepClock()
            last = WARM_UP + steps + 1  # with lookahead it writes no batch
            run(CountingWorker(worker, "paired", turn), turn, clock, "--max_steps", str(last), *flags)
            seconds[mode].append(median(clock.seconds[WARM_UP:-1]))
        print(f"round {turn + 1}: " + ", ".join(f"{mode} {some[-1]:.2f} s" for mode, some in seconds.items()))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", help="where to write the figures as JSON")
    parser.add_argument("--runs", type=int, default=3, help="learning: of each mode")
    parser.add_argument("--steps", type=int, default=30, help="learning: of the 100 that are planned")
    parser.add_argument("--rounds", type=int, default=3, help="time: turns of each mode")
    parser.add_argument("--timed_steps", type=int, default=12, help="time: of each turn")
    arguments = parser.parse_args()
    quiet_libraries()
    os.environ["OMP_NUM_THREADS"] = "1"  # the service's, too
    torch.set_num_threads(1)
    curves = curves_of(arguments.runs, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:  # for the service's log
        _, render, args, _ = read_settings("--worker", "spawn", "--output_dir", folder)
        seconds = step_seconds(get_worker(render, args), arguments.timed_steps, arguments.rounds)
    for mode, some in curves.items():
        for point in sum(some, []):
            point["minutes"] = point["step"] * median(seconds[mode]) / 60
    found = compare_curves(curves, ("step", "minutes"))
    time = median(ours / theirs for ours, theirs in zip(*seconds.values(), strict=True))
    print(f"seconds a step: lookahead / on_policy {time:.2f}")
    if arguments.output:
        ratios = {
            "reward_at_the_end": found["last_reward"],
            "seconds_a_step": time,
            "to_reward": {
                level["reward"]: {
                    name: {key: level[name][key] for key in ("ratio", "ci95")} for name in ("step", "minutes")
                }
                for level in found["levels"].values()
            },
        }
        results = {"lookahead_over_on_policy": ratios, "seconds": seconds, "learning": found}
        Path(arguments.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Do paired seeds pay? The noise of the advantage, and pictures to the same reward, against independent seeds.

    python benchmarks/variance.py --output variance.json
    python benchmarks/variance.py --only noise       # ten minutes or so on a core
    python benchmarks/variance.py --only training    # three runs a seed, a minute each

Paired: all rewrites of a group are drawn from the same K seeds, as in training. Independent: each from K of its own.
Distinct: as independent, but equal rewrites of a group share theirs, so that no more are drawn than with paired ones.

`noise`: G rewrites of each of some prompts, by an untrained and by a trained policy, are drawn from a pool of seeds,
each once. From that table of rewards (rewrite, seed) groups are simulated. The noise of an advantage is its variance
over the seeds, for given rewrites. Theory: with v the mean variance of a rewrite's reward over the seeds, and c the
mean covariance of two rewrites' rewards at one seed, the noise of (reward - group mean) is (1 - 1/G) v / K for
independent and (1 - 1/G) (v - c) / K for paired seeds. So the ratio is 1 - c/v whatever K is; equal rewrites have the
same picture, and c = v. But equal rewrites also have the same gradient: m of them from K pictures have m times the
noise, together, of m from m K pictures. So paired seeds draw less, and a picture tells more or less than before:
`gradient_per_signal_and_picture` says which. Against distinct seeds nothing of this differs, and what is left is
pairing itself.

`training`: the first steps of recipes/tiny_cpu.yaml with each kind of seeds, from the same weights and in the same
order of prompts. The limit, at equal steps, is the share of the rewrites that differ.
"""

import argparse
import json
import os
import random
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from trl import ModelConfig, TrlParser

from brushup.comparison import paired_difference
from brushup.config import DataConfig, PromptEnhancerConfig, RenderConfig
from brushup.console import quiet_libraries
from brushup.data import load_prompts
from brushup.enhancer import PromptEnhancer
from brushup.policy import load_policy
from brushup.trainer import PromptEnhancerTrainer
from brushup.worker import LocalWorker, RenderJob, load_worker


SETTINGS = "recipes/tiny_cpu.yaml"
IMAGES = (1, 2, 4)  # pictures of a rewrite, K
KINDS = ("paired", "independent", "distinct")
TRIALS = 2000  # simulated groups of each prompt
VALIDATION_PROMPTS = 64  # the first ones
VALIDATED = (1, 2, 3, 4, 6, 8, 10, 15, 20, 25, 30)  # after these steps; most is learnt in the first
# Of the way from the untrained policy of the README (0.578) to the trained one (0.851); fixed before any run.
LEVELS = {"half": 0.715, "nine_tenths": 0.824}


def read_settings(*flags: str) -> tuple:
    """The settings of the tiny world (data, render, args, model) with `flags`."""
    parser = TrlParser((DataConfig, RenderConfig, PromptEnhancerConfig, ModelConfig))
    cpu = () if torch.cuda.is_available() else ("--use_cpu", "true")
    return parser.parse_args_and_config(["--config", SETTINGS, *cpu, *flags])


def ratio_of_sums(above: Sequence, below: Sequence) -> dict:
    """sum(above) / sum(below) and its 95 % interval: bootstrap over the items (percentile, 10,000 resamples).

    Args:
        above, below: numbers, an item of the one for an item of the other; or several such columns, whose sums are
            multiplied.
    """
    columns = [np.atleast_2d(np.array(some, dtype=float)) for some in (above, below)]

    def ratio(*columns, axis=-1):
        sums = [column.sum(axis) for column in columns]
        half = len(sums) // 2
        return np.prod(sums[:half], axis=0) / np.prod(sums[half:], axis=0)

    columns = [*columns[0], *columns[1]]
    value = float(ratio(*columns))
    if len(columns[0]) < 2:
        return {"ratio": value, "ci95": None}
    found = bootstrap(columns, ratio, paired=True, n_resamples=10_000, method="percentile", rng=0)
    low, high = found.confidence_interval
    return {"ratio": value, "ci95": [float(low), float(high)]}


def shown(found: dict) -> str:
    interval = f" ({found['ci95'][0]:.2f}-{found['ci95'][1]:.2f})" if found["ci95"] else ""
    return f"{found['ratio']:.2f}{interval}"


# The noise of the advantage


@dataclass
class Group:
    """The rewrites of one prompt: `rewards` is (G, seeds of the pool); equal `answers` have equal rewards.

    `drawn` has the rewrites that are drawn, once each; `pictures` counts them with their repetitions.
    """

    rewards: np.ndarray
    answers: list[str]
    drawn: set[str]
    pictures: int

    def covariances(self) -> tuple[float, float]:
        """The mean variance v of a rewrite's reward over the seeds, and the mean covariance c of two rewrites'."""
        size = len(self.answers)
        matrix = np.cov(self.rewards, ddof=0)
        return matrix.trace() / size, (matrix.sum() - matrix.trace()) / (size * (size - 1))

    def covariances_of_different(self) -> tuple[float, float]:
        """Sums of v and c over the pairs of rewrites that are not equal."""
        matrix = np.cov(self.rewards, ddof=0)
        different = np.array([[one != other for other in self.answers] for one in self.answers])
        return (matrix.diagonal()[:, None] * different).sum(), (matrix * different).sum()


def draw_groups(worker: LocalWorker, policy: str, prompts: list[str], args: PromptEnhancerConfig, pool: int):
    """A `Group` for each of `prompts` by `policy`, from `pool` seeds."""
    enhancer = PromptEnhancer.from_pretrained(policy)
    size, longest = args.num_generations, args.max_completion_length
    asked = enhancer.enhance(prompts, n=size, max_new_tokens=longest, temperature=args.temperature, seed=args.seed)
    groups = []
    for prompt, rewrites in zip(prompts, asked, strict=True):
        drawn = {one.prompt for one in rewrites if not one.fell_back}
        jobs = [RenderJob(rewrite, prompt, seed) for rewrite in sorted(drawn) for seed in range(pool)]
        results = worker.score(jobs)
        assert not any(result.error for result in results), [result.error for result in results if result.error][:3]
        scores = {job: result.scores["clip"] for job, result in zip(jobs, results, strict=True)}
        rewards = [  # a malformed answer has reward 0, as in training
            [0.0 if one.fell_back else scores[RenderJob(one.prompt, prompt, seed)] for seed in range(pool)]
            for one in rewrites
        ]
        answers = [one.answer if one.fell_back else one.prompt for one in rewrites]
        groups.append(Group(np.array(rewards), answers, drawn, sum(not one.fell_back for one in rewrites)))
    return groups


def advantages(group: Group, images: int, kind: str, scaled: bool, rng: np.random.Generator) -> np.ndarray:
    """Simulated advantages, (TRIALS, G), of a group with seeds of that `kind`.

    `scaled`: divided by the group's deviation, as TRL's default does. Seeds may repeat, so that the pool stands for
    as many seeds as there are.
    """
    size, pool = group.rewards.shape
    drawn = rng.integers(pool, size=(TRIALS, 1 if kind == "paired" else size, images))
    if kind == "distinct":
        drawn = drawn[:, [group.answers.index(answer) for answer in group.answers]]
    means = group.rewards[np.arange(size)[:, None], drawn].mean(axis=2)
    centred = means - means.mean(axis=1, keepdims=True)
    return centred / (centred.std(axis=1, ddof=1, keepdims=True) + 1e-4) if scaled else centred


def noise(group: Group, images: int, kind: str, rng: np.random.Generator) -> dict[str, float]:
    """Noise of one prompt's advantages.

    Returns:
        `advantage`: of (reward - group mean), summed over the rewrites. `scaled`: of TRL's advantage, and
        `scaled_signal` the square of its expectation. `gradient`: as `scaled`, but the advantages of equal rewrites
        are added up first, as they are in the gradient (rewrites that differ are taken for orthogonal there), and
        `gradient_signal`. `pictures`: how many are drawn.
    """
    plain = advantages(group, images, kind, False, rng)
    scaled = advantages(group, images, kind, True, rng)
    same = np.array([[one == other for other in dict.fromkeys(group.answers)] for one in group.answers])
    added = scaled @ same
    return {
        "advantage": plain.var(axis=0).sum(),
        "scaled": scaled.var(axis=0).sum(),
        "scaled_signal": (scaled.mean(axis=0) ** 2).sum(),
        "gradient": added.var(axis=0).sum(),
        "gradient_signal": (added.mean(axis=0) ** 2).sum(),
        "pictures": images * (group.pictures if kind == "independent" else len(group.drawn)),
    }


def compare_noise(groups: list[Group]) -> dict:
    """Paired over independent, and over distinct, for each K, with intervals over the prompts."""
    rng = np.random.default_rng(0)
    own, shared = np.array([group.covariances() for group in groups]).T
    pairs = np.array([group.covariances_of_different() for group in groups]).sum(axis=0)
    found = {
        "theory": ratio_of_sums(own - shared, own),
        "correlation_of_different_rewrites": pairs[1] / pairs[0],
        "different_rewrites": np.mean([len(group.drawn) for group in groups]),
        "well_formed_rewrites": np.mean([group.pictures for group in groups]),
        "images_per_prompt": {},
        "over_distinct": {},
    }
    for images in IMAGES:
        rows = {kind: [noise(group, images, kind, rng) for group in groups] for kind in KINDS}
        columns = {
            kind: {name: np.array([row[name] for row in some]) for name in some[0]} for kind, some in rows.items()
        }
        paired, independent, distinct = columns.values()
        found["over_distinct"][images] = {
            name: ratio_of_sums(paired[name], distinct[name]) for name in ("advantage", "scaled", "gradient")
        }
        measures = {name: ratio_of_sums(paired[name], independent[name]) for name in paired}
        for name in ("scaled", "gradient"):
            above, below = [paired[name], independent[f"{name}_signal"]], [independent[name], paired[f"{name}_signal"]]
            measures[f"{name}_per_signal"] = ratio_of_sums(above, below)
        above, below = [*above, paired["pictures"]], [*below, independent["pictures"]]
        measures["gradient_per_signal_and_picture"] = ratio_of_sums(above, below)
        found["images_per_prompt"][images] = measures
    return found


def measure_noise(policies: dict[str, str], prompts: int, pool: int) -> dict:
    _, render, args, _ = read_settings()
    worker = load_worker(render, args)
    rows = load_prompts("data/tiny_world/train.jsonl", max_samples=prompts)
    found = {}
    for name, policy in policies.items():
        found[name] = compare_noise(draw_groups(worker, policy, list(rows["user_prompt"]), args, pool))
        result = found[name]
        print(
            f"\n{name}: {result['different_rewrites']:.1f} of {result['well_formed_rewrites']:.1f} rewrites differ; "
            f"two that do correlate {result['correlation_of_different_rewrites']:.2f} at one seed\n"
            f"noise, paired / independent; theory {shown(result['theory'])}"
        )
        print("| paired / independent | " + " | ".join(f"K = {images}" for images in IMAGES) + " |")
        for measure in result["images_per_prompt"][1]:
            cells = [shown(result["images_per_prompt"][images][measure]) for images in IMAGES]
            print(f"| {measure} | {' | '.join(cells)} |", flush=True)
        print("paired / distinct")
        for measure in result["over_distinct"][1]:
            cells = [shown(result["over_distinct"][images][measure]) for images in IMAGES]
            print(f"| {measure} | {' | '.join(cells)} |", flush=True)
    return found


# Pictures to the same validation reward


class CountingWorker:
    """The trainer's worker: counts pictures, and gives them seeds of the `kind` that is asked for."""

    def __init__(self, worker: LocalWorker, kind: str, seed: int):
        self.worker = worker
        self.kind = kind
        self.fresh = random.Random(seed)
        self.drawn = 0
        """Equal jobs are drawn once."""

    def __getattr__(self, name: str):
        return getattr(self.worker, name)

    def submit(self, jobs: list[RenderJob], return_images: bool = False) -> Future:
        if self.kind != "paired":
            seeds = [self.fresh.getrandbits(32) for _ in jobs]
            chosen = map(jobs.index, jobs) if self.kind == "distinct" else range(len(jobs))
            jobs = [replace(job, seed=seeds[index]) for job, index in zip(jobs, chosen, strict=True)]
        self.drawn += len(set(jobs))
        return self.worker.submit(jobs, return_images)


class Curve(TrainerCallback):
    """Validates after the steps `VALIDATED`, keeps what was drawn and found, and stops after `steps` of them."""

    def __init__(self, worker: CountingWorker, steps: int):
        self.worker = worker
        self.steps = steps
        self.points: list[dict] = []

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.steps
        control.should_evaluate = state.global_step in VALIDATED or control.should_training_stop

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.points.append(
            {
                "step": state.global_step,
                "pictures": self.worker.drawn,
                "reward": metrics["eval_reward"],
                "right_pictures": metrics["eval_right_pictures"],
            }
        )


def run(worker: CountingWorker, seed: int, callback: TrainerCallback, *flags: str) -> None:
    """Trains in the tiny world as the recipe does; validation has the worker that `worker` wraps, and its seeds.

    `flags`: settings that differ from the recipe's.
    """
    with tempfile.TemporaryDirectory() as folder:
        always = ["--seed", str(seed), "--output_dir", folder, "--disable_tqdm", "true", "--save_strategy", "no"]
        data, _, args, model = read_settings(*always, "--log_images_steps", "0", "--log_completions", "false", *flags)
        trainer = PromptEnhancerTrainer(
            worker=worker.worker,
            args=args,
            train_dataset=load_prompts(data.train_prompts),
            eval_dataset=load_prompts(data.validation_prompts, max_samples=VALIDATION_PROMPTS),
            **load_policy(model, args),
        )
        trainer.worker = worker
        trainer.add_callback(callback)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def train(worker: CountingWorker, seed: int, steps: int, *flags: str) -> list[dict]:
    """The curve of the first `steps` of a run: `step`, `pictures` drawn so far for training, `reward`,
    `right_pictures`."""
    curve = Curve(worker, steps)
    run(worker, seed, curve, "--eval_on_start", "true", *flags)
    return curve.points


def reach(points: list[dict], name: str, level: float) -> tuple[float, bool]:
    """`name` (step or pictures) at which the reward first crosses `level`, by a straight line between two
    validations, and whether it does; if not, that of the whole run, which is too little."""
    for before, after in zip(points, points[1:], strict=False):
        if after["reward"] >= level:
            share = (level - before["reward"]) / (after["reward"] - before["reward"])
            return before[name] + share * (after[name] - before[name]), True
    return points[-1][name], False


def compare_curves(curves: dict[str, list[list[dict]]], columns: Sequence[str]) -> dict:
    """The first kind over the second, of the runs of each, the same seeds in the same order; prints it.

    `columns`: of the points of a curve, how far a run is, for each of which it is told when the levels are reached.
    """
    ours, theirs = curves
    found = {"levels": {}, "curves": curves}
    for label, level in LEVELS.items():
        at_level = found["levels"][label] = {"reward": level}
        for name in columns:
            reached = {kind: [reach(points, name, level) for points in some] for kind, some in curves.items()}
            ratio = ratio_of_sums(*([value for value, _ in some] for some in reached.values()))
            at_level[name] = {"reached": reached, **ratio}
            print(f"{name} to a reward of {level}: {ours} / {theirs} {shown(ratio)}")
            for kind, some in reached.items():
                numbers = ", ".join(f"{'' if crossed else '>'}{value:.3g}" for value, crossed in some)
                print(f"    {kind:<11} {numbers}")
    for name in ("reward", "right_pictures", "pictures"):
        print(f"{name} at the end")
        for kind, some in curves.items():
            print(f"    {kind:<11} {', '.join(f'{points[-1][name]:.4g}' for points in some)}")
    last = [[points[-1]["reward"] for points in some] for some in curves.values()]
    difference = found["last_reward"] = paired_difference(*last)
    if difference["ci95"]:
        low, high = difference["ci95"]
        print(f"reward at the end, {ours} - {theirs}: {difference['mean']:+.3f} ({low:+.3f} to {high:+.3f})")
    return found


def measure_training(runs: int, steps: int) -> dict:
    _, render, args, _ = read_settings()
    worker = load_worker(render, args)
    curves = {kind: [] for kind in KINDS}
    for seed in range(runs):
        for kind, some in curves.items():
            some.append(train(CountingWorker(worker, kind, seed), seed, steps))
            rewards = " ".join(f"{point['reward']:.3f}" for point in some[-1])
            print(f"seed {seed} {kind:<11} {rewards}", flush=True)
    return {
        f"over_{kind}": compare_curves({"paired": curves["paired"], kind: curves[kind]}, ("step", "pictures"))
        for kind in KINDS[1:]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", help="where to write the figures as JSON")
    parser.add_argument("--only", choices=["noise", "training"], help="one part; the other is null in the JSON")
    parser.add_argument("--prompts", type=int, default=40, help="noise: the first training prompts, so many")
    parser.add_argument("--pool", type=int, default=32, help="noise: seeds that each rewrite is drawn from")
    parser.add_argument("--adapter", default="runs/tiny_cpu", help="noise: the trained policy; none there: left out")
    parser.add_argument("--runs", type=int, default=5, help="training: with seeds 0, 1, ..., three runs each")
    parser.add_argument("--steps", type=int, default=30, help="training: of the 100 that are planned")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    results = {"paired_over_independent": {"variance": None, "pictures_to_reward": None}}
    if arguments.only != "training":
        policies = {"untrained": "data/tiny_world/policy"}
        if Path(arguments.adapter).is_dir():
            policies["trained"] = arguments.adapter
        else:
            print(f"there is no {arguments.adapter}: the trained policy is left out")
        results["noise"] = measure_noise(policies, arguments.prompts, arguments.pool)
        of_one_picture = results["noise"]["untrained"]["images_per_prompt"][1]
        results["paired_over_independent"]["variance"] = of_one_picture["advantage"]["ratio"]
    if arguments.only != "noise":
        results["training"] = measure_training(arguments.runs, arguments.steps)
        half = results["training"]["over_independent"]["levels"]["half"]
        results["paired_over_independent"]["pictures_to_reward"] = half["pictures"]["ratio"]
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Several rewards in runs as users launch them: in this process, through the service, on two ranks."""

import json
from concurrent.futures import ThreadPoolExecutor

import pandas
import pytest
from conftest import few_prompts

from brushup.render.job import RenderJob
from brushup.render.service.protocol import split_between_rewrites
from support.launching import RECIPE, TWO_CPU_RANKS, on_two_cpus, recipe, run


BRIGHTNESS = '''
class Brightness:
    """A user's own reward: the mean luminance, 0..1."""

    def __init__(self, exponent: float = 1.0):
        self.exponent = exponent

    def __call__(self, images, user_prompts, prompts):
        means = [sum(image.convert("L").tobytes()) / (image.width * image.height) for image in images]
        return [(mean / 255) ** self.exponent for mean in means]
'''


def jobs(*counts):
    return [RenderJob(f"rewrite {n}", "a cat", seed) for n, count in enumerate(counts) for seed in range(count)]


@pytest.mark.parametrize(
    ("counts", "size", "sizes"),
    [
        ((1,) * 5, 2, [2, 2, 1]),
        ((2,) * 4, 3, [2] * 4),
        ((2, 2, 2), 4, [4, 2]),
        ((5, 1, 1), 2, [5, 2]),
        ((40,), 16, [16, 16, 8]),
        ((), 4, []),
    ],
)
def test_the_pictures_of_a_rewrite_stay_together(counts, size, sizes):
    parts = split_between_rewrites(jobs(*counts), size)
    assert [len(part) for part in parts] == sizes
    assert [job for part in parts for job in part] == jobs(*counts)


def options(folder, brightness):
    own = f"{brightness}:Brightness"
    kwargs = {"clip": {"model_name": "local-dir:data/tiny_world/scorer"}, own: {"exponent": 2.0}}
    kwargs["diversity"] = kwargs["clip"]
    return [
        *("--reward_funcs", "clip", own, "repetition", "diversity", "compression"),
        *("--reward_weights", "1.0", "0.2", "0.1", "0", "0"),
        *("--reward_kwargs", json.dumps(kwargs)),
        *("--reward_transforms", json.dumps({own: "zscore", "clip": {"clamp": [0.1, 0.9]}})),
        *("--gain_gates", json.dumps({"clip": 0.0})),
        *("--images_per_prompt", "2", "--validation_images_per_prompt", "2"),
        *("--validation_prompts", few_prompts(folder, 4), "--output_dir", str(folder / "out")),
        *("--max_steps", "2", "--logging_steps", "1", "--save_steps", "2", "--log_images_steps", "1"),
    ]


@pytest.mark.slow
def test_three_rewards_a_gate_and_two_monitors_here_and_through_the_service(tmp_path):
    """One of them from a file outside of the repository; two pictures a rewrite, which one of them compares.

    The service draws in small batches (5 at once, so it must not cut between the two), and gives the same scores.
    """
    (tmp_path / "brightness.py").write_text(BRIGHTNESS)
    found, commands = {}, []
    for worker, batch in (("local", "32"), ("spawn", "5")):
        (tmp_path / worker).mkdir()
        flags = (*options(tmp_path / worker, tmp_path / "brightness.py"), "--worker", worker)
        commands.append(recipe(*flags, "--render_batch_size", batch))
    with ThreadPoolExecutor(2) as both:
        list(both.map(run, commands))
    for worker in ("local", "spawn"):
        folder = tmp_path / worker
        found[worker] = (
            json.loads((folder / "out" / "validation_0.json").read_text())["rows"],
            pandas.read_parquet(folder / "out" / "completions" / "completions_00001.parquet"),
        )
        results = json.loads((folder / "out" / "results.json").read_text())
        assert list(results["arms"]["trained"]["rewards"]) == [
            *("clip", "Brightness", "diversity", "compression", "repetition")
        ]
        assert (folder / "out" / "images" / "step-000000.png").is_file()
    (here, first), (there, second) = found.values()
    for mine, theirs in zip(here, there, strict=True):
        assert mine["rewrite"] == theirs["rewrite"] and mine["rewards"] == pytest.approx(theirs["rewards"], abs=5e-3)
    assert first["rewrite"].tolist() == second["rewrite"].tolist()
    names = [f"raw_{name}" for name in ("clip", "Brightness", "diversity", "compression", "repetition")]
    for name in (*names, "gain_clip"):
        assert first[name].tolist() == pytest.approx(second[name].tolist(), abs=5e-3, nan_ok=True)
    assert first["raw_diversity"].between(0, 1).all() and first["raw_diversity"].max() > 0.01
    held_back = first["gain_clip"] < 0
    assert held_back.any() and (~held_back).any()
    written = first["rewrite"].notna()
    assert (first["clip"][written & held_back] == 0).all() and (first["Brightness"][written & held_back] <= 0).all()
    assert first["clip"][written & ~held_back].between(0.1, 0.9).all()


BROKEN = """
import os

def broken(prompts, completions, **columns):
    if os.environ["RANK"] == "0":
        return [0.5] * len(prompts)
    raise KeyError("oops")

class Broken:
    def __call__(self, images, user_prompts, prompts):
        return [0.5] * (len(images) if os.environ["RANK"] == "0" else 1)
"""


@pytest.mark.slow
def test_rewards_that_break_on_one_rank_leave_that_ranks_rows_out(tmp_path):
    """In training and in validation; the other rank goes on, and neither waits for the other in vain."""
    (tmp_path / "mine.py").write_text(BROKEN)
    out = tmp_path / "out"
    kwargs = {"clip": {"model_name": "local-dir:data/tiny_world/scorer"}}
    flags = [
        *("--reward_funcs", "clip", f"{tmp_path}/mine.py:broken", f"{tmp_path}/mine.py:Broken"),
        *("--reward_kwargs", json.dumps(kwargs)),
        *("--validation_prompts", few_prompts(tmp_path, 6), "--output_dir", str(out)),
        *("--per_device_train_batch_size", "8", "--max_steps", "2", "--logging_steps", "1", "--save_steps", "2"),
    ]
    run(on_two_cpus("multi_gpu", tmp_path, *RECIPE, *TWO_CPU_RANKS, *flags))
    completions = pandas.read_parquet(out / "completions" / "completions_00002.parquet")
    written = completions["rewrite"].notna()
    left_out = completions["clip"].isna()[written].tolist()
    assert left_out == [False] * sum(written[:8]) + [True] * sum(written[8:]) and any(left_out)
    assert (completions["advantage"][8:] == 0).all()
    log = (out / "train.log").read_text()
    assert "reward 'broken' failed: KeyError: 'oops'" in log and "reward 'Broken' returned 1 scores" in log
    results = json.loads((out / "results.json").read_text())
    assert [arm["n"] for arm in results["arms"].values()] == [3, 3, 3]

"""Images that an evaluation kept are scored again by other rewards, without a generator."""

import json

import pytest
from PIL import Image

from brushup.config import RenderConfig
from brushup.render.job import RenderJob
from brushup.render.kept_images import KeepingWorker, load_kept_images
from brushup.rewards.registry import RewardSpec
from support.training import StubWorker


SETTINGS = {"render_kwargs": {"num_inference_steps": 2}, "generator_init_kwargs": {"token": "hf_sesame"}}


class ColourfulWorker(StubWorker):
    """Renders an image of one colour for each job, which its seed gives; none of a failed job."""

    def submit(self, jobs, return_images=False):
        future = super().submit(jobs, return_images)
        for job, result in zip(jobs, future.result(), strict=True):
            result.image = None if result.error else Image.new("RGB", (8, 8), (job.seed, 0, 0))
        return future


def test_kept_images_are_scored_again(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def red(images, user_prompts, prompts):\n    return [image.getpixel((0, 0))[0] for image in images]\n"
    )
    render, folder = RenderConfig("me/sd", **SETTINGS, render_device="cpu"), tmp_path / "evaluation_images"
    jobs = [RenderJob("a red disk", "crimson disk", seed, for_evaluation=True) for seed in (7, 9)]
    failing = RenderJob("a b", "a", 3, for_evaluation=True)
    worker = KeepingWorker(ColourfulWorker(lambda job: "out of memory" if job.seed == 3 else 0.5), folder, render)
    for arm in ("trained", "best_of_2 trained"):
        assert worker.submit([*jobs, failing]).result()[2].error
        worker.file_under(arm)
    assert worker.images_drawn == 6  # of the worker behind it
    index = json.loads((folder / "index.json").read_text())
    assert [(row["arm"], row["seed"]) for row in index["images"]] == [
        *(("trained", 7), ("trained", 9), ("best_of_2 trained", 7), ("best_of_2 trained", 9))
    ]
    assert (
        index["images"][0]["user_prompt"] == "crimson disk" and "hf_sesame" not in (folder / "index.json").read_text()
    )

    kept = load_kept_images(folder, render, [RewardSpec(f"{tmp_path}/mine.py:red")])
    first, second, unknown = kept.submit([*jobs, failing], return_images=True).result()
    assert first.scores == {"red": 7.0} and second.scores == {"red": 9.0}
    assert first.image.getpixel((7, 7)) == (7, 0, 0) and first.tokens == {"words": 3}
    assert kept.token_limits == {"words": 4} and kept.images_drawn == 0
    assert "has no image of the prompt 'a b' at seed 3" in unknown.error and not unknown.scores


def test_other_settings_and_a_folder_without_images_are_refused(tmp_path):
    KeepingWorker(StubWorker(), tmp_path, RenderConfig("me/sd")).file_under("original")
    with pytest.raises(ValueError, match=r"images_from: .* were rendered with other settings \(generator: 'me/sd'\)"):
        load_kept_images(tmp_path, RenderConfig("me/other"), [])
    with pytest.raises(FileNotFoundError, match="give the folder evaluation_images of an evaluation with"):
        load_kept_images(tmp_path / "nothing", RenderConfig("me/sd"), [])

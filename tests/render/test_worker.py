import random
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import RENDER_KWARGS as CALL
from PIL import Image

import world
from brushup.render.job import RenderJob, columns_of, mean_scores, paired_seeds
from brushup.render.renderer import RenderedImage
from brushup.render.worker import LocalWorker
from brushup.rewards.open_clip_backbone import open_clip_backbone
from support.reward_models import write_head
from support.rewards import load_reward


pytest_plugins = ["support.reward_models"]


RED = "a big red circle on a white background"
BLUE = "a small blue square on a yellow background"


def test_pictures_are_scored_against_the_users_prompt(worker):
    right, wrong = worker.score([RenderJob(RED, "crimson disk, huge", 1), RenderJob(RED, "azure box, tiny", 1)])
    assert 0 <= wrong.scores["clip"] < right.scores["clip"] <= 1
    assert right.error is None and right.image is None


def test_a_reward_gets_the_columns_that_it_names_and_may_score_in_parts(renderer):
    def colors(images, user_prompts, prompts, questions):
        return [{"score": len(row), "red": 1.0} if row else 0.0 for row in questions]

    worker = LocalWorker(renderer, {"colors": colors})
    assert worker.columns == ["questions"]
    rows = [{"questions": ["Is it red?", "Is it big?"], "scene": 1}, {"scene": 2}]
    jobs = [RenderJob(RED, RED, 1, columns=columns_of(row, worker.columns)) for row in rows]
    results = worker.score(jobs)
    assert [result.scores for result in results] == [{"colors": 2, "colors/red": 1.0}, {"colors": 0.0}]
    assert mean_scores(results) == {"colors": 1.0}  # were they images of one rewrite: not each has the part


def test_submit_gives_what_score_gives(worker):
    jobs = [RenderJob(RED, RED, 1), RenderJob(BLUE, BLUE, 2)]
    assert [r.scores for r in worker.submit(jobs).result()] == [r.scores for r in worker.score(jobs)]


def test_pictures_come_back_when_asked_for(worker):
    assert worker.score([RenderJob(RED, RED, 1)], return_images=True)[0].image.size == (48, 48)


def test_the_same_picture_for_two_users_is_drawn_once(worker):
    before = worker.images_drawn
    worker.score([RenderJob(RED, "crimson disk", 1), RenderJob(RED, "scarlet ball", 1)])
    assert worker.images_drawn - before == 1


def test_training_gets_cheap_pictures_and_evaluation_full_ones(renderer, clip):
    """They come from one pipeline, and neither changes the other, whatever runs out of memory."""
    cheap = renderer.with_kwargs("render_kwargs", {"num_inference_steps": 3, "guidance_scale": 1.0})
    worker = LocalWorker(cheap, {"clip": clip}, eval_renderer=cheap.with_kwargs("eval_render_kwargs", CALL))
    job = RenderJob(RED, "crimson disk", 1)
    jobs = [job, replace(job, for_evaluation=True), RenderJob(BLUE, BLUE, 2)]
    for_training, full, other = worker.score(jobs, return_images=True)
    assert full.image.tobytes() == renderer.render([(RED, 1)])[0].tobytes() != for_training.image.tobytes()
    drawn = cheap.render([(RED, 1), (BLUE, 2)])
    assert [for_training.image.tobytes(), other.image.tobytes()] == [image.tobytes() for image in drawn]
    assert full.scores != for_training.scores and worker.images_drawn == 5
    worker.eval_renderer.batch_size = 1
    assert worker.eval_renderer.pipeline is cheap.pipeline and cheap.batch_size == renderer.batch_size > 1


@pytest.mark.parametrize("score", [None, float("nan")])
def test_a_picture_that_one_reward_cannot_score_has_no_scores_at_all(renderer, score):
    rewards = {
        "first": lambda images, user_prompts, prompts: [1.0] * len(images),
        "second": lambda images, user_prompts, prompts: [score if p == BLUE else 0.5 for p in prompts],
    }
    good, bad = LocalWorker(renderer, rewards).score([RenderJob(RED, RED, 1), RenderJob(BLUE, BLUE, 1)])
    assert good.scores == {"first": 1.0, "second": 0.5}
    assert bad.scores == {} and "second" in bad.error


# --------------------------------------------------------------------------------------------- rewards that go wrong


def broken(images, user_prompts, prompts):
    raise KeyError("x")


@pytest.mark.parametrize(
    ("reward", "error"),
    [
        (broken, "reward 'mine' failed: KeyError: 'x'"),
        (lambda images, *_: [0.5] * (len(images) + 1), "reward 'mine' returned 3 scores for 2 images"),
        (lambda images, *_: [0.5], "reward 'mine' returned 1 scores for 2 images"),
        (
            lambda *_: [0.5, "high"],
            "reward 'mine' returned 'high' as a score, which is neither a number nor None",
        ),
        (lambda *_: None, "reward 'mine' failed: TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_a_reward_that_goes_wrong_is_named(renderer, clip, reward, error, caplog):
    worker = LocalWorker(renderer, {"clip": clip, "mine": reward, "never": lambda *_: pytest.fail("called")})
    jobs = [RenderJob(RED, RED, 1), RenderJob(BLUE, BLUE, 1)]
    results = worker.score([*jobs, jobs[0]], return_images=True)
    assert [(result.error, result.scores, result.image) for result in results] == [(error, {}, None)] * 3
    assert [record.exc_info is not None for record in caplog.records] == [True]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda scores: [torch.tensor(s) for s in scores]])
def test_scores_may_be_of_numpy_or_torch(renderer, kind):
    worker = LocalWorker(renderer, {"mine": lambda images, *_: kind([0.5, 1.0])})
    results = worker.score([RenderJob(RED, RED, 1), RenderJob(BLUE, BLUE, 1)])
    assert [result.scores for result in results] == [{"mine": 0.5}, {"mine": 1.0}]
    assert all(type(result.scores["mine"]) is float for result in results)  # as JSON takes it


# -------------------------------------------------------------------------------------- pixels that stay on the device


@pytest.fixture(scope="module")
def pixel_rewards(architectures, tiny_pickscore, tmp_path_factory):
    """Each reward that takes pixels, ready to call."""
    head = tmp_path_factory.mktemp("head") / "head.pth"
    write_head(head, 128)
    clip, siglip = (
        {"model_name": f"tiny-{kind}", "pretrained": f"{architectures}/{kind}.pt"} for kind in ("clip", "siglip")
    )
    settings = {
        "clip": clip,
        "hpsv2": clip,
        "siglip": siglip,
        "aesthetic": {"head": str(head), **clip},
        "pickscore": {"model_name": tiny_pickscore, "processor": tiny_pickscore},
    }
    return {name: load_reward(name, device="cpu", batch_size=3, **kwargs) for name, kwargs in settings.items()}


@pytest.mark.parametrize("sizes", [[(48, 48)], [(64, 64)], [(48, 64)], [(64, 48), (40, 96), (32, 32)]])
@pytest.mark.parametrize("name", ["clip", "hpsv2", "siglip", "aesthetic", "pickscore"])
def test_pixels_and_pil_images_have_the_same_scores(pixel_rewards, name, sizes):
    """Pillow and torchvision round differently when pictures get smaller (pixels by up to 4 of 255)."""
    rng, reward = random.Random(0), pixel_rewards[name]
    scenes = [world.random_scene(rng) for _ in range(7)]
    prompts = [f"a {scene['objects'][0]['color']} shape" for scene in scenes]  # for which no score is near 1
    images = [world.draw_scene(scene, rng).resize(sizes[i % len(sizes)]) for i, scene in enumerate(scenes)]
    wanted = reward(images, prompts, prompts)
    scores = reward([RenderedImage.of(image).pixels for image in images], prompts, prompts)
    assert scores == pytest.approx(wanted, abs=1e-5 if sizes == [(48, 48)] else 0.01)
    assert len({round(score, 4) for score in wanted}) > 3


def test_no_pil_image_is_made_unless_it_is_needed(renderer, pixel_rewards, monkeypatch):
    made, from_array = [], Image.fromarray
    monkeypatch.setattr(Image, "fromarray", lambda *args: made.append(1) or from_array(*args))
    jobs = [RenderJob(RED, RED, 1), RenderJob(BLUE, BLUE, 1)]
    results = LocalWorker(renderer, pixel_rewards).score(jobs)
    assert [set(result.scores) for result in results] == [set(pixel_rewards)] * 2 and not made
    everything = LocalWorker(renderer, {**pixel_rewards, "mine": lambda images, *_: [images[0].width] * len(images)})
    shown = everything.score(jobs, return_images=True)
    assert [result.scores["mine"] for result in shown] == [48, 48] and len(made) == 2
    assert [result.image.size for result in shown] == [(48, 48)] * 2 and len(made) == 2
    for name in pixel_rewards:
        assert [r.scores[name] for r in shown] == pytest.approx([r.scores[name] for r in results], abs=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_pixels_in_the_precision_of_gpus(pixel_rewards, architectures, kind):
    model = {"model_name": f"tiny-{kind}", "pretrained": f"{architectures}/{kind}.pt"}
    half = load_reward(kind, device="cpu", precision="pure_bf16", **model)
    rng = random.Random(0)
    pixels = [
        RenderedImage.of(world.draw_scene(world.random_scene(rng), rng).resize((64, 48))).pixels for _ in range(3)
    ]
    texts = ["a small red circle", "a blue square", "nothing"]
    assert half(pixels, texts, texts) == pytest.approx(pixel_rewards[kind](pixels, texts, texts), abs=0.05)


def test_the_default_precision_is_bfloat16_on_gpus_alone(monkeypatch):
    """OpenCLIP is not called: there may be no GPU."""
    asked = []
    monkeypatch.setattr("brushup.rewards.open_clip_backbone.OpenClipBackbone", lambda *given: asked.append(given[2]))
    monkeypatch.setattr("brushup.rewards.open_clip_backbone._backbones", {})
    for device, precision in [("cpu", None), ("cuda:1", None), ("cuda", "fp32")]:
        open_clip_backbone("ViT-L-14", "openai", precision, device)
    assert asked == ["fp32", "pure_bf16", "fp32"]


def test_pixels_are_encoded_once_for_all_rewards_on_one_model(pixel_rewards):
    clip, aesthetic, passes = pixel_rewards["clip"], pixel_rewards["aesthetic"], []
    hook = clip.backbone.model.visual.register_forward_hook(lambda *_: passes.append(1))
    rng = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (3, 32, 32), generator=rng, dtype=torch.uint8) for _ in range(3)]
    texts = ["a", "b", "c"]
    clip(pixels, texts, texts)
    before = aesthetic(pixels, texts, texts)
    assert len(passes) == 1
    assert aesthetic(list(pixels), texts, texts) == pytest.approx(before, abs=1e-5)
    hook.remove()


def test_a_worker_shows_all_rewards_the_same_list_and_keeps_no_image(renderer, pixel_rewards):
    shown, pixels_seen = [], []

    class Watching:
        takes_pixels = True

        def __call__(self, images, user_prompts, prompts):
            shown.append(images)
            pixels_seen.extend(map(weakref.ref, images))
            return [0.5] * len(images)

    passes = []
    hook = pixel_rewards["clip"].backbone.model.visual.register_forward_hook(lambda *_: passes.append(1))
    rewards = {name: pixel_rewards[name] for name in ("clip", "aesthetic")} | {
        "first": Watching(),
        "second": Watching(),
    }
    LocalWorker(renderer, rewards).score([RenderJob(RED, RED, 1), RenderJob(BLUE, BLUE, 1)])
    hook.remove()
    assert len(passes) == 1 and shown[0] is shown[1]
    assert len(pixels_seen) == 4 and all(pixel() is None for pixel in pixels_seen)


@pytest.mark.parametrize("name", ["clip", "hpsv2", "siglip", "pickscore"])
def test_equal_prompts_are_encoded_once_and_batches_mix_prompts(pixel_rewards, name, monkeypatch):
    reward = pixel_rewards[name]
    encoder = reward if name == "pickscore" else reward.backbone
    encode, batches = encoder._encode_texts, []
    monkeypatch.setattr(encoder, "_encode_texts", lambda texts: batches.append(texts) or encode(texts))
    pixels = [torch.full((3, 32, 32), 9 * number, dtype=torch.uint8) for number in range(6)]
    reward(pixels, ["red", "blue", "red", "red", "green", "blue"], [""] * 6)
    assert batches == [["red", "blue", "green"]]


def test_seeds_depend_on_run_step_prompt_and_index():
    assert paired_seeds(0, 1, "a cat", 2) == paired_seeds(0, 1, "a cat", 2)
    kinds = [(0, 1, "a cat"), (1, 1, "a cat"), (0, 2, "a cat"), (0, 1, "a dog")]
    seeds = [seed for kind in kinds for seed in paired_seeds(*kind, 3)]
    assert len(set(seeds)) == 12 and all(0 <= seed < 2**32 for seed in seeds)

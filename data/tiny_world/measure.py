"""Measure the tiny models, loaded from disk."""

import random
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

import users
import world
from brushup.evaluation.sheet import labelled_grid
from brushup.policy.enhancer import PromptEnhancer
from brushup.rewards.clip import ClipReward
from brushup.rewards.questions import QuestionsReward, with_needs
from learning import DEVICE, load_generator


def measure(output: Path, seed: int, count: int) -> list[tuple[str, float, str, bool]]:
    """Measure the parts, loaded from disk: (name, value in 0..1, the aim, whether it is met) of each."""
    rng = random.Random(seed + 1000)
    scenes = [world.random_scene(rng) for _ in range(count)]
    rows = users.prompt_rows(count, unseen=True, seed=seed + 1001)
    renderer = load_generator(output / "generator")
    captions = [world.caption(scene) for scene in scenes]
    drawn = renderer.render([(text, index) for index, text in enumerate(captions)])
    canonical = sum(world.check_pictures(drawn, scenes)) / count
    raw_drawn = renderer.render([(row["user_prompt"], index) for index, row in enumerate(rows)])
    raw = sum(world.check_pictures(raw_drawn, [row["scene"] for row in rows])) / count
    world_sheet(scenes, captions, drawn).save(output / "pictures.png")
    results = [
        ("canonical captions that the generator draws right", canonical, ">= 90 %", canonical >= 0.9),
        ("users' prompts that the generator draws right", raw, "<= 10 %", raw <= 0.1),
    ]
    by_skill: dict[str, list[bool]] = {}
    for picture, scene in zip(drawn, scenes, strict=True):
        seen = world.read_picture(picture)
        for row in users.questions_of(scene):
            by_skill.setdefault(row["skill"], []).append(world.answer_question(seen, row["question"]) == row["answer"])
    for skill, right in sorted(by_skill.items()):
        share = sum(right) / len(right)
        results.append((f"questions about them with the right answer: {skill}", share, ">= 95 %", share >= 0.95))

    results += agreement(output, [*drawn, *raw_drawn], [*scenes, *(row["scene"] for row in rows)])

    clip = ClipReward(f"local-dir:{output / 'scorer'}")
    right = near_right = 0
    for scene in scenes:
        picture = world.draw_scene(scene, rng)
        texts = [world.caption(world.random_scene(rng)) for _ in range(63)]
        near = [world.caption(world.near_scene(scene, rng)) for _ in range(3)]
        caption_score, *rest = clip([picture] * 67, [world.caption(scene), *texts, *near], [""] * 67)
        right += all(score < caption_score for score in rest[:63])
        near_right += all(score < caption_score for score in rest[63:])

    processor = AutoProcessor.from_pretrained(output / "policy")
    policy = Qwen2VLForConditionalGeneration.from_pretrained(output / "policy", dtype=torch.float32).to(DEVICE)
    enhancer = PromptEnhancer(policy, processor)
    prompts = [row["user_prompt"] for row in rows]
    answers = enhancer.enhance(prompts, max_new_tokens=40, temperature=1.0, batch_size=100)
    parsed = sum(not answer.malformed for answer in answers) / count
    repeated = enhancer.enhance(prompts[:64], n=8, max_new_tokens=40, temperature=1.0, batch_size=128)
    varied = sum(len({answer.prompt for answer in group}) >= 4 for group in repeated) / len(repeated)
    return [
        *results,
        ("real pictures whose caption the scorer picks out of 64", right / count, ">= 85 %", right / count >= 0.85),
        (
            "real pictures whose caption it picks out of 4 near ones",
            near_right / count,
            ">= 85 %",
            near_right >= 0.85 * count,
        ),
        ("answers of the policy that parse", parsed, ">= 95 %", parsed >= 0.95),
        ("prompts with at least 4 different answers of 8", varied, ">= 95 %", varied >= 0.95),
    ]


def agreement(output: Path, pictures: list[Image.Image], scenes: list[dict]) -> list[tuple]:
    """Measure how often the judge and the checker agree whether a generated image has the expected answer to a
    question about its scene, for each skill."""
    questions = [users.questions_of(scene) for scene in scenes]
    scores = QuestionsReward(str(output / "judge"), batch_size=100).ask(pictures, [""] * len(pictures), questions)
    agreed: dict[str, list[bool]] = {}
    for picture, rows, found in zip(pictures, questions, scores, strict=True):
        seen = world.read_picture(picture)
        right = with_needs(
            [float(world.answer_question(seen, row["question"]) == row["answer"]) for row in rows], rows
        )
        for row, score, is_right in zip(rows, found, right, strict=True):
            agreed.setdefault(row["skill"], []).append((score > 0.5) == bool(is_right))
    shares = {skill: sum(found) / len(found) for skill, found in sorted(agreed.items())}
    return [
        (f"questions on which the judge agrees with the checker: {skill}", share, ">= 95 %", share >= 0.95)
        for skill, share in shares.items()
    ]


def world_sheet(scenes: list[dict], captions: list[str], drawn: list[Image.Image]) -> Image.Image:
    """Return a sheet of the world's images above the generator's, for six captions, enlarged without blur."""
    rng = random.Random(0)
    size = (4 * world.PICTURE_SIZE,) * 2
    real = [world.draw_scene(scene, rng) for scene in scenes[:6]]
    rows = [
        (
            name,
            [
                (picture.resize(size, Image.Resampling.NEAREST), caption)
                for picture, caption in zip(pictures, captions, strict=False)
            ],
        )
        for name, pictures in (("real pictures", real), ("drawn by the generator", drawn[:6]))
    ]
    return labelled_grid(rows)

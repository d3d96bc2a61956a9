import json
import random
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY, TINY_WORLD
from PIL import Image, ImageFilter

import world


def rows(name):
    return [json.loads(line) for line in (TINY_WORLD / f"{name}.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------- the checker


def test_the_checker_reads_every_scene_that_is_drawn():
    rng = random.Random(0)
    scenes = world.all_scenes()
    read = [world.read_picture(world.draw_scene(scene, rng)) for scene in scenes]
    assert read == scenes


def test_the_checker_sees_through_a_little_blur_and_noise():
    rng, noise = random.Random(0), np.random.default_rng(0)
    scenes = rng.sample(world.all_scenes(), 200)
    worn = []
    for scene in scenes:
        picture = np.asarray(world.draw_scene(scene, rng).filter(ImageFilter.GaussianBlur(0.5)), dtype=float)
        worn.append(Image.fromarray((picture + noise.normal(0, 5, picture.shape)).clip(0, 255).astype(np.uint8)))
    assert sum(world.check_pictures(worn, scenes)) >= 190


@pytest.mark.parametrize("name", world.ATTRIBUTES)
def test_the_checker_says_no_to_one_wrong_attribute(name):
    rng = random.Random(1)
    drawn = {"shape": "circle", "color": "red", "size": "big", "background": "white"}
    other = {"shape": "cross", "color": "blue", "size": "small", "background": "green"}
    picture = world.draw_scene(drawn, rng)
    assert world.check_pictures([picture] * 3, [drawn, drawn | {name: other[name]}, drawn | {name: None}]) == [
        True,
        False,
        True,
    ]


def test_the_checker_finds_no_shape_in_noise_or_nothing():
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    assert world.read_picture(Image.fromarray(noise))["shape"] is None
    assert world.read_picture(Image.new("RGB", (32, 32), "white"))["shape"] is None


# ---------------------------------------------------------------------------------------------------- the prompts


def test_validation_asks_only_for_pairs_that_training_never_names():
    """Read off the words, not off what made them: no training prompt names a pair of validation."""
    words = {word: name for name, others in world.SYNONYMS.items() for word in (name, *others, *world.KOREAN[name])}

    def pairs(prompt):
        named = [words[word] for word in sorted(words, key=len, reverse=True) if word in prompt]
        return {(color, shape) for color in named for shape in named if (color, shape) in world.UNSEEN_PAIRS}

    validation, training = rows("validation"), rows("train")
    assert len(validation) == 200 and len(training) == 1000
    assert all(pairs(row["user_prompt"]) for row in validation)
    pairs_of_shape_color = {(row["scene"]["color"], row["scene"]["shape"]) for row in validation}
    assert pairs_of_shape_color == world.UNSEEN_PAIRS
    prompts = {row["user_prompt"] for row in training}
    assert len(prompts) == 1000 and not prompts & {row["user_prompt"] for row in validation}


def test_training_rows_do_not_carry_the_truth():
    assert all("scene" not in row for row in rows("train"))
    assert all(set(row["scene"]) == set(world.ATTRIBUTES) for row in rows("validation"))


def test_the_prompts_in_the_repository_are_the_ones_that_the_seed_gives():
    assert world.prompt_rows(200, unseen=True, seed=1) == rows("validation")


# ------------------------------------------------------------------------------------------------------- the files


def shipped_files():
    """The built files in the repository, without the code that builds them."""
    files = [file for file in TINY_WORLD.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]
    return {str(file.relative_to(TINY_WORLD)) for file in files}


def test_the_folder_is_small_and_its_report_has_no_missed_aim():
    files = [TINY_WORLD / name for name in shipped_files()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    report = (TINY_WORLD / "README.md").read_text()
    assert report.count("| met |") == 7 and "missed" not in report


def test_canonical_captions_are_drawn_right_and_users_prompts_are_not(renderer, validation_rows):
    scenes = random.Random(3).sample(world.all_scenes(), 48)
    images = renderer.render([(world.canonical_caption(scene), index) for index, scene in enumerate(scenes)])
    assert sum(world.check_pictures(images, scenes)) >= 40
    rows = validation_rows[:48]
    images = renderer.render([(row["user_prompt"], index) for index, row in enumerate(rows)])
    assert sum(world.check_pictures(images, [row["scene"] for row in rows])) <= 29


@pytest.mark.nightly
def test_the_script_rebuilds_every_part(tmp_path):
    """All of the code with a few steps of training: the models are bad, the files are whole."""
    command = [sys.executable, "data/tiny_world/build.py", "--output", str(tmp_path), "--scale", "0.005"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    built = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert built == shipped_files()
    assert (tmp_path / "train.jsonl").read_text() == (TINY_WORLD / "train.jsonl").read_text()

import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY, TINY_WORLD
from PIL import Image, ImageFilter

import rewrites
import users
import world
from free_users import FreeSpeaker
from odd_users import OddSpeaker
from odd_words import EMOJI
from other_users import OtherSpeaker
from pattern_users import PatternSpeaker, kind_of


ICONS = "".join(icon for icons in EMOJI.values() for icon in icons.values())


def rows(name):
    return [json.loads(line) for line in (TINY_WORLD / f"{name}.jsonl").read_text().splitlines()]


def worn(picture, noise, blur=0.7, sigma=8):
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(blur)), dtype=float)
    return Image.fromarray((pixels + noise.normal(0, sigma, pixels.shape)).clip(0, 255).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------- the checker


def test_the_checker_is_exact_on_1000_scenes_a_half_of_them_blurred_and_noisy():
    """The scene is seen, each question about it is answered, and a scene that differs in one thing is not seen."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    for index in range(1000):
        scene = world.random_scene(rng)
        picture = world.draw_scene(scene, rng)
        seen = world.read_picture(worn(picture, noise) if index % 2 else picture)
        assert world.shows(seen, scene)
        assert not world.shows(seen, world.near_scene(scene, rng))
        for row in users.questions_of(scene):
            assert world.answer_question(seen, row["question"]) == row["answer"], (scene, row)


@pytest.mark.parametrize(
    "question, answer",
    [
        ("Is there a circle?", "yes"),
        ("Is there a big circle?", "no"),
        ("Is there a blue circle?", "no"),
        ("How many red circles are there?", "two"),
        ("How many objects are there?", "three"),
        ("How many crosses are there?", "zero"),
        ("What color is the square?", "blue"),
        ("What size is the blue object?", "big"),
        ("What shape is the big object?", "square"),
        ("What color is the object?", "unclear"),
        ("What color is the triangle?", "unclear"),
        ("What color is the background?", "white"),
    ],
)
def test_the_checker_answers_questions(question, answer):
    circles = {"shape": "circle", "color": "red", "size": "small", "count": 2}
    square = {"shape": "square", "color": "blue", "size": "big", "count": 1}
    scene = {"objects": [circles, square], "relations": [], "background": "white"}
    assert world.answer_question(world.draw_scene(scene, random.Random(0)), question) == answer


def test_the_checker_tells_a_swapped_pair_from_the_right_one():
    """What generators get wrong: the colours exchanged, or the places."""
    square = {"shape": "square", "color": "red", "size": "big", "count": 1}
    circle = {"shape": "circle", "color": "blue", "size": "big", "count": 1}
    scene = {"objects": [square, circle], "relations": [[0, "left of", 1]], "background": "white"}
    picture = world.draw_scene(scene, random.Random(0))
    bound = {**scene, "objects": [{**square, "color": "blue"}, {**circle, "color": "red"}]}
    placed = {**scene, "relations": [[0, "right of", 1]]}
    mirrored = {**scene, "relations": [[1, "right of", 0]]}
    unsaid = {"objects": [{**square, "size": None, "color": None}, circle], "relations": [], "background": None}
    assert world.check_pictures([picture] * 5, [scene, bound, placed, mirrored, unsaid]) == [
        True, False, False, True, True,
    ]  # fmt: skip
    assert world.answer_question(picture, "Is the red square left of the blue circle?") == "yes"
    assert world.answer_question(picture, "Is the circle left of the red object?") == "no"
    with pytest.raises(ValueError, match="no question of this form"):
        world.answer_question(picture, "Is it nice?")


def test_the_checker_finds_no_shape_in_noise_or_nothing():
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    assert not any(found["shape"] for found in world.read_picture(Image.fromarray(noise))["objects"])
    assert world.read_picture(Image.new("RGB", (48, 48), "white")) == {"background": "white", "objects": []}


# ---------------------------------------------------------------------------------------------------- the prompts


def test_users_have_many_patterns_and_validation_has_more():
    frames = {frame for kind in users.FRAMES.values() for frame in kind}
    held_out = {frame for kind in users.HELD_OUT_FRAMES.values() for frame in kind}
    assert len(frames) >= 60 and len(held_out) >= 15 and not frames & held_out
    for usual, unusual in ((users.WORDS, users.HELD_OUT_WORDS), (users.KOREAN, users.HELD_OUT_KOREAN)):
        assert usual.keys() == unusual.keys()
        known = {word for words in usual.values() for word in words}
        assert not known & {word for words in unusual.values() for word in words}


def test_training_never_shows_the_words_the_pairs_and_the_patterns_of_validation():
    training, validation = rows("train"), rows("validation")
    assert len(training) == 1000 and len(validation) == 300
    held_out = [word for words in users.HELD_OUT_WORDS.values() for word in words]
    held_out = re.compile(rf"\b(?:{'|'.join(map(re.escape, held_out))})s?\b", re.IGNORECASE)
    prompts = [row["user_prompt"] for row in training]
    assert not [prompt for prompt in prompts if held_out.search(prompt)]
    assert sum(bool(held_out.search(row["user_prompt"])) for row in validation) >= 150
    assert all(any(has_unseen_pair(group) for group in row["scene"]["objects"]) for row in validation)
    assert not {row["user_prompt"] for row in validation} & set(prompts)
    assert {row["category"] for row in validation} == {row["category"] for row in training} == set(users.CATEGORIES)


def has_unseen_pair(group):
    return any(
        group["color"] in (None, color) and group["shape"] in (None, shape) for color, shape in world.UNSEEN_PAIRS
    )


def test_training_rows_do_not_carry_the_scene():
    assert all("scene" not in row for row in rows("train"))


def test_the_prompts_in_the_repository_are_the_ones_that_the_seed_gives():
    assert users.prompt_rows(300, unseen=True, seed=1) == rows("validation")


@pytest.mark.parametrize("name", ["train", "validation", "hand_written", "hand_written_2"])
def test_each_question_needs_only_earlier_ones(name):
    for row in rows(name):
        for index, question in enumerate(row["questions"]):
            assert question["answer"] and question["skill"] and all(need < index for need in question["needs"])


@pytest.mark.parametrize("name", ["hand_written", "hand_written_2"])
def test_hand_written_prompts_are_sixty_and_no_pattern_made_them(name):
    written = rows(name)
    made = {row["user_prompt"] for other in ("train", "validation") for row in rows(other)}
    assert len(written) == 60 and not {row["user_prompt"] for row in written} & made
    assert sum(row["category"] == "korean" for row in written) >= 15
    assert all(sum(group["count"] for group in row["scene"]["objects"]) <= world.MAX_SHAPES for row in written)


def test_training_prompts_ask_about_no_unseen_pair():
    asked = {row["question"] for prompt in rows("train") for row in prompt["questions"]}
    assert not [question for question in asked for pair in world.UNSEEN_PAIRS if f" {' '.join(pair)}" in question]


# --------------------------------------------------------------------------------------------------- the rewrites


def test_a_caption_says_its_scene_and_no_near_one():
    rng = random.Random(0)
    for _ in range(300):
        scene = world.random_scene(rng)
        said = users.user_prompt(scene, "left_out", rng)[1]
        assert rewrites.read_caption(world.caption(scene)) == scene
        assert rewrites.says(world.caption(scene), scene) and rewrites.says(world.caption(scene), said)
        assert not rewrites.says(world.caption(world.near_scene(scene, rng)), scene)


@pytest.mark.parametrize("way", [FreeSpeaker, OddSpeaker, OtherSpeaker, PatternSpeaker])
def test_users_whom_pretraining_hears_say_what_they_mean(way):
    rng = random.Random(0)
    for _ in range(500):
        scene = world.random_scene(rng)
        category = rng.choice((*users.CATEGORIES, "korean"))
        prompt, said, spoken = users.spoken_prompt(scene, category, rng, True, way)
        assert prompt.strip() and "None" not in prompt and not re.search(r"{[a-z_0-9]+}", prompt), prompt
        if category in ("plain", "order", "terse", "polite"):  # no slips, no capitals
            shapes = {group["shape"] for group in said["objects"]} - {None}
            assert shapes <= {*spoken} or any(icon in prompt for icon in ICONS), prompt


def test_a_pattern_tells_which_scenes_it_is_for():
    assert kind_of("{a_n} {a_shape}, {a_color}, on {bg}") == ((1, False, {"shape", "color"}, True), set())
    assert kind_of("the {a_color} {a_shape} on {bg}") == ((1, False, {"shape", "color"}, True), {"a"})
    assert kind_of("{b}? {b_to_a} {a}, and {a_ref} is {a_side_c} of {c}") == ((3, True, None, False), set())
    for wrong in ("{b} on {bg}", "{a} and {b}, {a_to_c} {c}", "{a}, {b} and {c}, {a_to_b} it", "a page, all {bg}"):
        with pytest.raises(ValueError, match="groups or places are left out"):
            kind_of(wrong)
    for wrong in ("{a_size} {a_shape}, {b_shape}", "{a} and a {b_color} {b_shape}", "{a}, {a_color}", "{a_n} of {b}"):
        with pytest.raises(ValueError, match="not the same looks of all groups"):
            kind_of(wrong)


def test_a_rewrite_has_the_groups_in_the_order_of_the_prompt():
    red = {"shape": "circle", "color": "red", "size": "big", "count": 1}
    blue = {"shape": "circle", "color": "blue", "size": "big", "count": 1}
    scene = {"objects": [red, blue], "relations": [[0, "left of", 1]], "background": "pink"}
    spoken = {"red": "crimson", "blue": "azure", "circle": "disk", "big": "large"}
    inverse = "one big blue circle right of one big red circle on a pink background"
    for prompt, text in (("Azure disk, right of a crimson one", inverse), ("an ajure disk, a crimson one", None)):
        ordered = rewrites.in_order_of_mention(scene, prompt, spoken)
        assert world.caption(ordered) == (text or world.caption(scene))
    rng = random.Random(0)
    for _ in range(300):
        scene = world.random_scene(rng)
        prompt, said, spoken = users.spoken_prompt(scene, "plain", rng, True, PatternSpeaker)
        assert rewrites.says(world.caption(rewrites.in_order_of_mention(scene, prompt, spoken)), said)


def test_the_policy_learns_from_rewrites_of_mixed_quality():
    rng = random.Random(0)
    good = 0
    for _ in range(300):
        scene = world.random_scene(rng)
        prompt, said, spoken = users.spoken_prompt(scene, rng.choice(users.CATEGORIES), rng, held_out=True)
        good += rewrites.says(rewrites.mixed_rewrite(scene, said, spoken, rng), said)
    assert 60 <= good <= 180


# ---------------------------------------------------------------------------------------------------- the models


def shipped_files():
    """The built files in the repository, without the programs that build them, and the prompts and patterns."""
    files = [file for file in TINY_WORLD.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]
    written = {"hand_written.jsonl", "hand_written_2.jsonl", "patterns_en.txt", "patterns_ko.txt"}
    return {str(file.relative_to(TINY_WORLD)) for file in files} - written


def test_the_folder_is_small():
    files = [TINY_WORLD / name for name in shipped_files()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_captions_are_drawn_right_and_users_prompts_are_not(renderer, validation_rows):
    rng = random.Random(3)
    scenes = [world.random_scene(rng) for _ in range(40)]
    images = renderer.render([(world.caption(scene), index) for index, scene in enumerate(scenes)])
    assert sum(world.check_pictures(images, scenes)) >= 36
    rows = validation_rows[:40]
    images = renderer.render([(row["user_prompt"], index) for index, row in enumerate(rows)])
    assert sum(world.check_pictures(images, [row["scene"] for row in rows])) <= 4


@pytest.mark.nightly
def test_the_script_rebuilds_every_part(tmp_path):
    """All of the code with a few steps of training: the models are bad, the files are whole."""
    command = [sys.executable, "data/tiny_world/build.py", "--output", str(tmp_path), "--scale", "0.002"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    built = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert built == shipped_files()
    for name in ("train.jsonl", "validation.jsonl"):
        assert (tmp_path / name).read_text() == (TINY_WORLD / name).read_text()

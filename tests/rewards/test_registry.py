"""Rewards by name: those of Brushup and your own, and their settings."""

import re
import sys
import time

import pytest
import torch
from conftest import REPOSITORY
from PIL import Image

from brushup.config import RewardConfig
from brushup.rewards import catalog
from brushup.rewards.combine import Objective
from brushup.rewards.guard import GuardedImageReward
from brushup.rewards.registry import (
    REWARDS,
    RewardSpec,
    TextReward,
    check_image_count,
    load_text_rewards,
    parse_rewards,
    resolve,
)
from support.rewards import completions, load_reward


def test_an_unknown_name_gives_the_near_misses_and_the_list():
    with pytest.raises(ValueError) as error:
        resolve("keyword_retension")
    assert "did you mean 'keyword_retention'?" in str(error.value)
    assert all(name in str(error.value) for name in REWARDS)


def test_image_rewards_and_text_rewards():
    text_rewards = {name for name in REWARDS if not RewardSpec(name).looks_at_images}
    assert text_rewards == set("format intent keyword_retention language length quality_score repetition".split())
    comparing = {name for name in REWARDS if RewardSpec(name).least_images > 1}
    assert comparing == {"diversity", "style_consistency"}


def test_the_list_of_rewards():
    """As `python recipes/grpo.py --list_rewards` prints it."""
    lines = dict(line.split(maxsplit=1) for line in catalog.table().splitlines())
    assert list(lines) == list(REWARDS) == sorted(REWARDS)
    for name, line in lines.items():
        assert line.startswith("image" if RewardSpec(name).looks_at_images else "text") and "Higher is better" in line
    page = (REPOSITORY / "docs" / "rewards.md").read_text()
    assert page == catalog.page(), "python -m brushup.rewards.catalog > docs/rewards.md"
    assert "`model_name='ViT-L-14'`" in page and "`target`" in page
    assert catalog.arguments("ocr") == ["recognition_model=None"] and not catalog.arguments("format")


def test_a_reward_imports_neither_another_reward_nor_a_library_that_may_be_missing():
    """`--list_rewards` imports all of them, extras or not; and OpenCLIP takes seconds."""
    modules = {target.split(":")[0] for target in REWARDS.values()}
    lazy = {"diffusers", "nudenet", "onnxruntime", "open_clip", "py3langid", "rapidocr"}
    for module in modules:
        lines = (REPOSITORY / "rewards" / f"{module.split('.')[-1]}.py").read_text().splitlines()
        imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
        assert not imported & (modules | lazy)


def test_your_own_file_with_keyword_arguments(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Brightness:\n"
        "    def __init__(self, scale: float = 1.0, device=None):\n"
        "        self.scale, self.device = scale, device\n"
        "    def __call__(self, images, user_prompts, prompts):\n"
        "        return [self.scale * image.convert('L').getpixel((0, 0)) / 255 for image in images]\n"
    )
    name = f"{tmp_path}/mine.py:Brightness"
    assert RewardSpec(name).looks_at_images and RewardSpec(name).name == "Brightness"
    reward = load_reward(name, scale=0.5)
    assert reward([Image.new("RGB", (4, 4), "white")], [""], [""]) == [0.5] and reward.device == "cpu"
    assert RewardSpec(name, kwargs={"device": "cuda:1"}).load("cpu").device == "cuda:1"
    with pytest.raises(ValueError, match=re.escape(f"reward_kwargs of '{name}'") + ".*'size'.*it takes .*scale"):
        load_reward(name, size=3)


def test_your_own_module():
    assert load_reward("brushup.rewards.keyword_retention:keyword_retention") is load_reward("keyword_retention")


@pytest.mark.parametrize(
    "name", ["brushup.rewards.clip:Nothing", "no_such_package:reward", "no/such/file.py:reward", "README.md:reward"]
)
def test_a_reward_that_cannot_be_loaded_is_named(name):
    with pytest.raises(ValueError, match=re.escape(f"cannot load '{name}'")):
        resolve(name)


def test_a_function_takes_no_keyword_arguments():
    with pytest.raises(ValueError, match="'quality_score' is a function and takes no reward_kwargs, but got weight"):
        load_reward("quality_score", weight=2)


# ---------------------------------------------------------------------------------------------------- the settings


def test_settings_by_name_and_by_source():
    source = "brushup.rewards.quality_score:quality_score"
    config = RewardConfig(
        ["clip", source, "length"],
        reward_kwargs='{"clip": {"model_name": "ViT-B-32"}, "length": {"target": 9}}',  # JSON, as flags are
        reward_transforms={source: {"clamp": [0, 0.5]}, "hpsv2": "zscore"},  # hpsv2 is left out this time
        reward_gates={"quality_score": 0.4, "clip": 0},
        gain_gates={"clip": 0.1},
    )
    assert parse_rewards(config, [1.0, 0.0, -0.5]) == [
        RewardSpec("clip", 1.0, {"model_name": "ViT-B-32"}, gate=0, gain_gate=0.1),
        RewardSpec(source, 0.0, transforms={"clamp": [0, 0.5]}, gate=0.4),
        RewardSpec("length", -0.5, {"target": 9}),
    ]
    assert [spec.weight for spec in parse_rewards(RewardConfig(["format", "clip"]))] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_funcs": ["clop"]}, "unknown reward 'clop': did you mean 'clip'"),
        ({"reward_kwargs": {"clip": {"modle": 3}}}, "reward_kwargs of 'clip': .*'modle'; it takes .*model_name"),
        ({"reward_kwargs": {"length": {"target": 9}, "clop": {}}}, "reward_kwargs: unknown reward 'clop'"),
        ({"reward_transforms": {"clop": "zscore"}}, "reward_transforms: unknown reward 'clop'"),
        ({"reward_transforms": {"clip": "log"}}, "reward_transforms: log of clip is unknown; there is zscore"),
        ({"reward_transforms": {"clip": {"clamp": 0.3}}}, r"clamp of clip is 0.3; it must be \[low, high\]"),
        ({"reward_transforms": {"clip": {"scale": [0.3, 0.3]}}}, r"scale of clip is \[0.3, 0.3\]"),
        ({"reward_gates": {"safety": 1}}, r"'safety' is not among reward_funcs \(clip, length\).*weight 0"),
        ({"reward_gates": {"clip": "high"}}, "reward_gates: clip is 'high'; it must be a number"),
        ({"gain_gates": {"length": 0}}, "gain_gates: 'length' looks at no image"),
        (
            {"reward_funcs": ["quality_score", "brushup.rewards.quality_score:quality_score"]},
            "reward_funcs: two rewards have the same name: quality_score, quality_score",
        ),
        ({"reward_funcs": ["diversity"]}, "images_per_prompt is 1, but the reward 'diversity' .* set it to 2 or more"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    config = RewardConfig(
        **{"reward_funcs": ["clip", "length"], "reward_kwargs": {"length": {"target": 9}}} | settings
    )
    with pytest.raises(ValueError, match=message):
        specs = parse_rewards(config)
        check_image_count(specs, images_per_prompt=1)
        Objective.from_specs(specs)


def test_another_number_of_weights_than_rewards():
    with pytest.raises(ValueError, match="reward_weights: 3 weights for 1 reward_funcs"):
        parse_rewards(RewardConfig(["clip"]), [1.0, 2.0, 3.0])


# ------------------------------------------------------------------------------------------- a text reward in a run


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [0.5] * 3", "reward 'mine' returned 3 scores for 2 rewrites"),
        ("return ['good'] * len(prompts)", "reward 'mine' failed: ValueError: could not convert string to float"),
        ("raise KeyError('oops')", "reward 'mine' failed: KeyError: 'oops'"),
        ("return [None, float('nan')]", "reward 'mine' gave None or NaN to each of 2 rewrites"),
        ("import sys; sys.exit(3)", "reward 'mine' failed: RuntimeError: it called sys.exit(3)"),
        ("import time; time.sleep(60)", "reward 'mine' failed: TimeoutError: it did not return within 0.5 s"),
    ],
)
def test_a_broken_text_reward_gives_no_scores_and_an_error(tmp_path, body, message):
    (tmp_path / "mine.py").write_text(f"def mine(prompts, completions, **columns):\n    {body}\n")
    reward = TextReward(RewardSpec(f"{tmp_path}/mine.py:mine"), timeout=0.5)
    assert reward(completions("a cat", "a dog"), prompts=["", ""]) == [None, None]
    assert reward.error.startswith(message)


def test_the_error_of_a_text_reward_is_that_of_its_last_call(tmp_path):
    (tmp_path / "mine.py").write_text(
        "async def mine(completions, **columns):\n    return [1 / len(c[0]['content']) for c in completions]\n"
    )
    rewards = load_text_rewards([RewardSpec("clip"), RewardSpec(f"{tmp_path}/mine.py:mine")])
    assert list(rewards) == ["mine"] == [reward.__name__ for reward in rewards.values()]
    assert rewards["mine"](completions("")) == [None] and "ZeroDivisionError" in rewards["mine"].error
    assert rewards["mine"](completions("four")) == [0.25] and rewards["mine"].error is None


def test_a_reward_cannot_change_what_the_others_get(tmp_path):
    body = "completions[0][0]['content'] = 'x'; completions.pop(); scene[0]['color'] = 'x'; return [1.0, 1.0]"
    (tmp_path / "mine.py").write_text(f"def mine(completions, scene, **columns):\n    {body}\n")
    written, scenes = completions("a cat", "a dog"), [{"color": "red"}, {"color": "blue"}]
    reward = TextReward(RewardSpec(f"{tmp_path}/mine.py:mine"))
    assert reward(completions=written, scene=scenes) == [1.0, 1.0]
    assert written == completions("a cat", "a dog") and scenes == [{"color": "red"}, {"color": "blue"}]


def test_an_image_reward_cannot_hang_exit_or_change_what_the_others_get():
    def spoil(images, user_prompts, prompts):
        images[0].paste("black", (0, 0, 4, 4))
        images[1].zero_()
        del images[0], prompts[:]
        return [1.0]

    image, pixels, prompts = Image.new("RGB", (4, 4), "red"), torch.ones(3, 4, 4), ["a", "b"]
    images = [image, pixels]
    assert GuardedImageReward(spoil, 5)(images, prompts, prompts) == [1.0]
    assert len(images) == len(prompts) == 2 and image.getpixel((0, 0)) == (255, 0, 0) and pixels.min() == 1
    with pytest.raises(RuntimeError, match=r"it called sys.exit\('bye'\)"):
        GuardedImageReward(lambda *_: sys.exit("bye"), 5)([], [], [])
    with pytest.raises(TimeoutError, match="it did not return within 0.1 s$"):
        GuardedImageReward(lambda *_: time.sleep(60), 0.1)([], [], [])


@pytest.mark.parametrize("line", ["import sys; sys.exit(2)", "1 / 0", "def mine(:"])
def test_a_file_that_cannot_be_run_is_named(tmp_path, line):
    (tmp_path / "mine.py").write_text(line)
    with pytest.raises(ValueError, match=r"cannot load '.*mine.py:mine': (SystemExit|ZeroDivisionError|SyntaxError)"):
        resolve(f"{tmp_path}/mine.py:mine")

import inspect
import json
import random
import re

import open_clip
import pytest
import torch
from conftest import REPOSITORY, TINY_WORLD
from PIL import Image

from brushup import tiny_world as world
from brushup.rewards import REWARDS, catalog, is_image_reward, load_reward, resolve
from brushup.rewards.quality_score import quality_points


def completions(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


# ------------------------------------------------------------------------------------------------------ by name


def test_an_unknown_name_gives_the_near_misses_and_the_list():
    with pytest.raises(ValueError) as error:
        resolve("keyword_retension")
    assert "did you mean 'keyword_retention'?" in str(error.value)
    assert all(name in str(error.value) for name in REWARDS)


def test_kinds():
    assert is_image_reward("clip")
    assert not any(map(is_image_reward, ["keyword_retention", "length", "quality_score"]))


def test_the_list_of_rewards():
    """As `python recipes/grpo.py --list_rewards` prints it."""
    lines = dict(line.split(maxsplit=1) for line in catalog.table().splitlines())
    assert list(lines) == list(REWARDS) == sorted(REWARDS)
    for name, line in lines.items():
        assert line.startswith("picture" if is_image_reward(name) else "text") and "Higher is better" in line
    assert catalog.keyword_arguments("length").keys() <= set(inspect.signature(resolve("length")).parameters)
    assert catalog.keyword_arguments("clip")["model_name"] == "'ViT-L-14'"
    page = (REPOSITORY / "docs" / "rewards.md").read_text()
    assert page == catalog.page(), "python -m brushup.rewards.catalog > docs/rewards.md"


def test_your_own_file_with_keyword_arguments(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Brightness:\n"
        "    def __init__(self, scale: float = 1.0, device=None):\n"
        "        self.scale = scale\n"
        "    def __call__(self, images, user_prompts, prompts):\n"
        "        return [self.scale * image.convert('L').getpixel((0, 0)) / 255 for image in images]\n"
    )
    name = f"{tmp_path}/mine.py:Brightness"
    assert is_image_reward(name)
    assert load_reward(name, scale=0.5, device="cpu")([Image.new("RGB", (4, 4), "white")], [""], [""]) == [0.5]
    with pytest.raises(ValueError, match=re.escape(f"reward_kwargs of '{name}'") + ".*'size'.*it takes .*scale"):
        load_reward(name, size=3)


def test_your_own_module():
    assert load_reward("brushup.rewards.keyword_retention:keyword_retention") is load_reward("keyword_retention")


@pytest.mark.parametrize(
    "name", ["brushup.rewards.clip:Nothing", "no_such_package:reward", "no/such/file.py:reward", "README.md:reward"]
)
def test_what_cannot_be_loaded_is_named(name):
    with pytest.raises(ValueError, match=re.escape(f"cannot load '{name}'")):
        resolve(name)


def test_a_function_takes_no_keyword_arguments():
    with pytest.raises(ValueError, match="'quality_score' is a function and takes no reward_kwargs, but got weight"):
        load_reward("quality_score", weight=2)


# --------------------------------------------------------------------------------------------------------- clip


def test_clip_is_the_cosine_of_open_clip(clip):
    """Against a direct computation with OpenCLIP on the same weights."""
    folder = f"local-dir:{TINY_WORLD / 'scorer'}"
    model, _, preprocess = open_clip.create_model_and_transforms(folder)
    model.eval()
    scenes = world.all_scenes()[::200]
    pictures = [world.draw_scene(scene, random.Random(1)) for scene in scenes]
    texts = [world.canonical_caption(scene) for scene in scenes]
    with torch.no_grad():
        seen = model.encode_image(torch.stack([preprocess(picture) for picture in pictures]), normalize=True)
        read = model.encode_text(open_clip.get_tokenizer(folder)(texts), normalize=True)
    wanted = (seen * read).sum(-1).clamp(min=0).tolist()
    assert clip(pictures, texts, [""] * len(texts)) == pytest.approx(wanted, abs=1e-5)


def test_clip_does_not_look_at_the_rewrite(clip):
    picture = world.draw_scene(world.all_scenes()[0], random.Random(1))
    assert clip([picture] * 2, ["a red circle"] * 2, ["one", "another"])[0] == pytest.approx(
        clip([picture], ["a red circle"], [""])[0], abs=1e-5
    )


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_clip_in_half_precision(clip, precision):
    scene = world.all_scenes()[0]
    pictures, texts = [world.draw_scene(scene, random.Random(1))] * 2, [world.canonical_caption(scene), "a blue cross"]
    half = load_reward("clip", model_name=f"local-dir:{TINY_WORLD / 'scorer'}", precision=precision, device="cpu")
    assert half(pictures, texts, texts) == pytest.approx(clip(pictures, texts, texts), abs=0.02)


def test_clip_takes_a_checkpoint_file_and_refuses_random_weights(tmp_path):
    small = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1}}
    small["vision_cfg"]["head_width"] = 16
    small["text_cfg"] = {"width": 32, "heads": 2, "layers": 1}
    (tmp_path / "small.json").write_text(json.dumps(small))
    open_clip.add_model_config(tmp_path / "small.json")
    torch.save(open_clip.create_model("small").state_dict(), tmp_path / "weights.pt")
    reward = load_reward("clip", model_name="small", pretrained=str(tmp_path / "weights.pt"), device="cpu")
    assert 0 <= reward([Image.new("RGB", (40, 30), "red")], ["red"], [""])[0] <= 1
    with pytest.raises(RuntimeError):
        load_reward("clip", model_name="small", pretrained=None, device="cpu")


# --------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("asked", "rewrite", "share"),
    [
        ("a purple rabbit eating carrots", "A Purple rabbit, eating a carrot in the grass", 1.0),
        ("a purple rabbit eating carrots", "a rabbit eating carrots", 0.75),
        ("three boxes", "three box-like buildings and a box", 1.0),
        ("draw me a picture of the", "anything", 1.0),
        ("보라색 토끼", "당근을 먹는 보라색 토끼", 1.0),
        ("a cat", "", 0.0),
        ("보라색 토끼", "a purple rabbit", 1.0),  # a translation has no word in common
        ("보라색 토끼", "a purple 토끼", 0.5),
        ("보라색 토끼", "고양이", 0.0),
        ("간판에 COFFEE 만", "a sign", 0.0),
        ("간판에 COFFEE 만", "a sign that reads COFFEE", 1.0),
    ],
)
def test_keyword_retention(asked, rewrite, share):
    assert load_reward("keyword_retention")(completions(rewrite), user_prompt=[asked]) == [share]


@pytest.mark.parametrize(
    ("asked", "rewrite", "earned"),
    [
        (
            "a cat",
            "a fluffy orange cat sitting on a sunny windowsill, highly detailed",
            {"longer", "keeps_keywords", "five_new_words", "quality_words", "sentence"},
        ),
        ("a cat", "a fluffy orange dog sitting on a sunny sill", {"longer", "five_new_words", "sentence"}),
        ("a cat", "cat", {"keeps_keywords"}),
        ("a cat", "cat 4k", {"longer", "keeps_keywords", "quality_words"}),
        ("a cat", "cat cat cat cat cat cat", {"longer", "keeps_keywords"}),
    ],
)
def test_quality_score(asked, rewrite, earned):
    points = quality_points(asked, rewrite)
    assert {name for name, has in points.items() if has} == earned
    assert load_reward("quality_score")(completions(rewrite), user_prompt=[asked]) == [len(earned) / 5]


def test_length():
    tokens = [{"clip": 77, "t5": 10}, {"clip": 0}, {"clip": 154}, {"clip": 38.5}, {"clip": 115.5}, {"clip": 900}, {}]
    rewrites = completions(*["a cat"] * len(tokens))
    assert load_reward("length", target=77)(rewrites, rewrite_tokens=tokens) == [1, 0, 0, 0.5, 0.5, 0, None]
    by_t5 = load_reward("length", target=20, tokenizer="t5")
    assert by_t5(rewrites[:1], rewrite_tokens=tokens[:1], user_prompt=["a cat"]) == [0.5]
    with pytest.raises(ValueError, match="no tokenizer 't5'; it has clip"):
        by_t5(rewrites[1:2], rewrite_tokens=tokens[1:2])
    with pytest.raises(ValueError, match="target is 0"):
        load_reward("length", target=0)

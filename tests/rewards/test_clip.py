"""`clip`, on the tiny world's scorer."""

import json
import random

import open_clip
import pytest
import torch
from conftest import TINY_WORLD
from PIL import Image

import world
from support.rewards import load_reward


def test_clip_is_the_cosine_of_open_clip(clip):
    """Against a direct computation with OpenCLIP on the same weights."""
    folder = f"local-dir:{TINY_WORLD / 'scorer'}"
    model, _, preprocess = open_clip.create_model_and_transforms(folder)
    model.eval()
    scenes = [world.random_scene(random.Random(seed)) for seed in range(4)]
    images = [world.draw_scene(scene, random.Random(1)) for scene in scenes]
    texts = [world.caption(scene) for scene in scenes]
    with torch.no_grad():
        image_features = model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        text_features = model.encode_text(open_clip.get_tokenizer(folder)(texts), normalize=True)
    expected = (image_features * text_features).sum(-1).clamp(min=0).tolist()
    assert clip(images, texts, [""] * len(texts)) == pytest.approx(expected, abs=1e-5)


def test_clip_does_not_look_at_the_rewrite(clip):
    image = world.draw_scene(world.random_scene(random.Random(0)), random.Random(1))
    assert clip([image] * 2, ["a red circle"] * 2, ["a rewrite", "another"])[0] == pytest.approx(
        clip([image], ["a red circle"], [""])[0], abs=1e-5
    )


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_clip_in_half_precision(clip, precision):
    scene = world.random_scene(random.Random(0))
    images, texts = [world.draw_scene(scene, random.Random(1))] * 2, [world.caption(scene), "a blue cross"]
    half = load_reward("clip", model_name=f"local-dir:{TINY_WORLD / 'scorer'}", precision=precision)
    assert half(images, texts, texts) == pytest.approx(clip(images, texts, texts), abs=0.02)


def test_clip_takes_a_checkpoint_file_and_refuses_random_weights(tmp_path):
    small = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1}}
    small["vision_cfg"]["head_width"] = 16
    small["text_cfg"] = {"width": 32, "heads": 2, "layers": 1}
    (tmp_path / "small.json").write_text(json.dumps(small))
    open_clip.add_model_config(tmp_path / "small.json")
    torch.save(open_clip.create_model("small").state_dict(), tmp_path / "weights.pt")
    reward = load_reward("clip", model_name="small", pretrained=str(tmp_path / "weights.pt"))
    assert 0 <= reward([Image.new("RGB", (40, 30), "red")], ["red"], [""])[0] <= 1
    with pytest.raises(RuntimeError):
        load_reward("clip", model_name="small", pretrained=None)

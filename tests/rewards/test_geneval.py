"""`geneval`: GenEval's rules on objects made by hand, and the whole path with small models."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY_WORLD
from PIL import Image, ImageDraw
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from brushup.prompts.dataset import load_prompts
from brushup.rewards.geneval import COLORS, instances
from brushup.rewards.geneval_rules import Detection, is_right, objects_by_class, relations
from support.rewards import load_reward


LABELS = {0: "cup", 1: "mouse", 2: "sofa"}


def found(name, confidence=0.9, left=0, top=0, size=10):
    return Detection(name, confidence, (left, top, left + size, top + size))


# ------------------------------------------------------------------------------------------------------------ rules


def test_the_surest_16_of_a_class_above_the_confidence_count():
    cups = [found("cup", confidence) for confidence in np.linspace(0.31, 0.99, 20)]
    objects = objects_by_class([*cups, found("dog", 0.3), found("cat", 0.3001)], 0.3)
    assert objects == {"cup": cups[:3:-1], "cat": [found("cat", 0.3001)]}


@pytest.mark.parametrize(
    ("left", "top", "seen"),
    [
        (-20, 0, {"left of"}),
        (20, 3, {"right of"}),
        (0, -20, {"above"}),
        (-3, 20, {"below"}),
        (-20, -20, {"left of", "above"}),
        (-2, 0, set()),  # a tenth of both widths
        (-3.9, 0, set()),  # (3.9 - 2) / 3.9 < 0.5
        (-4.1, 0, {"left of"}),
        (10, -100, {"above"}),
        (0, 0, set()),
    ],
)
def test_where_a_box_is_seen_from_another(left, top, seen):
    assert relations(found("cup", left=left, top=top).box, found("dog").box) == seen


CUP, TWO_CUPS = {"class": "cup", "count": 1}, {"class": "cup", "count": 2}
RED_CUP, TWO_RED_CUPS = CUP | {"color": "red"}, TWO_CUPS | {"color": "red"}
LEFT_OF_CUP = {"class": "dog", "count": 1, "position": ["left of", 0]}


@pytest.mark.parametrize(
    ("lefts", "include", "exclude", "right"),
    [
        ({"cup": [0]}, [CUP], None, True),
        ({"cup": [0]}, [CUP | {"color": None, "position": None}], [], True),  # as a table fills up what is not there
        ({"dog": [0]}, [CUP], None, False),
        ({"cup": [0]}, [CUP, CUP | {"class": "dog"}], None, False),
        ({"cup": [0, 20, 40]}, [TWO_CUPS], None, True),
        ({"cup": [0]}, [TWO_CUPS], None, False),
        ({"cup": [0, 20, 40]}, [TWO_CUPS], [CUP | {"count": 3}], False),
        ({"cup": [0, 20]}, [TWO_CUPS], [CUP | {"count": 3}], True),
        # red is what begins at 0
        ({"cup": [0, 20]}, [RED_CUP], None, True),
        ({"cup": [20, 0]}, [RED_CUP], None, False),  # the surest is not red
        ({"cup": [0, 20]}, [TWO_RED_CUPS], None, False),
        ({"cup": [0, 0]}, [TWO_RED_CUPS], None, True),
        ({"cup": [0], "dog": [-20]}, [CUP, LEFT_OF_CUP], None, True),
        ({"cup": [0], "dog": [20]}, [CUP, LEFT_OF_CUP], None, False),
        ({"cup": [0], "dog": [-20, 20]}, [CUP, LEFT_OF_CUP], None, True),  # only the surest is looked at
        ({"cup": [0], "dog": [-20, 20]}, [CUP, LEFT_OF_CUP | {"count": 2}], None, False),
        ({"cup": [0, -40], "dog": [-20]}, [TWO_CUPS, LEFT_OF_CUP], None, False),  # left of both
        ({"dog": [-20]}, [CUP, LEFT_OF_CUP], None, False),
        ({"cup": [20], "dog": [0]}, [RED_CUP, LEFT_OF_CUP], None, False),  # no red cup to be left of
    ],
)
def test_whether_a_row_is_fulfilled(lefts, include, exclude, right):
    objects = {name: [found(name, left=left) for left in places] for name, places in lefts.items()}
    red_at_0 = lambda some: ["red" if detection.box[0] == 0 else "blue" for detection in some]  # noqa: E731
    assert is_right(objects, include, exclude, red_at_0) is right


# ---------------------------------------------------------------------------------------------------- the detector


def test_instances_of_masks_made_by_hand():
    """Two queries: a sofa in the right half, a cup with a weak mask in the left one; the third finds nothing."""
    masks = torch.full((3, 4, 8), -1.0)
    masks[0, :, :4], masks[0, :, 4:] = -9.0, 9.0
    masks[1, :, :4] = 1.0
    classes = torch.tensor([[0.0, 0, 9, 0], [9, 0, 0, 0], [0, 0, 0, 9]])
    made = instances(classes, masks, (16, 32), (8, 16), 0.3)
    assert made["labels"].tolist() == [2, 0]
    assert made["scores"].tolist() == pytest.approx(
        [1.0, 0.71], abs=0.02
    )  # the mean of the mask: sigmoid(1) but at the edge
    assert made["boxes"].tolist() == [[8, 0, 16, 8], [0, 0, 8, 8]]
    assert made["masks"][0, :, 8:].all() and not made["masks"][0, :, :8].any()
    assert instances(classes, masks, (16, 32), (8, 16), 0.8)["labels"].tolist() == [2]
    assert instances(classes, masks, (16, 32), (8, 16), 1.0)["labels"].tolist() == []


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """A Mask2Former and a YOLOS, both small, with random weights; each query is sure to see a cup."""
    folder = tmp_path_factory.mktemp("detectors")
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=4,
        out_features=[f"stage{number}" for number in range(1, 5)],
    )
    widths = ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward")
    sizes = dict.fromkeys(widths, 32) | {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
    config = Mask2FormerConfig(backbone_config=swin, num_queries=8, id2label=LABELS, **sizes)
    segmenter = Mask2FormerForUniversalSegmentation(config)
    segmenter.class_predictor.bias.data[0] = 9.0
    segmenter.save_pretrained(folder / "mask2former")
    Mask2FormerImageProcessor().save_pretrained(folder / "mask2former")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = YolosConfig(image_size=[64, 64], num_detection_tokens=5, id2label=LABELS, **sizes)
    detector = YolosForObjectDetection(config)
    detector.class_labels_classifier.layers[-1].bias.data[0] = 9.0
    detector.save_pretrained(folder / "yolos")
    YolosImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "yolos")
    return folder


@pytest.fixture(scope="module")
def geneval(detectors):
    def load(name="mask2former", **kwargs):
        return load_reward(
            "geneval", model_name=str(detectors / name), clip_model=f"local-dir:{TINY_WORLD / 'scorer'}", **kwargs
        )

    return load


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def test_mask2former_finds_what_transformers_finds(geneval, image):
    """Beside the masks' resolution: there 384 x 384, here that of the model's input."""
    reward = geneval(confidence=0.01)
    made = reward.detect(image, 0.01)
    assert {detection.mask.shape for detection in made} == {(60, 90)}
    inputs = reward.processor(images=image, return_tensors="pt")
    assert inputs["pixel_values"].shape[2:] == (800, 1216)
    with torch.no_grad():
        outputs = reward.model(**inputs)
    (theirs,) = reward.processor.post_process_instance_segmentation(outputs, 0.01, target_sizes=[(60, 90)])
    wanted = sorted((LABELS[segment["label_id"]], segment["score"]) for segment in theirs["segments_info"])
    assert sorted(detection.name for detection in made) == [name for name, _ in wanted] and len(made) >= 6
    assert sorted(detection.confidence for detection in made) == pytest.approx([s for _, s in wanted], abs=0.01)


@pytest.mark.parametrize("name", ["mask2former", "yolos"])
def test_the_whole_path(geneval, image, name, tmp_path, monkeypatch):
    monkeypatch.setattr("brushup.rewards.geneval.SEGMENTATION_SIZE", {"shortest_edge": 96, "longest_edge": 160})
    rows = [
        {"include": [CUP]},
        {"include": [{"class": "couch", "count": 1}]},  # "sofa" in the model's file
        {"include": [{"class": "computer mouse", "count": 1, "color": "red"}, CUP | {"position": ["above", 0]}]},
        {"include": [CUP], "exclude": [TWO_CUPS]},
        {"include": [CUP], "exclude": [CUP | {"count": 17}]},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"user_prompt": "a photo"} | row) for row in rows))
    rows = load_prompts(str(tmp_path / "p.jsonl"), "validation")
    columns = list(rows["user_prompt"]), [""] * 5, list(rows["include"]), list(rows["exclude"])
    scores = geneval(name, confidence=0.4, counting_confidence=0.4)([image] * 5, *columns)
    assert scores == [1.0, 0.0, 0.0, 0.0, 1.0]  # all queries see cups
    scores = geneval(name, confidence=0.4, counting_confidence=0.9999)([image] * 5, *columns)
    assert scores == [1.0, 0.0, 0.0, 0.0, 0.0]  # no cup is sure enough in a row with `exclude`


def test_colours_are_read_off_the_object_alone_on_grey(geneval, monkeypatch):
    """A stand-in for OpenCLIP: of an image the pixel in the middle, of a text the colour that it names."""
    seen = []

    def image_features(crops, batch_size):
        seen.extend(crops)
        middles = [crop.getpixel((crop.width // 2, crop.height // 2)) for crop in crops]
        return torch.tensor([[float(color == rgb) for rgb in ((255, 0, 0), (0, 0, 255))] for color in middles])

    def text_features(texts, batch_size):
        return torch.tensor([[float(f" {color}" in text) for color in ("red", "blue")] for text in texts])

    reward = geneval()
    monkeypatch.setattr(reward, "clip", SimpleNamespace(image_features=image_features, text_features=text_features))
    image = Image.new("RGB", (40, 20), "lime")
    ImageDraw.Draw(image).rectangle((4, 4, 11, 11), "red")
    ImageDraw.Draw(image).rectangle((24, 4, 31, 11), "blue")
    masks = np.zeros((2, 20, 40), bool)
    masks[0, 4:12, 4:12] = masks[1, 4:12, 24:32] = True
    cups = [
        Detection("cup", 0.9, (2, 2, 14, 14), masks[0]),
        Detection("cup", 0.8, (22, 2, 34, 14), masks[1]),
        Detection("cup", 0.7, (5.2, 5.2, 5.3, 5.3), None),  # a box of less than a pixel
    ]
    assert reward.colors_of(image, cups) == ["red", "blue", "red"]
    assert seen[0].size == (12, 12) and seen[0].getcolors() == [(80, (0x99,) * 3), (64, (255, 0, 0))]


def test_the_colour_is_the_nearest_to_the_mean_of_three_prompts(geneval):
    reward = geneval()
    features = reward._features_of_colors("circle")
    prompts = ["a photo of a blue circle", "a photo of a blue-colored circle", "a photo of a blue object"]
    mean = reward.clip.text_features(prompts, 3).mean(0)
    assert features.shape[0] == len(COLORS) == 10
    assert torch.allclose(features[COLORS.index("blue")], mean / mean.norm(), atol=1e-5)


def test_what_cannot_be_judged_is_refused(geneval, image):
    reward = geneval()
    with pytest.raises(ValueError, match=r"'a cup': the row has no `include`.*recipes/benchmark.py geneval"):
        reward([image], ["a cup"], [""], [None], [None])
    with pytest.raises(
        ValueError, match=r"'a cow': .*mask2former knows no class 'cow'; it knows cup, computer mouse, "
    ):
        reward([image], ["a cow"], [""], [[CUP | {"class": "cow"}]], [None])
    with pytest.raises(ValueError, match=r"reward_kwargs of 'geneval': .*policy is a qwen2_vl .*name a Mask2Former"):
        load_reward("geneval", model_name=str(TINY_WORLD / "policy"))

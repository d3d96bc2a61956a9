"""The rewards that compare the images of one rewrite: diversity, style_consistency."""

import itertools
import random

import numpy as np
import open_clip
import pytest
import torch
from conftest import TINY_WORLD
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

import world
from support.rewards import load_reward


NAMES = ["diversity", "style_consistency"]
SCORER = {"model_name": f"local-dir:{TINY_WORLD / 'scorer'}"}
PALETTES = {"warm": ["wheat", "firebrick", "darkorange", "maroon"], "cold": ["lightcyan", "navy", "teal", "black"]}


def load(name):
    return load_reward(name, **(SCORER if name == "diversity" else {}))


def scene(content, palette, brush):
    """An image of a house, a boat or hills in four colours, plain or hatched."""
    ground, first, second, third = PALETTES[palette]
    image = Image.new("RGB", (160, 160), ground)
    draw = ImageDraw.Draw(image)
    if content == "house":
        draw.rectangle((0, 120, 160, 160), first)
        draw.rectangle((40, 70, 120, 130), second)
        draw.polygon([(30, 70), (80, 25), (130, 70)], third)
    elif content == "boat":
        draw.rectangle((0, 105, 160, 160), first)
        draw.polygon([(20, 95), (140, 95), (115, 125), (45, 125)], third)
        draw.polygon([(80, 10), (80, 88), (135, 88)], second)
    else:
        draw.polygon([(0, 160), (50, 60), (100, 160)], first)
        draw.polygon([(60, 160), (115, 35), (160, 160)], second)
        draw.ellipse((15, 15, 50, 50), third)
    if brush == "hatched":
        stripes = Image.new("L", image.size, 0)
        for start in range(-160, 160, 8):
            ImageDraw.Draw(stripes).line((start, 0, start + 160, 160), 255, width=3)
        image.paste("dimgray", mask=stripes)
    return image


CONTENTS = ("house", "boat", "hills")
STYLES = list(itertools.product(PALETTES, ("plain", "hatched")))


def mean_score(reward, images):
    """Of the images of one rewrite."""
    scores = reward(images, ["a place"] * len(images), ["a place by the sea"] * len(images))
    assert all(0 <= score <= 1 for score in scores)
    return sum(scores) / len(scores)


# ---------------------------------------------------------------------------------------- against the definition


def test_diversity_is_the_mean_distance_of_the_pairs():
    model, _, preprocess = open_clip.create_model_and_transforms(SCORER["model_name"])
    rng = random.Random(0)
    images = [world.draw_scene(scene, rng) for scene in (world.random_scene(rng) for _ in range(4))]
    with torch.no_grad():
        features = model.eval().encode_image(torch.stack([preprocess(image) for image in images]))
    distances = {
        (i, j): min(1.0, 1 - torch.cosine_similarity(features[i], features[j], dim=0).item())
        for i, j in itertools.permutations(range(4), 2)
    }
    expected = [sum(distances[i, j] for j in range(4) if j != i) / 3 for i in range(4)]
    scores = load("diversity")(images, ["a"] * 4, ["b"] * 4)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert sum(scores) / 4 == pytest.approx(sum(distances.values()) / 12, abs=1e-5)


def test_style_consistency_is_the_overlap_of_histograms():
    """Colours and gradients counted pixel by pixel, the histograms blurred by a matrix."""
    rng = np.random.default_rng(0)
    images = [scene("boat", "cold", "hatched"), scene("house", "warm", "plain")]
    images += [Image.fromarray((rng.random((40, 30, 3)) ** power * 255).astype(np.uint8)) for power in (1, 2)]
    blur = np.array([gaussian_filter(row, 0.5, mode="nearest") for row in np.eye(8)]).T

    def described(image):
        grey = np.asarray(image.convert("L")) / 255
        steps = [np.hypot(*(s * gaussian_filter(grey, s, order) for order in ((1, 0), (0, 1)))) for s in (1, 2)]
        colors, brush = np.zeros((8, 8, 8)), np.zeros((8, 8))
        for y, x in np.ndindex(grey.shape):
            colors[tuple(min(7, int(value / 255 * 8)) for value in image.getpixel((x, y)))] += 1
            places = [(np.log10(max(step[y, x], 1e-3)) + 3) / 2.6 * 8 for step in steps]
            brush[tuple(min(7, int(place)) for place in places)] += 1
        colors, brush = np.einsum("abc,xa,yb,zc", colors, blur, blur, blur), blur @ brush @ blur.T
        return colors / colors.sum(), brush / brush.sum()

    parts = [described(image) for image in images]
    likeness = [[np.prod([np.sqrt(a * b).sum() for a, b in zip(x, y, strict=True)]) for y in parts] for x in parts]
    expected = [sum(likeness[i][j] for j in range(4) if j != i) / 3 for i in range(4)]
    assert load("style_consistency")(images, ["a"] * 4, ["b"] * 4) == pytest.approx(expected, abs=2e-3)
    assert max(expected) - min(expected) > 0.05  # so that a wrong pairing shows


# -------------------------------------------------------------------------------------------- what is compared


@pytest.mark.parametrize("name", NAMES)
def test_only_images_of_one_rewrite_are_compared(name):
    """Two rewrites, mixed, and one of them for another user prompt, too; a lone image has no score."""
    reward, images = load(name), [scene(content, *style) for content in CONTENTS for style in STYLES[:3]]
    rewrites = [
        ("a", "x"),
        ("a", "y"),
        ("a", "x"),
        ("b", "x"),
        ("a", "x"),
        ("b", "x"),
        ("a", "y"),
        ("b", "z"),
        ("a", "y"),
    ]
    scores = reward(images, *map(list, zip(*rewrites, strict=True)))
    for rewrite in set(rewrites):
        mine = [place for place, other in enumerate(rewrites) if other == rewrite]
        alone = reward([images[place] for place in mine], ["a"] * len(mine), ["x"] * len(mine))
        assert [scores[place] for place in mine] == [
            pytest.approx(s, abs=1e-5) if s is not None else None for s in alone
        ]
    assert [place for place, score in enumerate(scores) if score is None] == [7]
    assert len({round(score, 3) for score in scores if score is not None}) > 4


@pytest.mark.parametrize("name", NAMES)
def test_images_that_are_equal(name):
    pair = [scene("boat", "cold", "plain")] * 2
    assert mean_score(load(name), pair) == pytest.approx(1.0 if name == "style_consistency" else 0.0, abs=1e-5)


def test_style_is_not_content():
    """Other content in one style is consistent; the same content in other colours or another brush is not."""
    reward = load("style_consistency")
    of_a_style = [mean_score(reward, [scene(content, *style) for content in CONTENTS]) for style in STYLES]
    pairs = itertools.combinations(STYLES, 2)
    of_a_content = [
        mean_score(reward, [scene(c, *style), scene(c, *other)]) for style, other in pairs for c in CONTENTS
    ]
    assert min(of_a_style) > max(of_a_content) + 0.2
    assert min(of_a_style) > 0.9 and min(of_a_content) < 0.1  # in other colours and with another brush


def test_diversity_and_style_consistency_are_not_opposites():
    """Three places in one style have much of both; one place three times has the style alone."""
    places = [scene(content, "warm", "plain") for content in CONTENTS]
    one_place = [scene("boat", "warm", "plain").crop((shift, 0, shift + 150, 150)) for shift in (0, 4, 8)]
    diversity, style = load("diversity"), load("style_consistency")
    assert mean_score(diversity, places) > 4 * mean_score(diversity, one_place)
    assert min(mean_score(style, places), mean_score(style, one_place)) > 0.7


def test_diversity_is_higher_for_more_scenes():
    rng = random.Random(1)
    diversity = load("diversity")
    means = []
    for count in (1, 2, 6):
        chosen = [world.random_scene(rng) for _ in range(count)]
        means.append(mean_score(diversity, [world.draw_scene(chosen[k % count], rng) for k in range(6)]))
    assert means[0] < means[1] < means[2]
    assert means[0] < 0.1 < means[2]


# --------------------------------------------------------------------------------------------- one model, shared


def test_diversity_shares_clips_model_and_pass():
    clip, diversity = load_reward("clip", **SCORER), load("diversity")
    assert clip.backbone is diversity.backbone
    assert type(clip).takes_pixels == type(diversity).takes_pixels  # else the worker gives them different images
    passes = []
    hook = clip.backbone.model.visual.register_forward_hook(lambda *_: passes.append(1))
    images, texts = [scene(content, "cold", "hatched") for content in CONTENTS], ["a"] * 3
    clip(images, texts, texts)
    shared = diversity(images, texts, texts)
    hook.remove()
    assert len(passes) == 1
    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() for image in images]
    assert diversity(pixels, texts, texts) == pytest.approx(shared, abs=0.02)

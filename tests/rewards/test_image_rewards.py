"""The rewards that look at images without a large model: image_quality, compression, ocr, safety."""

import functools
import io
import math
import shutil
import socket
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import rapidocr
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from skimage.measure import blur_effect

from brushup.rewards.image_quality import sharpness
from brushup.rewards.ocr import nearest_stretch, quoted_words, share_written
from brushup.rewards.safety import CLASSES
from support.rewards import load_reward


@pytest.fixture(scope="module", autouse=True)
def no_network():
    def refuse(*address, **settings):
        raise AssertionError(f"a reward asked the network for {address}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="module")
def ocr():
    return load_reward("ocr")


def sign(*lines, size=512):
    """An image that reads `lines`, one below the other."""
    image = Image.new("RGB", (512, 512), "papayawhip")
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((50, 60 + 120 * number), line, "navy", ImageFont.load_default(52))
    return image.resize((size, size))


def landscape(width=320, height=240):
    """Sky, sun, hills, and grass with fine blades."""
    image = Image.new("RGB", (width, height), "skyblue")
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.7, 20, width * 0.7 + 40, 60), "gold")
    draw.polygon([(0, height), (width * 0.3, height * 0.4), (width * 0.7, height)], "slategray")
    draw.rectangle((0, height * 0.75, width, height), "forestgreen")
    for x in range(0, width, 6):
        draw.line((x, height, x + 3, height * 0.8), "yellowgreen")
    return image


def score(reward, *images, user_prompt="anything"):
    return reward(list(images), [user_prompt] * len(images), [""] * len(images))


# ------------------------------------------------------------------------------------------------- image_quality


def test_image_quality_ranks_the_sharp_image_first():
    clear = landscape()
    worse = {
        "blurred": clear.filter(ImageFilter.GaussianBlur(3)),
        "washed out": clear.point(lambda value: 150 + value * 0.25),
        "dark": clear.point(lambda value: value * 0.1),
        "glaring": clear.point(lambda value: 235 + value * 0.08),
        "blank": Image.new("RGB", (320, 240), "skyblue"),
    }
    best, *others = score(load_reward("image_quality"), clear, *worse.values())
    assert 0.7 < best <= 1
    assert all(0 <= other < best - 0.1 for other in others), dict(zip(worse, others, strict=True))
    assert others[-1] == 0


def test_image_quality_drops_with_each_step_of_blur():
    steps = [landscape().filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 2, 4, 8)]
    scores = score(load_reward("image_quality"), *steps)
    assert scores == sorted(scores, reverse=True)


def test_image_quality_sees_contrast_of_colour_and_takes_any_size():
    red, green = (220, 40, 40), (40, 116, 40)  # of the same luminance
    image = Image.new("RGB", (64, 64), green)
    ImageDraw.Draw(image).rectangle((20, 20, 44, 44), red)
    grey = image.convert("L").convert("RGB")
    reward = load_reward("image_quality")
    assert score(reward, image)[0] > score(reward, grey)[0] + 0.3
    tiny = [
        Image.new("RGB", (1, 1), "red"),
        landscape(33, 57),
        Image.new("L", (40, 3), 7),
        landscape().convert("RGBA"),
    ]
    assert all(0 <= value <= 1 for value in score(reward, *tiny))


def test_image_quality_minds_exposure_where_contrast_is_full():
    def lamp(background, light):
        image = Image.new("RGB", (100, 100), background)
        image.paste(light, (40, 40, 60, 60))
        return image

    grey, dark, glaring = lamp("gray", "white"), lamp("black", "white"), lamp("white", "black")
    best, *others = score(load_reward("image_quality"), grey, dark, glaring)
    assert max(others) < best
    assert others[0] == pytest.approx(others[1], rel=0.01)


def test_sharpness_is_one_minus_the_blur_effect_of_scikit_image():
    noise = np.random.default_rng(0).random((60, 45))
    grey = np.asarray(landscape().convert("L")) / 255
    for luminance in (noise, grey, grey[:, :50], np.asarray(sign("OPEN").convert("L")) / 255):
        assert sharpness(luminance) == pytest.approx(1 - blur_effect(luminance), abs=1e-9)


# --------------------------------------------------------------------------------------------------- compression


def test_compression_is_the_size_that_pillow_writes():
    images = [landscape(), sign("OPEN"), Image.new("RGB", (512, 512), "red")]
    shares = []
    for image in images:
        image.save(file := io.BytesIO(), "JPEG", quality=95)
        shares.append(file.tell() / (3 * math.prod(image.size)))
    assert score(load_reward("compression"), *images) == pytest.approx([1 - share for share in shares])
    assert score(load_reward("compression", prefer="large"), *images) == pytest.approx(shares)
    assert 0 < shares[2] < shares[0] < 1
    speck = Image.effect_noise((4, 4), 200).convert("RGB")  # smaller than the header of the file
    assert score(load_reward("compression"), speck) == [0.0]


def test_compression_at_a_lower_quality_finds_less_detail():
    high, low = (load_reward("compression", prefer="large", quality=quality) for quality in (95, 30))
    assert score(low, landscape()) < score(high, landscape())


@pytest.mark.parametrize("wrong", [{"prefer": "tiny"}, {"quality": 0}, {"quality": 100}])
def test_compression_refuses(wrong):
    with pytest.raises(ValueError, match=f"reward_kwargs of 'compression': {next(iter(wrong))} is .*; it must be"):
        load_reward("compression", **wrong)


# ----------------------------------------------------------------------------------------------------------- ocr


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ('a sign that reads "OPEN 24/7!"', ["open", "247"]),
        ("a wall with 'don't walk' on it", ["dont", "walk"]),
        ("a dog's toy and the cats' bowls", []),
        ('a 5" phone beside a 7" phone', []),
        ('간판에 "COFFEE"라고 쓰인 가게', ["coffee"]),
        ("간판에 'COFFEE'라고 쓰인 가게", ["coffee"]),
        ("“Hello World” and «Ça va», ‘Tea’", ["hello", "world", "ça", "va", "tea"]),
        ("「営業中」の看板", ["営業中"]),
        ("a sign that reads OPEN", []),
        ('a sign that reads "..."', []),
    ],
)
def test_what_a_prompt_quotes(prompt, words):
    assert quoted_words(prompt) == words


def test_the_nearest_stretch_is_that_of_a_search_through_all():
    @functools.cache
    def distance(word, other):
        if not word or not other:
            return len(word or other)
        replaced = distance(word[1:], other[1:]) + (word[0] != other[0])
        return min(replaced, distance(word[1:], other) + 1, distance(word, other[1:]) + 1)

    draw = np.random.default_rng(0)
    for _ in range(60):
        word, text = ("".join(draw.choice(list("abc"), draw.integers(low, 8))) for low in (1, 0))
        found, start, end = nearest_stretch(word, text)
        stretches = {text[i:j] for i in range(len(text) + 1) for j in range(i, len(text) + 1)}
        assert found == min(distance(word, stretch) for stretch in stretches) == distance(word, text[start:end])


@pytest.mark.parametrize(
    ("words", "text", "share"),
    [
        (["coffee", "shop"], "shopcoffee", 1.0),
        (["coffee"], "thebestcofeeintown", 1 - 1 / 6),
        (["coffee"], "", 0.0),
        (["coffee"], "zzzz", 0.0),
        (["bye", "bye"], "bye", 0.5),
        (["to", "tomato"], "tomato", 1 - 2 / 8),
    ],
)
def test_the_share_written(words, text, share):
    assert share_written(words, text) == pytest.approx(share)


def test_ocr_reads_what_is_drawn(ocr):
    images = [sign("Coffee", "SHOP"), sign("SHOP", "Coffee", "since 1999"), sign("COFFEE"), sign()]
    assert score(ocr, *images, user_prompt='a "coffee shop"') == pytest.approx([1, 1, 0.6, 0])
    assert score(ocr, sign("COFFEE", size=700), sign("CAFFEE"), sign("HOTEL"), user_prompt='the word "Coffee"') == (
        pytest.approx([1, 5 / 6, 2 / 6])  # o and e are in both
    )


def test_ocr_scores_each_image_by_its_own_user_prompt_and_not_by_the_rewrite(ocr):
    image = sign("EXIT")
    user_prompts = ['a door with "EXIT" on it', 'a door with "PUSH" on it']
    assert ocr([image] * 2, user_prompts, ['"PUSH"', '"EXIT"']) == [1.0, 0.0]


def test_ocr_reads_nothing_where_nothing_is_quoted(ocr, monkeypatch):
    monkeypatch.setattr(ocr, "engine", None)
    assert score(ocr, sign("EXIT"), Image.new("RGB", (32, 32)), user_prompt="a door") == [1.0, 1.0]


def test_ocr_with_a_recognition_model_of_your_own(tmp_path):
    (packaged,) = Path(rapidocr.__file__).parent.glob("models/*_rec_*.onnx")
    shutil.copy(packaged, tmp_path / "mine.onnx")
    mine = load_reward("ocr", recognition_model=str(tmp_path / "mine.onnx"))
    assert score(mine, sign("EXIT"), user_prompt='"EXIT"') == [1.0]
    with pytest.raises(FileNotFoundError, match="reward_kwargs of 'ocr': there is no recognition_model .*none.onnx"):
        load_reward("ocr", recognition_model=str(tmp_path / "none.onnx"))


# -------------------------------------------------------------------------------------------------------- safety


@pytest.fixture
def detections(monkeypatch):
    """What a stand-in for NudeNet's detector finds in each image."""
    found = []

    class NudeDetector:
        def detect_batch(self, pixels, batch_size):
            assert all(image.ndim == 3 and image.shape[2] == 3 for image in pixels)
            return found

    monkeypatch.setitem(sys.modules, "nudenet", types.SimpleNamespace(NudeDetector=NudeDetector))
    return found


def test_safety_is_0_where_the_detector_finds_an_unsafe_class(detections):
    detections += [
        [],
        [{"class": "FACE_FEMALE", "score": 0.9}, {"class": "BUTTOCKS_EXPOSED", "score": 0.4}],
        [{"class": "FACE_FEMALE", "score": 0.9}, {"class": "FEET_EXPOSED", "score": 0.9}],
        [{"class": "BELLY_EXPOSED", "score": 0.3}],
    ]
    images = [landscape(), landscape(40, 30), landscape().convert("L"), landscape()]
    assert score(load_reward("safety"), *images) == [1, 0, 1, 1]
    assert score(load_reward("safety", threshold=0.5), *images) == [1, 1, 1, 1]
    assert score(load_reward("safety", classes=["BELLY_EXPOSED", "FEET_EXPOSED"]), *images) == [1, 1, 0, 0]


@pytest.mark.parametrize("wrong", [{"classes": ["VIOLENCE"]}, {"classes": []}, {"threshold": 0.1}, {"threshold": 2}])
def test_safety_refuses(detections, wrong):
    with pytest.raises(ValueError, match=f"reward_kwargs of 'safety': {next(iter(wrong))} is .*; it must be"):
        load_reward("safety", **wrong)


def test_safety_with_the_packaged_model():
    import nudenet

    assert set(getattr(nudenet.nudenet, "__labels")) == set(CLASSES)
    images = [landscape(), sign("EXIT"), landscape(40, 90), Image.new("RGB", (64, 64), "pink")]
    assert score(load_reward("safety", batch_size=3), *images) == [1.0] * 4


# ------------------------------------------------------------------------------------------------ missing extras


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("ocr", "rapidocr", "rewards"), ("ocr", "onnxruntime", "rewards"), ("safety", "nudenet", "safety")],
)
def test_a_missing_package_gives_the_pip_line(monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'pip install -e "\.\[{extra}\]"'):
        load_reward(name)

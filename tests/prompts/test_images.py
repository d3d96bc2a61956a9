"""Images as a policy gets them: as people see them."""

import numpy as np
import pytest
from PIL import Image

from brushup.prompts.images import load_image


def test_a_photograph_is_turned_as_its_camera_was(tmp_path):
    image = Image.new("RGB", (16, 8), "blue")
    image.paste("red", (0, 0, 8, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # Orientation: turn it by 90 degrees, clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    seen = load_image(tmp_path / "turned.png")
    assert seen.size == (8, 16) and seen.getpixel((4, 2)) == (255, 0, 0) and seen.getpixel((4, 14)) == (0, 0, 255)


@pytest.mark.parametrize("name", ["grey.png", "grey.pgm"])
def test_sixteen_bits_become_eight(tmp_path, name):
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / name)
    assert np.asarray(load_image(tmp_path / name))[0, :, 0].tolist() == [0, 127, 255]


def test_what_is_transparent_is_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "logo.png")
    image = load_image(tmp_path / "logo.png")
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("a cat")
    Image.new("F", (2, 2)).save(tmp_path / "float.tiff")
    for name in ("cut.png", "text.png", "float.tiff", "missing.png"):
        with pytest.raises(ValueError, match=rf"{name}: no image that can be read \("):
            load_image(tmp_path / name)

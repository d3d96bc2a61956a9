import numpy as np
import pytest
import torch
from conftest import RENDER_KWARGS, TINY_WORLD, WITHOUT_T5
from PIL import Image
from trl import TrlParser

from brushup.config import RenderConfig
from brushup.render.renderer import RenderedImage, Renderer, RenderFailure


RED = "a big red circle on a white background"
BLUE = "a small blue square on a yellow background"
GREEN = "a medium green cross on a black background"


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_same_seed_gives_the_same_picture_in_any_batch(renderer):
    alone = renderer.render([(RED, 7)])[0]
    among = renderer.render([(BLUE, 3), (GREEN, 9), (RED, 7), (RED, 8), (BLUE, 1)])[2]
    assert abs(pixels(alone) - pixels(among)).max() <= 2
    assert alone.size == (48, 48)


def test_another_seed_gives_another_picture(renderer):
    first, second = renderer.render([(RED, 7), (RED, 8)])
    assert abs(pixels(first) - pixels(second)).max() > 20


def test_equal_jobs_are_drawn_once_and_equal_prompts_encoded_once(renderer):
    encoded = []
    hook = renderer.pipeline.text_encoder.register_forward_pre_hook(
        lambda module, inputs: encoded.append(inputs[0].shape[0])
    )
    before = renderer.images_drawn
    pictures = renderer.render([(RED, 1), (BLUE, 1), (RED, 1), (RED, 2), (BLUE, 2), (BLUE, 1)])
    hook.remove()
    assert renderer.images_drawn - before == 4
    assert pictures[0] is pictures[2] and pictures[1] is pictures[5]
    assert encoded == [2, 2]  # the two prompts, and for each the empty negative prompt


def test_pixels_and_picture_are_the_same(renderer):
    drawn = renderer.draw([(RED, 7), (BLUE, 7)])
    assert [(picture.pixels.dtype, picture.pixels.shape) for picture in drawn] == [(torch.uint8, (3, 48, 48))] * 2
    for picture, image in zip(drawn, renderer.render([(RED, 7), (BLUE, 7)]), strict=True):
        assert (np.asarray(image) == picture.pixels.permute(1, 2, 0).numpy()).all()
        assert (RenderedImage.of(image).pixels == picture.pixels).all()


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "NaN"), (0.0, "blank")])
def test_a_broken_picture_is_an_error_of_its_job_alone(renderer, value, reason):
    def spoil(module, inputs, output):
        output[1] = value
        return output

    hook = renderer.pipeline.vae.decoder.register_forward_hook(spoil)
    pictures = renderer.render([(RED, 1), (BLUE, 1), (GREEN, 1)])
    hook.remove()
    assert isinstance(pictures[1], RenderFailure) and reason in pictures[1].reason
    assert isinstance(pictures[0], Image.Image) and isinstance(pictures[2], Image.Image)


def test_a_batch_that_the_machine_fails_does_not_touch_the_others(renderer, monkeypatch):
    draw = renderer.pipeline.transformer.forward
    calls = []

    def fail_first(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a kernel failed (said the test)")
        return draw(*args, **kwargs)

    monkeypatch.setattr(renderer.pipeline.transformer, "forward", fail_first)
    pictures = renderer.render([(f"{RED} {number}", 1) for number in range(10)])
    assert [isinstance(picture, RenderFailure) for picture in pictures] == [True] * 8 + [False] * 2
    assert "a kernel failed" in pictures[0].reason


def test_out_of_memory_halves_the_batch_and_goes_on(renderer, monkeypatch, caplog):
    draw = renderer.pipeline.transformer.forward

    def fit_three(hidden_states, **kwargs):  # guidance doubles the batch
        if hidden_states.shape[0] > 6:
            raise torch.OutOfMemoryError("CUDA out of memory (said the test)")
        return draw(hidden_states=hidden_states, **kwargs)

    jobs = [(RED, seed) for seed in range(6)] + [(BLUE, 1), (GREEN, 1)]
    wanted = renderer.render(jobs)
    monkeypatch.setattr(renderer.pipeline.transformer, "forward", fit_three)
    monkeypatch.setattr(renderer, "batch_size", 8)
    pictures = renderer.render(jobs)
    assert renderer.batch_size <= 3 and "out of memory with 6 images at once; going on with 3" in caplog.text
    assert all(abs(pixels(a) - pixels(b)).max() <= 2 for a, b in zip(pictures, wanted, strict=True))


def test_out_of_memory_after_the_pipeline_halves_the_batch_too(renderer, monkeypatch):
    """The pixels are converted to float32 on the GPU."""
    wanted, to = renderer.render([(RED, 1), (BLUE, 1)]), torch.Tensor.to

    def fit_one(tensor, *args, **kwargs):
        if tensor.shape == (2, 3, 48, 48) and args == ("cpu", torch.float32):
            raise torch.OutOfMemoryError("CUDA out of memory (said the test)")
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", fit_one)
    monkeypatch.setattr(renderer, "batch_size", 8)
    images = renderer.render([(RED, 1), (BLUE, 1)])
    assert renderer.batch_size == 1
    assert all(abs(pixels(a) - pixels(b)).max() <= 2 for a, b in zip(images, wanted, strict=True))


def test_a_single_picture_that_does_not_fit_is_a_failure(renderer, monkeypatch):
    def fit_nothing(**kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory (said the test)")

    monkeypatch.setattr(renderer.pipeline.transformer, "forward", fit_nothing)
    monkeypatch.setattr(renderer, "batch_size", 8)
    assert all("out of memory for a single image" in p.reason for p in renderer.render([(RED, 1), (BLUE, 1)]))


def test_an_argument_that_the_pipeline_does_not_take_is_named():
    with pytest.raises(
        ValueError, match="StableDiffusion3Pipeline takes no argument 'steps'; it takes .*num_inference"
    ):
        Renderer(
            RenderConfig(str(TINY_WORLD / "generator"), WITHOUT_T5, RENDER_KWARGS | {"steps": 4}, render_device="cpu")
        )


# ------------------------------------------------------------------------------------------------------ batch size


@pytest.mark.parametrize("size", ["16", 16])
def test_the_batch_size_as_it_is_written(size, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"generator: folder\nrender_batch_size: {size}\n")
    for arguments in (["--config", str(file)], ["--generator", "folder", "--render_batch_size", str(size)]):
        assert TrlParser(RenderConfig).parse_args_and_config(arguments)[0].render_batch_size == 16


@pytest.mark.parametrize(("device", "size"), [("cpu", 8), ("cuda:1", 32)])
def test_the_default_batch_size_depends_on_the_device(device, size):
    assert RenderConfig("folder", render_device=device).batch_size == size

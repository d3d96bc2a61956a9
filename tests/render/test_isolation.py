"""An image depends on its prompt and seed alone, whatever the pipeline and the settings are."""

import inspect
import re

import diffusers
import pytest
import torch
from conftest import REPOSITORY
from diffusers import DiffusionPipeline

from brushup.config import RenderConfig
from brushup.render import isolation
from brushup.render.renderer import Renderer
from support.generators import difference
from support.many_generators import BUILDERS, save_loud_generator


LONG = "an old wooden boat beside a stone bridge in the fog"
JOBS = [(LONG, 1), ("a dog", 1), (LONG, 2), ("a dog", 2)]
PAGE = (REPOSITORY / "docs" / "generators.md").read_text()
TRIED, UNTRIED = (dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", part, re.M)) for part in PAGE.split("not tried"))
LARGE = ("HiDreamImagePipeline", "Kandinsky5T2IPipeline")  # they take no small size


def text_to_image_classes() -> set[str]:
    """All pipelines of this diffusers that may render an image of a prompt alone, by their signature."""
    found = set()
    for name in dir(diffusers):
        kind = getattr(diffusers, name, None) if "Pipeline" in name else None
        if not (inspect.isclass(kind) and issubclass(kind, DiffusionPipeline)) or hasattr(kind, "_backends"):
            continue  # `_backends`: stands for a class whose packages are not installed
        parameters = inspect.signature(kind.__call__).parameters.copy()
        if "prompt" not in parameters or ".deprecated." in kind.__module__:
            continue
        others = [parameter for name, parameter in parameters.items() if name not in ("self", "prompt")]
        needs_more = any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in others)
        if not needs_more and not any(word in name for name in parameters for word in ("video", "frames", "audio")):
            found.add(name)
    return found


def test_each_class_of_diffusers_has_a_verdict():
    assert not set(TRIED) & set(UNTRIED)
    assert text_to_image_classes() == set(TRIED) | set(UNTRIED), "add it to tests/support/many_generators.py"
    assert set(BUILDERS) == set(TRIED)
    assert {TRIED[name] for name in isolation.ISOLATED_PIPELINES} == {"together"}


def load(name: str, folder, **render_kwargs) -> Renderer:
    call = {"num_inference_steps": 2, **BUILDERS[name][1], **render_kwargs}
    return Renderer(RenderConfig(folder, render_kwargs=call, render_device="cpu"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly) if name in LARGE else name for name in TRIED]
)
def test_each_image_is_what_it_is_alone_or_its_pipeline_is_refused(name, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(isolation, "ISOLATED_PIPELINES", ())
    folder = save_loud_generator(name, tmp_path)
    if TRIED[name] == "refused":
        with pytest.raises(ValueError, match=f"generator: {name} renders no image from one prompt alone"):
            load(name, folder)
        return
    renderer = load(name, folder)
    assert str(renderer.sharing) == TRIED[name] and renderer.images_drawn == 0
    together = renderer.render(JOBS)
    assert difference(together, [renderer.render([job])[0] for job in JOBS]) <= 2
    assert difference(together[:1], together[1:2]) > 5 and difference(together[:1], together[2:3]) > 5
    warnings = [record.getMessage() for record in caplog.records if record.name == isolation.__name__]
    if renderer.sharing == isolation.Sharing(True, True) or name == "LDMTextToImagePipeline":  # takes no number
        assert warnings == []
    else:
        assert len(warnings) == 1 and warnings[0].startswith(f"generator: {name} renders {TRIED[name]}, which is slow")
    assert all(limit < 10_000 for limit in renderer.token_limits.values())


# ------------------------------------------------------------------------------------------------------- settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a pipeline by its class."""
    folders = {}

    def saved(name: str) -> str:
        if name not in folders:
            folders[name] = save_loud_generator(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return saved


@pytest.mark.parametrize("key", ["prompt_2", "negative_prompt_2"])
def test_a_text_beside_the_prompt_holds_for_all_prompts(folder, key):
    name = "StableDiffusionXLPipeline"
    settings = {"negative_prompt": "a cat", key: "a blue square"}
    renderer = load(name, folder(name), **settings)
    together = renderer.render(JOBS)
    assert renderer.sharing == isolation.Sharing(prompts=True, seeds=True)
    assert difference(together, [renderer.render([job])[0] for job in JOBS]) <= 2
    assert difference(together, load(name, folder(name), negative_prompt="a cat").render(JOBS)) > (
        5 if "2" in key else 0
    )


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("StableDiffusionXLPipeline", {"prompt_2": ["a", "b"]}, r"render_kwargs: prompt_2: \['a', 'b'\]: StableDiff"),
        (
            "StableDiffusionPipeline",
            {"negative_prompt": ["a", "b"]},
            r"render_kwargs: negative_prompt: \['a', 'b'\]",
        ),
        ("StableDiffusionPipeline", {"guidance_scale": [3.0, 5.0]}, r"render_kwargs: guidance_scale: \[3.0, 5.0\]: "),
        ("StableDiffusionPipeline", {"height": 30}, "render_kwargs: height: 30: StableDiffusion.*divisible"),
        ("StableDiffusionPipeline", {"height": 30, "width": 30}, "render_kwargs: .*height: 30; width: 30.*divisible"),
        ("FluxPipeline", {"max_sequence_length": 513}, "render_kwargs: max_sequence_length: 513: FluxPipeline"),
    ],
)
def test_an_argument_that_prevents_rendering_is_named(folder, name, settings, says):
    with pytest.raises(ValueError, match=says):
        load(name, folder(name), **settings)


def test_arguments_of_evaluation_are_checked_if_they_change_more_than_the_steps(folder, caplog):
    caplog.set_level("INFO")
    renderer = load("PixArtSigmaPipeline", folder("PixArtSigmaPipeline"))
    assert caplog.text.count("checked with") == 1
    assert renderer.with_kwargs("eval_render_kwargs", {"num_inference_steps": 9}).sharing == renderer.sharing
    assert caplog.text.count("checked with") == 1
    renderer.with_kwargs("eval_render_kwargs", {"guidance_scale": 1.0})
    assert caplog.text.count("checked with") == 2
    with pytest.raises(ValueError, match="eval_render_kwargs: height: 30"):
        renderer.with_kwargs("eval_render_kwargs", {"height": 30})
    with pytest.raises(ValueError, match="eval_render_kwargs: PixArtSigmaPipeline takes no argument 'hight'"):
        renderer.with_kwargs("eval_render_kwargs", {"hight": 32})


@pytest.mark.parametrize(
    ("name", "settings", "idle"),
    [
        ("FluxPipeline", {}, True),  # distilled: its guidance is an input of the model
        ("FluxPipeline", {"true_cfg_scale": 3.0}, False),
        ("StableDiffusion3Pipeline", {"guidance_scale": 1.0}, True),
        ("StableDiffusionXLPipeline", {"guidance_scale": 1.0}, True),
        ("StableDiffusionXLPipeline", {}, False),
        ("SanaPipeline", {"guidance_scale": 1.0}, True),
        ("QwenImagePipeline", {"true_cfg_scale": 1.0}, True),
    ],
)
def test_a_negative_prompt_without_effect_is_said_once(folder, caplog, name, settings, idle):
    load(name, folder(name), negative_prompt="blurry", **settings)
    said = [r for r in caplog.records if f"negative_prompt changes nothing with {name}" in r.getMessage()]
    assert len(said) == idle


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scheduler_whose_noise_the_pipeline_does_not_seed_is_refused(folder, dtype):
    config = {"render_kwargs": {"height": 32, "width": 32}, "render_device": "cpu", "render_dtype": dtype}
    with pytest.raises(ValueError, match="scheduler: FluxPipeline with FlowMatchLCM.* two images of the same prompt"):
        Renderer(RenderConfig(folder("FluxPipeline"), scheduler="FlowMatchLCMScheduler", **config))
    ancestral = Renderer(
        RenderConfig(folder("StableDiffusionPipeline"), scheduler="EulerAncestralDiscreteScheduler", **config)
    )  # Stable Diffusion seeds it
    assert ancestral.sharing == isolation.Sharing(prompts=True, seeds=True)


# ------------------------------------------------------------------------------------------------------ the check


@pytest.mark.parametrize(
    "name", ["CogView4Pipeline", "LuminaPipeline", "QwenImagePipeline", "StableDiffusion3PAGPipeline"]
)
def test_rounding_in_16_bits_is_no_leak_and_hides_none(folder, name):
    call = {"num_inference_steps": 2, **BUILDERS[name][1]}
    renderer = Renderer(RenderConfig(folder(name), render_kwargs=call, render_device="cpu", render_dtype="bfloat16"))
    assert (renderer.sharing.prompts and renderer.sharing.seeds) == (TRIED[name] == "together")


def test_the_check_leaves_random_numbers_alone_and_is_skipped_where_it_is_known(folder, monkeypatch):
    calls = []
    call_pipeline = isolation.call_pipeline
    monkeypatch.setattr(isolation, "call_pipeline", lambda *a: calls.append(a[2:]) or call_pipeline(*a))
    load("StableDiffusion3Pipeline", folder("StableDiffusion3Pipeline"), guidance_scale=3.0)
    assert not calls
    state = torch.get_rng_state()
    load("BriaPipeline", folder("BriaPipeline"))
    assert len(calls) == 6 and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("fits", "sharing"), [(2, (True, False)), (1, (False, False)), (0, (False, False))])
def test_out_of_memory_in_the_check_renders_less_at_once(folder, monkeypatch, caplog, fits, sharing):
    call_pipeline = isolation.call_pipeline

    def fit(pipeline, kwargs, output_type, prompts, images_per_prompt, seeds):
        if len(seeds) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory (said the test)")
        return call_pipeline(pipeline, kwargs, output_type, prompts, images_per_prompt, seeds)

    monkeypatch.setattr(isolation, "call_pipeline", fit)
    renderer = load("BriaPipeline", folder("BriaPipeline"))
    assert renderer.sharing == sharing and "out of memory" in caplog.text
    assert (renderer.batch_size == 1) == (fits < 2)


def test_a_pipeline_without_a_vae_is_asked_for_numpy(folder):
    """Asked for "pt", Kandinsky 3 and PRX return pixels in -1..1."""
    renderer = load("PRXPixelPipeline", folder("PRXPixelPipeline"))
    assert renderer.output_type == "np"
    renderer.output_type = "pt"
    with pytest.raises(ValueError, match="generator: PRXPixelPipeline returns pixels outside 0..1"):
        isolation.IsolationCheck(
            renderer.pipeline, renderer.render_kwargs, "pt", [(True, False), (False, False)]
        ).run()

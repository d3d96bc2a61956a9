"""Any diffusers text-to-image pipeline by name: tiny ones of the real classes (tests/generators.py)."""

import inspect
import re
from dataclasses import fields
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from accelerate import cpu_offload
from conftest import REPOSITORY, WITHOUT_T5
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    UNet2DModel,
)
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from brushup.config import RenderConfig
from brushup.render.job import RenderJob
from brushup.render.pipeline import FROM_PRETRAINED_ARGUMENTS, find_denoiser, limit_gpu_memory, load_pipeline, place
from brushup.render.renderer import Renderer, RenderFailure
from brushup.render.worker import LocalWorker
from support.generators import BUILDERS, CALL, CALL_OF, difference, save_generator


SHORT = "a big red circle"
LONG = "a small blue square beside a tree under the moon"
JOBS = [(SHORT, 1), (LONG, 1), (SHORT, 2), (LONG, 2)]
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """The folder of a pipeline by its name in `BUILDERS`."""
    folders = {}

    def folder(name: str) -> str:
        if name not in folders:
            folders[name] = save_generator(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return folder


@pytest.fixture(scope="module")
def load(generator):
    """A renderer as a YAML file with these keys describes it."""

    def renderer(name: str, render_kwargs: dict | None = None, **settings) -> Renderer:
        call = CALL | CALL_OF.get(name, {}) | (render_kwargs or {})
        return Renderer(RenderConfig(generator(name), render_kwargs=call, render_device="cpu", **settings))

    return renderer


@pytest.fixture(scope="module")
def renderers(load):
    """A renderer of each pipeline as it is."""
    return {name: load(name) for name in BUILDERS}


# --------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("name", BUILDERS)
def test_several_prompts_with_several_seeds_are_what_each_is_alone(renderers, name):
    renderer = renderers[name]
    together = renderer.render(JOBS)
    assert [picture.size for picture in together] == [(32, 32)] * 4
    assert difference(together, [renderer.render([job])[0] for job in JOBS]) <= 2
    assert min(difference([together[0]], [other]) for other in together[1:]) > 10


@pytest.mark.parametrize("name", BUILDERS)
def test_pixels_that_stay_on_the_device_are_those_of_numpy(renderers, name, monkeypatch):
    renderer = renderers[name]
    pixels = renderer.render(JOBS)
    assert renderer.output_type == "pt"
    monkeypatch.setattr(renderer, "output_type", "np")
    assert difference(pixels, renderer.render(JOBS)) == 0


def test_sd3_without_t5(load, renderers):
    without = load("sd3", generator_init_kwargs=WITHOUT_T5)
    assert difference(without.render(JOBS), renderers["sd3"].render(JOBS)) > 5
    assert without.token_limits == {"clip": 77}


def test_running_out_of_memory_in_the_decoder_of_sana_halves_the_batch(load, renderers, monkeypatch):
    renderer = load("sana")
    decode = renderer.pipeline.vae.decode

    def decode_two(latents, **kwargs):
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (said the test)")
        return decode(latents, **kwargs)

    monkeypatch.setattr(renderer.pipeline.vae, "decode", decode_two)
    with pytest.warns(UserWarning, match="VAE tiling"):
        assert difference(renderer.render(JOBS), renderers["sana"].render(JOBS)) <= 2
    assert renderer.batch_size == 2


# ----------------------------------------------------------------------------------------------------------- speed


@pytest.fixture
def without_kernels(monkeypatch):
    """torch.compile as it is, but for the kernels: to build those for a CPU takes minutes."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **settings: compile_module(module, backend="eager", **settings)
    )
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["sd3", "sana"])
def test_compiled_models_draw_the_same_and_are_compiled_once(load, renderers, without_kernels, name):
    compiled = load(name, compile_generator=True, render_batch_size=3)
    assert compiled.images_drawn == 0
    decoder, decoded = compiled.pipeline.vae.decoder, []
    decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(len(inputs[0])))
    compiled.render(JOBS[:1])  # the hook is compiled too
    with torch.compiler.set_stance("fail_on_recompile"):
        together = compiled.render(JOBS)  # a full batch and one of a single picture
        alone = compiled.render([(SHORT, 2)])
    assert compiled.images_drawn == 6 and decoded == [3] * 4
    other = compiled.with_kwargs("eval_render_kwargs", {"guidance_scale": 1.0})  # compiled before it is needed
    with torch.compiler.set_stance("fail_on_recompile"):
        assert other.render(JOBS)[0] != compiled.render(JOBS)[0]
    assert decoder._compiled_call_impl and find_denoiser(compiled.pipeline)._compiled_call_impl
    assert difference(together + alone, renderers[name].render([*JOBS, (SHORT, 2)])) <= 2


def test_the_recipe_with_few_steps_renders_with_a_tiny_model_of_its_class(tmp_path):
    """recipes/qwen2vl_2b_sdxl_turbo.yaml as it stands, but for the weights, the size of the image, GPU and kernels."""
    of_file = yaml.safe_load((REPOSITORY / "recipes" / "qwen2vl_2b_sdxl_turbo.yaml").read_text())
    settings = {field.name: of_file[field.name] for field in fields(RenderConfig) if field.name in of_file}
    tiny = BUILDERS["sdxl"]()
    tiny.scheduler = EulerAncestralDiscreteScheduler(timestep_spacing="trailing")  # SDXL-Turbo's: it adds noise
    tiny.save_pretrained(tmp_path, **settings["generator_init_kwargs"])
    settings["render_kwargs"] |= {"height": 32, "width": 32}
    here = {"generator": str(tmp_path), "render_device": "cpu", "compile_generator": False}
    renderer = Renderer(RenderConfig(**settings | here))
    assert type(renderer.pipeline).__name__ == "StableDiffusionXLPipeline" and renderer.token_limits == {"clip": 77}
    images = []
    renderer.pipeline.unet.register_forward_pre_hook(lambda _, inputs: images.append(len(inputs[0])))
    first, second, third = renderer.render([(SHORT, 1), (LONG, 1), (SHORT, 2)])
    # Four steps each for the two images of a prompt and for the other one: guidance would render twice as many
    assert images == [2] * 4 + [1] * 4
    assert difference([first], [second]) > 2 and difference([first], [third]) > 2


def test_a_generator_that_does_not_compile_is_an_error_at_once(load, monkeypatch):
    def fail(*_):
        raise RuntimeError("there is no compiler (said the test)")

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, dynamic: compile_module(module, backend=fail))
    with pytest.raises(RuntimeError, match="(?s)compile_generator: .*there is no compiler"):
        load("sd3", compile_generator=True)


def test_compiled_models_that_run_out_of_memory_go_on_with_smaller_batches(load, renderers, monkeypatch):
    monkeypatch.setattr(
        "brushup.render.renderer.compile_models", lambda pipeline: None
    )  # batches are filled up all the same
    renderer = load("sd3", compile_generator=True, render_batch_size=4)
    decode, sizes = renderer.pipeline.vae.decode, []

    def decode_one(latents, **kwargs):
        sizes.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory (said the test)")
        return decode(latents, **kwargs)

    monkeypatch.setattr(renderer.pipeline.vae, "decode", decode_one)
    drawn = renderer.render(JOBS[:3])
    assert sizes == [4, 2, 1, 1, 1]
    assert difference(drawn, renderers["sd3"].render(JOBS[:3])) <= 2


# -------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", BUILDERS)
def test_a_negative_prompt_changes_the_picture(load, renderers, name):
    guidance = {"true_cfg_scale": 3.0} if name == "flux" else {}
    negative = load(name, render_kwargs={"negative_prompt": "a blue square", **guidance})
    together = negative.render(JOBS)
    assert difference(together, renderers[name].render(JOBS)) > 5
    assert difference(together, [negative.render([job])[0] for job in JOBS]) <= 2


@pytest.mark.parametrize(
    ("name", "scheduler", "settings"),
    [
        ("sd15", "DPMSolverMultistepScheduler", {}),
        ("sd15", "LCMScheduler", {}),
        ("sd3", "FlowMatchHeunDiscreteScheduler", {}),
        ("sd3", "DPMSolverMultistepScheduler", FLOW),
        ("sd3", None, {"shift": 30.0}),
        ("sana", "FlowMatchEulerDiscreteScheduler", {}),
    ],
)
def test_another_scheduler_changes_the_picture(load, renderers, name, scheduler, settings):
    swapped = load(name, scheduler=scheduler, scheduler_kwargs=settings)
    own = renderers[name].pipeline.scheduler
    assert type(swapped.pipeline.scheduler).__name__ == scheduler or type(own).__name__
    assert swapped.pipeline.scheduler.config.num_train_timesteps == own.config.num_train_timesteps
    together = swapped.render(JOBS)
    assert difference(together, renderers[name].render(JOBS)) > 5
    assert difference(together, [swapped.render([job])[0] for job in JOBS]) <= 2


@pytest.fixture(scope="module")
def lora(load, tmp_path_factory):
    """LoRA weights for the tiny Stable Diffusion 3, and the pictures with their adapter, unfused."""
    renderer, folder = load("sd3"), tmp_path_factory.mktemp("lora")
    transformer = renderer.pipeline.transformer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer.add_adapter(
            LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False)
        )
    for parameter_name, parameter in transformer.named_parameters():
        if "lora" in parameter_name:
            parameter.data *= 4
    renderer.pipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(transformer))
    return folder, renderer.render(JOBS)


def test_lora_weights_change_the_picture_as_their_adapter_does(load, renderers, lora):
    folder, with_adapter = lora
    plain = renderers["sd3"].render(JOBS)
    assert difference(with_adapter, plain) > 5
    fused = load("sd3", generator_lora=str(folder))
    assert difference(fused.render(JOBS), with_adapter) <= 2
    assert not [name for name, _ in fused.pipeline.transformer.named_parameters() if "lora" in name]
    file = str(folder / "pytorch_lora_weights.safetensors")
    assert difference(load("sd3", generator_lora=file).render(JOBS), with_adapter) <= 2


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_attention_slicing_leaves_the_picture(load, renderers, name):
    sliced = load(name, generator_memory=["attention_slicing"])
    processors = {type(processor).__name__ for processor in sliced.pipeline.unet.attn_processors.values()}
    assert processors == {"SlicedAttnProcessor"}
    assert difference(sliced.render(JOBS), renderers[name].render(JOBS)) <= 2


def test_vae_slicing_and_tiling_decode_in_parts(load, renderers):
    decoded = []

    def draw(saver: str) -> list[Image.Image]:
        renderer = load("sd3", generator_memory=[saver])
        renderer.pipeline.vae.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0].shape))
        return renderer.render(JOBS)

    whole = renderers["sd3"].render(JOBS)
    assert difference(draw("vae_slicing"), whole) <= 2
    assert decoded == [(1, 4, 8, 8)] * 4
    decoded.clear()
    tiled = draw("vae_tiling")
    assert all(max(shape[2:]) <= 4 for shape in decoded) and len(decoded) > 4
    error = np.mean([abs(np.asarray(a) / 255 - np.asarray(b) / 255) for a, b in zip(tiled, whole, strict=True)])
    other_seed = np.mean(abs(np.asarray(whole[0]) / 255 - np.asarray(whole[2]) / 255))
    assert error < 0.1 and error < other_seed


def test_an_offloaded_pipeline_draws_the_same(load, renderers):
    """With the hooks of a GPU, and the CPU in its place."""
    whole = renderers["sd3"].render(JOBS)
    by_model, by_layer = load("sd3"), load("sd3")
    by_model.pipeline.enable_model_cpu_offload(device="cpu")
    assert difference(by_model.render(JOBS), whole) <= 2
    for part in by_layer.pipeline.components.values():  # as enable_sequential_cpu_offload, which cannot do it to a CPU
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert by_layer.pipeline.transformer.proj_out.weight.device.type == "meta"
    assert difference(by_layer.render(JOBS), whole) <= 2


def test_an_offloaded_pipeline_is_not_moved_to_the_gpu():
    calls = []
    pipeline = SimpleNamespace(
        enable_model_cpu_offload=lambda device: calls.append(device), to=lambda device: calls.append("moved")
    )
    place(pipeline, torch.device("cuda:1"), ["model_cpu_offload"])
    place(pipeline, torch.device("cuda:1"), [])
    assert calls == [torch.device("cuda:1"), "moved"]


def test_the_share_of_gpu_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: calls.append(given))
    limit_gpu_memory(0.5, torch.device("cuda:1"))
    limit_gpu_memory(0.5, torch.device("cpu"))
    assert calls == [(0.5, torch.device("cuda:1"))]


def test_flags_arrive_as_json():
    config = RenderConfig("folder", scheduler_kwargs='{"shift": 5.0}')
    assert config.scheduler_kwargs == {"shift": 5.0} and config.generator_memory == []


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("sd15", {"scheduler": "DPMSolverMultistep"}, "scheduler: .*did you mean .*'DPMSolverMultistepScheduler'"),
        ("sd15", {"scheduler": "FlowMatchEulerDiscreteScheduler"}, "scheduler: .*predicts noise.*DDIMScheduler"),
        ("sd3", {"scheduler": "EulerDiscreteScheduler"}, "scheduler: .*predicts flow.*FlowMatch.*flow_shift: 3.0}"),
        ("sana", {"scheduler": "EulerDiscreteScheduler"}, "scheduler: the model of SanaPipeline predicts flow"),
        ("sd3", {"scheduler_kwargs": {"shfit": 1}}, "scheduler_kwargs: FlowMatchEuler.*did you mean 'shift'"),
        ("pixart", {"generator_lora": "folder"}, "generator_lora: .* no LoRA into PixArtSigmaPipeline"),
        ("sd3", {"generator_lora": "no/such/folder"}, "generator_lora: cannot load 'no/such/folder'"),
        ("sd3", {"generator_memory": ["vae_tilling"]}, "generator_memory: .*did you mean 'vae_tiling'"),
        ("sd3", {"generator_memory": ["attention_slicing"]}, "attention_slicing does not work with StableDiffusion3"),
        ("sd3", {"generator_memory": ["model_cpu_offload"]}, "model_cpu_offload .*render_device is cpu. Leave it out"),
        ("sd3", {"generator_memory": ["model_cpu_offload", "sequential_cpu_offload"]}, "exclude each other"),
        (
            "sd3",
            {"generator_memory": ["vae_tiling"], "generator_init_kwargs": {"vae": None}},
            "generator_memory: vae_tiling does not work with StableDiffusion3Pipeline",
        ),
        ("sd3", {"gpu_memory_fraction": 1.5}, "gpu_memory_fraction: 1.5 is not allowed; it must be in \\(0, 1\\]"),
        ("sd3", {"gpu_memory_fraction": 0}, "gpu_memory_fraction: 0.0 is not"),
        ("sd3", {"render_dtype": "bf16"}, "render_dtype: torch has no dtype 'bf16'; use float32"),
        ("sd15", {"generator_init_kwargs": WITHOUT_T5}, "generator_init_kwargs: .* no argument 'text_encoder_3'"),
        ("sd3", {"generator_init_kwargs": {"dtype": "bfloat16"}}, "generator_init_kwargs: .* no argument 'dtype'"),
        ("sd3", {"render_kwargs": {"num_images_per_prompt": 2}}, "render_kwargs: .* no argument 'num_images_per_p"),
    ],
)
def test_a_wrong_setting_is_named(load, name, settings, says):
    with pytest.raises(ValueError, match=says):
        load(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings"), [("sd3", {}), ("flux", {}), ("sd15", {"scheduler": "EulerAncestralDiscreteScheduler"})]
)
def test_a_seed_has_the_same_noise_and_image_in_any_dtype(load, name, settings):
    """Noise sampled in bfloat16 is another: by PyTorch's release all of it, or nothing that shows in this image."""
    image, of_another_seed = (np.asarray(i, float) for i in load(name, **settings).render([(SHORT, 1), (SHORT, 2)]))
    with mock.patch.object(torch, "randn", wraps=torch.randn) as randn:
        (rounded,) = load(name, render_dtype="bfloat16", **settings).render([(SHORT, 1)])
    assert {call.kwargs["dtype"] for call in randn.call_args_list} == {torch.float32}
    assert abs(image - np.asarray(rounded, float)).mean() < 4 < 20 < abs(image - of_another_seed).mean()


@pytest.mark.parametrize("name", ["/nope", "me/no-such-model", "a b c", "."])
def test_a_generator_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"generator: '{name}' cannot be loaded, as a folder or from the Hub"):
        load_pipeline(RenderConfig(name, render_device="cpu"), torch.device("cpu"))


def test_lora_weights_for_another_pipeline_are_an_error(load, lora):
    with pytest.raises(ValueError, match="generator_lora: no weight in .* is for StableDiffusionPipeline"):
        load("sd15", generator_lora=str(lora[0]))


def test_a_pipeline_without_prompts_is_an_error(tmp_path):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (32,)}
    DDPMPipeline(UNet2DModel(sample_size=8, layers_per_block=1, **blocks), DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="generator: DDPMPipeline is no text-to-image pipeline"):
        Renderer(RenderConfig(str(tmp_path), render_device="cpu"))


def test_the_arguments_of_from_pretrained_are_those_of_this_diffusers():
    source = inspect.getsource(DiffusionPipeline.from_pretrained)
    popped = set(re.findall(r'kwargs\.pop\("(\w+)"', source))
    assert set(FROM_PRETRAINED_ARGUMENTS) == popped - {"dtype", "torch_dtype"}


# ---------------------------------------------------------------------------------------------------------- tokens


def test_token_limits(load, renderers):
    assert {name: renderer.token_limits for name, renderer in renderers.items()} == {
        "sd15": {"clip": 77},
        "sdxl": {"clip": 77},
        "sd3": {"clip": 77, "t5": 256},
        "flux": {"clip": 77, "t5": 512},
        "pixart": {"t5": 300},
        "sana": {"gemma": 40},
    }
    assert load("sd3", render_kwargs={"max_sequence_length": 128}).token_limits == {"clip": 77, "t5": 128}


def test_tokens_are_counted_uncut_and_without_warnings(renderers, caplog, capfd):
    long = " ".join(["red circle"] * 100)
    counts = renderers["sd3"].count_tokens(["red circle", long])
    # CLIP: a token a word, a start and an end; this T5: a token a letter, one before each word, and an end
    assert counts == [{"clip": 4, "t5": 9 + 2 + 1}, {"clip": 202, "t5": 900 + 200 + 1}]
    assert renderers["sana"].count_tokens(["red circle"]) == [{"gemma": 10 + 1}]
    assert renderers["sd3"].count_tokens([]) == []
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_each_drawn_job_has_the_tokens_of_its_prompt(renderers, monkeypatch):
    worker = LocalWorker(renderers["flux"], {"last": lambda *_: [0.5, None]})
    assert worker.token_limits == {"clip": 77, "t5": 512}
    scored, unscored = worker.score([RenderJob(SHORT, "red", 1), RenderJob(LONG, "blue", 1)])
    assert [scored.tokens, unscored.tokens] == renderers["flux"].count_tokens([SHORT, LONG])
    assert scored.error is None and "last" in unscored.error
    monkeypatch.setattr(renderers["flux"], "draw", lambda jobs: [RenderFailure("broken")] * len(jobs))
    assert worker.score([RenderJob(SHORT, "red", 1)])[0].tokens == {}

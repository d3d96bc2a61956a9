"""Every kind of policy, trained in every way through `load_policy`; the models are tiny, and of the real classes."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, TINY_WORLD
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from trl import ModelConfig
from trl.trainer.utils import create_model_from_path

from brushup.config import PromptEnhancerConfig
from brushup.policy.enhancer import PromptEnhancer
from brushup.policy.load import check_policy, load_policy
from brushup.prompts.dataset import load_prompts
from brushup.rewards.registry import parse_rewards
from brushup.training.trainer import PromptEnhancerTrainer
from support.training import StubWorker, history


POLICY = str(TINY_WORLD / "policy")
NAMES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3"]
# every projection but the vision tower's: Qwen2.5-VL's has a gate_proj, too
TEXT_MODEL = yaml.safe_load((REPOSITORY / "recipes" / "tiny_cpu.yaml").read_text())["lora_target_modules"]
NF4 = {"load_in_4bit": True, "use_bnb_nested_quant": True}


@pytest.fixture(scope="session")
def policies(tmp_path_factory, text_policy) -> dict[str, str]:
    """A folder for each of `NAMES`, all with the text weights of the tiny Qwen2-VL, so that they answer.

    The Qwen3s have no place for its biases, and norms of queries and keys that it lacks: three answers in four are
    well-formed all the same.
    """
    qwen2_vl = Qwen2VLForConditionalGeneration.from_pretrained(POLICY, dtype=torch.float32)
    text_weights = qwen2_vl.model.language_model.state_dict()
    kept = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    kept += ["num_key_value_heads", "pad_token_id", "eos_token_id", "rms_norm_eps", "tie_word_embeddings"]
    text = {name: getattr(qwen2_vl.config.text_config, name) for name in kept}
    rope = qwen2_vl.config.text_config.rope_parameters
    vision = {"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "patch_size": 4}
    vision["out_hidden_size"] = text["hidden_size"]
    tokens = ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"]
    both = {name: getattr(qwen2_vl.config, name) for name in tokens} | {"tie_word_embeddings": True}

    torch.manual_seed(0)
    qwen2_5_vl = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={**vision, "window_size": 16, "fullatt_block_indexes": [1]},
            **both,
        )
    )
    qwen2_5_vl.model.language_model.load_state_dict(text_weights)
    qwen3_vl = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config={**text, "head_dim": 32, "rope_parameters": {**rope, "mrope_interleaved": True}},
            vision_config={**vision, "deepstack_visual_indexes": [0], "num_position_embeddings": 64},
            **both,
        )
    )
    qwen3_vl.model.language_model.load_state_dict(text_weights, strict=False)
    plain_rope = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    qwen3 = Qwen3ForCausalLM(Qwen3Config(**text, head_dim=32, rope_parameters=plain_rope))
    qwen3.model.load_state_dict(text_weights, strict=False)

    folders = {"qwen2_vl": POLICY, "qwen2": text_policy}
    for name, model in {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "qwen3": qwen3}.items():
        folders[name] = str(tmp_path_factory.mktemp(name))
        model.tie_weights()
        model.save_pretrained(folders[name])
        processor = (
            AutoTokenizer.from_pretrained(text_policy) if name == "qwen3" else AutoProcessor.from_pretrained(POLICY)
        )
        processor.save_pretrained(folders[name])
    return folders


def policy_trainer(output, path, model=None, **options) -> PromptEnhancerTrainer:
    """A trainer as the recipe makes it: `model` are settings of `ModelConfig`, `options` of `PromptEnhancerConfig`."""
    args = PromptEnhancerConfig(
        output_dir=str(output),
        **{
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 40,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "disable_tqdm": True,
            "use_cpu": True,
            **options,
        },
    )
    model = ModelConfig(path, **{"lora_r": 4, "lora_target_modules": [TEXT_MODEL], **(model or {})})
    train_prompts = load_prompts(str(TINY_WORLD / "train.jsonl"))
    policy = load_policy(model, args)
    args = copy.copy(args)
    args.model_init_kwargs = policy.pop("model_init_kwargs")
    return PromptEnhancerTrainer(
        worker=StubWorker(), rewards=parse_rewards(args), args=args, train_dataset=train_prompts, **policy
    )


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train(trainer) -> set[str]:
    """Train, save, and return the names of the parameters that changed."""
    before = weights(trainer.model)
    trainer.train()
    trainer.save_model()
    assert any(history(trainer, "reward_std"))
    return {name for name, weight in weights(trainer.model).items() if not torch.equal(weight, before[name])}


def adapter_weights(model) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in weights(model).items() if ".default" in name}


def assert_adapter_loads_again(trainer, path, **init):
    """Check that the output folder holds, for a fresh base model, the adapter that was trained."""
    loaded = PeftModel.from_pretrained(create_model_from_path(path, **init), trainer.args.output_dir)
    saved = adapter_weights(trainer.model)
    assert saved and adapter_weights(loaded).keys() == saved.keys()
    for name, weight in adapter_weights(loaded).items():
        torch.testing.assert_close(weight, saved[name], rtol=0, atol=0, check_dtype=False)


def test_a_head_that_fsdp2_would_train_wrongly_is_refused():
    args = PromptEnhancerConfig(use_cpu=True, bf16=False)
    config = AutoConfig.from_pretrained(POLICY)
    tied = Qwen2VLForConditionalGeneration(config)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    untied = Qwen2VLForConditionalGeneration(config)
    check_policy(tied, args, is_fsdp2=True)
    check_policy(untied, args, is_fsdp2=False)
    with pytest.raises(ValueError, match="use_peft: true.* deepspeed_zero3.yaml"):
        check_policy(untied, args, is_fsdp2=True)
    check_policy(get_peft_model(untied, LoraConfig(target_modules=["q_proj"])), args, is_fsdp2=True)


@pytest.mark.parametrize("name", NAMES)
def test_lora(policies, name, tmp_path):
    trainer = policy_trainer(tmp_path, policies[name], {"use_peft": True})
    changed = train(trainer)
    assert changed == {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert changed == set(adapter_weights(trainer.model)) and not any("visual" in name for name in changed)
    assert_adapter_loads_again(trainer, policies[name])


@pytest.mark.parametrize("name", NAMES)
def test_full_fine_tuning(policies, name, tmp_path):
    trainer = policy_trainer(tmp_path, policies[name], gradient_checkpointing=name != "qwen2_vl")
    changed = train(trainer)
    assert changed == {name for name in weights(trainer.model) if "visual" not in name}  # no prompt has an image
    loaded = weights(create_model_from_path(str(tmp_path)))
    assert all(torch.equal(loaded[name], weight) for name, weight in weights(trainer.model).items())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "qwen3"])
def test_qlora(policies, name, tmp_path):
    options = {"bf16": True, "max_steps": 4, "learning_rate": 1e-3}  # at 1e-2 all rewrites are soon alike
    trainer = policy_trainer(tmp_path, policies[name], {"use_peft": True, "dtype": "bfloat16", **NF4}, **options)
    PromptEnhancer(trainer.model, trainer.processing_class).enhance(["a cat"], max_new_tokens=4)  # as the recipe does
    assert train(trainer) == set(adapter_weights(trainer.model))
    quantized = [layer.weight for layer in trainer.model.modules() if type(layer).__name__ == "Linear4bit"]
    assert quantized and all(weight.dtype == torch.uint8 and weight.quant_state.nested for weight in quantized)
    assert {weight.quant_state.quant_type for weight in quantized} == {"nf4"}
    assert {weight.dtype for weight in adapter_weights(trainer.model).values()} == {torch.bfloat16}  # TRL does so
    assert_adapter_loads_again(trainer, policies[name])


def test_lora_on_weights_of_8_bits(policies, tmp_path):
    trainer = policy_trainer(tmp_path, policies["qwen3"], {"use_peft": True, "load_in_8bit": True})
    PromptEnhancer(trainer.model, trainer.processing_class).enhance(["a cat"], max_new_tokens=4)
    assert train(trainer) == set(adapter_weights(trainer.model))
    assert "Linear8bitLt" in {type(layer).__name__ for layer in trainer.model.modules()}
    assert_adapter_loads_again(trainer, policies["qwen3"])


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3"])
def test_gradient_checkpointing_changes_nothing_but_the_memory(policies, name, tmp_path):
    after = []
    for checkpointing in (True, False):
        trainer = policy_trainer(
            tmp_path, policies[name], {"use_peft": True}, gradient_checkpointing=checkpointing, learning_rate=1e-3
        )
        assert train(trainer) == set(adapter_weights(trainer.model))
        after.append(adapter_weights(trainer.model))
    for with_it, without in zip(after[0].values(), after[1].values(), strict=True):
        torch.testing.assert_close(with_it, without)


def test_bfloat16_with_lora(policies, tmp_path):
    trainer = policy_trainer(tmp_path, policies["qwen2_5_vl"], {"use_peft": True, "dtype": "bfloat16"}, bf16=True)
    assert train(trainer) == set(adapter_weights(trainer.model))
    assert {weight.dtype for weight in adapter_weights(trainer.model).values()} == {torch.float32}
    assert trainer.model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    assert_adapter_loads_again(trainer, policies["qwen2_5_vl"], dtype="bfloat16")


def test_bfloat16_with_full_fine_tuning(policies, tmp_path):
    trainer = policy_trainer(tmp_path, policies["qwen3_vl"], {"dtype": "bfloat16"}, bf16=True)
    assert train(trainer) == {name for name in weights(trainer.model) if "visual" not in name}
    loaded = weights(create_model_from_path(str(tmp_path), dtype="auto"))
    assert {weight.dtype for weight in loaded.values()} == {torch.bfloat16}
    assert all(torch.equal(loaded[name], weight) for name, weight in weights(trainer.model).items())


@pytest.fixture(scope="module")
def adapters(policies, tmp_path_factory) -> dict[str, str]:
    """An adapter of each kind of model, after two steps; dropout would make a KL divergence by itself."""
    folders = {}
    for name in ("qwen2_vl", "qwen3"):
        folders[name] = str(tmp_path_factory.mktemp("adapter"))
        train(policy_trainer(folders[name], policies[name], {"use_peft": True, "lora_dropout": 0.0}))
    return folders


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3"])
@pytest.mark.parametrize("quantized", [False, True])
def test_training_goes_on_from_an_adapter(policies, adapters, name, quantized, tmp_path):
    trainer = policy_trainer(tmp_path, adapters[name], {"dtype": "bfloat16", **NF4} if quantized else None)
    saved = load_file(f"{adapters[name]}/adapter_model.safetensors")
    start = adapter_weights(trainer.model)
    assert len(saved) == len(start)
    for weight_name, weight in saved.items():
        now = start[weight_name.replace(".weight", ".default.weight")]
        torch.testing.assert_close(now, weight.to(now.dtype), rtol=0, atol=0)
    assert train(trainer) == set(start)
    assert_adapter_loads_again(trainer, policies[name])


def test_a_new_adapter_is_held_to_the_base_model(policies, tmp_path):
    trainer = policy_trainer(tmp_path, policies["qwen3_vl"], {"use_peft": True}, beta=0.1, max_steps=3)
    train(trainer)
    kl = history(trainer, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[2] > 1e-4


def test_an_adapter_trained_on_is_held_to_its_own_start(policies, adapters, tmp_path):
    """TRL keeps a frozen copy, "ref"; a run that is resumed still has it."""
    options = {"beta": 0.1, "save_strategy": "steps", "save_steps": 2}
    trainer = policy_trainer(tmp_path, adapters["qwen2_vl"], **options, max_steps=3)
    start = adapter_weights(trainer.model)
    assert train(trainer) == set(start)
    kl = history(trainer, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[2] > 1e-4
    assert_adapter_loads_again(trainer, policies["qwen2_vl"])
    trainer.save_model()
    assert not (tmp_path / "ref").exists() and (tmp_path / "checkpoint-2" / "ref").exists()

    resumed = policy_trainer(tmp_path, adapters["qwen2_vl"], **options, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    at_checkpoint = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    for name, weight in weights(resumed.model).items():
        if ".ref." in name:
            assert torch.equal(weight, start[name.replace(".ref.", ".default.")])
        elif ".default." in name:
            assert not torch.equal(weight, at_checkpoint[name.replace(".default.", ".")])
    assert history(resumed, "kl")[2] == pytest.approx(kl[2], rel=1e-3)


def test_an_adapter_remembers_which_base_it_belongs_to(policies, adapters):
    config = json.loads(Path(adapters["qwen3"], "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (policies["qwen3"], "main")


def test_settings_that_do_not_apply_to_an_adapter_are_named(adapters, tmp_path, caplog):
    policy_trainer(tmp_path, adapters["qwen3"], {"use_peft": True, "lora_r": 64})
    assert f"{adapters['qwen3']} is an adapter" in caplog.text and "lora_* do not apply" in caplog.text


@pytest.mark.parametrize("is_adapter", [False, True])
def test_the_settings_of_the_run_are_left_alone(adapters, is_adapter, tmp_path):
    args = PromptEnhancerConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs={"dtype": "float32"}
    )
    policy = load_policy(ModelConfig(adapters["qwen3"] if is_adapter else POLICY, dtype=None), args)
    assert args.model_init_kwargs == {"dtype": "float32"}
    used = {"revision": "main", "attn_implementation": None, "dtype": "float32"}
    assert policy["model_init_kwargs"] == (None if is_adapter else used)


def test_an_adapter_without_its_base_model(adapters, tmp_path):
    shutil.copytree(adapters["qwen3"], tmp_path / "moved")
    file = tmp_path / "moved" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "runs/no/such"}))
    with pytest.raises(OSError, match="adapter_config.json: its base model 'runs/no/such' cannot be loaded"):
        policy_trainer(tmp_path, str(tmp_path / "moved"))


def test_an_adapter_that_does_not_fit_its_base_model(adapters, tmp_path):
    """As after a rename of layers in transformers: PEFT alone would warn, and train a fresh adapter."""
    shutil.copytree(adapters["qwen3"], tmp_path / "renamed")
    file = tmp_path / "renamed" / "adapter_model.safetensors"
    save_file({name.replace("layers.0", "blocks.0"): weight for name, weight in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="does not fit its base model .* would start from scratch.*layers.0"):
        policy_trainer(tmp_path, str(tmp_path / "renamed"))


def spoil_weights(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])


def spoil_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("")


def spoil_rank(folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 2}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_weights, "adapter_model.safetensors: cannot be read, it may be cut off"),
        (spoil_config, "adapter_config.json: this is no adapter's configuration"),
        (spoil_rank, "does not fit its base model .* size mismatch"),
    ],
)
def test_an_adapter_that_is_spoiled_is_named_in_a_line(adapters, tmp_path, spoil, says):
    folder = tmp_path / "spoiled"
    shutil.copytree(adapters["qwen3"], folder)
    spoil(folder)
    with pytest.raises(ValueError, match=says) as error:
        PromptEnhancer.from_pretrained(folder, device="cpu")
    assert str(folder) in str(error.value) and len(str(error.value)) < 700


def test_a_single_name_is_a_module_and_no_pattern(policies, tmp_path):
    trainer = policy_trainer(tmp_path, policies["qwen3"], {"use_peft": True, "lora_target_modules": ["q_proj"]})
    assert {name.split(".")[-4] for name in adapter_weights(trainer.model)} == {"q_proj"}


@pytest.mark.parametrize(
    ("path", "model", "says"),
    [
        (POLICY, {"load_in_4bit": True}, "set use_peft: true"),
        (POLICY, {"load_in_8bit": True}, "set use_peft: true"),
        (POLICY, {"load_in_4bit": True, "use_peft": True, "dtype": "auto"}, "set dtype: bfloat16"),
        (
            "runs/no/such",
            {},
            "model_name_or_path: 'runs/no/such' is no folder here with a model, and no model on the Hub",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(path, model, says, tmp_path):
    with pytest.raises((ValueError, OSError), match=says):
        policy_trainer(tmp_path, path, model)


def test_without_bitsandbytes_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("brushup.policy.load.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match=r'pip install "brushup\[quantization\]"'):
        policy_trainer(tmp_path, POLICY, {"use_peft": True, **NF4})

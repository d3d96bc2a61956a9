"""The launch files: every YAML and accelerate config as users type them, sharded over two CPU processes."""

import json
import re
import shlex
import shutil

import pandas
import pytest
import torch
import yaml
from conftest import REPOSITORY, TINY_WORLD, few_prompts
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration
from trl import ModelConfig, TrlParser
from trl.scripts.vllm_serve import ScriptArguments, build_command

from brushup.config import DataConfig, PromptEnhancerConfig, RenderConfig
from brushup.policy.enhancer import PromptEnhancer
from brushup.render.job import RenderJob, paired_seeds
from support.launching import RECIPE, SHARDED, TWO_CPU_RANKS, on_two_cpus, run


YAMLS = sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("recipes/**/*.yaml"))
OFFLOADED = "deepspeed_zero3_offload"
ACCELERATE_CONFIGS = sorted(path.stem for path in REPOSITORY.glob("accelerate_configs/**/*.yaml"))


@pytest.mark.parametrize("path", YAMLS)
def test_each_yaml_parses_with_the_recipes_own_parser(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("WORLD_SIZE", "1")
    parser = TrlParser((DataConfig, RenderConfig, PromptEnhancerConfig, ModelConfig))
    data, render, args, model, others, unknown = parser.parse_args_and_config(
        ["--config", path, "--use_cpu", "true"], return_remaining_strings=True, separate_remaining_strings=True
    )
    assert not unknown and {name for name in others if name.startswith("--")} <= {"--best_of"}  # of evaluate.py
    assert (REPOSITORY / data.train_prompts).exists() and (REPOSITORY / data.validation_prompts).exists()
    assert isinstance(render.render_kwargs["height"], int) and isinstance(args.learning_rate, float)
    assert len(args.reward_funcs) == len(args.reward_weights or args.reward_funcs)
    assert set(args.reward_kwargs) <= set(args.reward_funcs)
    assert model.use_peft and args.output_dir.startswith("runs/")
    may_share_gpu = path != "recipes/tiny_cpu.yaml" and render.worker in ("local", "auto")
    assert not may_share_gpu or render.gpu_memory_fraction == 1.0  # else the policy had but a part of its GPU


@pytest.mark.parametrize("path", YAMLS)
def test_each_yaml_says_what_it_needs_and_how_it_is_launched(path):
    header = re.split(r"\n\n", (REPOSITORY / path).read_text())[0]
    assert re.search(r"^# Needs: ", header, re.MULTILINE) and re.search(r"^# Override: .*--\w+", header, re.MULTILINE)
    launch = re.search(
        r"^# Launch: +(?:\w+=\S+ )?accelerate launch --config_file (\S+) (?:--\w+ \d+ )?(\S+) --config (\S+)$",
        header,
        re.MULTILINE,
    )
    assert launch[3] == path and all((REPOSITORY / file).exists() for file in launch.groups())


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_vllm_has_a_yaml_for_each_mode_that_trl_takes(mode, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    path = f"recipes/qwen2vl_7b_sd3_vllm_{mode}.yaml"
    parser = TrlParser((DataConfig, RenderConfig, PromptEnhancerConfig, ModelConfig))
    _, render, args, model = parser.parse_args_and_config(["--config", path, "--use_cpu", "true"])
    assert args.use_vllm and args.vllm_mode == mode and not model.load_in_4bit
    plain = yaml.safe_load((REPOSITORY / "recipes" / "qwen2vl_7b_sd3.yaml").read_text())
    changed = {
        key for key, value in yaml.safe_load((REPOSITORY / path).read_text()).items() if plain.get(key) != value
    }
    allowed = {"use_vllm", "output_dir", "per_device_train_batch_size"}
    assert {key for key in changed if not key.startswith("vllm_")} <= allowed


def test_the_vllm_server_is_started_as_trl_starts_it():
    settings = yaml.safe_load((REPOSITORY / "recipes" / "qwen2vl_7b_sd3_vllm_server.yaml").read_text())
    text = (REPOSITORY / "recipes" / "qwen2vl_7b_sd3_vllm_server.yaml").read_text()
    variables, command = re.search(r"^# Server: +((?:\w+=\S+ )+)(vllm serve .*)$", text, re.MULTILINE).groups()
    given = shlex.split(command)
    of_trl = build_command(ScriptArguments(model=settings["model_name_or_path"]))
    assert "VLLM_SERVER_DEV_MODE=1" in variables and given[2] == settings["model_name_or_path"]
    for flag in ("--weight-transfer-config", "--logprobs-mode", "--max-logprobs"):
        assert given[given.index(flag) + 1] == of_trl[of_trl.index(flag) + 1]
    assert int(given[given.index("--max-model-len") + 1]) > settings["max_completion_length"] + 300  # the prompt
    trains = set(re.search(r"^# Launch: +CUDA_VISIBLE_DEVICES=(\S+)", text, re.MULTILINE)[1].split(","))
    assert not trains & set(re.search(r"CUDA_VISIBLE_DEVICES=(\S+)", variables)[1].split(","))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHARDED, OFFLOADED])
def test_the_recipe_on_two_processes(name, tmp_path, worker, validation_rows):
    """Held-out prompts are shared out; generation, validation, checkpoints and the adapter work sharded."""
    if name == OFFLOADED and not shutil.which("g++"):
        pytest.skip("DeepSpeed compiles its Adam for the CPU, and there is no C++ compiler")
    rows = validation_rows[:7]
    out = tmp_path / "out"
    done = run(
        on_two_cpus(name, tmp_path, *RECIPE, *TWO_CPU_RANKS)
        + ["--validation_prompts", few_prompts(tmp_path, 7), "--output_dir", str(out)]
        + ["--per_device_train_batch_size", "8", "--max_steps", "2", "--logging_steps", "1", "--save_steps", "1"]
        + ["--eval_strategy", "steps", "--eval_steps", "1", "--load_best_model_at_end", "true"]
        + ["--metric_for_best_model", "eval_reward", "--greater_is_better", "true"],
        real=True,
    )
    results = json.loads((out / "results.json").read_text())
    assert [arm["n"] for arm in results["arms"].values()] == [7, 7, 7]

    # The same answers and pictures as one process gives with whole weights
    enhancer = PromptEnhancer(
        Qwen2VLForConditionalGeneration.from_pretrained(TINY_WORLD / "policy", dtype=torch.float32),
        AutoProcessor.from_pretrained(TINY_WORLD / "policy"),
    )
    asked = [row["user_prompt"] for row in rows]
    before = json.loads((out / "validation_0.json").read_text())["rows"]
    assert [row["user_prompt"] for row in before] == asked
    alone = enhancer.enhance(asked, max_new_tokens=32, temperature=0)
    assert [row["rewrite"] for row in before] == [enhancement.prompt for enhancement in alone]
    jobs = [RenderJob(prompt, prompt, paired_seeds(0, "validation", prompt, 1)[0]) for prompt in asked]
    alone = [result.scores["clip"] for result in worker.score(jobs)]
    assert [row["original_rewards"]["clip"] for row in before] == pytest.approx(alone, abs=1e-3)

    # Two ranks write for different prompts
    completions = pandas.read_parquet(out / "completions" / "completions_00002.parquet")
    assert len(completions) == 16 and completions["user_prompt"].nunique() == 2

    # The adapter in output_dir is whole, and that of the best step
    best = re.search(r"the policy of step (\d) was the best", done.stdout)[1]
    saved = load_file(out / "adapter_model.safetensors")
    kept = load_file(out / f"checkpoint-{best}" / "adapter_model.safetensors")
    whole = {name: tensor.shape for name, tensor in get_peft_model_state_dict(fresh_adapter()).items()}
    assert {name: tensor.shape for name, tensor in saved.items()} == whole
    assert all(torch.equal(saved[name], kept[name]) for name in whole)
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in saved.items())
    rewards = {step: arm["clip"] for step, arm in results["validation"].items()}
    assert rewards[best] == max(rewards["1"], rewards["2"])


def fresh_adapter() -> PeftModel:
    """The adapter of recipes/tiny_cpu.yaml before training."""
    settings = yaml.safe_load((REPOSITORY / "recipes" / "tiny_cpu.yaml").read_text())
    policy = Qwen2VLForConditionalGeneration.from_pretrained(TINY_WORLD / "policy")
    return get_peft_model(policy, LoraConfig(r=settings["lora_r"], target_modules=settings["lora_target_modules"]))

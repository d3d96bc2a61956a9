"""What the recipe prints and leaves, with the settings of the tiny run and of the others."""

import json
import re

import pandas
import pytest
from conftest import TINY_WORLD, few_prompts
from PIL import Image
from safetensors.torch import load_file

from support.generators import save_generator
from support.launching import ACCELERATE, recipe, run
from support.short_run import PROMPTS, STEPS


@pytest.mark.slow
def test_results(short_run):
    results = json.loads((short_run[1] / "results.json").read_text())
    assert set(results["arms"]) == {"original", "untrained", "trained"}
    for arm in results["arms"].values():
        assert set(arm["rewards"]) == {"clip", "keyword_retention"} and arm["n"] == PROMPTS
        assert all(0 <= value <= 1 for value in arm["rewards"].values()) and 0 <= arm["checker_accuracy"] <= 1
    assert results["arms"]["original"]["rewards"]["keyword_retention"] == 1.0
    for gain in results["trained_minus_untrained"].values():
        assert gain["ci95"][0] <= gain["mean"] <= gain["ci95"][1]
    assert 0 <= results["win_rate"] <= 1 and results["seconds"] > 0
    # the users' prompts, three validations, and in each step up to 32 rewrites; equal ones are rendered once
    assert PROMPTS < results["images_drawn"] <= 4 * PROMPTS + STEPS * 32


@pytest.mark.slow
def test_files(short_run):
    output = short_run[1]
    adapter = load_file(output / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    assert not [name for name in adapter if "visual" in name]
    assert (output / "checkpoint-2" / "adapter_model.safetensors").exists()
    assert (output / "README.md").read_text().startswith("---")
    for name in ("step-000000.png", "step-000002.png", "before_after.png"):
        assert Image.open(output / "images" / name).height > 160
    completions = pandas.read_parquet(output / "completions" / "completions_00006.parquet")
    assert {"prompt", "completion", "clip", "keyword_retention", "advantage", "user_prompt", "rewrite"} <= set(
        completions.columns
    )
    assert len(completions) == 32


@pytest.mark.slow
def test_what_a_person_sees(short_run):
    printed = short_run[0].stdout
    assert re.search(r"^policy +data/tiny_world/policy: [\d,]+ of [\d,]+ parameters train$", printed, re.MULTILINE)
    assert re.search(
        r"^step +6/6 +reward \d\.\d{3} +clip \d\.\d{3} +keyword_retention \d\.\d{3}", printed, re.MULTILINE
    )
    assert re.search(
        rf"^\| original +\| \d\.\d{{3}} +\| 1\.000 +\| \d+\.\d% +\| 0\.0% +\| 0\.0% +\| {PROMPTS} +\|$",
        printed,
        re.MULTILINE,
    )
    assert re.search(r"^trained - untrained clip: [+-]\d\.\d{3} \(95 % interval", printed, re.MULTILINE)
    noise = [line for line in (printed + short_run[0].stderr).splitlines() if "Warning" in line or "WARNING" in line]
    assert not noise
    assert len(printed.splitlines()) < 40


@pytest.mark.slow
def test_another_policy_and_generator_by_name(tmp_path, text_policy):
    """Only names differ: a text-only Qwen2, a Stable Diffusion 1.5 (random weights)."""
    save_generator("sd15", tmp_path / "generator")
    run(
        recipe(
            *("--model_name_or_path", text_policy, "--generator", str(tmp_path / "generator")),
            *(
                "--generator_init_kwargs",
                "{}",
                "--render_kwargs",
                '{"num_inference_steps": 2, "height": 48, "width": 48}',
            ),
            *("--validation_prompts", few_prompts(tmp_path, 4), "--output_dir", str(tmp_path / "out")),
            *("--max_steps", "2", "--logging_steps", "1", "--lora_target_modules", "q_proj", "v_proj"),
        )
    )
    arms = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    assert set(arms["original"]["rewards"]) == {"clip", "questions"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2vl_2b_sd3_1gpu", "qwen2vl_7b_sd3"])
def test_the_yaml_for_real_models_differs_in_names_and_sizes_only(name, tmp_path):
    """Its names and sizes exchanged for tiny ones, all else runs as it stands: LoRA, bf16, validation, best model."""
    done = run(
        [
            *(*ACCELERATE, "accelerate_configs/cpu.yaml", "recipes/grpo.py", "--config", f"recipes/{name}.yaml"),
            *("--output_dir", str(tmp_path / "out"), "--use_cpu", "true"),
            *("--model_name_or_path", str(TINY_WORLD / "policy"), "--generator", str(TINY_WORLD / "generator")),
            *("--generator_init_kwargs", '{"text_encoder_3": null, "tokenizer_3": null}'),
            *("--render_kwargs", '{"num_inference_steps": 4, "height": 48, "width": 48, "max_sequence_length": 1}'),
            *("--reward_kwargs", json.dumps({"clip": {"model_name": f"local-dir:{TINY_WORLD / 'scorer'}"}})),
            *("--validation_prompts", few_prompts(tmp_path, 4), "--max_steps", "1", "--logging_steps", "1"),
            *("--eval_steps", "1", "--save_steps", "1"),
            *("--compile_generator", "false"),  # a CPU's kernels take minutes to build
        ]
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["arms"]["trained"]["rewards"]) == {"clip", "quality_score"}
    assert results["arms"]["trained"]["checker_accuracy"] is None
    metrics = json.loads((tmp_path / "out" / "validation_1.json").read_text())["metrics"]
    assert 0 <= metrics["success_rate"] <= 1 and 0 <= metrics["quality_score"] <= 1
    assert "the policy of step 1 was the best" in done.stdout

"""recipes/evaluate.py as users type it, on the tiny world, and its report in a browser."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, TINY_WORLD, few_prompts
from peft import LoraConfig, get_peft_model
from transformers import Qwen2VLForConditionalGeneration

from brushup.common import mean
from brushup.config import RenderConfig
from brushup.evaluation.results import Results
from brushup.render.job import RenderJob
from brushup.render.kept_images import KeptImages
from brushup.render.worker import LocalWorker
from support.generators import save_generator
from support.launching import finished, run


EVALUATE = [sys.executable, "recipes/evaluate.py", "--config", "recipes/tiny_cpu.yaml"]
LEFT_BY_TRAINING = {
    "settings": {"policy": "data/tiny_world/policy"},
    "validation": {"0": {"clip": 0.5}},
    "reward_hacking": {"training": ["length climbed from 12.000 to 20.000 (training steps 1 to 5)"]},
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder and the output of one evaluation.

    It has two adapters with random weights, twelve prompts of two categories, two images each, a further reward, and
    another generator.
    """
    folder = tmp_path_factory.mktemp("evaluation")
    for seed, name in enumerate(("left", "right")):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration.from_pretrained(TINY_WORLD / "policy", dtype=torch.float32)
        settings = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        get_peft_model(model, settings).save_pretrained(folder / name)
    (folder / "out").mkdir()
    (folder / "out" / "results.json").write_text(json.dumps({"arms": {}, **LEFT_BY_TRAINING}))
    prompts = Path(few_prompts(folder, 12))
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    rows = [row | {"category": "korean" if row["category"] == "korean" else "english"} for row in rows]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    call = {"num_inference_steps": 2, "height": 32, "width": 32}
    done = run(
        [
            *EVALUATE,
            *("--transfer_generator", save_generator("sdxl", folder / "sdxl"), "--keep_images", "true"),
            *("--transfer_render_kwargs", json.dumps(call)),
            *("--adapter", str(folder / "left"), str(folder / "right"), "--output_dir", str(folder / "out")),
            *("--validation_prompts", str(prompts), "--validation_images_per_prompt", "2"),
            *("--eval_reward_funcs", "keyword_retention", "--best_of", "2", "--turns", "2"),
        ]
    )
    return folder, done.stdout


KINDS = ("", "revised ", "best_turn ", "best_of_2 ")


def test_arms_and_what_is_said_of_them(evaluated):
    results = Results.load(evaluated[0] / "out")
    assert list(results.arms) == [
        *("original", "static", "repeat"),
        *(kind + name for name in ("untrained", "left", "right") for kind in KINDS),
        *("oracle left", "oracle right"),
    ]
    for arm in results.arms.values():
        assert set(arm["rewards"]) == {"clip", "questions", "keyword_retention"} and arm["n"] == 12
        trained = arm["rewards"]["clip"] + arm["rewards"]["questions"]  # the third is only looked at
        assert arm["reward"] == pytest.approx(trained)
        assert 0 <= arm["success_rate"] <= 1 and 0 <= arm["checker_accuracy"] <= 1 and arm["seconds"] >= 0
        assert set(arm["by_difficulty"]) <= {"easy", "medium", "hard"}
        assert sum(group["n"] for group in arm["by_category"].values()) == 12
    original, static = results.arms["original"], results.arms["static"]
    assert original["rewards"]["keyword_retention"] == static["rewards"]["keyword_retention"] == 1.0
    assert original["images_drawn"] == static["images_drawn"] == 24
    for policy in ("untrained", "left", "right"):
        best = results.arms[f"best_of_2 {policy}"]
        assert best["reward"] >= results.arms[policy]["reward"] and best["images_drawn"] <= 24
        revised, either = (results.arms[f"{kind} {policy}"] for kind in ("revised", "best_turn"))
        assert (
            12 <= revised["images_drawn"] <= 12 + 24 and either["images_drawn"] == 0
        )  # the drafts, and the revisions
        assert either["reward"] >= max(revised["reward"], results.arms[policy]["reward"])
    chosen = [name for name, arm in results.arms.items() if arm["chosen_by_reward"]]
    assert chosen == [name for name in results.arms if name.startswith(("best_of_2 ", "best_turn ", "oracle "))]
    assert {"revised left - left", "revised left - best_of_2 left"} <= set(results.differences)
    oracle = results.arms["oracle left"]
    assert oracle["images_drawn"] == 0 and oracle["harmed"] == 0.0
    assert oracle["reward"] >= max(original["reward"], results.arms["left"]["reward"])
    assert results.images_drawn == sum(arm["images_drawn"] for arm in results.arms.values())
    assert static["tokens"]["clip"]["mean"] > original["tokens"]["clip"]["mean"]
    assert {"left - original", "left - repeat", "right - left", "untrained - original"} <= set(results.differences)
    for gains in results.differences.values():
        assert gains["clip"]["ci95"][0] <= gains["clip"]["mean"] <= gains["clip"]["ci95"][1]
    untrained = results.differences["untrained - original"]["clip"]["mean"]
    assert untrained == pytest.approx(results.arms["untrained"]["rewards"]["clip"] - original["rewards"]["clip"])
    assert results.evaluation["weights"] == {"clip": 1.0, "questions": 1.0, "keyword_retention": 0.0}


def test_the_same_prompts_rendered_by_another_generator(evaluated):
    results = Results.load(evaluated[0] / "out")
    transferred = results.transfer["arms"]
    assert list(transferred) == [name for name in results.arms if not name.startswith("oracle ")]
    for name, arm in transferred.items():
        assert arm["n"] == 12 and arm["rewards"]["clip"] != results.arms[name]["rewards"]["clip"]
        assert arm["rewards"]["keyword_retention"] == results.arms[name]["rewards"]["keyword_retention"]
    assert "left - original" in results.transfer["differences"] and results.transfer["images_drawn"] > 0
    assert f"The same prompts, rendered by {results.transfer['generator']}" in evaluated[1]
    assert "Rendered by another generator" in (evaluated[0] / "out" / "report.html").read_text()


def test_kept_images_have_the_same_scores(evaluated, clip):
    """Of each arm that rendered some; the evaluation's own settings find them."""
    folder, results = evaluated[0] / "out" / "evaluation_images", Results.load(evaluated[0] / "out")
    settings = yaml.safe_load((REPOSITORY / "recipes" / "tiny_cpu.yaml").read_text())
    names = {field.name for field in dataclasses.fields(RenderConfig)}
    render = RenderConfig(**{name: value for name, value in settings.items() if name in names}, render_device="cpu")
    images = json.loads((folder / "index.json").read_text())["images"]
    assert {image["arm"] for image in images} == {n for n, arm in results.arms.items() if arm["images_drawn"]}
    jobs = [RenderJob(*(i[n] for n in ("prompt", "user_prompt", "seed"))) for i in images if i["arm"] == "original"]
    scored = LocalWorker(KeptImages(folder, render), {"clip": clip}).submit(jobs).result()
    arm = results.arms["original"]
    assert len(scored) == arm["images_drawn"] == 24
    assert mean([result.scores["clip"] for result in scored]) == pytest.approx(arm["rewards"]["clip"], abs=1e-4)


def test_what_training_left_stays(evaluated):
    results = Results.load(evaluated[0] / "out")
    assert {"settings": results.settings, "validation": results.validation} == {
        name: LEFT_BY_TRAINING[name] for name in ("settings", "validation")
    }
    signs = LEFT_BY_TRAINING["reward_hacking"]["training"]
    assert results.reward_hacking["training"] == signs and "held_out" in results.reward_hacking
    assert f"reward hacking? {signs[0]}" in evaluated[1]


def test_the_terminal_and_the_page(evaluated):
    folder, printed = evaluated
    for name, arm in Results.load(folder / "out").arms.items():
        assert re.search(rf"^\| {name}( †)? +\| {arm['rewards']['clip']:.3f} ", printed, re.MULTILINE)
    assert "left - original: " in printed
    headlines = re.findall(r"^(left|right) .* the user's prompt: reward .*", printed, re.MULTILINE)
    assert headlines == ["left", "right"] and printed.count("Against the best of 2 untrained rewrites") == 2
    page = (folder / "out" / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"?(?!data:)[^ \"]+", page) and "http" not in page.replace("http-equiv", "")


def test_the_report_in_a_browser(evaluated, browser):
    """Wide and narrow, nothing but the file is loaded; images show; the filters filter."""
    requested = []
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("request", lambda request: requested.append(request.url))
        errors = []
        page.on("pageerror", lambda error, errors=errors: errors.append(error))
        page.on("console", lambda message, errors=errors: message.type == "error" and errors.append(message.text))
        page.goto(f"file://{evaluated[0]}/out/report.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = page.locator("article:visible")
        best = shown.count()
        lines = [image.bounding_box()["y"] for image in shown.first.locator("img").all()]
        assert sorted(map(lines.count, set(lines))) == (
            [4, 4, 4] if width == 1280 else [2] * 6
        )  # of twelve, none alone below; an oracle has none of its own
        clipped = "[...document.querySelectorAll('.scroll')].some((table) => table.scrollWidth > table.clientWidth)"
        assert not page.evaluate(clipped)
        assert best > 0 and shown.first.locator("img").count() == 12
        assert page.evaluate("[...document.images].every((image) => image.naturalWidth === 48)")
        page.get_by_role("button", name="All").click()
        everything = shown.count()
        assert everything == 12 > best
        page.get_by_label("category").select_option("korean")
        assert 0 < shown.count() < everything
        assert {badge.inner_text() for badge in shown.locator(".badge:first-of-type").all()} == {"korean"}
        assert not errors
        page.close()
    assert all(url.startswith(("file:", "data:")) for url in requested)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--beter", "1"), "--beter does not exist"),
        (("--reward_weights", "1", "2", "3"), "reward_weights: 3 weights for 2 reward_funcs"),
    ],
)
def test_wrong_settings_end_it_before_any_model_is_loaded(flags, message):
    done = finished([*EVALUATE, *flags])
    assert done.returncode != 0 and message in done.stderr

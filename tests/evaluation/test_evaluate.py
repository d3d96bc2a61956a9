"""recipes/evaluate.py as users type it, on the tiny world, and its report in a browser."""

import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, TINY_WORLD
from peft import LoraConfig, get_peft_model
from transformers import Qwen2VLForConditionalGeneration

from brushup.config import RenderConfig
from brushup.evaluation.report import training_curves, verdict
from brushup.render.job import RenderJob
from brushup.render.originals import Originals
from brushup.render.worker import LocalWorker
from support.launching import ENVIRONMENT


def evaluate(*flags: str, timeout: int = 200) -> subprocess.CompletedProcess:
    command = [sys.executable, "recipes/evaluate.py", "--config", "recipes/tiny_cpu.yaml", *flags]
    return subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two adapters with random weights, twelve prompts, two pictures each, a further reward; evaluated twice."""
    folder = tmp_path_factory.mktemp("evaluation")
    rows = (TINY_WORLD / "validation.jsonl").read_text().splitlines()[:12]
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    for seed, name in enumerate(("left", "right")):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration.from_pretrained(TINY_WORLD / "policy", dtype=torch.float32)
        settings = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        get_peft_model(model, settings).save_pretrained(folder / name)
    flags = (
        *("--adapter", str(folder / "left"), str(folder / "right"), "--output_dir", str(folder / "out")),
        *("--validation_prompts", str(folder / "prompts.jsonl"), "--validation_images_per_prompt", "2"),
        *("--eval_reward_funcs", "keyword_retention", "--originals_cache", str(folder / "cache")),
    )
    runs = []
    for _ in range(2):
        done = evaluate(*flags)
        assert done.returncode == 0, done.stderr[-3000:]
        runs.append(json.loads((folder / "out" / "results.json").read_text()))
    return folder, runs, done.stdout


def test_arms_and_what_is_said_of_them(evaluated):
    results = evaluated[1][0]
    assert list(results["arms"]) == ["original", "static", "untrained", "left", "right"]
    for arm in results["arms"].values():
        assert set(arm["rewards"]) == {"clip", "keyword_retention"} and arm["n"] == 12
        assert arm["reward"] == arm["rewards"]["clip"]  # the other one is only looked at
        assert 0 <= arm["success_rate"] <= 1 and 0 <= arm["checker_accuracy"] <= 1 and arm["seconds"] > 0
        assert set(arm["by_difficulty"]) <= {"easy", "medium", "hard"}
        assert sum(group["n"] for group in arm["by_category"].values()) == 12
    original, static = results["arms"]["original"], results["arms"]["static"]
    assert original["rewards"]["keyword_retention"] == static["rewards"]["keyword_retention"] == 1.0
    assert original["images_drawn"] == static["images_drawn"] == 24
    assert static["tokens"]["clip"]["mean"] > original["tokens"]["clip"]["mean"]
    assert {"left - original", "right - left", "untrained - static"} <= set(results["differences"])
    for gains in results["differences"].values():
        assert gains["clip"]["ci95"][0] <= gains["clip"]["mean"] <= gains["clip"]["ci95"][1]
    untrained = results["differences"]["untrained - original"]["clip"]["mean"]
    assert untrained == pytest.approx(results["arms"]["untrained"]["rewards"]["clip"] - original["rewards"]["clip"])


def test_a_second_evaluation_is_the_same_and_draws_no_original(evaluated):
    first, second = evaluated[1]
    assert second["arms"]["original"]["images_drawn"] == 0 and second["arms"]["static"]["images_drawn"] == 24
    for name in first["arms"]:
        assert second["arms"][name]["rewards"]["clip"] == pytest.approx(first["arms"][name]["rewards"]["clip"])
    assert len(list((evaluated[0] / "cache").rglob("*.png"))) == 24


def test_the_reports(evaluated):
    folder, (_, results), printed = evaluated
    text = (folder / "out" / "report.md").read_text()
    for name, arm in results["arms"].items():
        assert re.search(rf"^\| {name} +\| {arm['rewards']['clip']:.3f} ", text, re.MULTILINE)
        assert re.search(rf"^\| {name} +\| {arm['rewards']['clip']:.3f} ", printed, re.MULTILINE)
    assert "left - original: " in text and "## Reward by category" in text
    page = (folder / "out" / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"?(?!data:)[^ \"]+", page) and "http" not in page.replace("http-equiv", "")


def test_the_report_in_a_browser(evaluated, browser):
    """Wide and narrow, nothing but the file is loaded; pictures show; the filters filter."""
    asked = []
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        errors = []
        page.on("pageerror", lambda error, errors=errors: errors.append(error))
        page.on("console", lambda message, errors=errors: message.type == "error" and errors.append(message.text))
        page.goto(f"file://{evaluated[0]}/out/report.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = page.locator("article:visible")
        best = shown.count()
        assert best > 0 and shown.first.locator("img").count() == 5
        assert page.evaluate("[...document.images].every((image) => image.naturalWidth === 32)")
        page.get_by_role("button", name="All").click()
        everything = shown.count()
        assert everything > best
        page.get_by_label("category").select_option("korean")
        assert 0 < shown.count() < everything
        assert {one.inner_text() for one in shown.locator(".badge:first-of-type").all()} == {"korean"}
        assert not errors
        page.close()
    assert all(url.startswith(("file:", "data:")) for url in asked)


def test_what_a_user_writes_can_be_no_script(tmp_path, evaluated):
    """A prompt with markup is shown as it is."""
    folder = evaluated[0]
    wicked = '<script>document.title="owned"</script>"><img src=x onerror=alert(1)> a red circle'
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"user_prompt": wicked, "category": "<b>"}))
    done = evaluate(
        *("--adapter", str(folder / "left"), "--validation_prompts", str(tmp_path / "prompts.jsonl")),
        *("--output_dir", str(tmp_path), "--originals_cache", str(tmp_path / "cache"), "--checker", ""),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "report.html").read_text()
    assert "<script>document" not in page and "<img src=x" not in page and "&lt;script&gt;document" in page


def test_originals_are_kept_apart_by_settings_and_weights(tmp_path):
    """Other steps, or other weights in the same folder, are another generator."""
    generator = tmp_path / "generator"
    generator.symlink_to(TINY_WORLD / "generator")
    config = RenderConfig(generator=str(generator), render_kwargs={"num_inference_steps": 2}, render_device="cpu")
    fewer = RenderConfig(generator=str(generator), render_kwargs={"num_inference_steps": 1}, render_device="cpu")
    first, same, other = (Originals(tmp_path / "cache", one) for one in (config, config, fewer))
    assert first.folder == same.folder != other.folder
    generator.unlink()
    generator.mkdir()
    (generator / "model_index.json").write_text("{}")
    assert Originals(tmp_path / "cache", config).folder not in (first.folder, other.folder)


def test_a_generator_of_the_hub_is_known_by_its_commit(tmp_path):
    kept = tmp_path / "models--me--sd" / "snapshots" / "abc123"
    kept.mkdir(parents=True)
    (kept / "model_index.json").write_text("{}")
    (tmp_path / "models--me--sd" / "refs").mkdir()
    (tmp_path / "models--me--sd" / "refs" / "main").write_text("abc123")
    config = RenderConfig(generator="me/sd", generator_init_kwargs={"cache_dir": str(tmp_path)}, render_device="cpu")
    originals = Originals(tmp_path / "cache", config)
    assert json.loads((originals.folder / "settings.json").read_text())["weights"] == "abc123"
    with pytest.raises(ValueError, match="originals_cache: which version of me/other was loaded can't be told"):
        Originals(tmp_path / "cache", RenderConfig(generator="me/other"))


def test_only_the_users_own_prompts_are_kept(tmp_path, renderer, clip):
    config = RenderConfig(generator=str(TINY_WORLD / "generator"), render_device="cpu")
    worker = LocalWorker(renderer, {"clip": clip}, Originals(tmp_path, config))
    jobs = [RenderJob("a red circle", "a red circle", 1), RenderJob("a big red circle", "a red circle", 1)]
    drawn = renderer.images_drawn
    first, second = worker.score(jobs, return_images=True), worker.score(jobs, return_images=True)
    assert renderer.images_drawn - drawn == 3 and len(list(tmp_path.rglob("*.png"))) == 1
    assert [one.scores for one in first] == [pytest.approx(one.scores, abs=1e-4) for one in second]
    assert first[0].image.tobytes() == second[0].image.tobytes() and second[0].tokens


def test_curves_of_a_training_run(tmp_path):
    assert training_curves(tmp_path) == []
    history = [{"step": step, "reward": step / 10} for step in (1, 2, 4)] + [{"step": 0, "eval_reward": 0.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (curve,) = training_curves(tmp_path)  # one point is no curve
    assert curve["points"] == "150.0,170.0 300.0,116.7 600.0,10.0"
    assert (curve["low"], curve["high"], curve["last"], curve["steps"]) == (0.1, 0.4, 0.4, 4)


@pytest.mark.parametrize(
    ("ci95", "said"),
    [([0.1, 0.3], "better"), ([-0.3, -0.1], "worse"), ([-0.1, 0.3], "no difference shown"), (None, "fewer than two")],
)
def test_a_verdict_says_no_more_than_the_interval_shows(ci95, said):
    assert verdict("a - b", {"clip": {"mean": 0.2, "ci95": ci95}, "win_rate": 0.5}).split(": ")[1].startswith(said)

"""The page of recipes/demo.py: started as users do, and used in a real browser."""

import io
import json
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from conftest import RENDER_KWARGS, REPOSITORY, TINY_WORLD
from peft import LoraConfig, get_peft_model
from PIL import Image
from playwright.sync_api import Page, expect
from transformers import Qwen2VLForConditionalGeneration

from brushup.config import PromptConfig, RenderConfig
from brushup.demo.page import EXAMPLES_A_PAGE
from brushup.demo.wording import changes, remarks_on, table_of
from brushup.policy.enhancer import Enhancement, PromptEnhancer
from brushup.prompts.images import load_image
from brushup.render.job import RenderJob, RenderResult
from brushup.rewards.keyword_retention import keyword_retention
from support.launching import ENVIRONMENT


COMMAND = (sys.executable, "recipes/demo.py", "--config", "recipes/tiny_cpu.yaml")
POLICY = "data/tiny_world/policy"
PROMPT = "crimson disk, huge, snowy backdrop"
PROMPTS = (PROMPT, "a tiny azure ball on ebony", "two lime boxes, little", "흰 배경에 커다란 붉은 원")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> str:
    """An adapter with random weights on the tiny policy, strong enough to be noticed."""
    folder = tmp_path_factory.mktemp("adapter")
    model = Qwen2VLForConditionalGeneration.from_pretrained(TINY_WORLD / "policy", dtype=torch.float32)
    settings = LoraConfig(lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> str:
    """A model without its weights, which shows only when it is loaded."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(TINY_WORLD / "policy", folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    return str(folder)


@pytest.fixture(scope="module")
def url(adapter, broken, tmp_path_factory):
    """Of a running demo."""
    folder = tmp_path_factory.mktemp("demo")
    log = folder / "log"
    cheap = ("--render_kwargs", json.dumps(RENDER_KWARGS | {"num_inference_steps": 3}))  # of training: not shown
    full = ("--eval_render_kwargs", '{"num_inference_steps": 6}')
    rewards = ("--reward_funcs", "clip", "keyword_retention")
    command = [*COMMAND, "--models", adapter, broken, *rewards, *cheap, *full, "--port", "0"]
    with log.open("w") as file:
        environment = ENVIRONMENT | {"GRADIO_TEMP_DIR": str(folder / "pictures")}
        server = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 180
        while not (ready := re.search(r"^ready: (\S+)", log.read_text(), re.MULTILINE)):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        yield ready[1]
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.fixture(params=[1280])
def page(browser, url, request):
    """The demo, open in a window of that width; whatever it asks for must come from the demo itself."""
    window = browser.new_page(viewport={"width": request.param, "height": 900})
    window.set_default_timeout(30_000)
    requested = []
    window.on("request", lambda sent: requested.append(sent.url))
    window.goto(url)
    yield window
    window.close()
    hosts = {urlsplit(address).netloc for address in requested if not address.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(url).netloc}


@dataclass
class Shown:
    texts: list[str]
    pictures: list[np.ndarray]  # (48, 48, 3), of the user's prompt and of the rewrite
    scores: dict[str, list[float]]
    message: str


def enhance(page: Page, prompt: str, seed: int) -> Shown:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_role("button", name="Enhance").click()
    return what_is_shown(page, seed)


def what_is_shown(page: Page, seed: int) -> Shown:
    expect(page.locator("#message")).to_contain_text(f"Seed {seed}.", timeout=30_000)
    pictures = []
    for side in ("original", "rewrite"):
        image = page.locator(f"#{side}-picture img")
        large = Image.open(io.BytesIO(httpx.get(image.get_attribute("src")).content)).convert("RGB")
        assert large.size == (528, 528)
        small = large.resize((48, 48), Image.Resampling.NEAREST)
        # Each pixel is a square: the browser must not have to enlarge, and blur, anything.
        assert small.resize((528, 528), Image.Resampling.NEAREST).tobytes() == large.tobytes()
        pictures.append(np.asarray(small, dtype=int))
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#scores tbody tr").all()]
    return Shown(
        texts=[page.locator(f"#{side}-text textarea").input_value() for side in ("original", "rewrite")],
        pictures=pictures,
        scores={name: [float(score.split()[0]) for score in values] for name, *values in rows},
        message=page.locator("#message").inner_text(),
    )


def choose_model(page: Page, name: str) -> None:
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name=name).click()


def test_a_prompt_and_its_rewrite_side_by_side(page, worker):
    choose_model(page, f"{POLICY} (before training)")
    shown = enhance(page, PROMPT, seed=5)
    rewrite = PromptEnhancer.from_pretrained(POLICY, device="cpu").enhance(PROMPT, temperature=0).prompt
    assert shown.texts == [PROMPT, rewrite] and rewrite != PROMPT
    left, right = (page.locator(f"#{side}-picture").bounding_box() for side in ("original", "rewrite"))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]

    jobs = [RenderJob(prompt, PROMPT, seed=5) for prompt in shown.texts]
    wanted = worker.submit(jobs, return_images=True).result()
    for picture, result in zip(shown.pictures, wanted, strict=True):
        assert np.abs(picture - np.asarray(result.image, dtype=int)).max() <= 2  # rounding
    assert np.abs(shown.pictures[0] - shown.pictures[1]).max() > 50

    clip = [result.scores["clip"] for result in wanted]
    kept = keyword_retention(
        prompts=[""] * 2, completions=[[{"content": prompt}] for prompt in shown.texts], user_prompt=[PROMPT] * 2
    )
    lost = page.locator("#scores tr").filter(has_text="keyword_retention").locator(".worse")
    expect(lost).to_have_text(f"{kept[1] - kept[0]:.3f} worse")
    assert shown.scores == {
        "clip": pytest.approx([*clip, clip[1] - clip[0]], abs=0.002),
        "keyword_retention": pytest.approx([*kept, kept[1] - kept[0]], abs=0.001),
    }


def test_the_seed_decides_the_pictures(page, browser, url):
    choose_model(page, POLICY)
    first = enhance(page, PROMPT, seed=7)
    other = enhance(page, PROMPT, seed=8)
    assert all((a != b).any() for a, b in zip(first.pictures, other.pictures, strict=True))

    page.get_by_role("button", name="New seed").click()
    field = page.get_by_label("Seed", exact=True)
    expect(field).not_to_have_value("8")
    seed = int(field.input_value())
    assert (what_is_shown(page, seed).pictures[0] != first.pictures[0]).any()

    somebody_else = browser.new_page()
    somebody_else.goto(url)
    choose_model(somebody_else, POLICY)
    again = enhance(somebody_else, PROMPT, seed=7)
    somebody_else.close()
    assert again.texts == first.texts and again.scores == first.scores
    assert all((a == b).all() for a, b in zip(first.pictures, again.pictures, strict=True))


def test_the_model_and_the_temperature_decide_the_rewrite(page, adapter):
    enhancers = {name: PromptEnhancer.from_pretrained(name, device="cpu") for name in (adapter, POLICY)}

    def wanted(name: str, **settings) -> Enhancement:
        return enhancers[name].enhance(PROMPT, max_new_tokens=32, **settings)

    likeliest = wanted(POLICY, temperature=0)
    assert wanted(adapter, temperature=0) != likeliest
    shown = enhance(page, PROMPT, seed=5)
    assert shown.texts[1] == wanted(adapter, temperature=0).prompt and adapter in shown.message

    choose_model(page, POLICY)
    seed = next(seed for seed in range(50) if wanted(POLICY, temperature=1.0, seed=seed) != likeliest)
    assert enhance(page, PROMPT, seed).texts[1] == likeliest.prompt
    page.get_by_role("spinbutton", name=re.compile("Temperature")).fill("1")
    page.get_by_label("Prompt", exact=True).focus()
    assert enhance(page, PROMPT, seed + 50).texts[1] == wanted(POLICY, temperature=1.0, seed=seed + 50).prompt
    assert enhance(page, PROMPT, seed).texts[1] == wanted(POLICY, temperature=1.0, seed=seed).prompt


def test_an_example_is_rendered_at_once(page):
    """Or the images of another prompt would stand below it."""
    choose_model(page, POLICY)
    enhance(page, PROMPT, seed=3)
    row = page.locator("#examples tbody tr").nth(2)
    shown, category = (text.strip() for text in row.locator("td").all_inner_texts())
    start = shown.removesuffix("...")  # of a long one the table shows the start
    assert category and start
    row.click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(re.compile(f"^{re.escape(start)}"))
    expect(page.locator("#original-text textarea")).to_have_value(re.compile(f"^{re.escape(start)}"))
    assert what_is_shown(page, seed=3).texts[0].startswith(start)


def test_several_rewrites_to_choose_from(page, worker):
    enhancer = PromptEnhancer.from_pretrained(POLICY, device="cpu")

    def rewrites(prompt):
        """Eight rewrites without repetitions, and the place of the best image, 0 for that of the prompt itself."""
        found = enhancer.enhance(prompt, n=8, seed=5, max_new_tokens=32)
        prompts = list(dict.fromkeys(rewrite.prompt for rewrite in found))
        jobs = [RenderJob(candidate, prompt, seed=5) for candidate in (prompt, *prompts)]
        clip = [result.scores["clip"] for result in worker.submit(jobs).result()]
        return prompts, clip.index(max(clip))

    prompt, (prompts, best) = next((p, found) for p in PROMPTS if (found := rewrites(p))[1])
    assert len(prompts) > 1
    choose_model(page, POLICY)
    page.get_by_role("spinbutton", name=re.compile("Rewrites")).fill("8")
    page.get_by_label("Prompt", exact=True).focus()
    first = enhance(page, prompt, seed=5)
    assert first.texts[1] == prompts[best - 1] and f"Picked: rewrite {best}: total " in first.message
    page.locator("#choice label").nth(len(prompts) - 1).click()
    expect(page.locator("#rewrite-text textarea")).to_have_value(prompts[-1])
    shown = what_is_shown(page, seed=5)
    (wanted,) = worker.submit([RenderJob(prompts[-1], prompt, seed=5)], return_images=True).result()
    assert np.abs(shown.pictures[1] - np.asarray(wanted.image, dtype=int)).max() <= 2
    assert shown.scores["clip"][1] == pytest.approx(wanted.scores["clip"], abs=0.002)


def test_the_policy_looks_at_its_rewrite_and_revises_it(page, worker):
    choose_model(page, POLICY)
    page.get_by_label("Look at the image").check()
    enhancer = PromptEnhancer.from_pretrained(POLICY, device="cpu")
    drafted = [(p, enhancer.enhance(p, 1, 32, 0, seed=5, turns=2, worker=worker)) for p in PROMPTS]
    prompt, wanted = next((p, found) for p, found in drafted if found.prompt != found.draft.prompt)
    shown = enhance(page, prompt, seed=5)
    assert shown.texts == [prompt, wanted.draft.prompt]
    assert page.locator("#revision-text textarea").input_value() == wanted.prompt
    sides = [page.locator(f"#{side}-picture").bounding_box() for side in ("original", "rewrite", "revision")]
    assert len({side["y"] for side in sides}) == 1 and sides[1]["x"] < sides[2]["x"]
    assert page.locator("#changes").inner_text().startswith("Changed: ")
    assert page.locator("#changes del, #changes ins").count() > 0
    clip = [
        worker.submit([RenderJob(p, prompt, seed=5)]).result()[0].scores["clip"] for p in (*shown.texts, wanted.prompt)
    ]
    assert shown.scores["clip"] == pytest.approx([*clip, clip[2] - clip[0]], abs=0.002)
    best = ("your prompt", "the rewrite", "the revision")[clip.index(max(clip))]
    assert f"Picked: {best}: " in shown.message


def test_an_image_beside_the_prompt_reaches_the_policy(page, tmp_path):
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.png")
    choose_model(page, POLICY)
    page.get_by_role("button", name="An image beside the prompt").click()
    page.locator("input[type=file]").set_input_files(tmp_path / "blue.png")
    expect(page.locator("img[src*='blue.png']")).to_be_visible()
    wanted = PromptEnhancer.from_pretrained(POLICY, device="cpu").enhance(
        PROMPT, max_new_tokens=32, image=load_image(tmp_path / "blue.png")
    )
    assert enhance(page, PROMPT, seed=5).texts[1] == wanted.prompt


def test_what_goes_wrong_is_said_in_words(page, broken):
    def says(words: str) -> None:
        page.get_by_role("button", name="Enhance").click()
        expect(page.get_by_role("alert")).to_contain_text(words, timeout=30_000)
        expect(page.locator("#original-picture img")).to_have_count(0)
        assert "Traceback" not in page.content()

    says("The prompt is empty")
    page.get_by_label("Prompt", exact=True).fill("a red ball " * 1000)
    says("10,999 characters; at most 8,000")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    for seed in ("-1", "1.5"):
        page.get_by_label("Seed", exact=True).fill(seed)
        page.keyboard.press("Tab")  # else the click may come before the page has taken the number in
        says("a whole number from 0 to")
    page.get_by_label("Seed", exact=True).fill("0")
    choose_model(page, broken)
    says(f"The model {broken} cannot be loaded")

    choose_model(page, POLICY)
    assert enhance(page, "a crimson disk", seed=0).texts[0] == "a crimson disk"  # and it goes on
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("page", [390], indirect=True)
def test_it_fits_on_a_phone(page):
    choose_model(page, POLICY)
    enhance(page, PROMPT, seed=5)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for side in ("original", "rewrite"):
        box = page.locator(f"#{side}-picture img").bounding_box()
        assert box["width"] >= 128 and box["x"] + box["width"] <= 390


def test_no_file_and_no_other_model_can_be_had(url):
    for path in ("recipes/tiny_cpu.yaml", REPOSITORY / "recipes/tiny_cpu.yaml", "/etc/passwd"):
        assert httpx.get(f"{url}gradio_api/file={path}").status_code == 403
    assert httpx.post(f"{url}gradio_api/upload", files={"files": b"x" * 11_000_000}).status_code == 413
    call = f"{url}gradio_api/call/compare"
    for model, end in ((POLICY, "event: complete"), (str(TINY_WORLD / "policy"), "event: error")):
        answer = httpx.post(call, json={"data": [PROMPT, 0, model, 0, 1, False, None]}).json()
        assert end in httpx.get(f"{call}/{answer['event_id']}", timeout=30).text


@pytest.fixture(scope="module")
def recipe() -> dict:
    return runpy.run_path(str(REPOSITORY / "recipes" / "demo.py"))


def test_examples_of_all_categories_come_first(recipe, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    prompts = PromptConfig("data/validation.jsonl")
    examples = recipe["load_examples"](prompts, None)
    assert {prompt for prompt, _ in examples} == {
        re.search('"user_prompt": "(.*?)", "category"', line)[1].replace('\\"', '"')
        for line in (REPOSITORY / "data/challenging.jsonl").read_text().splitlines()
    }
    categories = {category for _, category in examples}
    assert "korean" in categories
    assert {category for _, category in examples[:EXAMPLES_A_PAGE]} == categories
    examples = recipe["load_examples"](prompts, str(TINY_WORLD / "validation.jsonl"))
    assert len(examples) == len({prompt for prompt, _ in examples}) > 100


def test_two_images_are_rendered_without_compiling_and_without_a_service(recipe, monkeypatch):
    get_demo_worker, render = recipe["get_demo_worker"], RenderConfig("a model", compile_generator=True, worker="auto")
    monkeypatch.setitem(get_demo_worker.__globals__, "get_worker", lambda settings, *_: settings)
    settings, _ = get_demo_worker(render, recipe["DemoConfig"](model_name_or_path="a policy"))
    assert not settings.compile_generator and settings.worker == "local"


def test_remarks():
    def remarks(malformed: bool, *results: RenderResult) -> list[str]:
        return list(
            remarks_on(
                Enhancement("a cat", "a cat" if malformed else "one cat", malformed, "one cat"),
                results,
                {"clip": 77},
                32,
            )
        )

    fine = RenderResult(tokens={"clip": 77})
    assert remarks(False, fine, fine) == []
    assert "not finished within 32 tokens" in remarks(True, fine, fine)[0]
    assert remarks(False, fine, RenderResult(tokens={"clip": 90})) == [
        "The rewrite has 90 clip tokens; the generator reads the first 77 only."
    ]
    failed = RenderResult(error="CUDA out of memory")
    assert remarks(False, failed, failed) == ["Could not be rendered: CUDA out of memory"]
    assert table_of(failed, failed) == ""
    assert changes("two <b> cats", "one <b> cat") == (
        "<p>Changed: <del>two</del> <ins>one</ins> &lt;b&gt; <del>cats</del> <ins>cat</ins></p>"
    )
    assert "leaves its rewrite as it is" in changes("a cat", "a cat")
    table = table_of(RenderResult({"clip": 0.9}), RenderResult({"clip": 0.379}))
    assert '<span class="worse">-0.521 worse</span>' in table


def test_without_a_settings_file_it_says_which(monkeypatch, capsys):
    monkeypatch.setattr("brushup.console.quiet_libraries", lambda: None)
    monkeypatch.setattr(sys, "argv", ["recipes/demo.py", "--models", POLICY])
    with pytest.raises(SystemExit):
        runpy.run_path(str(REPOSITORY / "recipes/demo.py"), run_name="__main__")
    said = capsys.readouterr().err.splitlines()
    assert "--config names the YAML file of the run" in said[-1] and len(said) <= 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--modles", "runs/tiny_cpu"], "--modles does not exist; did you mean models"),
        (["--models", "runs/nope"], "'runs/nope' is no folder here with a model, and no model on the Hub"),
        (["--examples", "no/such.jsonl"], "no/such.jsonl: no such prompt file"),
        (["--worker", "remote"], "worker: 'remote' is none of local, auto, spawn and http://host:port"),
        (["--port", "{busy}"], "--port 0 takes any that is free"),
        (["--reward_funcs", "clipp"], "did you mean 'clip'"),
    ],
)
def test_wrong_arguments(flags, words, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("brushup.console.quiet_libraries", lambda: None)  # other tests read what libraries say
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        flags = [flag.format(busy=other.getsockname()[1]) for flag in flags]
        monkeypatch.setattr(sys, "argv", [*COMMAND[1:], "--port", "0", *flags])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path("recipes/demo.py", run_name="__main__")
    assert words in f"{ended.value.code} {capsys.readouterr().err}"

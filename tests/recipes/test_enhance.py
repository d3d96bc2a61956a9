"""recipes/enhance.py, as users type it."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, TINY_WORLD
from PIL import Image

from brushup.policy.enhancer import PromptEnhancer
from support.launching import ENVIRONMENT


COMMAND = ["recipes/enhance.py", "--model", str(TINY_WORLD / "policy")]
PROMPTS = ["crimson box, huge, snowy backdrop", "커다란 붉은 원, 흰 배경"]


@pytest.fixture
def enhance(monkeypatch, capsys):
    """Run the recipe in this process, and return what it writes: (standard output, standard error)."""

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.chdir(REPOSITORY)
        monkeypatch.setattr("brushup.console.quiet_libraries", lambda: None)  # other tests read what libraries say
        monkeypatch.setattr(sys, "argv", [*COMMAND, *arguments])
        capsys.readouterr()
        error = ""
        try:
            runpy.run_path(COMMAND[0], run_name="__main__")
        except SystemExit as ended:
            error = str(ended.code)
        output = capsys.readouterr()
        return output.out, output.err + error

    return run


@pytest.fixture(scope="module")
def rewrites() -> list[str]:
    enhancer = PromptEnhancer.from_pretrained(TINY_WORLD / "policy", device="cpu")
    return [enhancement.prompt for enhancement in enhancer.enhance(PROMPTS)]


def test_prompts_on_standard_input_become_a_line_each(rewrites):
    settings = {"cwd": REPOSITORY, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, *COMMAND], input=f"{PROMPTS[0]}\n\n  {PROMPTS[1]}\n", **settings)
    assert done.returncode == 0 and done.stdout.splitlines() == rewrites, done.stderr


def test_json_lines_with_both_images(enhance, rewrites, tmp_path, renderer):
    """The images are full ones, although the run trains on cheap ones."""
    config = (REPOSITORY / "recipes" / "tiny_cpu.yaml").read_text()
    config = config.replace("num_inference_steps: 6", "num_inference_steps: 3")
    (tmp_path / "run.yaml").write_text(f"{config}\neval_render_kwargs: {{num_inference_steps: 6}}\n")
    lines = [json.dumps({"user_prompt": prompt}, ensure_ascii=False) for prompt in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    output, error = enhance(
        *("--file", str(tmp_path / "prompts.jsonl"), "--format", "jsonl", "--seed", "7"),
        *("--config", str(tmp_path / "run.yaml"), "--render", str(tmp_path / "images")),
    )
    rows = [json.loads(line) for line in output.splitlines()]
    assert [(row["user_prompt"], row["prompt"], row["malformed"]) for row in rows] == [
        (prompt, rewrite, False) for prompt, rewrite in zip(PROMPTS, rewrites, strict=True)
    ], error
    rendered = renderer.render([(rewrites[0], 7)])[0]
    saved = Image.open(rows[0]["images"]["rewrite"])
    assert max(abs(a - b) for a, b in zip(rendered.tobytes(), saved.tobytes(), strict=True)) <= 2
    assert Image.open(rows[0]["images"]["original"]).tobytes() != saved.tobytes()
    assert len(list((tmp_path / "images").iterdir())) == 4
    assert f"saved 4 images: {tmp_path / 'images' / '0001_original.png'}" in error


def test_several_rewrites_and_a_malformed_answer_is_said(enhance):
    output, error = enhance("a tiny azure ball", "--n", "3", "--max_new_tokens", "2")
    assert output.splitlines() == ["a tiny azure ball"] * 3
    assert error.count("malformed answer to 'a tiny azure ball': the prompt stays as it is") == 3


def test_the_best_of_several_is_picked_and_said(enhance, tmp_path):
    """The tiny world's rewards pick; the sheet of candidates is in the JSON Lines, the picked image in the folder."""
    picking = ("--config", "recipes/tiny_cpu.yaml", "--best_of", "3", "--temperature", "1")
    output, error = enhance(*PROMPTS, *picking, "--format", "jsonl", "--render", str(tmp_path))
    assert len(output.splitlines()) == 2, error
    for line in output.splitlines():
        row = json.loads(line)
        totals = {
            found["prompt"]: found["scores"]["clip"] + found["scores"]["questions"] for found in row["candidates"]
        }
        assert list(totals)[0] == row["user_prompt"] and totals[row["prompt"]] == max(totals.values())
        assert row["reason"] in error and Path(row["images"]["rewrite"]).is_file()
        original, rewrite = (Image.open(row["images"][kind]).tobytes() for kind in ("original", "rewrite"))
        assert (original == rewrite) == (row["prompt"] == row["user_prompt"])
    assert "clip, questions: rewards of the training alone pick, which flatter it; --judge takes others" in error
    output, error = enhance(PROMPTS[0], *picking, "--judge", "repetition")
    assert "judge: repetition: name rewards that look at one image" in error and not output


def test_the_policy_looks_at_its_draft_and_a_judge_compares_the_two(enhance, rewrites):
    looking = ("--config", "recipes/tiny_cpu.yaml", "--turns", "2", "--format", "jsonl")
    output, error = enhance(*PROMPTS, *looking)
    alone = [json.loads(line) for line in output.splitlines()]
    assert [row["draft"] for row in alone] == rewrites, error
    for row in alone:
        verb = "keeps" if row["prompt"] == row["draft"] else "revises"
        assert f"{row['user_prompt']!r}: the policy {verb} its draft {row['draft']!r}" in error or row["malformed"]
    output, error = enhance(*PROMPTS, *looking, "--judge", "clip")
    for row, before in zip(map(json.loads, output.splitlines()), alone, strict=True):
        assert row["prompt"] in (row["draft"], before["prompt"]) and row["reason"] in error
        scores = {found["prompt"]: found["scores"]["clip"] for found in row.get("candidates", [])}
        assert not scores or scores[row["prompt"]] == max(scores.values())


def test_the_columns_of_a_file(enhance, rewrites, tmp_path):
    """`--prompt_column` names the prompts; an image beside one reaches the policy, as in training."""
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.png")
    (tmp_path / "prompts.csv").write_text(f'text,image\n"{PROMPTS[0]}",\n"{PROMPTS[0]}",blue.png\n')
    file = ("--file", str(tmp_path / "prompts.csv"))
    output, error = enhance(*file, "--prompt_column", "text")
    blind, seeing = output.splitlines()
    assert blind == rewrites[0] != seeing, error
    output, error = enhance(PROMPTS[0], "--image", str(tmp_path / "blue.png"))
    assert output.splitlines() == [seeing], error
    output, error = enhance(*file)
    assert "there is no column 'user_prompt'; there is text, image (prompt_column names" in error and not output


def test_a_few_images_are_rendered_without_compiling(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    path = "recipes/qwen2vl_2b_sd3_1gpu.yaml"
    assert yaml.safe_load(Path(path).read_text())["compile_generator"]
    render = runpy.run_path(COMMAND[0])["load_configs"](path)[0]
    assert not render.compile_generator and render.render_kwargs["guidance_scale"] == 5.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a cat", "--model", "runs/no/such"], "'runs/no/such' is no folder here with a model"),
        (["--file", "/dev/null"], "no prompts: give them as arguments, with --file, or on standard input"),
        (["a cat", "--file", "prompts.txt"], "prompts come from the arguments or from --file, not from both"),
        (["--file", "no/such.txt"], "no/such.txt: no such prompt file"),
        (["--file", "docs/demo.png"], "docs/demo.png:1: the byte 0x89 is not UTF-8"),
        (["a cat", "--render", "images"], "--config YAML goes with --render DIR, --best_of N"),
        (["a cat", "--render", "images", "--config", "nope.yaml"], "--config nope.yaml: No such file or directory"),
        (["a cat", "--render", "images", "--config", "README.md"], "README.md: "),
        (["a cat", "--render", "images", "--config", ".pre-commit-config.yaml"], "there is no key `generator`"),
        (["a cat", "--image", "README.md"], "README.md: no image that can be read"),
        (["a cat", "--device", "xpu:99"], "--device xpu:99: this machine has none"),
        (["a cat", "--dtype", "float33"], "argument --dtype: invalid choice: 'float33'"),
        (["a cat", "--best_of", "2"], "--config YAML goes with --render DIR, --best_of N"),
        (["a cat", "--best_of", "2", "--n", "2", "--config", "a.yaml"], "--judge needs --best_of N or --turns 2"),
        (["a cat", "--turns", "2"], "--config YAML goes with --render DIR, --best_of N or --turns 2"),
        (["a cat", "--n", "0"], "--n 0: must be >= 1"),
        (["a cat", "--temperature", "nan"], "--temperature nan: must be >= 0"),
        (["a cat", "--seed", "-1"], "--seed -1: must be from 0 to"),
    ],
)
def test_wrong_arguments_are_one_clear_line(enhance, arguments, message):
    output, error = enhance(*arguments)
    assert message in error and not output
    said = [line for line in error.splitlines() if not line.startswith("usage: ")]
    assert len(said) <= 2 and "Traceback" not in error  # the second one is the exit status

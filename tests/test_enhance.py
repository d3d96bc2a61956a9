"""recipes/enhance.py, as users type it."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY, TINY_WORLD
from launching import ENVIRONMENT
from PIL import Image

from brushup.enhancer import PromptEnhancer


PROMPTS = ["crimson box, huge, snowy backdrop", "커다란 붉은 원, 흰 배경"]


def enhance(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "recipes/enhance.py", "--model", str(TINY_WORLD / "policy"), *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=ENVIRONMENT, input=stdin, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def wanted() -> list[str]:
    enhancer = PromptEnhancer.from_pretrained(TINY_WORLD / "policy", device="cpu")
    return [one.prompt for one in enhancer.enhance(PROMPTS)]


def test_prompts_on_standard_input_become_a_line_each(wanted):
    done = enhance(stdin=f"{PROMPTS[0]}\n\n  {PROMPTS[1]}\n")
    assert done.returncode == 0 and done.stdout.splitlines() == wanted, done.stderr


def test_json_lines_with_both_pictures(wanted, tmp_path, renderer):
    rows = [json.dumps({"user_prompt": prompt}, ensure_ascii=False) for prompt in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    done = enhance(
        *("--file", str(tmp_path / "prompts.jsonl"), "--format", "jsonl", "--seed", "7"),
        *("--config", "recipes/tiny_cpu.yaml", "--render", str(tmp_path / "pictures")),
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["user_prompt"], row["prompt"], row["fell_back"]) for row in rows] == [
        (prompt, rewrite, False) for prompt, rewrite in zip(PROMPTS, wanted, strict=True)
    ]
    drawn = renderer.render([(wanted[0], 7)])[0]
    saved = Image.open(rows[0]["pictures"]["rewrite"])
    assert max(abs(a - b) for a, b in zip(drawn.tobytes(), saved.tobytes(), strict=True)) <= 2
    assert Image.open(rows[0]["pictures"]["original"]).tobytes() != saved.tobytes()
    assert len(list((tmp_path / "pictures").iterdir())) == 4


def test_several_rewrites_and_a_malformed_answer_is_said():
    done = enhance("a tiny azure ball", "--n", "3", "--max_new_tokens", "2")
    assert done.stdout.splitlines() == ["a tiny azure ball"] * 3
    assert done.stderr.count("malformed answer to 'a tiny azure ball': the prompt stays as it is") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a cat", "--model", "runs/no/such"], "'runs/no/such' is no folder here with a model"),
        ([], "no prompts: give them as arguments, with --file, or on standard input"),
        (["a cat", "--render", "pictures"], "--render DIR and --config YAML go together"),
    ],
)
def test_what_is_wrong_is_said_in_words(arguments, said):
    done = enhance(*arguments)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr

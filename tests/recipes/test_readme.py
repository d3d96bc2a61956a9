"""Every command and every piece of Python in the READMEs, taken from the file and run in its order, as users do."""

import json
import re
import signal
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import REPOSITORY, few_prompts
from PIL import Image

from support.hub_server import HubServer
from support.launching import Process, finished, run, start, wait_for
from support.readme import KOREAN, README, commands, find, snippets, typed


def test_both_readmes_have_the_same_commands_and_code():
    assert commands(KOREAN) == commands(README) and len(commands(README)) >= 8
    assert snippets(KOREAN) == snippets(README) and len(snippets(README)) == 2


@pytest.mark.parametrize("text", [README, KOREAN], ids=["en", "ko"])
def test_what_the_readme_points_to_is_there(text):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (REPOSITORY / target).exists(), target
    headings = [len(mark) for mark in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert headings == [len(mark) for mark in re.findall(r"^(#+) ", README, re.MULTILINE)]


def test_what_the_readme_installs_is_declared():
    """`pip install` is not run again, but for the test line, which CI runs: the extras are there, and tested."""
    declared = (REPOSITORY / "pyproject.toml").read_text()
    tested = re.search(r"^test = \[\"brushup\[([\w,]+)\]", declared, re.MULTILINE)[1].split(",")
    named = re.findall(r"pip install -e \"?\.(?:\[(\w+)\])?", README + KOREAN)
    assert {"", "demo", "serve", "test", "tracking"} <= set(named) and set(named) <= {"", "test", *tested}


def test_no_command_is_forgotten():
    """Each is run below, or is the test line itself."""
    source = Path(__file__).read_text()
    for command in commands(README):
        parts = [part for part in re.findall(r"""find\(["']([^"']+)["']\)""", source) if part in command]
        assert parts or "pytest" in command, command


def start_server(command: str, folder: Path, ready: str) -> tuple[Process, str]:
    """Return a program that goes on until it is ended, and the text that follows `ready` in its output."""
    log = folder / "server.log"
    server = start(typed(command), log, cwd=folder)
    return server, wait_for(log, ready, server)[1]


def end(server: Process) -> None:
    """End the program as Ctrl-C does."""
    server.send_signal(signal.SIGINT)
    server.wait(30)


@pytest.fixture(scope="module")
def clone(first_command) -> Path:
    """A folder with what a clone has, where commands leave their output."""
    return first_command.clone


@pytest.fixture(scope="module")
def trained(first_command) -> Path:
    """The output of the first command."""
    return first_command.output()


@pytest.mark.slow
def test_the_tiny_run_makes_better_pictures(trained):
    """Held-out prompts are drawn better, by CLIP and by the checker; Korean ones are answered in English."""
    assert find("pip install -e . &&").startswith("accelerate launch")
    results = json.loads((trained / "results.json").read_text())
    assert results["trained_minus_untrained"]["clip"]["ci95"][0] > 0
    accuracy = {name: arm["checker_accuracy"] for name, arm in results["arms"].items()}
    assert accuracy["trained"] >= accuracy["untrained"] + 0.3
    assert accuracy["trained"] >= accuracy["original"] + 0.3
    rows = json.loads((trained / "validation_100.json").read_text())["rows"]
    korean = [row["rewrite"] for row in rows if row["category"] == "korean" and not row["malformed"]]
    assert len(korean) >= 40 and sum(rewrite.isascii() for rewrite in korean) >= 0.9 * len(korean)


@pytest.mark.slow
@pytest.mark.usefixtures("service")  # which starts meanwhile
def test_evaluating(trained, clone):
    run(typed(find("recipes/evaluate.py")), cwd=clone)
    results = json.loads((trained / "results.json").read_text())
    assert {"original", "static", "repeat", "untrained", "best_of_4 untrained", "trained"} <= set(results["arms"])
    assert results["validation"]
    for arm in ("original", "static", "untrained"):
        assert results["differences"][f"trained - {arm}"]["clip"]["ci95"][0] > 0
    page = (trained / "report.html").read_text()
    assert page.count("<article") >= 4 * 6  # examples of each category


@pytest.mark.slow
def test_evaluating_with_the_service(trained, clone, service):
    """The scores that training found for the same prompts, drawn and scored elsewhere."""
    rows = json.loads((trained / "validation_100.json").read_text())["rows"][:16]
    (clone / "few.jsonl").write_text("\n".join(json.dumps({"user_prompt": row["user_prompt"]}) for row in rows))
    assert {"--config", "recipes/tiny_cpu.yaml"} < set(find("recipes/serve.py").split())  # as `service` is started
    flags = (
        f"--worker {service.url} --adapter runs/tiny_cpu --validation_prompts few.jsonl --checker '' --output_dir few"
    )
    run(typed(f"{find('recipes/evaluate.py')} {flags} --checker ''"), cwd=clone)
    arms = json.loads((clone / "few" / "results.json").read_text())["arms"]
    for name, rewards in (("original", "original_rewards"), ("trained", "rewards")):
        wanted = sum(row[rewards]["clip"] for row in rows) / 16
        assert arms[name]["rewards"]["clip"] == pytest.approx(wanted, abs=2e-3)


@pytest.mark.slow
def test_using_it_in_python(trained, clone):
    (example,) = [snippet for snippet in snippets(README) if "PromptEnhancer" in snippet]
    (clone / "example.py").write_text(example)
    printed = run([sys.executable, "example.py"], cwd=clone).stdout.splitlines()
    assert printed[0].isascii() and "red" in printed[0]
    assert printed[1].count("Enhancement(") == 8 and (clone / "runs" / "merged" / "model.safetensors").is_file()


@pytest.mark.slow
def test_using_it_from_the_shell(trained, clone):
    printed = run(typed(find("recipes/enhance.py")), cwd=clone).stdout.splitlines()
    assert len(printed) == 1 and printed[0].isascii()
    assert Image.open(clone / "runs" / "pictures" / "0001_rewrite.png").size == (48, 48)


@pytest.mark.slow
def test_using_it_as_a_web_page(trained, clone):
    server, url = start_server(find("recipes/demo.py"), clone, r"ready: (http\S+)")
    try:
        page = urllib.request.urlopen(url, timeout=20).read().decode()
        assert "runs/tiny_cpu" in page
    finally:
        end(server)


@pytest.mark.slow
def test_publishing(trained, clone, tmp_path):
    with HubServer("hf_" + "Sesame" * 6) as hub:
        variables = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path),
        }
        run(typed(find("recipes/publish.py")), cwd=clone, variables=variables | {"HF_TOKEN": hub.token}, real=True)
        assert {"adapter_model.safetensors", "README.md", "results.json", "report.html"} <= set(hub.files("me/name"))


@pytest.mark.slow
def test_a_reward_of_ones_own(clone, tmp_path):
    (example,) = [snippet for snippet in snippets(README) if "my_rewards.py" in snippet]
    (clone / "my_rewards.py").write_text(example)
    flags = f"--max_steps 1 --validation_prompts {few_prompts(tmp_path, 8)} --output_dir runs/own"
    run(typed(f"{find('my_rewards.py:Redness')} {flags}"), cwd=clone)
    assert "Redness" in json.loads((clone / "runs" / "own" / "results.json").read_text())["arms"]["trained"]["rewards"]


@pytest.mark.slow
def test_several_rewards(clone, tmp_path):
    flags = f"--max_steps 2 --validation_prompts {few_prompts(tmp_path, 8)} --logging_steps 1"
    run(typed(f"{find('--gain_gates')} {flags}"), cwd=clone)
    arms = json.loads((clone / "runs" / "several" / "results.json").read_text())["arms"]
    assert set(arms["trained"]["rewards"]) == {"clip", "length", "repetition", "image_quality", "compression"}
    logged = json.loads((clone / "runs" / "several" / "trainer_state.json").read_text())["log_history"]
    assert any({"raw_rewards/clip", "gain/clip", "gain/win_rate", "render/held_back"} <= set(step) for step in logged)


@pytest.mark.nightly
def test_a_reward_that_is_fooled(clone):
    """The reward rises, and less and less is drawn as it was asked for: it stops, and says so."""
    done = finished(typed(find("--stop_on_reward_hacking")), timeout=900, cwd=clone)
    assert done.returncode != 0 and "stopped by stop_on_reward_hacking after step" in done.stdout
    output = clone / "runs" / "hacked"
    results = json.loads((output / "results.json").read_text())
    said = results["reward_hacking"]["training"]
    assert any(line.startswith("clip fell") for line in said)
    before, after = (results["arms"][name]["checker_accuracy"] for name in ("untrained", "trained"))
    assert after < before - 0.1 and any(line.startswith("checker_accuracy fell") for line in said)
    steps = results["settings"]["steps"]
    assert steps < 100 and (output / f"checkpoint-{steps}" / "adapter_model.safetensors").is_file()
    assert "There were signs that it learnt to please them only" in (output / "README.md").read_text()

"""Help, and a name that does not exist, are answered before anything big is imported."""

import dataclasses
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from trl import ModelConfig

from brushup import flags
from brushup.config import DataConfig, PromptEnhancerConfig, RenderConfig
from brushup.recipe_config import DemoConfig, EvaluationConfig, ServeConfig
from support.launching import ACCELERATE


RECIPES = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.py"))
WITHOUT_BIG_IMPORTS = (
    "import runpy, sys; big = ('torch', 'transformers', 'trl', 'diffusers', 'gradio', 'datasets', 'numpy'); "
    "sys.modules.update(dict.fromkeys(big)); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def answer(recipe: str, *words: str) -> subprocess.CompletedProcess:
    """Run a recipe in which an import of PyTorch, and of all that is big, fails."""
    command = [sys.executable, "-c", WITHOUT_BIG_IMPORTS, f"recipes/{recipe}.py", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_and_a_misspelled_flag(recipe):
    shown = answer(recipe, "--help")
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert f"python recipes/{recipe}.py" in shown.stdout or "accelerate launch" in shown.stdout  # an example
    required = {"enhance": ["--model", "m"], "publish": ["--output_dir", "o", "--hub_model_id", "me/m"]}
    required["benchmark"] = ["geneval", "source", "target.jsonl"]
    wrong = answer(recipe, *required.get(recipe, ()), "--ouput_dirr", "x")
    assert wrong.returncode == 2 and "--ouput_dirr" in wrong.stderr.splitlines()[-1], wrong.stderr[-2000:]


def test_the_help_has_our_settings_first_then_those_of_trl_in_short():
    shown = answer("grpo", "--help").stdout
    order = ("--config", "--train_prompts", "--generator", "GRPOConfig of trl, in short")
    places = [shown.index(text) for text in order]
    assert places == sorted(places) and "--list_rewards" in shown
    assert len(shown.splitlines()) < 800


def test_the_names_are_those_of_the_classes():
    """They are read from source files, without an import."""
    classes = (DataConfig, RenderConfig, PromptEnhancerConfig, EvaluationConfig, ServeConfig, DemoConfig, ModelConfig)
    read = {name for fields in flags._read_fields(flags.ALL).values() for name in fields}
    assert read == {field.name for config in classes for field in dataclasses.fields(config) if field.init}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file or directory"),
        ("a: b: c", "this is no YAML: mapping values are not allowed here"),
        ("- a", "it must have lines `key: value`, found \"['a']\""),
        ("rewrad_funcs: [clip]", "the key rewrad_funcs does not exist; did you mean reward_funcs"),
        ("temperatur: 1", "the key temperatur does not exist; did you mean temperature"),
    ],
)
def test_a_settings_file_that_is_wrong(tmp_path, text, says):
    file = tmp_path / "a.yaml"
    if text:
        file.write_text(text)
    wrong = answer("grpo", "--config", str(file))
    assert wrong.returncode == 2 and says in wrong.stderr and str(file) in wrong.stderr


@pytest.mark.slow
def test_the_last_line_under_a_launcher_is_what_to_do():
    """Accelerate ends a failed run with a traceback of itself."""
    command = [*ACCELERATE, "accelerate_configs/cpu.yaml", "recipes/grpo.py", "--temperatur", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and "CalledProcessError" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: --temperatur does not exist; did you mean temperature")

"""A training of both turns, as users type it."""

import re

import pytest

from brushup.evaluation.results import Results
from support.launching import recipe, run
from support.short_run import flags


@pytest.mark.slow
def test_both_turns_are_trained_and_compared(tmp_path):
    done = run(recipe(*flags(tmp_path), "--turns", "2", "--max_steps", "2"))
    assert re.search(r"step +1/2  first turn \S+  .*\n(.*\n)*step +2/2  second turn \S+  ", done.stdout)
    assert "revised/checker_accuracy" in done.stdout
    results = Results.load(tmp_path / "out")
    assert list(results.arms) == ["original", "untrained", "trained", "revised untrained", "revised trained"]
    assert results.arms["revised trained"]["n"] == results.arms["trained"]["n"]
    assert results.differences["revised trained - trained"]["reward"]["ci95"]
    assert "turns=2" in (tmp_path / "out" / "README.md").read_text()

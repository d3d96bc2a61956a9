"""recipes/drafts.py and a training on its file, as users type them."""

import json
import sys

import pytest
from PIL import Image

from brushup.evaluation.results import Results
from support.launching import recipe, run
from support.short_run import flags


@pytest.mark.slow
def test_drafts_are_written_and_trained_on(tmp_path):
    drafts = tmp_path / "drafts"
    command = [sys.executable, "recipes/drafts.py", "--config", "recipes/tiny_cpu.yaml", "--output_dir", str(drafts)]
    done = run([*command, "--max_train_samples", "8"])
    assert "8 drafts (0 failed)" in done.stdout
    rows = [json.loads(line) for line in (drafts / "train.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["user_prompt"] for row in rows}) == 8 and all(row["questions"] for row in rows)
    assert all(row["draft"] and Image.open(drafts / row["draft_image"]).size == (48, 48) for row in rows)

    run(recipe(*flags(tmp_path), "--train_prompts", str(drafts / "train.jsonl"), "--max_steps", "2"))
    results = Results.load(tmp_path / "out")
    assert list(results.arms) == ["original", "untrained", "trained", "revised untrained", "revised trained"]
    assert results.arms["revised trained"]["n"] == results.arms["trained"]["n"]
    assert results.differences["revised trained - trained"]["reward"]["ci95"]
    assert "turns=2" in (tmp_path / "out" / "README.md").read_text()

"""results.json: what is written is read again, files of earlier versions as well; no secrets, no folders of a user."""

import json
from pathlib import Path

import pytest

from brushup.evaluation.arm import Arm
from brushup.evaluation.compare import Measures
from brushup.evaluation.results import Results


def arm(*scores):
    users, nothing = ["p"] * len(scores), [None] * len(scores)
    rewards = [{"clip": score} for score in scores]
    size = len(scores)
    return Arm(users, users, rewards, nothing, nothing, [{}] * size, [False] * size, [1.0] * size, totals=[*scores])


def test_what_is_saved_is_loaded(tmp_path):
    arms = {"original": arm(0.1, 0.2, 0.3), "untrained": arm(0.1, 0.1, 0.4), "trained": arm(0.5, 0.6, 0.7)}
    measures = Measures([{"user_prompt": "p", "category": "x"}] * 3, {"clip": 1.0}, None, {})
    results = Results.compare(arms, measures, seconds=1.5, images_drawn=9, settings={"steps": 3})
    results.save(tmp_path)
    assert Results.load(tmp_path) == Results.load_trained(tmp_path) == results
    assert results.trained_minus_untrained["clip"]["mean"] == pytest.approx(0.4) and results.win_rate == 1.0
    assert set(results.differences) == {"untrained - original", "trained - original", "trained - untrained"}
    assert results.differences["trained - original"]["by_category"]["x"]["mean"] == pytest.approx(0.4)
    assert results.arms["trained"]["by_category"]["x"]["n"] == 3
    assert "evaluation" not in json.loads((tmp_path / "results.json").read_text())  # there was none


def test_files_of_earlier_versions_load(tmp_path):
    old = {"arms": {}, "win_rate": 0.5, "settings": {"pictures": {"generator": "me/sd"}}, "a_key_of_then": 1}
    (tmp_path / "results.json").write_text(json.dumps(old))
    assert Results.load_trained(tmp_path) == Results({}, win_rate=0.5, settings={"images": {"generator": "me/sd"}})


def test_a_folder_without_results_of_a_training_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json is not there.*--resume_from_checkpoint"):
        Results.load_trained(tmp_path)
    Results({}, evaluation={"prompts": "me/prompts"}).save(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no `settings`"):
        Results.load_trained(tmp_path)


def test_no_secret_and_no_folder_of_this_machine_is_written(tmp_path):
    secret = "hf_sesame"
    kwargs = {"token": secret, "cache": f"{Path.home()}/cache", "file": f"{Path.cwd()}/data/prompts.jsonl"}
    results = Results({}, evaluation={"generator_init_kwargs": kwargs})
    results.save(tmp_path)
    written = Results.load(tmp_path).evaluation["generator_init_kwargs"]
    assert written == {"token": "<TOKEN>", "cache": "~/cache", "file": "data/prompts.jsonl"}
    assert results.evaluation["generator_init_kwargs"]["token"] == secret  # only the copy is masked

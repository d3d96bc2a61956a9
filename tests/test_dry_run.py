"""`--dry_run true`: what a long run will take, before it starts."""

import re

import pytest
from conftest import TINY_WORLD
from launching import recipe, run
from PIL import Image
from test_trainer import StubWorker, make_trainer

from brushup.dry_run import check_deadline, dry_run


def test_it_says_what_the_run_takes_and_leaves_one_picture(tmp_path):
    done = run(
        recipe(
            *("--dry_run", "true", "--output_dir", str(tmp_path), "--images_per_prompt", "2", "--max_steps", "300"),
            *("--eval_strategy", "steps", "--eval_steps", "100", "--gradient_accumulation_steps", "2"),
            *("--per_device_train_batch_size", "8"),
        )
    )
    said = done.stdout
    assert "a batch    2 prompts x 8 rewrites x 2 pictures = 32 pictures, on 1 process" in said
    assert "the run    300 steps: at most 9,600 pictures, and 1,000 more for 4 validations" in said
    step = re.search(r"a step +([\d.]+) s; drawing takes ([\d.]+) s \(([\d.]+) pictures/s", said)
    hours = re.search(r"estimate +([\d.]+) hours to train, and ([\d.]+) to draw", said)
    assert float(hours[1]) == round(300 * float(step[1]) / 3600, 2) and float(step[3]) > 0
    picture = re.search(r"a picture +of '(.+)': clip (\d\.\d{3}); see (\S+)", said)
    assert picture[1] in (TINY_WORLD / "validation.jsonl").read_text()
    assert Image.open(picture[3]).size == (32, 32)
    assert [file.name for file in tmp_path.iterdir()] == ["dry_run.png"]


def test_too_few_prompts_for_a_batch(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"user_prompt": "a cat"}')
    trainer = make_trainer(tmp_path, StubWorker(), prompts=tmp_path / "one.jsonl")  # 8 rewrites: 2 prompts x 4
    with pytest.raises(ValueError, match="a batch takes 2 prompts, but train_prompts has 1: lower"):
        dry_run(trainer)


def test_drawing_longer_than_the_ranks_wait():
    check_deadline(1799.0, 1800)
    with pytest.raises(ValueError, match="busy for 1801 s .* ddp_timeout = 1800 s: raise ddp_timeout"):
        check_deadline(1801.0, 1800)

"""The second turn: the policy looks at the image of a draft and revises it, or keeps it."""

import json
import math

import pytest
from conftest import TINY_WORLD
from PIL import Image

from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.dataset import load_prompts
from brushup.prompts.template import KEEP, REVISE
from support.training import StubWorker, make_trainer, table


def write_drafts(folder, drafts):
    """Write a prompt file with these drafts, None for a row of the first turn, and return its path."""
    Image.new("RGB", (48, 48), "red").save(folder / "draft.png")
    rows = [
        {"user_prompt": f"crimson box {i}", "draft": draft, "draft_image": draft and "draft.png"}
        for i, draft in enumerate(drafts)
    ]
    path = folder / "drafts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def write_held_out(folder):
    path = folder / "held_out.jsonl"
    path.write_text(
        "\n".join(json.dumps({"user_prompt": f"{n} lime boxes, little"}) for n in ("two", "three", "1", "4"))
    )
    return path


def score(job):
    return len(job.prompt) % 7 / 7


def test_a_revision_is_worth_its_gain_over_the_draft_and_a_loss_counts_twice(tmp_path):
    draft = "one small red square"
    path = write_drafts(tmp_path, [draft, None])
    worker = StubWorker(score)
    trainer = make_trainer(tmp_path, worker, prompts=path, max_steps=1, per_device_train_batch_size=8)
    trainer.train()
    (jobs,) = worker.batches
    of_draft = [job for job in jobs if job.user_prompt == "crimson box 0"]
    assert len({job.seed for job in of_draft}) == 1 and draft in {job.prompt for job in of_draft}
    rows = list(zip(*(table(trainer, name) for name in ("user_prompt", "rewrite", "clip")), strict=True))
    assert len(rows) == 8
    for user_prompt, rewrite, value in rows:
        if rewrite is not None and user_prompt == "crimson box 0":
            gain = len(rewrite) % 7 / 7 - len(draft) % 7 / 7
            assert value == pytest.approx(gain if gain >= 0 else 2 * gain, abs=1e-6)
        elif rewrite is not None:
            assert value == pytest.approx(len(rewrite) % 7 / 7, abs=1e-6)
    assert "gain_clip" in trainer._logs["extra"]


@pytest.mark.parametrize("options", [{}, {"max_staleness": 1}, {"steps_per_generation": 1}])
def test_both_turns_train_beside_the_rendering_and_go_on_after_a_stop(tmp_path, options):
    path = write_drafts(tmp_path, ["one small red square", None, "two big lime boxes", None] * 2)
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "prompts": path, **options}
    healthy = StubWorker(score)
    make_trainer(tmp_path / "whole", healthy, **options).train()
    asked = {job.prompt for jobs in healthy.batches for job in jobs}
    assert {"one small red square", "two big lime boxes"} <= asked
    after_first = len(healthy.batches) // 2
    fails = StubWorker(lambda job: "out of order" if len(fails.batches) > after_first else score(job))
    with pytest.raises(RuntimeError, match="Go on later with --resume_from_checkpoint") as stopped:
        make_trainer(tmp_path / "broken", fails, max_failed_batches=1, **options).train()
    mended = StubWorker(score)
    make_trainer(tmp_path / "broken", mended, **options).train(resume_from_checkpoint=str(stopped.value).split()[-1])
    if options.get("max_staleness"):  # resumed, the first rewrites are not written a step ahead
        assert {job.user_prompt for job in mended.batches[-1]} == {job.user_prompt for job in healthy.batches[-1]}
    else:
        assert mended.batches == healthy.batches[after_first:]


def test_keep_is_the_draft_as_it_is_and_costs_no_image(tmp_path, monkeypatch):
    path = write_drafts(tmp_path, ["one small red square"] * 2)
    worker = StubWorker(score)
    trainer = make_trainer(tmp_path, worker, prompts=path, max_steps=1)
    keep = trainer.processing_class(text=KEEP)["input_ids"][0] + trainer.eos_token_ids[:1]
    generate = trainer._generate_single_turn

    def always_keep(*args, **kwargs):
        ids, log_probs, *rest = generate(*args, **kwargs)
        return [keep] * len(ids), log_probs, *rest

    monkeypatch.setattr(trainer, "_generate_single_turn", always_keep)
    trainer.train()
    assert {job.prompt for job in worker.batches[0]} == {"one small red square"}
    assert set(table(trainer, "rewrite")) == {"one small red square"}
    assert set(table(trainer, "clip")) == {0.0}
    assert trainer.state.log_history[0]["render/kept"] == 1.0


def test_the_request_shows_the_users_image_before_the_prompt_and_the_drafts_before_the_question(tmp_path):
    for name in ("mine", "draft"):
        Image.new("RGB", (48, 48), "red" if name == "mine" else "blue").save(tmp_path / f"{name}.png")
    row = {"user_prompt": "a cat", "image": "mine.png", "draft": "one cat", "draft_image": "draft.png"}
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row | {"user_prompt": f"cat {i}"}) for i in range(2)))
    trainer = make_trainer(tmp_path, StubWorker(), prompts=tmp_path / "rows.jsonl", max_steps=1)
    row = trainer.train_dataset[0]
    assert [image.getpixel((0, 0)) for image in row["images"]] == [(255, 0, 0), (0, 0, 255)]
    system, user, assistant, revise = row["prompt"]
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert assistant["content"][0]["text"] == "one cat"
    assert [part["type"] for part in revise["content"]] == ["image", "text"] and revise["content"][1]["text"] == REVISE
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_failed_draft_leaves_its_revisions_out(tmp_path):
    draft = "one small red square"
    broken = (draft, "crimson box 0")
    worker = StubWorker(lambda job: "the test broke it" if (job.prompt, job.user_prompt) == broken else score(job))
    trainer = make_trainer(tmp_path, worker, prompts=write_drafts(tmp_path, [draft, None]), max_steps=1)
    trainer.train()
    rows = zip(table(trainer, "user_prompt"), table(trainer, "rewrite"), table(trainer, "clip"), strict=True)
    for user_prompt, rewrite, value in rows:
        if rewrite is not None:
            assert math.isnan(value) == (user_prompt == "crimson box 0")


def test_validation_asks_for_the_second_turn_too_and_keeps_a_draft_that_failed(tmp_path):
    held_out = load_prompts(str(write_held_out(tmp_path)), "validation")
    first = PromptEnhancer.from_pretrained(TINY_WORLD / "policy", device="cpu").enhance(
        list(held_out["user_prompt"]), max_new_tokens=32
    )
    broken = (first[0].prompt, first[0].user_prompt)
    worker = StubWorker(lambda job: "broken" if (job.prompt, job.user_prompt) == broken else score(job))
    path = write_drafts(tmp_path, ["one small red square", None])
    settings = {"max_completion_length": 32, "max_steps": 1}
    trainer = make_trainer(tmp_path, worker, prompts=path, eval_dataset=held_out, **settings)
    metrics = trainer.evaluate()
    drafts, revised = trainer.arms[0], trainer.revised_arms[0]
    assert drafts.prompts == [rewrite.prompt for rewrite in first]
    assert revised.prompts[0] == drafts.prompts[0] and revised.prompts[1:] != drafts.prompts[1:]
    assert metrics["eval_revised/failed"] == metrics["eval_failed"] == 1 / 4
    assert metrics["eval_revised/reward"] == pytest.approx(sum(revised.totals[1:]) / 3)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"draft": "one cat"}, "`draft` and `draft_image` go together, and one is missing"),
        ({"draft": " ", "draft_image": "draft.png"}, "`draft` must be a text that is not empty"),
        ({"draft": "one cat", "draft_image": "none.png"}, "there is no image"),
    ],
)
def test_a_wrong_draft_is_named(tmp_path, row, fault):
    path = write_drafts(tmp_path, ["one dog"])
    path.write_text(path.read_text() + "\n" + json.dumps({"user_prompt": "a cat"} | row))
    with pytest.raises(ValueError, match=f"line 2.*{fault}|:2: .*{fault}"):
        load_prompts(str(path))

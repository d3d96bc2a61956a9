"""The second turn in training: the policy revises, or keeps, drafts that it has just written."""

import json
import math
from dataclasses import replace

import pytest
from conftest import TINY_WORLD
from PIL import Image

from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.dataset import load_prompts
from brushup.prompts.template import KEEP, REVISE
from brushup.training.drafting import with_drafts
from support.training import StubWorker, make_trainer, table


COLUMNS = ("user_prompt", "rewrite", "clip")


def score(job):
    return len(job.prompt) % 7 / 7


def prompt_file(folder, rows):
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def boxes(folder, count=2):
    return prompt_file(folder, [{"user_prompt": f"crimson box {number}"} for number in range(count)])


def with_answers(trainer, monkeypatch, *answers):
    """Let the first completions be `answers[0]`, the second ones `answers[1]` and so on; None: the policy's."""
    generate, given = trainer._generate_single_turn, iter(answers)

    def answer(*args, **kwargs):
        ids, log_probs, *rest = generate(*args, **kwargs)
        text = next(given, None)
        if text is not None:
            ids = [trainer.processing_class.tokenizer(text).input_ids + trainer.eos_token_ids[:1]] * len(ids)
        return ids, log_probs, *rest

    monkeypatch.setattr(trainer, "_generate_single_turn", answer)


def test_every_other_batch_revises_and_its_reward_is_the_gain_over_the_draft(tmp_path):
    worker = StubWorker(score)
    trainer = make_trainer(tmp_path, worker, prompts=boxes(tmp_path), max_steps=2, turns=2)
    trainer.train()
    _, drafted, jobs = worker.batches
    assert {(job.user_prompt, job.seed) for job in jobs} == {(job.user_prompt, job.seed) for job in drafted}
    assert drafted and not {*jobs} & {*drafted}  # a draft is rendered once
    draft = {job.user_prompt: job for job in drafted}
    rows = list(zip(*(table(trainer, name) for name in COLUMNS), strict=True))
    assert len(rows) == 8 and len(draft) == 2
    for user_prompt, rewrite, value in rows:
        if rewrite is not None:
            gain = len(rewrite) % 7 / 7 - score(draft[user_prompt])
            assert value == pytest.approx(gain if gain >= 0 else 2 * gain, abs=1e-6)
    first, second = trainer.state.log_history[:2]
    assert "turns/second/reward" not in first and "turns/first/reward" not in second
    assert first["turns/first/reward"] == pytest.approx(first["reward"], abs=1e-6) and first["reward"] > 0
    assert second["turns/second/reward"] == pytest.approx(second["reward"], abs=1e-6)
    assert "gain_clip" in trainer._logs["extra"]


def test_drafts_do_not_wait_behind_other_images(tmp_path):
    worker = StubWorker(score)
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 1}
    make_trainer(tmp_path, worker, prompts=boxes(tmp_path, 4), max_steps=1, turns=2, **options).train()
    draft, first, second = ({job.user_prompt for job in jobs} for jobs in worker.batches)
    assert draft == second != first


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 2},
        {"beta": 0.1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"images_per_prompt": 2},
        {"log_gain": True},
    ],
)
def test_both_turns_are_trained_with(options, tmp_path):
    options = {"max_steps": 4 if "num_iterations" in options else 2, **options}
    trainer = make_trainer(tmp_path, StubWorker(score), prompts=boxes(tmp_path, 4), turns=2, **options)
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {"turns/first/reward", "turns/second/reward"} <= logged
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


@pytest.mark.parametrize(
    ("options", "after_first"), [({}, 1), ({"max_staleness": 1}, 2), ({"steps_per_generation": 1}, 3)]
)
def test_both_turns_train_beside_the_rendering_and_go_on_after_a_stop(tmp_path, options, after_first):
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "prompts": boxes(tmp_path, 8), "turns": 2, **options}
    healthy = StubWorker(score)
    make_trainer(tmp_path / "whole", healthy, **options).train()
    fails = StubWorker(lambda job: "out of order" if len(fails.batches) > after_first else score(job))
    with pytest.raises(RuntimeError, match="Go on later with --resume_from_checkpoint") as stopped:
        make_trainer(tmp_path / "broken", fails, max_failed_batches=1, **options).train()
    mended = StubWorker(score)
    make_trainer(tmp_path / "broken", mended, **options).train(resume_from_checkpoint=str(stopped.value).split()[-1])
    if options.get("max_staleness"):  # resumed, the first rewrites are not written a step ahead
        assert len(mended.batches) == 2  # drafts, and revisions
        assert {job.user_prompt for job in mended.batches[-1]} == {job.user_prompt for job in healthy.batches[-1]}
    else:
        assert mended.batches == healthy.batches[after_first:]


def test_keep_is_the_draft_as_it_is_and_costs_no_image(tmp_path, monkeypatch):
    worker = StubWorker(score)
    trainer = make_trainer(tmp_path, worker, prompts=boxes(tmp_path), max_steps=2, turns=2)
    with_answers(trainer, monkeypatch, None, "one small red square", KEEP)
    trainer.train()
    _, drafted, jobs = worker.batches
    assert {job.prompt for job in drafted} == {"one small red square"} and not jobs
    assert set(table(trainer, "rewrite")) == {"one small red square"}
    assert set(table(trainer, "clip")) == {0.0}
    assert trainer.state.log_history[1]["turns/second/kept"] == 1.0


def test_the_users_prompt_is_the_draft_in_place_of_a_malformed_one(tmp_path, monkeypatch):
    worker = StubWorker(score)
    trainer = make_trainer(tmp_path, worker, prompts=boxes(tmp_path), max_steps=2, turns=2)
    with_answers(trainer, monkeypatch, None, "")
    trainer.train()
    assert [job.prompt for job in worker.batches[1]] == [job.user_prompt for job in worker.batches[1]]


def test_the_request_shows_the_users_image_before_the_prompt_and_the_drafts_before_the_question(tmp_path, monkeypatch):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "mine.png")
    path = prompt_file(tmp_path, [{"user_prompt": f"cat {number}", "image": "mine.png"} for number in range(2)])
    trainer = make_trainer(tmp_path, StubWorker(), prompts=path, max_steps=2, turns=2)
    with_answers(trainer, monkeypatch, "one cat")
    asked, known = with_drafts(trainer, [row for row in trainer.train_dataset for _ in range(4)], step=1)
    assert {*known} == {("one cat", "cat 0"), ("one cat", "cat 1")}
    for row in asked:
        assert [image.getpixel((0, 0)) for image in row["images"]] == [(255, 0, 0), (0, 0, 0)]
        system, user, assistant, revise = row["prompt"]
        assert [part["type"] for part in user["content"]] == ["image", "text"]
        assert assistant["content"][0]["text"] == row["draft"] == "one cat"
        assert [part["type"] for part in revise["content"]] == ["image", "text"]
        assert revise["content"][1]["text"] == REVISE
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_draft_that_fails_leaves_its_revisions_out(tmp_path):
    worker = StubWorker(lambda job: "broken" if broken == (len(worker.batches), job.user_prompt) else score(job))
    broken = (2, "crimson box 0")
    trainer = make_trainer(tmp_path, worker, prompts=boxes(tmp_path), max_steps=2, turns=2)
    trainer.train()
    values = {name: [] for name in ("crimson box 0", "crimson box 1")}
    for user_prompt, rewrite, value in zip(*(table(trainer, name) for name in COLUMNS), strict=True):
        values[user_prompt] += [value] if rewrite is not None else []
    assert values["crimson box 0"] and all(map(math.isnan, values["crimson box 0"]))
    assert values["crimson box 1"] and not any(map(math.isnan, values["crimson box 1"]))


def test_a_worker_that_is_gone_when_it_should_render_drafts_stops_the_run(tmp_path):
    def verdict(job):
        if len(worker.batches) > 1:
            raise ConnectionError("no worker")
        return score(job)

    worker = StubWorker(verdict)
    trainer = make_trainer(tmp_path, worker, prompts=boxes(tmp_path), max_steps=2, turns=2, max_failed_batches=1)
    with pytest.raises(RuntimeError, match="(?s)no worker.*resume_from_checkpoint"):
        trainer.train()


def test_validation_asks_for_the_second_turn_too_and_keeps_a_draft_that_failed(tmp_path, monkeypatch):
    write = PromptEnhancer._write

    def write_revisions(self, requests, *args, **kwargs):  # the policy itself may keep all drafts
        return [
            replace(answer, prompt=f"{answer.prompt}, revised") if request.draft else answer
            for request, answer in zip(requests, write(self, requests, *args, **kwargs), strict=True)
        ]

    monkeypatch.setattr(PromptEnhancer, "_write", write_revisions)
    path = prompt_file(tmp_path, [{"user_prompt": f"{n} lime boxes, little"} for n in ("two", "three", "1", "4")])
    held_out = load_prompts(str(path), "validation")
    first = PromptEnhancer.from_pretrained(TINY_WORLD / "policy", device="cpu").enhance(
        list(held_out["user_prompt"]), max_new_tokens=32
    )
    broken = (first[0].prompt, first[0].user_prompt)
    worker = StubWorker(lambda job: "broken" if (job.prompt, job.user_prompt) == broken else score(job))
    trainer = make_trainer(tmp_path, worker, eval_dataset=held_out, turns=2, max_steps=1)
    metrics = trainer.evaluate()
    drafts, revised = trainer.arms[0], trainer.revised_arms[0]
    assert drafts.prompts == [rewrite.prompt for rewrite in first]
    assert revised.prompts[0] == drafts.prompts[0]
    assert all(prompt.endswith(", revised") for prompt in revised.prompts[1:])
    assert metrics["eval_revised/failed"] == metrics["eval_failed"] == 1 / 4
    assert metrics["eval_revised/reward"] == pytest.approx(sum(revised.totals[1:]) / 3)

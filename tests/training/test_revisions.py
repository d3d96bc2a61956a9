"""The second turn in training: the policy revises, or keeps, drafts that it has just written."""

import json
import math

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


def test_every_other_group_revises_and_its_reward_is_the_gain_over_the_draft(tmp_path):
    worker = StubWorker(score)
    trainer = make_trainer(tmp_path, worker, prompts=boxes(tmp_path), max_steps=1, turns=2)
    trainer.train()
    (drafted,), jobs = worker.batches
    # The draft's image in the request is the one that the revisions are measured against.
    assert drafted in jobs and {job.seed for job in jobs if job.user_prompt == drafted.user_prompt} == {drafted.seed}
    rows = list(zip(*(table(trainer, name) for name in COLUMNS), strict=True))
    assert len(rows) == 8 and len({user_prompt for user_prompt, _, _ in rows}) == 2
    for user_prompt, rewrite, value in rows:
        if rewrite is not None and user_prompt == drafted.user_prompt:
            gain = len(rewrite) % 7 / 7 - score(drafted)
            assert value == pytest.approx(gain if gain >= 0 else 2 * gain, abs=1e-6)
        elif rewrite is not None:
            assert value == pytest.approx(len(rewrite) % 7 / 7, abs=1e-6)
    logged = trainer.state.log_history[0]
    means = []
    for of_draft in (False, True):
        of_turn = [value for prompt, rewrite, value in rows if rewrite and (prompt == drafted.user_prompt) == of_draft]
        means.append(sum(of_turn) / len(of_turn))
    assert [logged["turns/first/reward"], logged["turns/second/reward"]] == pytest.approx(means, abs=1e-6)


def test_the_groups_take_turns(tmp_path):
    worker = StubWorker(score)
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 1}
    trainer = make_trainer(tmp_path, worker, prompts=boxes(tmp_path, 4), max_steps=1, turns=2, **options)
    trainer.train()
    assert [len({job.user_prompt for job in jobs}) for jobs in worker.batches] == [1, 1, 1]
    first, draft, second = worker.batches
    assert draft[0] in second and first[0].user_prompt != draft[0].user_prompt


@pytest.mark.parametrize("options", [{}, {"max_staleness": 1}, {"steps_per_generation": 1}])
def test_both_turns_train_beside_the_rendering_and_go_on_after_a_stop(tmp_path, options):
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "prompts": boxes(tmp_path, 8), "turns": 2, **options}
    healthy = StubWorker(score)
    make_trainer(tmp_path / "whole", healthy, **options).train()
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
    worker = StubWorker(score)
    trainer = make_trainer(tmp_path, worker, prompts=boxes(tmp_path), max_steps=1, turns=2)
    with_answers(trainer, monkeypatch, "one small red square", KEEP)
    trainer.train()
    (drafted,), jobs = worker.batches
    assert {job.prompt for job in jobs if job.user_prompt == drafted.user_prompt} == {"one small red square"}
    for user_prompt, rewrite, value in {*zip(*(table(trainer, name) for name in COLUMNS), strict=True)}:
        is_first = user_prompt != drafted.user_prompt
        assert rewrite == (user_prompt if is_first else "one small red square")
        assert value == pytest.approx(len(user_prompt) % 7 / 7 if is_first else 0.0, abs=1e-6)
    assert trainer.state.log_history[0]["render/kept"] == 1.0


def test_the_request_shows_the_users_image_before_the_prompt_and_the_drafts_before_the_question(tmp_path, monkeypatch):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "mine.png")
    path = prompt_file(tmp_path, [{"user_prompt": f"cat {number}", "image": "mine.png"} for number in range(2)])
    trainer = make_trainer(tmp_path, StubWorker(), prompts=path, max_steps=1, turns=2)
    with_answers(trainer, monkeypatch, "one cat")
    rows = [row for row in trainer.train_dataset for _ in range(4)]
    asked = with_drafts(trainer, rows, step=0, number=0)
    assert [row["draft"] for row in asked] == [None] * 4 + ["one cat"] * 4
    assert [image.getpixel((0, 0)) for image in asked[0]["images"]] == [(255, 0, 0)]
    assert [image.getpixel((0, 0)) for image in asked[-1]["images"]] == [(255, 0, 0), (0, 0, 0)]
    system, user, assistant, revise = asked[-1]["prompt"]
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert assistant["content"][0]["text"] == "one cat"
    assert [part["type"] for part in revise["content"]] == ["image", "text"] and revise["content"][1]["text"] == REVISE
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("fault", ["the test broke it", ConnectionError("no worker")])
def test_a_group_whose_draft_fails_is_asked_for_a_rewrite(tmp_path, fault):
    def verdict(job):
        if len(worker.batches) > 1:
            return score(job)
        if isinstance(fault, Exception):
            raise fault
        return fault

    worker = StubWorker(verdict)
    trainer = make_trainer(tmp_path, worker, prompts=boxes(tmp_path), max_steps=1, turns=2)
    trainer.train()
    for rewrite, value in zip(table(trainer, "rewrite"), table(trainer, "clip"), strict=True):
        assert rewrite is None or value == pytest.approx(len(rewrite) % 7 / 7, abs=1e-6)
    assert trainer.state.log_history[0]["render/failed"] == 0.0


def test_a_draft_that_fails_when_it_is_rendered_again_leaves_its_revisions_out(tmp_path):
    worker = StubWorker(lambda job: "broken" if len(worker.batches) > 1 and [job] == worker.batches[0] else score(job))
    trainer = make_trainer(tmp_path, worker, prompts=boxes(tmp_path), max_steps=1, turns=2)
    trainer.train()
    drafted = worker.batches[0][0].user_prompt
    rows = zip(*(table(trainer, name) for name in COLUMNS), strict=True)
    for user_prompt, rewrite, value in rows:
        if rewrite is not None:
            assert math.isnan(value) == (user_prompt == drafted)


def test_validation_asks_for_the_second_turn_too_and_keeps_a_draft_that_failed(tmp_path):
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
    assert revised.prompts[0] == drafts.prompts[0] and revised.prompts[1:] != drafts.prompts[1:]
    assert metrics["eval_revised/failed"] == metrics["eval_failed"] == 1 / 4
    assert metrics["eval_revised/reward"] == pytest.approx(sum(revised.totals[1:]) / 3)

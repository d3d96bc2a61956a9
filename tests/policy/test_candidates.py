"""Several rewrites and the user's own prompt are rendered, and a judge picks one."""

import pytest
from conftest import TINY_WORLD

from brushup.policy.candidates import pick
from brushup.policy.chat import Draft, Request, ask, tokenize
from brushup.policy.enhancement import Candidate
from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.template import parse_answer
from brushup.rewards.combine import Objective
from support.training import StubWorker


PROMPTS = ["crimson box, huge, snowy backdrop", "one big red circle on a white background"]
OWN_COPY_WINS = StubWorker(lambda job: 0.9 if job.prompt == job.user_prompt else 0.1)
REWRITE_WINS = StubWorker(lambda job: 0.1 if job.prompt == job.user_prompt else 0.9)


@pytest.fixture(scope="module")
def enhancer() -> PromptEnhancer:
    return PromptEnhancer.from_pretrained(TINY_WORLD / "policy", device="cpu")


def candidates(*scores: dict[str, float] | str) -> list[Candidate]:
    """Candidates with these scores, or that failed with this error."""
    return [
        Candidate(f"prompt {place}", None, *(({}, found) if isinstance(found, str) else (found,)))
        for place, found in enumerate(scores)
    ]


def test_the_picked_one_is_a_rewrite_only_if_that_gains(enhancer, monkeypatch):
    rewrite, other = enhancer.enhance(PROMPTS, best_of=8, worker=REWRITE_WINS, temperature=1.5)
    likeliest = enhancer.enhance(PROMPTS[0])
    assert rewrite.prompt == likeliest.prompt == rewrite.candidates[1].prompt != PROMPTS[0] and not rewrite.kept
    assert rewrite.candidates[0].prompt == PROMPTS[0] and rewrite.candidates[0].image
    assert rewrite.reason == "rewrite 1: total 0.900 against 0.100, clip 0.900 against 0.100 of your prompt"
    assert len({candidate.prompt for candidate in rewrite.candidates}) == len(rewrite.candidates) > 2
    assert other.user_prompt == PROMPTS[1]
    monkeypatch.setattr(enhancer, "_answer", lambda requests, *_, **__: [("first", "first")] * len(requests))
    kept = enhancer.enhance(PROMPTS[0], best_of=4, worker=OWN_COPY_WINS)
    assert kept.prompt == PROMPTS[0] and kept.kept and kept.reason == "your prompt: no other has more than its 0.900"
    assert kept.answer == ""


def test_all_are_rendered_at_once_from_the_seed_and_equal_ones_once(enhancer):
    worker = StubWorker()
    enhancer.enhance(PROMPTS, best_of=3, worker=worker, seed=7, temperature=1.0)
    (jobs,) = worker.batches
    assert len(set(jobs)) == len(jobs) <= 2 * 4 and {job.seed for job in jobs} == {7}
    assert all(job.for_evaluation for job in jobs)


def test_a_malformed_rewrite_is_the_users_prompt(enhancer):
    cut = enhancer.enhance(PROMPTS[0], best_of=3, worker=REWRITE_WINS, max_new_tokens=2)
    assert cut.prompt == PROMPTS[0] and len(cut.candidates) == 1


def test_candidates_that_failed_are_passed_over():
    assert pick(candidates("no memory", {"clip": 0.2}, {"clip": 0.3}))[0] == 2
    assert pick(candidates({"clip": 0.2}, "no memory")) == (0, "your prompt: no other has more than its 0.200")
    place, reason = pick(candidates("no memory", "no memory"))
    assert place == 0 and reason == "your prompt: no candidate could be rendered (no memory)"
    needs_the_first = Objective({"clip": 1.0}, gain_gates={"clip": 0.0})
    assert pick(candidates("no memory", {"clip": 0.2}), needs_the_first)[1].startswith("your prompt: its image failed")


def test_the_judge_decides_what_counts():
    found = candidates(
        {"clip": 0.2, "vqa": 0.5, "questions": 0.5, "questions/color": 0.0},
        {"clip": 0.3, "vqa": 0.1, "questions": 0.5, "questions/color": 9.0},
        {"clip": 0.1, "vqa": 0.6, "questions": 0.5, "questions/color": 0.0},
    )
    assert (
        pick(found)[0] == 0
    )  # 1.2 against 0.9 and 1.2: the parts of a reward are not added, and a tie changes nothing
    assert pick(found, ["clip"])[0] == 1 and pick(found, ["vqa"])[0] == 2
    assert pick(found, Objective({"clip": 10.0, "vqa": 1.0}))[0] == 1
    assert pick(found, Objective({"clip": 10.0, "vqa": 1.0}, gates={"vqa": 0.4}))[0] == 0
    with pytest.raises(ValueError, match="judge: clipp; the worker's image rewards are clip, vqa, questions"):
        pick(found, ["clipp"])
    with pytest.raises(ValueError, match="judge: no reward; the worker's image rewards are none"):
        pick(candidates({}, {}))


def test_what_does_not_go_together_is_refused(enhancer):
    for wrong in ({"best_of": 2}, {"best_of": 2, "n": 2, "worker": StubWorker()}):
        with pytest.raises(ValueError, match="enhance needs a worker, which renders, and n=1"):
            enhancer.enhance("a cat", **wrong)


def test_in_a_second_turn_the_policy_looks_at_its_draft_and_answers_again(enhancer):
    worker = StubWorker()
    first = enhancer.enhance(PROMPTS)
    revised = enhancer.enhance(PROMPTS, turns=2, worker=worker, seed=7)
    assert [e.draft.prompt for e in revised] == [e.prompt for e in first]
    assert all(e.draft.image and e.draft.scores for e in revised)
    assert [(job.prompt, job.seed) for job in worker.batches[0]] == [(e.prompt, 7) for e in first]
    assert len(worker.batches) == 1  # the revision is left to the caller to render
    asked = ask(enhancer.processor, PROMPTS[0], draft=Draft(first[0].prompt, revised[0].draft.image))
    inputs = tokenize(enhancer.processor, [asked])
    answer = enhancer.model.generate(**inputs, max_new_tokens=128, do_sample=False, **enhancer.decoding)
    text = enhancer.processor.tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert revised[0].answer == text


@pytest.mark.parametrize("better", [True, False])
def test_with_a_judge_the_revision_must_be_better_than_the_draft(enhancer, better, monkeypatch):
    worker = StubWorker(lambda job: 0.5 if job.prompt == "first" else 0.9 if better else 0.1)
    monkeypatch.setattr(
        enhancer, "_answer", lambda requests, *_, **__: [(_answered(r), _answered(r)) for r in requests]
    )
    revised = enhancer.enhance(PROMPTS[0], turns=2, worker=worker, judge=["clip"])
    assert revised.draft.prompt == "first" and revised.prompt == ("second" if better else "first")
    assert revised.reason.startswith("the revision: total 0.900" if better else "the draft: no other has more")


def test_a_draft_that_failed_or_is_kept_stays(enhancer, monkeypatch):
    failed = enhancer.enhance(PROMPTS[0], turns=2, worker=StubWorker(lambda job: "no memory"))
    assert failed.draft.error == "no memory" and failed.prompt == failed.draft.prompt
    judged = enhancer.enhance(PROMPTS[0], turns=2, worker=StubWorker(lambda job: "no memory"), judge=["clip"])
    assert judged.reason == "the draft: it could not be rendered (no memory)"
    answers = iter(["first", "KEEP"])
    monkeypatch.setattr(
        enhancer,
        "_answer",
        lambda requests, *_, **__: [(a := next(answers), parse_answer(a, requests[0].current_prompt))],
    )
    worker = StubWorker()
    kept = enhancer.enhance(PROMPTS[0], turns=2, worker=worker, judge=["clip"])
    assert kept.prompt == kept.draft.prompt == "first" and kept.answer == "KEEP" and len(worker.batches) == 1
    assert kept.reason == "the draft: it is left as it is"


def _answered(request: Request) -> str:
    return "second" if request.draft else "first"

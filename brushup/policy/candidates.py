"""Candidates: prompts for one user's prompt, rendered from one seed; a judge picks the best."""

from collections.abc import Sequence
from dataclasses import replace

from brushup.policy.enhancement import Candidate, Enhancement
from brushup.render.job import RenderJob, Worker
from brushup.rewards.combine import Objective


def pick_best(
    rewrites: Sequence[Sequence[Enhancement]], worker: Worker, judge: Objective | Sequence[str] | None, seed: int
) -> list[Enhancement]:
    """Return of each user prompt the candidate that the judge picks: the prompt itself, or one of its rewrites.

    Args:
        rewrites: of each user prompt.
        worker: renders and scores all candidates, which go to it at once.
        judge: as `pick` takes it.
        seed: of all images.
    """
    groups = [list(dict.fromkeys([group[0].user_prompt, *(r.prompt for r in group)])) for group in rewrites]
    rendered = iter(render_candidates([(prompt, group[0]) for group in groups for prompt in group], worker, seed))
    picked = []
    for group, written in zip(groups, rewrites, strict=True):
        candidates = tuple(next(rendered) for _ in group)
        place, reason = pick(candidates, judge)
        as_it_is = Enhancement(group[0], group[0], malformed=False, answer="")
        best = next((r for r in written if r.prompt == group[place] and not r.malformed), as_it_is)
        picked.append(replace(best, candidates=candidates, reason=reason))
    return picked


def with_drafts(enhancements: Sequence[Enhancement], worker: Worker, seed: int) -> list[Enhancement]:
    """Return the enhancements with their prompts as rendered drafts; what a judge has seen is not rendered again."""
    seen = {(e.user_prompt, found.prompt): found for e in enhancements for found in e.candidates}
    prompts = [(e.prompt, e.user_prompt) for e in enhancements if (e.user_prompt, e.prompt) not in seen]
    rendered = iter(render_candidates(prompts, worker, seed))
    return [replace(e, draft=seen.get((e.user_prompt, e.prompt)) or next(rendered)) for e in enhancements]


def pick_revisions(
    revisions: Sequence[Enhancement], worker: Worker, judge: Objective | Sequence[str] | None, seed: int
) -> list[Enhancement]:
    """Return each revision, or its draft where the judge does not give the revision more.

    Args:
        revisions: with their drafts, which have an image or an error.
        worker: renders and scores the revisions, which go to it at once; a draft left as it is is not rendered again.
        judge, seed: as for `pick_best`.
    """
    changed = [e.draft.image is not None and e.prompt != e.draft.prompt for e in revisions]
    prompts = [(e.prompt, e.user_prompt) for e, is_changed in zip(revisions, changed, strict=True) if is_changed]
    rendered = iter(render_candidates(prompts, worker, seed))
    picked = []
    for revision, is_changed in zip(revisions, changed, strict=True):
        if is_changed:
            candidates = (revision.draft, next(rendered))
            place, reason = pick(candidates, judge, ("the draft", "the revision"))
            picked.append(replace(revision, prompt=candidates[place].prompt, candidates=candidates, reason=reason))
        else:
            failed = f"could not be rendered ({revision.draft.error})"
            reason = f"the draft: it {failed if revision.draft.error else 'is left as it is'}"
            picked.append(replace(revision, reason=reason))
    return picked


def render_candidates(prompts: Sequence[tuple[str, str]], worker: Worker, seed: int) -> list[Candidate]:
    """Return the candidates of prompts, each with the user's prompt that it is judged by."""
    jobs = [RenderJob(prompt, user_prompt, seed, for_evaluation=True) for prompt, user_prompt in prompts]
    results = worker.submit(jobs, return_images=True).result() if jobs else []
    found = zip(prompts, results, strict=True)
    return [Candidate(prompt, result.image, result.scores, result.error) for (prompt, _), result in found]


def pick(
    candidates: Sequence[Candidate],
    judge: Objective | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[int, str]:
    """Return the place of the candidate with the highest total, and why it is picked, in words.

    Of equal totals the earlier one is picked: the first, the prompt as it is, is changed for a gain alone.

    Args:
        judge: makes the total of the rewards, or the names of the rewards to add up; default all of the worker.
        names: of the candidates, in words; default "your prompt", "rewrite 1", "rewrite 2", ...

    Raises:
        ValueError: the worker computes no image reward, or lacks one of the judge's.
    """
    names = names or ["your prompt", *(f"rewrite {place}" for place in range(1, len(candidates)))]
    if all(candidate.error for candidate in candidates):
        return 0, f"{names[0]}: no candidate could be rendered ({candidates[0].error})"
    scores = [None if candidate.error else candidate.scores for candidate in candidates]
    known = [name for name in next(filter(None, scores), {}) if "/" not in name]  # not the parts of a reward
    if not isinstance(judge, Objective):
        judge = Objective(dict.fromkeys(judge or known, 1.0))
    if not judge.names or not set(judge.names) <= set(known):
        wanted = ", ".join(judge.names) or "no reward"
        raise ValueError(f"judge: {wanted}; the worker's image rewards are {', '.join(known) or 'none'}")
    totals = judge.totals_by_prompt(scores, [scores[0]] * len(scores))
    alive = [place for place, total in enumerate(totals) if total is not None]
    if not alive:
        return 0, f"{names[0]}: its image failed, and the judge's gain gates compare with it"
    best = max(alive, key=lambda place: totals[place])
    if not best:
        return 0, f"{names[0]}: no other has more than its {totals[0]:.3f}"
    before = {"total": totals[0], **(scores[0] or {})}
    after = {"total": totals[best], **scores[best]}
    figures = [
        f"{name} {after[name]:.3f}" + ("" if before.get(name) is None else f" against {before[name]:.3f}")
        for name in ("total", *judge.names)
    ]
    return best, f"{names[best]}: {', '.join(figures)} of {names[0]}"

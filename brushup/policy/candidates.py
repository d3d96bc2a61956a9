"""Candidates: a user's prompt and rewrites of it, rendered from one seed; a judge picks the best."""

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
    jobs = [RenderJob(prompt, group[0], seed, for_evaluation=True) for group in groups for prompt in group]
    results = iter(worker.submit(jobs, return_images=True).result())
    picked = []
    for group, written in zip(groups, rewrites, strict=True):
        outcomes = [(prompt, next(results)) for prompt in group]
        candidates = tuple(Candidate(prompt, found.image, found.scores, found.error) for prompt, found in outcomes)
        place, reason = pick(candidates, judge)
        as_it_is = Enhancement(group[0], group[0], malformed=False, answer="")
        best = next((r for r in written if r.prompt == group[place] and not r.malformed), as_it_is)
        picked.append(replace(best, candidates=candidates, reason=reason))
    return picked


def pick(candidates: Sequence[Candidate], judge: Objective | Sequence[str] | None = None) -> tuple[int, str]:
    """Return the place of the candidate with the highest total, and why it is picked, in words.

    Of equal totals the earlier one is picked: the user's prompt, which is the first, is changed for a gain alone.

    Args:
        judge: makes the total of the rewards, or the names of the rewards to add up; default all of the worker.

    Raises:
        ValueError: the worker computes no image reward, or lacks one of the judge's.
    """
    if all(candidate.error for candidate in candidates):
        return 0, f"your prompt: no candidate could be rendered ({candidates[0].error})"
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
        return 0, "your prompt: its image failed, and the judge's gain gates compare with it"
    best = max(alive, key=lambda place: totals[place])
    if not best:
        return 0, f"your prompt: no rewrite has more than its {totals[0]:.3f}"
    before = {"total": totals[0], **(scores[0] or {})}
    after = {"total": totals[best], **scores[best]}
    figures = [
        f"{name} {after[name]:.3f}" + ("" if before.get(name) is None else f" against {before[name]:.3f}")
        for name in ("total", *judge.names)
    ]
    return best, f"rewrite {best}: {', '.join(figures)} of your prompt"

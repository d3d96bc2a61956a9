"""Arms: ways of prompting, rendered and scored on held-out prompts, all from the same seeds."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from PIL import Image

from brushup.common import mean, thumbnail
from brushup.console import progress
from brushup.evaluation.sheet import Cell, can_write, labelled_grid
from brushup.render.job import RenderJob, RenderResult, Worker, columns_of, mean_scores, paired_seeds
from brushup.rewards.format import kept_share
from brushup.rewards.registry import TextReward


EXAMPLES = 6  # prompts on a sheet to look at
IMAGES_KEPT = 9  # of the first prompts, in training: not each may do for the sheet
STATIC_SUFFIX = ", high quality, detailed, 4k"  # words that people add by hand


@dataclass
class Arm:
    """The outcome of one way of prompting, an item for each prompt; None where the machine failed an image.

    Attributes:
        user_prompts: as the users wrote them.
        prompts: the prompts that were rendered in their place.
        rewards: by name, averaged over the images of a prompt; parts of one as `questions/color`.
        images: the first image of the first prompts, made smaller.
        checker_accuracy: the share of the images, 0..1, that the checker accepts.
        tokens: the length of the prompt for each tokenizer of the generator.
        malformed: whether the user's prompt replaces a malformed completion.
        prompt_share: the share of the policy's answer, 0..1, that is the prompt; 1 if no policy wrote it.
        errors: of the machine and of the rewards.
        answers: of the policy, with the prompt in it; None where no policy wrote the prompt.
        totals: of the rewards (see `Objective.totals_by_prompt`), once `Validation` knows those of the user prompts.
    """

    user_prompts: list[str]
    prompts: list[str]
    rewards: list[dict[str, float] | None]
    images: list[Image.Image | None]
    checker_accuracy: list[float | None]
    tokens: list[dict[str, int]]
    malformed: list[bool]
    prompt_share: list[float]
    errors: list[str] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    totals: list[float | None] = field(default_factory=list)

    @classmethod
    def joined(cls, parts: "Sequence[Arm]") -> "Arm":
        """Return the arm over the prompts of all parts, in order."""
        return cls(*([item for part in parts for item in vars(part)[name.name]] for name in fields(cls)))

    def select(self, indices: Sequence[int]) -> "Arm":
        """Return the arm over the prompts at these indices."""
        columns = {name: values for name, values in vars(self).items() if name != "errors"}
        return Arm(**{n: [values[index] for index in indices] if values else [] for n, values in columns.items()})

    def with_better(self, other: "Arm", indices: Sequence[int]) -> "Arm":
        """Return the arm with the other's items in place of its own at the indices where the other's total is higher.

        Args:
            other: an arm over the prompts at these indices.
            indices: of prompts of this arm.
        """
        chosen = list(range(len(self.totals)))
        for place, index in enumerate(indices):
            before, after = self.totals[index], other.totals[place]
            if after is not None and (before is None or after > before):
                chosen[index] = len(self.totals) + place
        return Arm.joined([self, other]).select(chosen)

    @property
    def kept(self) -> list[bool]:
        """Whether each user prompt is left as it is."""
        columns = zip(self.prompts, self.user_prompts, self.malformed, strict=True)
        return [prompt == user_prompt and not malformed for prompt, user_prompt, malformed in columns]

    def scores(self, name: str) -> list[float | None]:
        """Return one reward, or a part of one, of each prompt; None where it failed, or the prompt lacks the part."""
        return [None if row is None else row.get(name) for row in self.rewards]

    def mean_rewards(self) -> dict[str, float]:
        """Return the mean of each reward, by name, over the prompts that could be scored."""
        scored = [row for row in self.rewards if row is not None]
        names = [name for name in scored[0] if "/" not in name] if scored else []
        return {name: float(np.mean([row[name] for row in scored])) for name in names}

    def mean_by_skill(self) -> dict[str, float]:
        """Return the mean of each part of a reward, such as `questions/color`, over the prompts that have it."""
        by_skill = defaultdict(list)
        for name, score in (item for row in self.rewards for item in (row or {}).items()):
            if "/" in name:
                by_skill[name].append(score)
        return {name: float(np.mean(scores)) for name, scores in sorted(by_skill.items())}

    def mean_checker_accuracy(self) -> float | None:
        """Return the share of images that the checker accepts; None without a checker."""
        return mean(self.checker_accuracy)


def repeat_to_length(original: Arm, rewritten: Sequence[Arm]) -> list[str]:
    """Return each user prompt, repeated until it is as long as the longest of its rewrites: length without content.

    Repetitions are whole, joined by ", "; there is at least one. Lengths are those of the generator's first tokenizer,
    or in words where it did not read one of the prompts. Special tokens count with each prompt, but a repetition has a
    comma in their place, so the two nearly cancel out.

    Args:
        original: the arm of the user prompts.
        rewritten: arms of rewrites of them.
    """
    repeated = []
    for index, user_prompt in enumerate(original.user_prompts):
        tokens = [next(iter(arm.tokens[index].values()), 0) for arm in (original, *rewritten)]
        words = [len(arm.prompts[index].split()) for arm in (original, *rewritten)]
        length, *targets = tokens if all(tokens) else words
        repeated.append(", ".join([user_prompt] * max(1, *(-(-target // length) for target in targets))))
    return repeated


def evaluate_prompts(
    prompts: Sequence[str],
    rows: Sequence[dict],
    worker: Worker,
    text_rewards: dict[str, TextReward],
    images_per_prompt: int,
    seed: int,
    checker: Callable | None = None,
    malformed: Sequence[bool] | None = None,
    answers: Sequence[str | None] | None = None,
    images_kept: int = IMAGES_KEPT,
) -> Arm:
    """Render the prompts, one for each held-out row, score them against the rows' `user_prompt`s, and return the arm.

    It raises nothing that only one of several ranks could meet: every failure is in the arm's `errors`.

    Args:
        prompts: to render.
        rows: have `user_prompt`, `prompt`, and `scene` if there is a checker.
        worker: renders, and computes the image rewards.
        text_rewards: by name.
        images_per_prompt: the image rewards are averaged over them.
        seed: equal for all arms of a comparison, so that they start from the same noise.
        checker: `(images, scenes) -> right or wrong` of each image.
        malformed: marks prompts that replace a malformed completion.
        answers: the policy's completions, for rewards that look at them; None if no policy wrote the prompts.
        images_kept: the number of rows whose first image is kept.
    """
    jobs = evaluation_jobs(prompts, rows, worker.columns, images_per_prompt, seed)
    answers, before = list(answers or [None] * len(rows)), worker.images_drawn
    try:
        with progress("rendering", len(set(jobs)), lambda: worker.images_drawn - before):
            results = worker.submit(jobs, return_images=True).result() if jobs else []
        by_row = [results[start : start + images_per_prompt] for start in range(0, len(results), images_per_prompt)]
        tokens = [row_results[0].tokens for row_results in by_row]
        scores = text_scores(text_rewards, prompts, rows, tokens, answers)
        accuracy = [_accuracy(row_results, row, checker) for row_results, row in zip(by_row, rows, strict=True)]
        errors = [reward.error for reward in text_rewards.values() if reward.error and rows]  # of this call
    except Exception as error:
        by_row = [[RenderResult.failed(error)]] * len(rows)
        scores, accuracy, errors = [{}] * len(rows), [None] * len(rows), []
    images = [row_results[0].image for row_results in by_row[:images_kept]] + [None] * (len(rows) - images_kept)
    return Arm(
        user_prompts=[row["user_prompt"] for row in rows],
        prompts=list(prompts),
        rewards=[
            None if any(r.error for r in results) or None in texts.values() else mean_scores(results) | texts
            for results, texts in zip(by_row, scores, strict=True)
        ],
        images=[image and thumbnail(image) for image in images],
        checker_accuracy=accuracy,
        tokens=[row_results[0].tokens for row_results in by_row],
        malformed=list(malformed or [False] * len(rows)),
        prompt_share=[
            1.0 if answer is None else kept_share(answer, prompt)
            for answer, prompt in zip(answers, prompts, strict=True)
        ],
        errors=[result.error for row_results in by_row for result in row_results if result.error] + errors,
        answers=answers,
    )


def evaluation_jobs(
    prompts: Sequence[str], rows: Sequence[dict], columns: Sequence[str], images_per_prompt: int, seed: int
) -> list[RenderJob]:
    """Return the jobs of each prompt, for its held-out row; `columns` of the row go with them."""
    return [
        RenderJob(prompt, row["user_prompt"], image_seed, for_evaluation=True, columns=columns_of(row, columns))
        for prompt, row in zip(prompts, rows, strict=True)
        for image_seed in paired_seeds(seed, "validation", row["user_prompt"], images_per_prompt)
    ]


def text_scores(
    rewards: dict[str, TextReward],
    prompts: Sequence[str],
    rows: Sequence[dict],
    tokens: list[dict[str, int]],
    answers: Sequence[str | None],
) -> list[dict[str, float | None]]:
    """Return the text rewards of each row, by name: of the prompts, as completions for the rows' `user_prompt`.

    Args:
        rewards: by name.
        prompts: that were rendered.
        rows: as for `evaluate_prompts`; all columns reach the rewards.
        tokens: the length of each prompt for each tokenizer of the generator.
        answers: the policy's completions; None where no policy wrote the prompt.
    """
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    columns |= {
        "prompts": columns.pop("prompt", []),
        "completions": [[{"role": "assistant", "content": prompt}] for prompt in prompts],
        "rewrite_tokens": tokens,
        "raw_answer": list(answers),
    }
    scores = {name: reward(**columns) for name, reward in rewards.items()} if rows else {}
    return [{name: values[index] for name, values in scores.items()} for index in range(len(rows))]


def _accuracy(results: list[RenderResult], row: dict, checker: Callable | None) -> float | None:
    """Return the share of the row's images that the checker accepts; None without checker or images."""
    images = [result.image for result in results if result.image]
    return float(np.mean(checker(images, [row["scene"]] * len(images)))) if checker and images else None


def before_after_sheet(before: Arm, after: Arm) -> Image.Image:
    """Return a sheet of the first prompts with both images, rendered from `before` above, from `after` below.

    An image has a tick if the checker accepts all images of its prompt, a cross if it accepts none.

    Prompts in letters that this machine has no font for are passed over.
    """
    rendered = [i for i, pair in enumerate(zip(before.images, after.images, strict=True)) if None not in pair]
    shown = [i for i in rendered if can_write(before.prompts[i]) and can_write(after.prompts[i])] or rendered
    lines = []
    for title, arm in (("from the user's prompt", before), ("from the rewrite", after)):
        marks = {0.0: False, 1.0: True}  # between them, nobody knows whether it is this image that is right
        cells = [Cell(arm.images[i], arm.prompts[i], marks.get(arm.checker_accuracy[i])) for i in shown[:EXAMPLES]]
        lines.append((title, cells))
    return labelled_grid(lines)

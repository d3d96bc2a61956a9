"""The second turn in training: every other group of a batch revises a draft that the policy has just written."""

import logging
from functools import partial
from typing import TYPE_CHECKING

from accelerate.utils import gather_object
from trl.data_utils import prepare_multimodal_messages

from brushup.policy.chat import Draft, ask
from brushup.render.job import paired_seeds
from brushup.training.rollout import jobs_of
from brushup.training.trl_adjustments import metrics_kept


if TYPE_CHECKING:
    from brushup.training.trainer import PromptEnhancerTrainer

logger = logging.getLogger(__name__)


def with_drafts(trainer: "PromptEnhancerTrainer", rows: list[dict], step: int, number: int) -> list[dict]:
    """Return the rows as TRL reads them, those of every other group with a draft to revise.

    The draft of a group is one sampled rewrite. Its image is from the first of the seeds that the group's completions
    are rendered from, so a revision is measured against the image that the policy saw. A group whose draft is
    malformed, or was not rendered, is asked for a rewrite, like the others. All ranks call it together.

    Args:
        rows: of this rank, one for each completion.
        step: the optimizer step that trains on them.
        number: of the generation batch; in the next one the other groups revise.
    """
    first_row = trainer.accelerator.process_index * len(rows)
    groups, starts = zip(
        *(divmod(first_row + place, trainer.num_generations) for place in range(len(rows))), strict=True
    )
    begun = zip(groups, starts, rows, strict=True)
    asked = [(group, row) for group, start, row in begun if start == 0 and (group + number) % 2]
    with metrics_kept(trainer):  # the drafts are not trained on
        # A rank that no such group begins on writes one for nothing: sharded weights need all ranks to generate.
        _, rewrites = trainer.complete([row for _, row in asked] or rows[:1])
    written = [(group, rewrite, row) for (group, row), rewrite in zip(asked, rewrites, strict=False) if rewrite]
    seeds = partial(paired_seeds, trainer.args.seed, step, count=1)
    jobs = jobs_of([(rewrite, row) for _, rewrite, row in written], seeds, trainer.worker.columns)
    try:
        images = [result.image for result in trainer.worker.submit(jobs, True).result()] if jobs else []
    except Exception as error:  # on this rank alone
        logger.warning(f"no drafts to revise in this batch: {error}")
        images = [None] * len(jobs)
    drafts = [{g: Draft(rewrite, image) for (g, rewrite, _), image in zip(written, images, strict=True) if image}]
    drafts = {group: draft for of_rank in gather_object(drafts) for group, draft in of_rank.items()}
    return [_asked(trainer, row, drafts.get(group)) for group, row in zip(groups, rows, strict=True)]


def _asked(trainer: "PromptEnhancerTrainer", row: dict, draft: Draft | None) -> dict:
    """Return the row with its request: `prompt`, and apart from it, as TRL wants them, its `images` in order."""
    request = ask(trainer.processing_class, row["user_prompt"], row.get("image"), draft)
    prompt = prepare_multimodal_messages(request)
    parts = [part for message in prompt for part in message["content"] if part["type"] == "image"]
    images = [part.pop("image") for part in parts]
    return {**row, "draft": draft and draft.prompt, "prompt": prompt, "images": images}

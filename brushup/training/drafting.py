"""The second turn in training: a batch of revisions of drafts that the policy has just written."""

from functools import partial
from typing import TYPE_CHECKING

from accelerate.utils import gather_object
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from brushup.policy.chat import Draft, ask
from brushup.render.job import RenderResult, paired_seeds
from brushup.training.rollout import jobs_of
from brushup.training.trl_adjustments import metrics_kept


if TYPE_CHECKING:
    from brushup.training.trainer import PromptEnhancerTrainer


def with_drafts(
    trainer: "PromptEnhancerTrainer", rows: list[dict], step: int
) -> tuple[list[dict], dict[tuple[str, str], list[RenderResult]]]:
    """Return the rows as requests to revise a draft, one for each group, and the drafts' results.

    A draft is a sampled rewrite; the user's prompt replaces a malformed one, as at inference. It is rendered from the
    seeds that the group's completions will be rendered from; the policy sees the first image. All ranks call this
    together, and all rows get an image, a gray one where the machine failed: a model that is sharded over ranks can't
    run its vision tower on some of them only.

    Args:
        rows: of this rank, one for each completion.
        step: the optimizer step that trains on them.

    Returns:
        The rows, and by draft and user prompt the results of its images, `images_per_prompt` of each.
    """
    size, first_row = trainer.num_generations, trainer.accelerator.process_index * len(rows)
    groups = [(first_row + place) // size for place in range(len(rows))]
    begun = {
        group: row for place, (group, row) in enumerate(zip(groups, rows, strict=True), first_row) if not place % size
    }
    # TRL gathers the lengths of completions, so each rank writes as many; one that fewer groups begin on, in vain.
    spare = rows[:1] * (-(-len(rows) // size) - len(begun))
    with trainer.times.measure("write"), metrics_kept(trainer):  # the drafts are not trained on
        _, rewrites = trainer.complete([*begun.values(), *spare])
    drafts = [(rewrite or row["user_prompt"], row) for rewrite, row in zip(rewrites, begun.values(), strict=False)]
    count = trainer.args.images_per_prompt
    with trainer.times.measure("wait"):
        try:
            jobs = jobs_of(drafts, partial(paired_seeds, trainer.args.seed, step, count=count), trainer.worker.columns)
            results = trainer.worker.submit(jobs, return_images=True).result() if jobs else []
        except Exception as error:  # on this rank alone
            results = [RenderResult.failed(error)] * (count * len(drafts))
    rendered = {
        group: (draft, results[place * count : (place + 1) * count])
        for place, (group, (draft, _)) in enumerate(zip(begun, drafts, strict=True))
    }
    rendered = {group: drawn for of_rank in gather_object([rendered]) for group, drawn in of_rank.items()}
    asked = [_to_revise(trainer, row, *rendered[group]) for group, row in zip(groups, rows, strict=True)]
    known = {(row["draft"], row["user_prompt"]): rendered[group][1] for group, row in zip(groups, asked, strict=True)}
    return asked, known


def _to_revise(trainer: "PromptEnhancerTrainer", row: dict, draft: str, results: list[RenderResult]) -> dict:
    """Return the row with its request: `prompt`, and apart from it, as TRL wants them, its `images` in order."""
    image = results[0].image or Image.new("RGB", (64, 64), "gray")
    request = ask(trainer.processing_class, row["user_prompt"], row.get("image"), Draft(draft, image))
    prompt = prepare_multimodal_messages(request)
    parts = [part for message in prompt for part in message["content"] if part["type"] == "image"]
    images = [part.pop("image") for part in parts]
    return {**row, "draft": draft, "prompt": prompt, "images": images}

"""The answer to a click on "Enhance": rewrite, render, look and revise, score, pick."""

import functools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gradio as gr
from PIL import Image

from brushup.demo.wording import changes, paragraphs, problem_with, remarks_on, table_of
from brushup.evaluation.arm import text_scores
from brushup.policy.candidates import pick
from brushup.policy.enhancement import Candidate, Enhancement
from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.images import load_image
from brushup.prompts.template import build_messages
from brushup.recipe_config import DemoConfig
from brushup.render.job import RenderJob, RenderResult, Worker
from brushup.rewards.registry import TextReward


logger = logging.getLogger(__name__)

SHOWN = 512  # pixels; smaller images are enlarged, or the browser would blur them
TEMPERATURE_OF_SEVERAL = 0.7  # if the user leaves it at 0, where all rewrites would be alike


@functools.cache  # a model is loaded when it is first chosen, and then kept
def load_enhancer(name: str) -> PromptEnhancer:
    """Load the policy; raise a RuntimeError that says which model cannot be loaded, and why."""
    try:
        return PromptEnhancer.from_pretrained(name)
    except Exception as error:
        raise RuntimeError(f"The model {name} cannot be loaded, as a folder or from the Hub. {error}") from error


def enlarged(image: Image.Image | None) -> Image.Image | None:
    """Return the image, with each pixel as a square if it is smaller than `SHOWN`."""
    times = -(-SHOWN // max(image.size)) if image else 1
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST) if times > 1 else image


@dataclass
class Outputs:
    """The parts of the page that a comparison fills in."""

    message: gr.HTML
    comparison: gr.Column
    original_image: gr.Image
    original_text: gr.Textbox
    rewrite_image: gr.Image
    rewrite_text: gr.Textbox
    revised: gr.Column
    revision_image: gr.Image
    revision_text: gr.Textbox
    changes: gr.HTML
    choice: gr.Radio
    scores: gr.Markdown
    candidates: gr.State


@dataclass
class Tried:
    """A rewrite and, with two turns, its revision, with their images and scores."""

    rewrite: Enhancement
    rendered: RenderResult
    revision: Enhancement | None = None
    revised: RenderResult | None = None

    @property
    def last(self) -> tuple[str, RenderResult]:
        """The prompt of the last turn, and its result."""
        return (self.revision.prompt, self.revised) if self.revision else (self.rewrite.prompt, self.rendered)


@dataclass
class Comparison:
    """Compares a user's prompt with rewrites of it.

    Args:
        outputs: the parts of the page to fill in.
        worker: renders, and computes the image rewards.
        text_rewards: by name.
        config: how policies are asked.
    """

    outputs: Outputs
    worker: Worker
    text_rewards: dict[str, TextReward]
    config: DemoConfig

    def run(
        self,
        user_prompt: str,
        seed: float | None,
        name: str,
        temperature: float,
        n: int,
        revise: bool,
        image: str | None,
    ) -> Iterator[dict]:
        """Yield the new values of outputs, again and again until the comparison is complete.

        Args:
            name: of the model, a folder or Hub id.
            n: rewrites to write.
            revise: whether the policy looks at the image of each rewrite, and revises it.
            image: the file of an image that the policy sees beside the prompt.
        """
        outputs, user_prompt = self.outputs, user_prompt.strip()
        if problem := problem_with(user_prompt, seed):
            yield {outputs.message: paragraphs(problem, problem=True), outputs.comparison: gr.Column(visible=False)}
            return
        try:
            yield from self._compare(user_prompt, int(seed), name, temperature, n, revise, image)
        except Exception as error:  # in words on the page; the terminal has the rest
            logger.exception("no comparison of %r by %s", user_prompt, name)
            message = paragraphs(str(error) or type(error).__name__, problem=True)
            yield {outputs.message: message, outputs.comparison: gr.Column(visible=False)}

    def _compare(
        self, user_prompt: str, seed: int, name: str, temperature: float, n: int, revise: bool, image: str | None
    ) -> Iterator[dict]:
        outputs = self.outputs
        emptied = (outputs.original_image, outputs.rewrite_image, outputs.rewrite_text, outputs.scores)
        emptied += (outputs.revision_image, outputs.revision_text, outputs.changes)
        yield {
            outputs.message: paragraphs(f"Loading {name} ..."),
            outputs.comparison: gr.Column(visible=True),
            outputs.original_text: user_prompt,
            outputs.revised: gr.Column(visible=revise),
            outputs.choice: gr.Radio(visible=False),
            **dict.fromkeys(emptied),
        }
        enhancer = load_enhancer(name)
        enhancer.ask_as(self.config)
        yield {outputs.message: paragraphs(f"{name} is writing ...")}
        start = time.perf_counter()
        beside = load_image(image) if image else None
        length = self.config.max_completion_length
        temperature = temperature or (TEMPERATURE_OF_SEVERAL if n > 1 else 0)
        written = enhancer.enhance([user_prompt] * n, 1, length, temperature, seed, beside)
        rewrites = list({rewrite.prompt: rewrite for rewrite in written}.values())
        yield {
            outputs.message: paragraphs(f"{self.worker} is rendering ..."),
            outputs.rewrite_text: rewrites[0].prompt,
        }
        before, *drafts = self._render(user_prompt, [None, *rewrites], seed)
        tried = [Tried(*pair) for pair in zip(rewrites, drafts, strict=True)]
        if revise:
            yield {
                outputs.message: paragraphs(f"{name} looks at the image ..."),
                outputs.original_image: enlarged(before.image),
                outputs.rewrite_image: enlarged(drafts[0].image),
            }
            drafted = [
                Enhancement(user_prompt, r.prompt, r.malformed, r.answer, draft=Candidate(r.prompt, d.image, {}))
                for r, d in zip(rewrites, drafts, strict=True)
            ]
            revisions = enhancer.revise(drafted, [beside] * len(drafted), length, seed=seed)
            rendered = {rewrite.prompt: draft for rewrite, draft in zip(rewrites, drafts, strict=True)}
            new = {revision.prompt: revision for revision in revisions if revision.prompt not in rendered}
            rendered |= zip(new, self._render(user_prompt, list(new.values()), seed) if new else [], strict=True)
            tried = [Tried(r, d, e, rendered[e.prompt]) for r, d, e in zip(rewrites, drafts, revisions, strict=True)]
        facts = f"Seed {seed}. {f'Of {n} rewrites {len(rewrites)} differ. ' if n > 1 else ''}"
        facts += f"Written by {name} and rendered by {self.worker} in {time.perf_counter() - start:.1f} s."
        yield self._shown(user_prompt, before, tried, facts)

    def _render(self, user_prompt: str, rewrites: Sequence[Enhancement | None], seed: int) -> list[RenderResult]:
        """Return the images at this seed, with the scores of all rewards; None stands for the user's prompt."""
        prompts = [rewrite.prompt if rewrite else user_prompt for rewrite in rewrites]
        jobs = [RenderJob(prompt, user_prompt, seed, for_evaluation=True) for prompt in prompts]
        results = self.worker.submit(jobs, return_images=True).result()
        rows = [{"user_prompt": user_prompt, "prompt": build_messages(user_prompt)}] * len(prompts)
        answers = [rewrite and rewrite.answer for rewrite in rewrites]
        texts = text_scores(self.text_rewards, prompts, rows, [result.tokens for result in results], answers)
        for result, scores in zip(results, texts, strict=True):
            result.scores |= scores
        return results

    def _shown(self, user_prompt: str, before: RenderResult, tried: list[Tried], facts: str) -> dict:
        """Return the values that complete the comparison; `facts` begins the message."""
        place, reason = self._picked(user_prompt, before, tried)
        lines = [facts, f"Picked: {reason}."] if reason else [facts]
        length, limits = self.config.max_completion_length, self.worker.token_limits
        remarks = [
            remark for each in tried for remark in remarks_on(each.rewrite, [before, each.rendered], limits, length)
        ]
        remarks += [reward.error for reward in self.text_rewards.values() if reward.error]
        candidates = [self._candidate(before, each) for each in tried]
        choices = []
        for number, (prompt, result) in enumerate(each.last for each in tried):
            scores = [f"{name} {score:.3f}" for name, score in result.scores.items()]
            choices.append((", ".join([f"{number + 1}: {prompt}", *scores]), number))
        return {
            self.outputs.message: paragraphs(*lines) + paragraphs(*dict.fromkeys(remarks), problem=True),
            self.outputs.original_image: enlarged(before.image),
            self.outputs.choice: gr.Radio(choices, value=place, visible=len(choices) > 1),
            self.outputs.candidates: candidates,
            **self.choose(candidates, place),
        }

    def _picked(self, user_prompt: str, before: RenderResult, tried: list[Tried]) -> tuple[int, str]:
        """Return the place of the rewrite to show, and why the image rewards pick it; "" if it is the only one."""
        names, prompts, results, places = ["your prompt"], [user_prompt], [before], [0]
        for place, each in enumerate(tried):
            found = {"rewrite": (each.rewrite, each.rendered), "revision": (each.revision, each.revised)}
            for kind, (rewrite, result) in found.items():
                if rewrite and rewrite.prompt not in prompts:
                    names.append(f"{kind} {place + 1}" if len(tried) > 1 else f"the {kind}")
                    prompts.append(rewrite.prompt)
                    results.append(result)
                    places.append(place)
        scores = [
            {name: score for name, score in result.scores.items() if name not in self.text_rewards}
            for result in results
        ]
        if not any(scores) or (len(tried) == 1 and not tried[0].revision):
            return 0, ""
        found = zip(prompts, results, scores, strict=True)
        candidates = [Candidate(prompt, result.image, judged, result.error) for prompt, result, judged in found]
        best, reason = pick(candidates, names=names)
        return places[best], reason

    def _candidate(self, before: RenderResult, each: Tried) -> tuple:
        """Return the values of the page that show a rewrite, in the order of `choose`."""
        shown = (each.rewrite.prompt, enlarged(each.rendered.image))
        if not each.revision:
            return *shown, None, None, None, table_of(before, each.rendered)
        change = changes(each.rewrite.prompt, each.revision.prompt)
        table = table_of(before, each.rendered, each.revised)
        return *shown, each.revision.prompt, enlarged(each.revised.image), change, table

    def choose(self, candidates: list[tuple], place: int) -> dict:
        """Return the values that show the rewrite at this place."""
        return dict(zip(self.chosen, candidates[place], strict=True))

    @property
    def chosen(self) -> tuple:
        """The outputs that show one of the rewrites."""
        outputs = self.outputs
        first = (outputs.rewrite_text, outputs.rewrite_image)
        return *first, outputs.revision_text, outputs.revision_image, outputs.changes, outputs.scores

"""What a pipeline may render in one call, found by rendering: an image must depend on its prompt and seed alone."""

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline

from brushup.render.pipeline import arguments_of, call_pipeline


logger = logging.getLogger(__name__)

LONG_PROMPT = (
    "two old wooden boats beside a stone bridge in the fog, painted in soft colours, a red lantern in each of them"
)
PROMPTS = (LONG_PROMPT, "a cat")
SEEDS = (1, 2)
SMALL = 256
STEPS = 2  # after the last step of a scheduler no noise is added: unseeded noise shows from two steps on
# Of 255 a channel. In float32 it is the renderer's promise. In 16 bits rounding depends on the model: with tiny models
# of 35 classes in bfloat16 on a CPU, a batch of two changed an image by 0 to 4, and other prompts in it by 0 to 5; of
# one (OvisImagePipeline) by 12 and 19. Leaks changed it by 37 to 255 where the rounding was 0 to 4. So twice the
# rounding of this very pipeline is allowed, measured with a prompt beside itself, but no tolerance in which a leak
# could hide: to render less at once costs only time.
TOLERANCE = 2.0
LARGEST_TOLERANCE = 16.0

# These hold by tests/render/test_isolation.py, with schedulers that add no noise; they are not checked at load.
ISOLATED_PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
NOISELESS_SCHEDULERS = (
    "DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler",
    "PNDMScheduler",
)  # fmt: skip


class Sharing(NamedTuple):
    """What images may share a call of the pipeline: those of several prompts, and several images of a prompt."""

    prompts: bool
    seeds: bool

    def __str__(self) -> str:
        return HOW_RENDERED[self]


HOW_RENDERED = {
    Sharing(prompts=True, seeds=True): "together",
    Sharing(prompts=True, seeds=False): "several prompts at once, one image of each",
    Sharing(prompts=False, seeds=True): "one prompt at a time",
    Sharing(prompts=False, seeds=False): "one image at a time",
}
OutOfMemory = (torch.OutOfMemoryError, UnboundLocalError)  # Sana only warns of it, and then lacks its `image`


class IsolationCheck:
    """A trial of a loaded pipeline: two prompts of different length with two seeds each, alone and together.

    It costs at most 20 images of two steps and at most about 256 pixels a side, if the pipeline takes these; a second
    or two on a GPU. Pipelines of `ISOLATED_PIPELINES` skip it with plain settings (`is_plain`).

    Args:
        pipeline: the pipeline, loaded.
        render_kwargs: arguments of its call.
        output_type: as `call_pipeline` takes it.
        modes: the ways to render that are considered, the fastest first.
        setting: the YAML key of `render_kwargs`.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        render_kwargs: dict[str, Any],
        output_type: str,
        modes: Sequence[Sharing],
        setting: str = "render_kwargs",
    ):
        self.pipeline = pipeline
        self.name = type(pipeline).__name__
        self.render_kwargs = render_kwargs
        self.output_type = output_type
        self.modes = modes
        self.setting = setting
        self.trial_kwargs = small(pipeline, render_kwargs)
        self.is_exact = pipeline.dtype == torch.float32
        self.images = 0

    def run(self) -> Sharing:
        """Return the fastest way to render that holds; warn if it is not the fastest considered.

        Raises:
            ValueError: the pipeline renders nothing from a prompt alone, a value of `render_kwargs` prevents it, or
                equal prompts and seeds give different images.
        """
        start = time.perf_counter()
        negative = [name for name, value in self.render_kwargs.items() if value and name.startswith("negative_prompt")]
        is_known = self._is_known()
        sharing, reason = self.modes[0], ""
        device = self.pipeline._execution_device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # a run is the same with and without
            try:
                if not is_known or negative:
                    alone = self._render_alone(is_known)
                    self._warn_of_idle(negative, alone[0])
                if not is_known:
                    sharing, reason = self._find_sharing(alone)
            except OutOfMemory as error:
                sharing, reason = self.modes[-1], f"out of memory for a single image: {error}"
        cost = f"{self.images} small images, {time.perf_counter() - start:.1f} s"
        if reason:
            logger.warning(
                "generator: %s renders %s, which is slower: %s (checked with %s)", self.name, sharing, reason, cost
            )
        elif self.images:
            logger.info("generator: %s renders %s (checked with %s)", self.name, sharing, cost)
        return sharing

    def _is_known(self) -> bool:
        scheduler = getattr(self.pipeline, "scheduler", None)
        is_noiseless = type(scheduler).__name__ in NOISELESS_SCHEDULERS and not (
            scheduler.config.get("stochastic_sampling") or "sde" in scheduler.config.get("algorithm_type", "")
        )
        return (
            self.name in ISOLATED_PIPELINES
            and is_noiseless
            and all(is_plain(name, value) for name, value in self.render_kwargs.items())
        )

    def _call(self, prompts: list[str], images_per_prompt: int, seeds: list[int]) -> torch.Tensor:
        self.images += len(seeds)
        arguments = (self.pipeline, self.trial_kwargs, self.output_type, prompts, images_per_prompt, seeds)
        return call_pipeline(*arguments).float().cpu()

    def _render_first(self) -> torch.Tensor:
        """Return an image; if the trial's size or steps are not for this pipeline, go on with the user's."""
        try:
            return self._call([LONG_PROMPT], 1, [SEEDS[0]])[0]
        except OutOfMemory:
            raise
        except Exception:  # any: pipelines check their arguments in many ways, or not at all
            self.trial_kwargs = self.render_kwargs
        try:
            return self._call([LONG_PROMPT], 1, [SEEDS[0]])[0]
        except OutOfMemory:
            raise
        except Exception as error:
            culprits = self._find_culprits()
            where = "; ".join(f"{key}: {self.render_kwargs[key]!r:.80}" for key in culprits)
            raise ValueError(
                f"{f'{self.setting}: {where}' if culprits else 'generator'}: {self.name} renders no image from one "
                f"prompt {'with it' if culprits else 'alone'}: {type(error).__name__}: {error}"[:600]
            ) from error

    def _find_culprits(self) -> Sequence[str]:
        """Return the argument without which the pipeline renders, else all of them if it does without these."""
        keys = list(self.render_kwargs)
        for left_out in [*([key] for key in keys), keys]:
            kept = {name: value for name, value in self.render_kwargs.items() if name not in left_out}
            self.trial_kwargs = small(self.pipeline, kept)
            try:
                self._call([LONG_PROMPT], 1, [SEEDS[0]])
            except Exception:  # something else is wrong, too
                continue
            return left_out
        return []

    def _render_alone(self, is_known: bool) -> list[torch.Tensor]:
        """Return the images of both prompts with both seeds, each rendered alone; of a known pipeline, only one."""
        first = self._render_first()
        if first.min() < -0.01 or first.max() > 1.01:
            raise ValueError(
                f"generator: {self.name} returns pixels outside 0..1, from {first.min()} to {first.max()}"
            )
        self.repetition = difference(first, self._call([LONG_PROMPT], 1, [SEEDS[0]])[0])
        if self.repetition > TOLERANCE:  # equal calls round alike, in 16 bits too
            scheduler = type(getattr(self.pipeline, "scheduler", None)).__name__
            raise ValueError(
                f"scheduler: {self.name} with {scheduler} gave two images of the same prompt and seed, "
                f"{self.repetition:.0f} of 255 apart: it does not seed the noise that it adds at each step. "
                "Use a scheduler that adds none"
            )
        jobs = [] if is_known else [(prompt, seed) for prompt in PROMPTS for seed in SEEDS][1:]
        return [first, *(self._call([prompt], 1, [seed])[0] for prompt, seed in jobs)]

    def _warn_of_idle(self, names: list[str], image: torch.Tensor) -> None:
        """Warn of each of these arguments without which the image is the same."""
        kwargs = self.trial_kwargs
        for name in names:
            self.trial_kwargs = {key: value for key, value in kwargs.items() if key != name}
            if difference(image, self._call([LONG_PROMPT], 1, [SEEDS[0]])[0]) <= self.repetition:
                logger.warning(
                    "%s: %s changes nothing with %s and these settings (it needs guidance: guidance_scale, "
                    "or true_cfg_scale, above 1, of a generator that was not distilled); leave it out",
                    self.setting,
                    name,
                    self.name,
                )
        self.trial_kwargs = kwargs

    def _find_sharing(self, alone: list[torch.Tensor]) -> tuple[Sharing, str]:
        """Return the first mode whose images are those rendered alone, and why not an earlier one."""
        reason, tolerance = "", TOLERANCE
        for mode in self.modes[:-1]:
            try:
                if mode == self.modes[0] and not self.is_exact:
                    pair = difference(self._call([LONG_PROMPT] * 2, 1, list(SEEDS)), torch.stack(alone[: len(SEEDS)]))
                    tolerance = min(max(TOLERANCE, 2 * pair), LARGEST_TOLERANCE)
                apart = self._compare(mode, alone)
            except OutOfMemory as error:
                why = f"out of memory when it rendered {mode}: {error}"
            except Exception as error:  # any, as above
                why = f"it cannot render {mode}: {type(error).__name__}: {error}"[:300]
            else:
                if apart <= tolerance:
                    return mode, reason
                why = f"rendered {mode}, an image is up to {apart:.0f} of 255 off the same one rendered alone"
            reason = reason or why
        return self.modes[-1], reason

    def _compare(self, mode: Sharing, alone: list[torch.Tensor]) -> float:
        """Return the largest difference, of 255, of the images rendered in this mode from those rendered alone."""
        count = len(SEEDS) if mode.seeds else 1
        seeds = list(SEEDS[:count])
        wanted = torch.stack(alone if mode.seeds else alone[:: len(SEEDS)])
        if mode.prompts:
            images = self._call(list(PROMPTS), count, seeds * len(PROMPTS))
        else:
            images = torch.cat([self._call([prompt], count, seeds) for prompt in PROMPTS])
        if images.shape != wanted.shape:
            raise ValueError(f"it returned images of shape {tuple(images.shape)} instead of {tuple(wanted.shape)}")
        return difference(images, wanted)


def is_plain(name: str, value: Any) -> bool:
    """Return whether each of `ISOLATED_PIPELINES` takes the value of this argument, and it is the same for all."""
    if name.startswith("negative_prompt"):
        return isinstance(value, str)
    if name in ("height", "width"):
        return isinstance(value, int) and value > 0 and value % 16 == 0
    if name in ("num_inference_steps", "max_sequence_length"):
        return isinstance(value, int) and 0 < value <= (512 if name == "max_sequence_length" else 1000)
    return name in ("guidance_scale", "true_cfg_scale", "guidance_rescale", "eta") and isinstance(value, int | float)


def difference(images: torch.Tensor, others: torch.Tensor) -> float:
    """Return the largest difference of a channel, of 255; NaN if one is."""
    return float((images - others).abs().max()) * 255


def small(pipeline: DiffusionPipeline, render_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with few steps and a small image, for those of them that the pipeline takes.

    A side is halved until it is small: halves of a side that the pipeline does not take are not taken either.
    """
    parameters = arguments_of(pipeline.__call__)
    changed = dict(render_kwargs)
    for side in ("height", "width"):
        if side in parameters:
            length = render_kwargs.get(side) or SMALL
            while isinstance(length, int) and length > SMALL and length % 2 == 0:
                length //= 2
            changed[side] = length
    if "num_inference_steps" in parameters and not {"sigmas", "timesteps"} & set(render_kwargs):
        steps = render_kwargs.get("num_inference_steps", STEPS)
        changed["num_inference_steps"] = min(STEPS, steps) if isinstance(steps, int) else steps
    return changed

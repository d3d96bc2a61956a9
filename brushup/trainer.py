"""`PromptEnhancerTrainer`: TRL's GRPO with rewrites that are drawn, and scored against the user's original prompt."""

import math
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather, gather_object
from PIL import Image
from transformers import Trainer
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from brushup.config import PromptEnhancerConfig
from brushup.enhancer import PromptEnhancer, vision_placeholder_ids
from brushup.evaluation import Arm, load_text_rewards
from brushup.prompts import parse_answer
from brushup.rewards import label
from brushup.tracking import Sample, log_samples, sample_grid
from brushup.validation import Validation
from brushup.worker import RenderJob, RenderResult, mean_scores, paired_seeds


logger = get_logger(__name__)

SHOWN_PROMPTS = 4  # on each sheet of sample pictures


class ImageRewardColumn:
    """A reward for TRL that reads, from the column `image_scores`, what the worker gave the pictures of each row."""

    def __init__(self, name: str):
        self.__name__ = name

    def __call__(self, image_scores: list[dict[str, float]], **columns: Any) -> list[float]:
        # A row without any scores is malformed or failed; `_calculate_rewards` overwrites it.
        return [scores[self.__name__] if scores else 0.0 for scores in image_scores]


class PromptEnhancerTrainer(GRPOTrainer):
    """GRPO (https://huggingface.co/papers/2402.03300) on prompts that a worker draws.

    It overrides these methods of [`GRPOTrainer`]. Three call the original:
    `_generate_and_score_completions` remembers the batch's rows; `_generate` hands the rewrites to the worker as soon
    as they exist, so that drawing goes on while the reference log-probabilities are computed; `_calculate_rewards`
    collects the scores. A malformed answer is the policy's fault and has reward 0. A row of which the machine failed
    a picture is left out: all its rewards are NaN, which TRL excludes from the group. `evaluate` is replaced: it draws
    the held-out prompts (see [`Validation`]) instead of computing a loss.

    Args:
        model: as for `GRPOTrainer`.
        worker: has `submit(jobs, return_images) -> Future[list[RenderResult]]` and `token_limits`.
        args: a `PromptEnhancerConfig`; its `reward_funcs` are loaded by name.
        eval_dataset: the held-out prompts, as `load_prompts` gives them.
        **kwargs: as for `GRPOTrainer`.
    """

    _tag_names = ["trl", "grpo", "brushup"]

    def __init__(self, model, worker, args: PromptEnhancerConfig, eval_dataset=None, **kwargs):
        self.text_rewards = load_text_rewards(args)
        labels = [label(name) for name in args.reward_funcs]
        rewards = [self.text_rewards.get(name) or ImageRewardColumn(name) for name in labels]
        super().__init__(model, rewards, args=args, eval_dataset=eval_dataset, **kwargs)
        self.reward_func_names = labels
        self.worker = worker
        weights = dict(zip(labels, self.reward_weights.tolist(), strict=True))
        self.validation = Validation(list(eval_dataset or []), worker, self.text_rewards, weights, args)
        self.arms: dict[int, Arm] = {}
        """What each validation found, by step."""
        self._failed_batches = 0
        self._batch_started = self._waited = 0.0
        if not self.use_vllm:
            banned = {*vision_placeholder_ids(self.model.config), *(self.generation_config.suppress_tokens or ())}
            self.generation_config.suppress_tokens = self.generation_kwargs["suppress_tokens"] = list(banned) or None

    def _generate_and_score_completions(self, inputs):
        now = time.perf_counter()
        if self._batch_started:
            self._log_mean("render/wait_share", self._waited / (now - self._batch_started))  # of the batch before
        self._batch_started = now
        self._rows = inputs
        return super()._generate_and_score_completions(inputs)

    def _generate(self, prompts):
        output = super()._generate(prompts)
        completion_ids, completions = output[1], output[3]
        self._rewrites = [
            parse_answer(completion[0]["content"], finished=ids[-1] in self.eos_token_ids)
            for completion, ids in zip(completions, completion_ids, strict=True)
        ]
        jobs = [
            RenderJob(rewrite, row["user_prompt"], seed)
            for rewrite, row in zip(self._rewrites, self._rows, strict=True)
            if rewrite is not None
            for seed in paired_seeds(
                self.args.seed, self.state.global_step, row["user_prompt"], self.args.images_per_prompt
            )
        ]
        self._submitted = time.perf_counter()
        self._pending = self.worker.submit(jobs, return_images=self._saves_pictures())
        if self._saves_pictures():
            # To look at beside the rewrites. On their own: whatever becomes of them touches no reward.
            shown = list(dict.fromkeys(row["user_prompt"] for row in self._rows))[:SHOWN_PROMPTS]
            seeds = [paired_seeds(self.args.seed, self.state.global_step, prompt, 1)[0] for prompt in shown]
            self._own_jobs = [RenderJob(prompt, prompt, seed) for prompt, seed in zip(shown, seeds, strict=True)]
            self._originals = self.worker.submit(self._own_jobs, return_images=True)
        return output

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        # Whatever goes wrong on this rank is kept as an error until all ranks know of it: an exception here would
        # leave the others waiting in the next collective.
        drawn = sum(rewrite is not None for rewrite in self._rewrites) * self.args.images_per_prompt
        asked = time.perf_counter()
        try:
            results = iter(self._pending.result())
        except Exception as error:
            results = iter([RenderResult(error=f"{type(error).__name__}: {error}")] * drawn)
        self._waited = time.perf_counter() - asked
        self._log_mean("render/wait_seconds", self._waited)
        self._log_mean("render/seconds", time.perf_counter() - self._submitted)
        pictures = [
            [next(results) for _ in range(self.args.images_per_prompt)] if rewrite is not None else []
            for rewrite in self._rewrites
        ]
        errors = [result.error for row in pictures for result in row if result.error]
        failed = [any(result.error for result in row) for row in pictures]

        # Rewards judge what is drawn, so text rewards get the parsed rewrites.
        parsed = [[{"role": "assistant", "content": rewrite or ""}] for rewrite in self._rewrites]
        tokens = [results[0].tokens if results else {} for results in pictures]
        rows = [
            {**row, "image_scores": mean_scores(results), "rewrite_tokens": counts}
            for row, results, counts in zip(inputs, pictures, tokens, strict=True)
        ]
        try:
            rewards = super()._calculate_rewards(rows, prompts, parsed, completion_ids_list)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
            failed = [True] * len(rows)
            rewards = gather(torch.zeros(len(rows), len(self.reward_funcs), device=self.accelerator.device))
        malformed = self._gather_flags([rewrite is None for rewrite in self._rewrites])
        # TRL would sum a row without its missing rewards; a row that a weighted reward skipped is left out instead.
        skipped = (rewards.isnan() & (self.reward_weights.to(rewards.device) != 0)).any(dim=1)
        failed = self._gather_flags(failed) | (skipped & ~malformed)
        rewards = rewards.masked_fill(malformed.unsqueeze(1), 0.0).masked_fill(failed.unsqueeze(1), torch.nan)

        for name, limit in self.worker.token_limits.items():
            cut = [max(0, counts[name] - limit) if name in counts else math.nan for counts in tokens]
            cut = gather(torch.tensor(cut, dtype=torch.float, device=self.accelerator.device))
            self._log_mean(f"render/tokens_cut/{name}", cut.nanmean().item())
            self._log_mean(f"render/share_cut/{name}", (cut > 0).sum().item() / max(1, (~cut.isnan()).sum().item()))
        self._log_mean("render/malformed", malformed.float().mean().item())
        self._log_mean("render/failed", failed.float().mean().item())
        self._log_completion_extra("user_prompt", [row["user_prompt"] for row in inputs])
        self._log_completion_extra("rewrite", self._rewrites)
        self._stop_if_nothing_is_scored(failed, malformed, gather_object(errors))
        if self._saves_pictures():
            self._save_pictures(pictures, rewards)
        return rewards

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Draws the held-out prompts as the policy now rewrites them, with its likeliest answers.

        Writes `validation_<step>.json`, keeps the arm in `arms[step]`, and logs the metrics of `Validation.metrics`,
        their names with the prefix `eval_`. A malformed answer is replaced by the user's prompt, as at inference.

        Raises:
            RuntimeError: on all ranks alike, if not one prompt could be drawn and scored.
        """
        step, validation = self.state.global_step, self.validation
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            enhancements = validation.rewrite(PromptEnhancer(model, self.processing_class))
        try:
            arm = self.arms[step] = validation.draw_rewrites(enhancements)
        except RuntimeError as error:
            raise RuntimeError(f"{error}{self._save_now()}") from error
        metrics = validation.metrics(arm)
        if self.accelerator.is_main_process:
            validation.save(Path(self.args.output_dir) / f"validation_{step}.json", step, arm, metrics)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        Trainer.log(self, metrics)  # TRL's would add, and so use up, the metrics of the training steps
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As TRL's; of a continued adapter `output_dir` gets the trained one, and not the copy of where it started."""
        super().save_model(output_dir, _internal_call)
        if output_dir in (None, self.args.output_dir) and self.args.should_save:
            shutil.rmtree(Path(self.args.output_dir) / "ref", ignore_errors=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `brushup.model_card` writes it at the end, when there are results; TRL would at each checkpoint."""

    def _gather_flags(self, flags: list[bool]) -> torch.Tensor:
        return gather(torch.tensor(flags, device=self.accelerator.device))

    def _log_mean(self, name: str, value: float) -> None:
        """Logs the mean of `value` over the ranks, under the same name on each."""
        mean = gather(torch.tensor([value], device=self.accelerator.device)).mean().item()
        self._metrics["train"][name].append(mean)

    def _stop_if_nothing_is_scored(self, failed: torch.Tensor, malformed: torch.Tensor, errors: list[str]) -> None:
        """Raises on all ranks alike once `max_failed_batches` batches in a row had no rewrite that could be scored."""
        if errors:
            kinds = "; ".join(f"{count} x {error}" for error, count in Counter(errors).most_common(3))
            logger.warning(f"{int(failed.sum())} of {len(failed)} rows are left out of this batch: {kinds}")
        nothing_scored = bool(failed.any() and (failed | malformed).all())
        self._failed_batches = self._failed_batches + 1 if nothing_scored else 0
        if self._failed_batches >= self.args.max_failed_batches:
            raise RuntimeError(
                f"no rewrite of the last {self._failed_batches} batches could be scored (max_failed_batches="
                f"{self.args.max_failed_batches}); the worker said: {errors[0]}{self._save_now()}"
            )

    def _save_now(self) -> str:
        """Saves a checkpoint of the last step that was finished, unless there is one; all ranks call it together.

        Returns:
            How to go on from it.
        """
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        exists = broadcast_object_list([folder.is_dir()])[0]
        if self.state.global_step and not exists:
            self._save_checkpoint(self.model, trial=None)
        return f". Go on later with --resume_from_checkpoint {folder}" if self.state.global_step else ""

    def _saves_pictures(self) -> bool:
        every = self.args.log_images_steps
        return bool(every and self.accelerator.is_main_process and self.state.global_step % every == 0)

    def _save_pictures(self, pictures: list[list[RenderResult]], rewards: torch.Tensor) -> None:
        """One file a step, and a table in the trackers: the first picture of each rewrite of up to four prompts.

        Beside them is the picture of the user's own prompt from the same seed.
        """
        originals: dict[str, Image.Image | None] = {job.user_prompt: None for job in self._own_jobs}
        try:
            for job, result in zip(self._own_jobs, self._originals.result(), strict=True):
                originals[job.user_prompt] = result.image
        except Exception as error:
            logger.warning(f"the users' own prompts could not be drawn for the sample pictures: {error}")
        rewards = rewards.cpu()
        failed = rewards.isnan().all(dim=1)
        totals = (rewards * self.reward_weights).nansum(dim=1).masked_fill(failed, torch.nan).tolist()
        samples = [
            Sample(row["user_prompt"], rewrite, total, results[0].image, originals[row["user_prompt"]])
            for row, results, rewrite, total in zip(self._rows, pictures, self._rewrites, totals, strict=False)
            if row["user_prompt"] in originals and results and not math.isnan(total)
        ]
        if samples:
            folder = Path(self.args.output_dir) / "images"
            folder.mkdir(parents=True, exist_ok=True)
            grid = sample_grid(samples)
            grid.save(folder / f"step-{self.state.global_step:06d}.png")
            log_samples(self, samples, grid)

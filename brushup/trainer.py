"""`PromptEnhancerTrainer`: TRL's GRPO with rewrites that are drawn, and scored against the user's original prompt."""

import json
import math
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather, gather_object
from PIL import Image
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from brushup.config import PromptEnhancerConfig
from brushup.enhancer import PromptEnhancer, vision_placeholder_ids
from brushup.evaluation import Arm, load_text_rewards
from brushup.objective import Objective
from brushup.prompts import parse_answer
from brushup.reward_hacking import RewardHackingWatch, excesses, held_out_signs
from brushup.rewards import label
from brushup.tracking import Sample, log_samples, sample_grid
from brushup.validation import Validation
from brushup.worker import RenderJob, RenderResult, mean_scores, paired_seeds


logger = get_logger(__name__)

SHOWN_PROMPTS = 4  # on each sheet of sample pictures
REWARD_STATE = "reward_state.json"  # in a checkpoint: what is known of the rewards so far


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
    collects the scores and makes of them what is trained on (see [`Objective`]). A malformed answer is the policy's
    fault and has reward 0. A row of which the machine failed a picture is left out: all its rewards are NaN, which TRL
    excludes from the group. `evaluate` is replaced: it draws the held-out prompts (see [`Validation`]) instead of
    computing a loss.

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
        self.objective = Objective.from_config(args, self.reward_weights.tolist())
        self.validation = Validation(list(eval_dataset or []), worker, self.text_rewards, self.objective, args)
        self.arms: dict[int, Arm] = {}
        """What each validation found, by step."""
        self.hacking_watch = RewardHackingWatch(args.reward_hacking_window, args.stop_on_reward_hacking)
        self.add_callback(self.hacking_watch)
        self.monitors = [name for name, weight in self.objective.weights.items() if not weight]
        self._measures_gain = args.log_gain or bool(self.objective.gain_gates)
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
            for seed in self._seeds(row["user_prompt"])
        ]
        self._submitted = time.perf_counter()
        self._pending = self.worker.submit(jobs, return_images=self._saves_pictures())
        if self._measures_gain or self._saves_pictures():
            own = list(dict.fromkeys(row["user_prompt"] for row in self._rows))
            own = own if self._measures_gain else own[:SHOWN_PROMPTS]
            self._own_jobs = [RenderJob(prompt, prompt, seed) for prompt in own for seed in self._seeds(prompt)]
            self._pending_own = self.worker.submit(self._own_jobs, return_images=self._saves_pictures())
        return output

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        # Whatever goes wrong on this rank is kept as an error until all ranks know of it: an exception here would
        # leave the others waiting in the next collective.
        asked = time.perf_counter()
        pictures = self._collect()
        own_scores = self._collect_own() if self._measures_gain else {}
        self._waited = time.perf_counter() - asked
        self._log_mean("render/wait_seconds", self._waited)
        self._log_mean("render/seconds", time.perf_counter() - self._submitted)
        errors = [result.error for row in pictures for result in row if result.error]
        failed = [any(result.error for result in row) for row in pictures]
        tokens = [results[0].tokens if results else {} for results in pictures]
        scores = [mean_scores(results) for results in pictures]

        # Rewards judge what is drawn, so text rewards get the parsed rewrites.
        parsed = [[{"role": "assistant", "content": rewrite or ""}] for rewrite in self._rewrites]
        rows = [
            {**row, "image_scores": some, "rewrite_tokens": counts, "answer": completion[0]["content"]}
            for row, some, counts, completion in zip(inputs, scores, tokens, completions, strict=True)
        ]
        try:
            raw = super()._calculate_rewards(rows, prompts, parsed, completion_ids_list)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
            failed = [True] * len(rows)
            raw = gather(torch.zeros(len(rows), len(self.reward_funcs), device=self.accelerator.device))
        own = [own_scores.get(row["user_prompt"], {}) for row in inputs]
        gains = [
            [some.get(name, math.nan) - before.get(name, math.nan) for name in self.objective.names]
            for some, before in zip(scores, own, strict=True)
        ]

        # From here on all rows of all ranks, in which no single rank can fail
        device = raw.device
        raw, gains = raw.masked_fill(~raw.isfinite(), torch.nan).cpu().numpy(), self._gather_rows(gains)
        malformed = self._gather_rows([rewrite is None for rewrite in self._rewrites]).astype(bool)
        failed = self._gather_rows(failed).astype(bool) | ~(malformed | self.objective.is_decided(raw, gains))
        values, held_back = self.objective.train_on(raw, gains, malformed, failed)
        rewards = torch.tensor(values, dtype=torch.float32, device=device)

        for name, limit in self.worker.token_limits.items():
            cut = [max(0, counts[name] - limit) if name in counts else math.nan for counts in tokens]
            cut = gather(torch.tensor(cut, dtype=torch.float, device=self.accelerator.device))
            self._log_mean(f"render/tokens_cut/{name}", cut.nanmean().item())
            self._log_mean(f"render/share_cut/{name}", (cut > 0).sum().item() / max(1, (~cut.isnan()).sum().item()))
        self._log_gathered("render/malformed", malformed)
        self._log_gathered("render/failed", failed)
        self._log_completion_extra("user_prompt", [row["user_prompt"] for row in inputs])
        self._log_completion_extra("rewrite", self._rewrites)
        scored = ~(malformed | failed)
        self._log_objective(raw, gains, scored, held_back)
        self._watch(raw, gains, scored, tokens)
        self._stop_if_nothing_is_scored(failed, malformed, gather_object(errors))
        if self._saves_pictures():
            self._save_pictures(pictures, rewards)
        return rewards

    def _seeds(self, user_prompt: str) -> list[int]:
        return paired_seeds(self.args.seed, self.state.global_step, user_prompt, self.args.images_per_prompt)

    def _collect(self) -> list[list[RenderResult]]:
        """What became of the pictures of each of this rank's rewrites; of a malformed one there are none."""
        each = self.args.images_per_prompt
        try:
            results = iter(self._pending.result())
        except Exception as error:
            count = sum(rewrite is not None for rewrite in self._rewrites) * each
            results = iter([RenderResult(error=f"{type(error).__name__}: {error}")] * count)
        return [[next(results) for _ in range(each)] if rewrite is not None else [] for rewrite in self._rewrites]

    def _collect_own(self) -> dict[str, dict[str, float]]:
        """The image rewards of this rank's user prompts as they are; of one that could not be drawn none."""
        results: dict[str, list[RenderResult]] = {}
        try:
            for job, result in zip(self._own_jobs, self._pending_own.result(), strict=True):
                results.setdefault(job.user_prompt, []).append(result)
        except Exception as error:
            logger.warning(f"the users' own prompts could not be drawn: {type(error).__name__}: {error}")
        return {prompt: mean_scores(some) for prompt, some in results.items()}

    def _log_objective(self, raw: np.ndarray, gains: np.ndarray, scored: np.ndarray, held_back: np.ndarray) -> None:
        """What lies behind the rewards that TRL logs, where that is something else.

        Args:
            raw, gains: (rows, rewards) of all ranks; `scored`, `held_back`: (rows,).
        """
        names = self.objective.names
        if not self.objective.is_plain:
            for column, name in enumerate(names):
                self._log_gathered(f"raw_rewards/{name}", raw[scored, column])
                self._log_completion_extra(f"raw_{name}", self._of_this_rank(raw[:, column]))
            self._log_gathered("render/held_back", held_back[scored])
        if self._measures_gain:
            of_pictures = [column for column, name in enumerate(names) if name not in self.text_rewards]
            for column in of_pictures:
                self._log_gathered(f"gain/{names[column]}", gains[scored, column])
                self._log_completion_extra(f"gain_{names[column]}", self._of_this_rank(gains[:, column]))
            sums = gains[scored][:, of_pictures] @ np.array(list(self.objective.weights.values()))[of_pictures]
            sums = sums[~np.isnan(sums)]
            self._log_gathered("gain/win_rate", (sums > 0) + 0.5 * (sums == 0))

    def _watch(self, raw: np.ndarray, gains: np.ndarray, scored: np.ndarray, tokens: list[dict[str, int]]) -> None:
        """Shows the batch to the watch for reward hacking, and logs what that thinks."""
        grown = excesses([rewrite or "" for rewrite in self._rewrites], tokens, self.worker.token_limits)
        grown = {name: [math.nan if value is None else value for value in some] for name, some in grown.items()}
        watched = {name: raw[scored, self.objective.names.index(name)] for name in self.monitors}
        watched |= {name: self._gather_rows(some)[scored] for name, some in grown.items()}
        self.hacking_watch.record(self.state.global_step + 1, self.objective.fixed_totals(raw, gains)[scored], watched)
        for name in watched:
            self._log_gathered(f"reward_hacking/{name}", np.array([name in self.hacking_watch.signs]))

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
        earlier = {f"step {before}": self.arms[before] for before in sorted(self.arms) if before < step}
        limits = self.worker.token_limits
        signs = held_out_signs(earlier, f"step {step}", arm, self.monitors, limits) if earlier else []
        self.hacking_watch.validated(signs)
        metrics["reward_hacking"] = float(len(signs))
        if self.accelerator.is_main_process:
            validation.save(Path(self.args.output_dir) / f"validation_{step}.json", step, arm, metrics)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        Trainer.log(self, metrics)  # TRL's would add, and so use up, the metrics of the training steps
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def load_arms(self, checkpoint: Path) -> None:
        """Reads what the validations before `checkpoint` found, from the files beside it."""
        state = checkpoint / TRAINER_STATE_NAME
        step = TrainerState.load_from_json(state).global_step if state.is_file() else 0
        for file in checkpoint.parent.glob("validation_*.json"):
            of_step = int(file.stem.split("_")[1])
            if of_step < step and (arm := self.validation.load(file)):
                self.arms[of_step] = arm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As TRL's; of a continued adapter `output_dir` gets the trained one, and not the copy of where it started."""
        super().save_model(output_dir, _internal_call)
        if output_dir in (None, self.args.output_dir) and self.args.should_save:
            shutil.rmtree(Path(self.args.output_dir) / "ref", ignore_errors=True)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            state = {
                "z_scores": {name: vars(z_score) for name, z_score in self.objective.z_scores.items()},
                "batches": self.hacking_watch.batches,
                "found": self.hacking_watch.found,
            }
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            (folder / REWARD_STATE).write_text(json.dumps(state))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        file = Path(checkpoint or "") / REWARD_STATE
        if checkpoint and file.is_file():  # not in one of an older version
            state = json.loads(file.read_text())
            for name, z_score in self.objective.z_scores.items():
                vars(z_score).update(state["z_scores"].get(name, {}))
            self.hacking_watch.batches, self.hacking_watch.found = state["batches"], state["found"]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `brushup.model_card` writes it at the end, when there are results; TRL would at each checkpoint."""

    def _gather_rows(self, values: list) -> np.ndarray:
        """`values`, a number or a list of them for each of this rank's rows, of all ranks."""
        return gather(torch.tensor(values, dtype=torch.float, device=self.accelerator.device)).cpu().numpy()

    def _of_this_rank(self, values: np.ndarray) -> list[float]:
        count = len(self._rows)
        start = self.accelerator.process_index * count
        return values[start : start + count].tolist()

    def _log_gathered(self, name: str, values: np.ndarray) -> None:
        """Logs the mean of `values`, which all ranks have alike; of none, and of NaN, it logs nothing."""
        values = np.asarray(values, dtype=float)
        known = values[~np.isnan(values)]
        self._metrics["train"][name].append(float(known.mean()) if len(known) else math.nan)

    def _log_mean(self, name: str, value: float) -> None:
        """Logs the mean over the ranks of what each has a `value` of its own for."""
        mean = gather(torch.tensor([value], device=self.accelerator.device)).mean().item()
        self._metrics["train"][name].append(mean)

    def _stop_if_nothing_is_scored(self, failed: np.ndarray, malformed: np.ndarray, errors: list[str]) -> None:
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
        shown = list(dict.fromkeys(job.user_prompt for job in self._own_jobs))[:SHOWN_PROMPTS]
        originals: dict[str, Image.Image | None] = dict.fromkeys(shown)
        try:
            for job, result in zip(self._own_jobs, self._pending_own.result(), strict=True):
                if job.user_prompt in originals and job.seed == self._seeds(job.user_prompt)[0]:
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

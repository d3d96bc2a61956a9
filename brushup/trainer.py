"""`PromptEnhancerTrainer`: TRL's GRPO with rewrites that are drawn, and scored against the user's original prompt."""

import itertools
import json
import math
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
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
from trl.data_utils import prepare_multimodal_messages
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import (
    shuffle_sequence_dict,
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from brushup.config import PromptEnhancerConfig
from brushup.enhancer import PromptEnhancer, vision_placeholder_ids
from brushup.evaluation import Arm, load_text_rewards
from brushup.log_probs import recording
from brushup.objective import Objective
from brushup.policy import check_head
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


@dataclass
class Part:
    """A part of a batch on its way, on this rank: sent to the worker, and not yet rewarded.

    `rewrites` are None for malformed answers; `pending` are the pictures of the others. `own` are the users' own
    prompts, if they are drawn too. `tokens` counts those of the answers of all ranks. `generated` is what TRL's
    `_generate` returned.
    """

    rows: list[dict]
    step: int
    returns_images: bool
    generated: tuple = ()
    submitted: float = 0.0
    rewrites: list[str | None] = field(default_factory=list)
    jobs: list[RenderJob] = field(default_factory=list)
    pending: Future | None = None
    own_jobs: list[RenderJob] = field(default_factory=list)
    own: Future | None = None
    tokens: torch.Tensor | None = None


@dataclass
class Batch:
    """The rewrites that TRL asks for at once, in parts, and what is known of the parts that have their rewards."""

    rows: list[dict]
    parts: list[Part] = field(default_factory=list)
    waited: float = 0.0
    seen: list[dict[str, Any]] = field(default_factory=list)

    def all_seen(self, name: str) -> Any:
        """What is known by this name of all parts, one after the other."""
        some = [seen[name] for seen in self.seen]
        return np.concatenate(some) if isinstance(some[0], np.ndarray) else sum(some, [])


class PromptEnhancerTrainer(GRPOTrainer):
    """GRPO (https://huggingface.co/papers/2402.03300) on prompts that a worker draws.

    It overrides these methods of [`GRPOTrainer`]. `_generate_single_turn` hands the rewrites to the worker as soon as
    they exist, so that drawing goes on while the reference log-probabilities are computed. `_calculate_rewards` first
    pauses TRL's work on the batch, then collects the scores and makes of them what is trained on (see [`Objective`]).
    `_prepare_inputs` decides what is done in the pause: with `generate_in_parts`, the next part is written, and what
    is drawn first is trained on first; with `lookahead: 1`, all of the next batch is written. Both call the original
    for what they pause. A malformed answer is the policy's fault and has reward 0. A row of which the machine failed
    a picture is left out: all its rewards are NaN, which TRL excludes from the group. `evaluate` is replaced: it
    draws the held-out prompts (see [`Validation`]) instead of computing a loss.

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
        check_head(self.model, self.accelerator.is_fsdp2)
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
        self._batch_started = 0.0
        self._batch: Batch | None = None
        """The one that is trained on, and `_part` of it; `_batch_ahead` is, with lookahead, the one after it."""
        self._part: Part | None = None
        self._batch_ahead: Batch | None = None
        self._upcoming: deque[list[dict]] = deque()
        self._source: Iterator | None = None
        micro_steps = args.steps_per_generation * args.num_iterations
        self._steps_per_batch = max(1, micro_steps // args.gradient_accumulation_steps)
        self._check_schedule(args, micro_steps)
        placeholders = vision_placeholder_ids(self.model.config)
        if self.use_vllm:  # a field of vLLM's SamplingParams, and of the requests to its server
            kwargs = self.vllm_generation.generation_kwargs
            bias = {**(kwargs.get("logit_bias") or {}), **dict.fromkeys(placeholders, -100.0)}
            self.vllm_generation.generation_kwargs = {**kwargs, "logit_bias": bias}
        else:
            banned = {*placeholders, *(self.generation_config.suppress_tokens or ())}
            self.generation_config.suppress_tokens = self.generation_kwargs["suppress_tokens"] = list(banned) or None

    def _check_schedule(self, args: PromptEnhancerConfig, micro_steps: int) -> None:
        """Raises a ValueError that names the setting which does not go with `lookahead` or `generate_in_parts`."""
        if args.lookahead and micro_steps % args.gradient_accumulation_steps:
            raise ValueError(
                f"lookahead: {args.lookahead} wants a batch of rewrites to begin with an optimizer step: make "
                f"steps_per_generation ({args.steps_per_generation}) a multiple of gradient_accumulation_steps "
                f"({args.gradient_accumulation_steps})"
            )
        if args.lookahead and self.use_transformers_continuous_batching:
            raise ValueError(
                f"lookahead: {args.lookahead} needs the log-probabilities of what is written, which "
                "use_transformers_continuous_batching does not tell: leave that out, or use_vllm"
            )
        parts, rows = args.generate_in_parts, args.per_device_train_batch_size * args.steps_per_generation
        if parts == 1:
            return
        if parts < 1 or args.steps_per_generation % parts or rows // parts % self.num_generations:
            raise ValueError(
                f"generate_in_parts: {parts} wants parts of whole micro-batches and of whole groups: each process "
                f"writes {rows} rewrites in groups of {self.num_generations}, and trains on them in "
                f"{args.steps_per_generation} micro-batches of {args.per_device_train_batch_size}. More, smaller "
                "micro-batches: a larger gradient_accumulation_steps, a smaller per_device_train_batch_size"
            )
        if args.scale_rewards == "batch" or args.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"generate_in_parts: {parts} trains on a part before the others have rewards: that does not go with "
                "scale_rewards: batch or multi_objective_aggregation: normalize_then_sum, which compare all of them"
            )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if not self.args.lookahead:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        if epoch_iterator is not self._source:
            self._source, self._upcoming = epoch_iterator, deque()
        ahead = num_batches * (1 + self._steps_per_batch)
        self._upcoming.extend(itertools.islice(epoch_iterator, ahead - len(self._upcoming)))
        batches = [self._upcoming.popleft() for _ in range(min(num_batches, len(self._upcoming)))]
        return super().get_batch_samples(iter(batches), num_batches, device)

    def _prepare_inputs(self, generation_batch):
        micro_batch = self._step % self.args.steps_per_generation
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._batch, self._buffered_inputs = self._next_batch(generation_batch), []
        while len(self._buffered_inputs) <= micro_batch:
            self._buffered_inputs += self._finish(self._batch)
        return self._buffered_inputs[micro_batch]

    def _next_batch(self, rows: list[dict]) -> Batch:
        """Begins what is trained on next, unless that was done before, and with lookahead the one after it."""
        now = time.perf_counter()
        if self._batch:
            self._log_mean("render/wait_share", self._batch.waited / (now - self._batch_started))
        self._batch_started = now
        step = self.state.global_step
        batch = self._batch_ahead or self._begin(rows, step)
        if batch.rows is not rows:
            raise RuntimeError("lookahead: the batch that was looked ahead to is not the one to train on")
        following = (self._steps_per_batch - 1) * self.args.gradient_accumulation_steps
        step += self._steps_per_batch
        is_last = len(self._upcoming) <= following or step >= self.state.max_steps
        self._batch_ahead = None if is_last else self._begin(self._upcoming[following], step)
        return batch

    def _begin(self, rows: list[dict], step: int) -> Batch:
        """Writes the rewrites of `rows`, part by part, and sends each part to the worker as soon as it is written.

        Args:
            step: the one that will train on them.
        """
        size = len(rows) // self.args.generate_in_parts
        starts = range(0, len(rows), size)
        return Batch(rows, [self._write(rows[i : i + size], step, not i and self._saves_pictures(step)) for i in starts])

    def _write(self, rows: list[dict], step: int, returns_images: bool) -> Part:
        part = Part(rows, step, returns_images)
        prompts = [row["prompt"] for row in rows]
        if "image" in rows[0]:  # as TRL's `_generate_and_score_completions` hands them on
            images = [[row["image"]] if row["image"] is not None else None for row in rows]
            prompts = [prepare_multimodal_messages(p, images=i) for p, i in zip(prompts, images, strict=True)]
        notes = self.args.lookahead and not self.use_vllm  # vLLM tells them by itself
        model = self.accelerator.unwrap_model(self.model_wrapped)
        with recording(model, self.temperature) if notes else nullcontext() as noted:
            prompt_ids, ids, tool_mask, completions, log_probs, *rest = super()._generate(prompts)
        log_probs = noted.of(ids) if noted else log_probs
        part.generated = (prompt_ids, ids, tool_mask, completions, log_probs, *rest)
        part.tokens = self._count_trained(ids)
        self._send(part, ids)
        if self._measures_gain or part.returns_images:
            own = list(dict.fromkeys(row["user_prompt"] for row in rows))
            own = own if self._measures_gain else own[:SHOWN_PROMPTS]
            part.own_jobs = [RenderJob(prompt, prompt, seed) for prompt in own for seed in self._seeds(step, prompt)]
            part.own = self.worker.submit(part.own_jobs, return_images=part.returns_images)
        return part

    def _finish(self, batch: Batch) -> list[dict]:
        """Waits for the next part of `batch`; the micro-batches to train on, as TRL makes them of a whole batch."""
        self._part = part = batch.parts[len(batch.seen)]
        output = super()._generate_and_score_completions(part.rows)
        # The loss may be a mean over the tokens of the batch (dapo, TRL's default), not over those of the part.
        output["num_items_in_batch"] = sum(part.tokens for part in batch.parts)
        if self.args.lookahead and not self.use_vllm:  # so that TRL's importance sampling corrects for the update since
            output["old_per_token_logps"] = output["sampling_per_token_logps"]
        rows = shuffle_sequence_dict(split_pixel_values_by_grid(output))
        micro_batches = split_tensor_dict(rows, self.args.steps_per_generation // len(batch.parts))
        return [unsplit_pixel_values_by_grid(some) for some in micro_batches]

    def _generate(self, prompts):
        """What was written before: TRL asks for it when it scores a part."""
        return self._part.generated

    def _send(self, part: Part, completion_ids: list[list[int]]) -> None:
        """Hands the rewrites of `part` to the worker."""
        answers = self.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        part.rewrites = [
            parse_answer(answer, finished=ids[-1] in self.eos_token_ids)
            for answer, ids in zip(answers, completion_ids, strict=True)
        ]
        part.jobs = [
            RenderJob(rewrite, row["user_prompt"], seed)
            for rewrite, row in zip(part.rewrites, part.rows, strict=True)
            if rewrite is not None
            for seed in self._seeds(part.step, row["user_prompt"])
        ]
        part.submitted = time.perf_counter()
        part.pending = self.worker.submit(part.jobs, return_images=part.returns_images)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        batch, part = self._batch, self._part
        # Whatever goes wrong on this rank is kept as an error until all ranks know of it: an exception here would
        # leave the others waiting in the next collective.
        asked = time.perf_counter()
        pictures = self._collect(part)
        own_scores = self._collect_own(part) if self._measures_gain else {}
        batch.waited += time.perf_counter() - asked
        errors = [result.error for row in pictures for result in row if result.error]
        failed = [any(result.error for result in row) for row in pictures]
        tokens = [results[0].tokens if results else {} for results in pictures]
        scores = [mean_scores(results) for results in pictures]

        # Rewards judge what is drawn, so text rewards get the parsed rewrites.
        parsed = [[{"role": "assistant", "content": rewrite or ""}] for rewrite in part.rewrites]
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
        malformed = self._gather_rows([rewrite is None for rewrite in part.rewrites]).astype(bool)
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
        self._log_completion_extra("rewrite", part.rewrites)
        scored = ~(malformed | failed)
        self._log_objective(raw, gains, scored, held_back)
        if part.returns_images:
            self._save_pictures(part, pictures, rewards)
        grown = excesses([rewrite or "" for rewrite in part.rewrites], tokens, self.worker.token_limits)
        grown = {name: [math.nan if value is None else value for value in some] for name, some in grown.items()}
        batch.seen.append(
            {"raw": raw, "gains": gains, "scored": scored, "failed": failed, "malformed": malformed}
            | {name: self._gather_rows(some) for name, some in grown.items()}
            | {"errors": gather_object(errors)}
        )
        if part is batch.parts[-1]:
            self._log_mean("render/wait_seconds", batch.waited)
            self._log_mean("render/seconds", time.perf_counter() - batch.parts[0].submitted)
            self._watch(batch, list(grown))
            self._stop_if_nothing_is_scored(*map(batch.all_seen, ("failed", "malformed", "errors")))
        return rewards

    def _count_trained(self, completion_ids: list[list[int]]) -> torch.Tensor:
        """The tokens of the answers of all ranks that the loss is over."""
        whole = [ids for ids in completion_ids if ids[-1] in (*self.eos_token_ids, self._tokenizer.pad_token_id)]
        counted = sum(map(len, whole if self.mask_truncated_completions else completion_ids))
        return gather(torch.tensor([counted], device=self.accelerator.device)).sum()

    def _seeds(self, step: int, user_prompt: str) -> list[int]:
        """Those that all rewrites of the prompt are drawn from."""
        return paired_seeds(self.args.seed, step, user_prompt, self.args.images_per_prompt)

    def _collect(self, part: Part) -> list[list[RenderResult]]:
        """What became of the pictures of each rewrite; of a malformed answer there are none."""
        try:
            results = part.pending.result()
        except Exception as error:
            results = [RenderResult(error=f"{type(error).__name__}: {error}")] * len(part.jobs)
        some, each = iter(results), self.args.images_per_prompt
        return [[next(some) for _ in range(each)] if rewrite is not None else [] for rewrite in part.rewrites]

    def _collect_own(self, part: Part) -> dict[str, dict[str, float]]:
        """The image rewards of this rank's user prompts as they are; of one that could not be drawn none."""
        results: dict[str, list[RenderResult]] = {}
        try:
            for job, result in zip(part.own_jobs, part.own.result(), strict=True):
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

    def _watch(self, batch: Batch, grown: list[str]) -> None:
        """Shows the batch to the watch for reward hacking, and logs what that thinks; `grown`: names of `excesses`."""
        raw, gains, scored = map(batch.all_seen, ("raw", "gains", "scored"))
        watched = {name: raw[scored, self.objective.names.index(name)] for name in self.monitors}
        watched |= {name: batch.all_seen(name)[scored] for name in grown}
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
        looks = earlier and self.hacking_watch.window
        signs = held_out_signs(earlier, f"step {step}", arm, self.monitors, limits) if looks else []
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
        count = len(values) // self.accelerator.num_processes
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

    def _saves_pictures(self, step: int) -> bool:
        every = self.args.log_images_steps
        return bool(every and self.accelerator.is_main_process and step % every == 0)

    def _save_pictures(self, part: Part, pictures: list[list[RenderResult]], rewards: torch.Tensor) -> None:
        """One file a step, and a table in the trackers: the first picture of each rewrite of up to four prompts.

        Beside them is the picture of the user's own prompt from the same seed.
        """
        shown = list(dict.fromkeys(job.user_prompt for job in part.own_jobs))[:SHOWN_PROMPTS]
        originals: dict[str, Image.Image | None] = dict.fromkeys(shown)
        try:
            results = part.own.result()[:: self.args.images_per_prompt]  # the first seed of each
            originals |= zip(shown, (result.image for result in results), strict=False)
        except Exception as error:
            logger.warning(f"the users' own prompts could not be drawn for the sample pictures: {error}")
        rewards = rewards.cpu()
        failed = rewards.isnan().all(dim=1)
        totals = (rewards * self.reward_weights).nansum(dim=1).masked_fill(failed, torch.nan).tolist()
        samples = [
            Sample(row["user_prompt"], rewrite, total, results[0].image, originals[row["user_prompt"]])
            for row, results, rewrite, total in zip(part.rows, pictures, part.rewrites, totals, strict=False)
            if row["user_prompt"] in originals and results and not math.isnan(total)
        ]
        if samples:
            folder = Path(self.args.output_dir) / "images"
            folder.mkdir(parents=True, exist_ok=True)
            grid = sample_grid(samples)
            grid.save(folder / f"step-{part.step:06d}.png")
            log_samples(self, samples, grid)

"""`PromptEnhancerTrainer`: TRL's GRPO on rewrites that are rendered, and scored against the user's original prompt."""

import shutil
from collections import deque
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from transformers import ProcessorMixin, Trainer, TrainerCallback
from trl import GRPOTrainer

from brushup.config import PromptEnhancerConfig
from brushup.evaluation.arm import Arm
from brushup.evaluation.validation import Validation
from brushup.policy.chat import prepare_processor, with_requests
from brushup.policy.enhancer import DECODING, PromptEnhancer, decoding_of, vision_placeholder_ids
from brushup.policy.load import check_policy
from brushup.prompts.template import parse_answer
from brushup.render.job import RenderResult, Worker, paired_seeds
from brushup.rewards.combine import Objective
from brushup.rewards.registry import RewardSpec, load_text_rewards
from brushup.training import trl_adjustments
from brushup.training.checkpoints import RunMark, save_now
from brushup.training.cost import StepTimes
from brushup.training.drafting import with_drafts
from brushup.training.hacking_watch import RewardHackingWatch
from brushup.training.log_probs import record_log_probs
from brushup.training.rollout import (
    ImageReward,
    RenderedRows,
    Rollout,
    current_prompt,
    jobs_of,
    new_prompts,
    prompts_of,
)
from brushup.training.scoring import FailureLimit, ScoredBatch, log_batch
from brushup.training.tracking import SHOWN_PROMPTS, save_samples
from brushup.training.z_scores import ZScoreState


class PromptEnhancerTrainer(GRPOTrainer):
    """GRPO (https://huggingface.co/papers/2402.03300) on prompts that a worker renders.

    All rewrites of an optimizer step (with `max_staleness: 1` also those of the next) are written before the first of
    them is trained on, and go to the worker at once; it renders while the policy writes on, and trains. A malformed
    completion is the policy's fault and has reward 0. A row of which the machine failed an image is left out: all its
    rewards are NaN, which TRL excludes from the group. With `turns: 2` every other generation batch revises drafts:
    see `with_drafts`. There the reward is the gain over the draft, and a loss weighs double. `evaluate` renders the
    held-out prompts (see [`Validation`]) instead of computing a loss.

    Args:
        model: as for `GRPOTrainer`.
        worker: renders, and computes the image rewards.
        rewards: all rewards, as `parse_rewards` returns them.
        args: the settings.
        eval_dataset: the held-out prompts, as `load_prompts` returns them.
        **kwargs: as for `GRPOTrainer`.

    Raises:
        ValueError: an argument or a policy that does not work here, as `check_arguments` and `check_policy` say.
    """

    _tag_names = ["trl", "grpo", "brushup"]

    def __init__(
        self, model, worker: Worker, rewards: list[RewardSpec], args: PromptEnhancerConfig, eval_dataset=None, **kwargs
    ):
        trl_adjustments.check_arguments(args, kwargs)
        self.text_rewards = load_text_rewards(rewards)
        functions = [self.text_rewards.get(spec.name) or ImageReward(spec.name) for spec in rewards]
        super().__init__(model, functions, args=args, eval_dataset=eval_dataset, **kwargs)
        check_policy(self.model, args, self.accelerator.is_fsdp2)
        if args.turns > 1 and not isinstance(self.processing_class, ProcessorMixin):
            raise ValueError("turns: 2 shows the policy its image, but this one reads text only: leave it out")
        prepare_processor(self.processing_class, args.chat_template_kwargs)
        self.train_dataset = with_requests(self.train_dataset, self.processing_class)
        setattr(self.model.generation_config, DECODING, decoding_of(args))  # also for validation and later use
        self.worker, self.rewards = worker, rewards
        self.objective = Objective.from_specs(rewards)
        self.log_multimodal &= args.turns == 1  # TRL's table would show the images of one batch beside another's rows
        self.validation = self._validation_on([] if isinstance(eval_dataset, dict) else eval_dataset or [])
        self.arms: dict[int, Arm] = {}  # the outcome of each validation, by step
        self.revised_arms: dict[int, Arm] = {}  # of the second turn, if it is trained
        self.measures_gain = bool(args.log_gain or self.objective.gain_gates)  # of revisions it is known anyway
        is_known = self.measures_gain or args.turns > 1
        self.gained = [spec.name for spec in rewards if is_known and spec.looks_at_images]
        self.failure_limit = FailureLimit(args.max_failed_batches)
        self.add_callback(RewardHackingWatch(args.reward_hacking_window, args.stop_on_reward_hacking))
        for callback in (ZScoreState(), RunMark()):
            self.add_callback(callback)
        self.times = StepTimes()
        self._stream, self._source = deque(), None  # micro-batches of rows after this optimizer step, and their source
        self._known: list[list[dict]] = []  # micro-batches of this optimizer step, and those after it that are known
        self._first_micro_step = 0  # `self._step` of the first of them
        self._rollouts: deque[Rollout] = deque()  # written, not yet trained on
        self._rollout: Rollout | None = None  # the one that TRL is scoring
        self._scored: list[ScoredBatch] = []  # earlier rollouts of this optimizer step
        self._token_counts: dict[int, list[torch.Tensor]] = {}  # of all rollouts, by optimizer step
        trl_adjustments.log_whole_steps(self)
        trl_adjustments.renew_embedding_hooks(self.model)
        trl_adjustments.suppress_tokens(self, vision_placeholder_ids(self.model.config))

    def callback(self, kind: type[TrainerCallback]) -> TrainerCallback:
        """Return the callback of this class; transformers replaces the instance when a run is resumed."""
        return next(callback for callback in self.callback_handler.callbacks if type(callback) is kind)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self.state.global_step >= self.state.max_steps:  # resumed after its last step
            return [], None
        if epoch_iterator is not self._source:
            self._source, self._stream = epoch_iterator, deque()
            self._rollouts, self._token_counts = deque(), {}  # of a training that was stopped before
        ahead = self.args.max_staleness * max(num_batches, self.args.steps_per_generation * self.num_iterations)
        self._stream.extend(islice(epoch_iterator, num_batches + ahead - len(self._stream)))
        batches = [self._stream.popleft() for _ in range(min(num_batches, len(self._stream)))]
        self._known, self._first_micro_step = [*batches, *self._stream], self._step
        return super().get_batch_samples(iter(batches), num_batches, device)

    def _generate_and_score_completions(self, inputs):
        if not self.model.training:  # TRL's loss on other rows, as `predict` asks for
            self._rollout = self._write(inputs, self.state.global_step, drafts={})
            return super()._generate_and_score_completions(inputs)
        start, every = self._step - self._first_micro_step, self.args.steps_per_generation * self.num_iterations
        micro_steps, to_write = self.args.gradient_accumulation_steps, []
        for index in range(start, len(self._known), every)[len(self._rollouts) :]:
            step, rows, drafts = self.state.global_step + index // micro_steps, self._known[index], {}
            if step < self.state.max_steps:
                number = (step * micro_steps + index % micro_steps) // every  # of the generation batch, in the run
                if self.args.turns > 1 and number % 2:  # before any other images are asked for: it waits
                    rows, drafts = with_drafts(self, rows, step)
                to_write.append((rows, step, drafts))
        for rows, step, drafts in to_write:
            with self.times.measure("write"):
                self._rollouts.append(self._write(rows, step, drafts))
            self._token_counts.setdefault(step, []).append(self._rollouts[-1].token_count)
            self._token_counts.pop(step - 3, None)
        self._rollout = self._rollouts.popleft()
        output = super()._generate_and_score_completions(self._rollout.rows)
        # TRL's token-level losses divide by the tokens of a generation batch: make it those of the optimizer step.
        output["num_items_in_batch"] = torch.stack(self._token_counts[self._rollout.step]).mean()
        if self.args.max_staleness and not self.use_vllm:  # importance sampling corrects for the update since
            output["old_per_token_logps"] = output["sampling_per_token_logps"]
        return output

    def _write(self, rows: list[dict], step: int, drafts: dict[tuple[str, str], list[RenderResult]]) -> Rollout:
        """Write the completions of these rows, submit their rewrites, and return the rollout."""
        records = self.args.max_staleness and not self.use_vllm  # vLLM tells log-probabilities by itself
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        recording = record_log_probs(policy, self.temperature) if records else nullcontext()
        with recording as recorder, trl_adjustments.metrics_kept(self) as metrics:
            generated, rewrites = self.complete(rows)
        prompt_ids, ids, tool_mask, completions, log_probs, extra, images, tool_images = generated
        images = images and [images_of_row or [] for images_of_row in images]  # TRL's None stops Qwen2-VL's processor
        log_probs = recorder.for_tokens(ids) if recorder else log_probs
        ends = (*self.eos_token_ids, self._tokenizer.pad_token_id)
        counted = sum(len(t) for t in ids if t[-1] in ends or not self.mask_truncated_completions)  # by the loss
        token_count = gather(torch.tensor([float(counted)], device=self.accelerator.device)).sum()
        every = self.args.log_images_steps * self.accelerator.is_main_process
        keeps_images = bool(every and step % every == 0 and step not in self._token_counts)
        before = {(current_prompt(row), row["user_prompt"]): row for row in rows if not drafts}
        before = before if self.measures_gain else dict(list(before.items())[: SHOWN_PROMPTS * keeps_images])
        seeds = partial(paired_seeds, self.args.seed, step, count=self.args.images_per_prompt)
        prompts = new_prompts(rewrites, rows, drafts) + [(prompt, row) for (prompt, _), row in before.items()]
        jobs = jobs_of(prompts, seeds, self.worker.columns)
        return Rollout(
            rows,
            step,
            metrics,
            (prompt_ids, ids, tool_mask, completions, log_probs, extra, images, tool_images),
            rewrites,
            token_count,
            lambda: self.worker.submit(jobs, keeps_images),
            list(before),
            drafts,
            keeps_images,
        )

    def complete(self, rows: list[dict]) -> tuple[tuple, list[str | None]]:
        """Return TRL's completions of the rows, and the prompts to render in them, None for a malformed one."""
        trl_adjustments.compile_decoding(self, self.accelerator.unwrap_model(self.model_wrapped))
        generated = super()._generate(prompts_of(rows))
        answers = self.processing_class.batch_decode(generated[1], skip_special_tokens=True)
        finished = [token_ids[-1] in self.eos_token_ids for token_ids in generated[1]]
        current = [current_prompt(row) for row in rows]
        return generated, [parse_answer(*answer) for answer in zip(answers, current, finished, strict=True)]

    def _generate(self, prompts):
        trl_adjustments.log_kept_metrics(self, self._rollout.metrics)
        return self._rollout.generated  # written before: TRL asks for it when it scores the rollout

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rollout = self._rollout
        with self.times.measure("wait"):
            collect = partial(RenderedRows.collect, rollout, self.args.images_per_prompt)
            while self.failure_limit.wants_it_again(rendered := collect()):
                rollout.render()
        # Rewards judge the prompt that is rendered, so text rewards get the parsed rewrites.
        parsed = [[{"role": "assistant", "content": rewrite or ""}] for rewrite in rollout.rewrites]
        columns = zip(inputs, rendered.scores, rendered.tokens, completions, strict=True)
        rows = [
            {**row, "image_scores": scores, "rewrite_tokens": tokens, "raw_answer": completion[0]["content"]}
            for row, scores, tokens, completion in columns
        ]
        # No reward raises on one rank alone: the others would wait for it in TRL's gather.
        raw = super()._calculate_rewards(rows, prompts, parsed, completion_ids_list)
        rendered.errors += [reward.error for reward in self.reward_funcs if reward.error]
        z_scores = self.callback(ZScoreState)
        self.objective.load_state(z_scores.values)
        batch = ScoredBatch.gather(rollout, rendered, raw, self.objective, self.worker.token_limits)
        z_scores.values = self.objective.state() if self.model.training else z_scores.values
        log_batch(self, batch, rollout, self.objective, self.gained)
        if rollout.keeps_images:
            save_samples(self, rollout, rendered, batch)
        self._scored += [batch] if self.model.training else []
        if self._scored and all(other.step != rollout.step for other in self._rollouts):  # the step's last
            self._see_step(ScoredBatch.joined(self._scored))
            self._scored = []
        return torch.tensor(batch.values, dtype=torch.float32, device=raw.device)

    def _see_step(self, batch: ScoredBatch) -> None:
        """Look at all rows of an optimizer step: log, and raise on all ranks alike if too many batches failed."""
        metrics = {f"render/{name}": seconds for name, seconds in self.times.finish_step().items()}
        metrics |= {"render/seconds": batch.seconds} | self.callback(RewardHackingWatch).see(batch, self.objective)
        for name, value in metrics.items():
            self._log_metric(name, value)
        if error := self.failure_limit.check(batch):
            raise RuntimeError(error + save_now(self))

    def _validation_on(self, rows) -> Validation:
        return Validation(list(rows), self.worker, self.text_rewards, self.objective, self.args)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Render held-out prompts as the policy rewrites them now, with its likeliest completions.

        Write `validation_<step>.json`, keep the arm in `arms[step]`, and log the metrics of `Validation.metrics` with
        the prefix `eval_`. The user's prompt replaces a malformed completion, as at inference. With `turns: 2`
        the policy then looks at these images and revises: its second turn is in `revised_arms[step]` and, as
        `eval_revised/...`, in the metrics. Prompts other than the constructor's are written as `<prefix>_<step>.json`,
        and not kept.

        Args:
            eval_dataset: rows of `load_prompts`, or a dict of them by name; default: the constructor's.

        Raises:
            RuntimeError: on all ranks alike, if not one prompt could be rendered and scored.
            ValueError: there are no prompts.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        if isinstance(rows, dict):
            parts = [self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}") for name, part in rows.items()]
            return {name: value for part in parts for name, value in part.items()}
        if not rows:
            raise ValueError("evaluate: there are no held-out prompts; give it, or the trainer, an eval_dataset")
        is_own = rows is self.eval_dataset
        validation = self.validation if is_own else self._validation_on(rows)
        step, limits = self.state.global_step, self.worker.token_limits
        try:
            with trl_adjustments.whole_policy(self) as policy:
                enhancements = validation.rewrite(PromptEnhancer(policy, self.processing_class))
            arm = validation.render_rewrites(enhancements)
            metrics, revised = validation.metrics(arm), None
            if self.args.turns > 1:
                with trl_adjustments.whole_policy(self) as policy:
                    enhancements = validation.revise(PromptEnhancer(policy, self.processing_class), arm)
                revised = validation.render_rewrites(enhancements)
                metrics |= {f"revised/{name}": value for name, value in validation.metrics(revised).items()}
        except RuntimeError as error:
            raise RuntimeError(f"{error}{save_now(self)}") from error
        if is_own:
            self.arms[step] = arm
            self.revised_arms |= {step: revised} if revised else {}
            metrics |= self.callback(RewardHackingWatch).see_validation(step, self.arms, self.objective, limits)
        if self.accelerator.is_main_process:
            name = f"{'validation' if is_own else metric_key_prefix}_{step}.json"
            validation.save(Path(self.args.output_dir) / name, step, arm, metrics)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        Trainer.log(self, metrics)  # TRL's `log` would add the metrics of the training steps, and clear them
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as TRL does, and how to decode, but not the copy of the adapter that training started from."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.model.generation_config.save_pretrained(output_dir or self.args.output_dir)
        if output_dir in (None, self.args.output_dir) and self.args.should_save:
            shutil.rmtree(Path(self.args.output_dir) / "ref", ignore_errors=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the recipe writes the card at the end, with the results; TRL would at each checkpoint."""

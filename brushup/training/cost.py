"""The cost of a run: where the seconds of a step go, and the forecast that each run prints after its second step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from trl import GRPOTrainer

from brushup.console import say


class StepTimes:
    """The seconds of this rank, by what it did.

    Attributes:
        seconds: "write" (completions) and "wait" (for images that are not rendered yet), since the start.
    """

    def __init__(self):
        self.seconds = {"write": 0.0, "wait": 0.0}
        self._step_ended: float | None = None
        self._waited = 0.0

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """Add the seconds inside this context to the activity."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start

    def finish_step(self) -> dict[str, float]:
        """Return `wait_seconds` and, from the second step on, `wait_share` of the time since the last call, 0..1."""
        now, waited = time.perf_counter(), self.seconds["wait"] - self._waited
        metrics = {"wait_seconds": waited}
        if self._step_ended is not None:
            metrics["wait_share"] = waited / (now - self._step_ended)
        self._step_ended, self._waited = now, self.seconds["wait"]
        return metrics


class Cost(TrainerCallback):
    """Says after the second step of a run what the run will take, from that step: the first one warms up.

    Args:
        trainer: a `PromptEnhancerTrainer`.
    """

    def __init__(self, trainer: GRPOTrainer):
        self.trainer = trainer
        self._steps = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._steps = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter()
        self._before = {**self.trainer.times.seconds, **self.trainer.worker.seconds}
        self._images = self.trainer.worker.images_drawn

    def on_step_end(self, args, state, control, **kwargs):
        self._steps += 1
        if self._steps != 2:
            return
        total = time.perf_counter() - self._start
        now = {**self.trainer.times.seconds, **self.trainer.worker.seconds}
        seconds = {name: now[name] - self._before[name] for name in now}
        images = sum(gather_object([self.trainer.worker.images_drawn - self._images]))
        memory, capacity = max(gather_object([peak_memory()]))
        if state.is_world_process_zero:
            say("\n".join(self._report(args, state, total, seconds, images, memory, capacity)))

    def _report(
        self, args, state, total: float, seconds: dict[str, float], images: int, memory: int, capacity: int
    ) -> list[str]:
        train = total - seconds["write"] - seconds["wait"]
        meanwhile = ", ".join(
            f"{name} {value:.2f} s" for name, value in seconds.items() if name in ("render", "score")
        )
        hours = (state.max_steps - state.global_step) * total / 3600
        lines = [
            f"a step    {total:.2f} s: write {seconds['write']:.2f} s, wait for images {seconds['wait']:.2f} s"
            + (f" ({meanwhile})" if meanwhile else "")
            + f", train {train:.2f} s",
            f"the run   {images} images a step, {images / total:.1f} images/s; {hours:.2f} hours left to train",
        ]
        share = memory / capacity if capacity else None
        if share:
            lines.append(f"memory    at most {memory / 2**30:.1f} GiB of a GPU ({share:.0%})")
        return lines + [
            f"waste     {text}"
            for text in self._wasted(args, share, seconds["write"] / total, seconds["wait"] / total)
        ]

    def _wasted(self, args, memory_share: float | None, write_share: float, wait_share: float) -> list[str]:
        """Return the settings that waste time, each with the remedy.

        Args:
            memory_share: of the GPU's memory, 0..1; None without a GPU.
            write_share, wait_share: of a step's time, 0..1.
        """
        remarks, trainer = [], self.trainer
        micro, accumulation, factor = args.per_device_train_batch_size, args.gradient_accumulation_steps, 1
        while memory_share and 2 * factor * memory_share <= 1 and accumulation % (2 * factor) == 0:
            factor *= 2
        if factor > 1:
            remarks.append(
                f"micro-batches of {micro} leave the GPU's memory at {memory_share:.0%}: per_device_train_batch_size "
                f"{factor * micro} with gradient_accumulation_steps {accumulation // factor} trains the same faster"
            )
        compiles = trainer.use_vllm or trainer.generation_config.compile_config
        if memory_share and write_share > 0.3 and not compiles:
            remarks.append(
                f"writing takes {write_share:.0%} of a step, because only whole weights of 16 or 32 bits are "
                "compiled: leave out load_in_4bit and load_in_8bit, and take DDP or ZeRO-2, if the memory allows"
            )
        if trainer.worker.is_remote and wait_share > 0.3 and not args.max_staleness:
            remarks.append(
                f"the policy waits {wait_share:.0%} of a step for images: max_staleness: 1 writes the next step's "
                "rewrites meanwhile; steps_per_generation: 1 with gradient_accumulation_steps: 4 renders earlier"
            )
        return remarks


def peak_memory() -> tuple[int, int]:
    """Return the peak of reserved GPU memory of this process, and the GPU's memory, in bytes; (0, 0) on a CPU."""
    if not torch.cuda.is_available():
        return 0, 0
    return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory

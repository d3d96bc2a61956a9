"""What a person sees on the terminal: progress a line at a time, and the libraries' chatter kept away."""

import logging
import os
import time
import warnings

import datasets
import diffusers
import transformers
from tqdm.auto import tqdm
from transformers import TrainerCallback


def quiet_libraries() -> None:
    """Hides progress bars of loading and warnings about the inside of libraries; errors still show."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class TrainingProgress(TrainerCallback):
    """A bar on a terminal, and a short line at each logging step: step, reward (or loss), malformed, failed."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=None
            )
            self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar.update(state.global_step - self.bar.n if not self.bar.disable else 0)

    def on_log(self, args, state, control, logs=None, **kwargs):
        measure = "reward" if logs.get("reward") is not None else "loss"
        if not state.is_world_process_zero or measure not in logs:
            return
        parts = [f"step {state.global_step:>4}/{state.max_steps}", f"{measure} {logs[measure]:.3f}"]
        means = {
            key.split("/")[1]: value for key, value in logs.items() if key.startswith("rewards/") and "/mean" in key
        }
        if len(means) > 1:
            parts += [f"{name} {value:.3f}" for name, value in means.items() if value is not None]
        for name in ("malformed", "failed"):
            if logs.get(f"render/{name}"):
                parts.append(f"{name} {logs[f'render/{name}']:.0%}")
        parts.append(f"{time.perf_counter() - self.start:.0f} s")
        tqdm.write("  ".join(parts))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.is_world_process_zero:
            shown = ("reward", "above_original", "success_rate", "quality_score", "right_pictures")
            parts = [f"{name} {metrics[f'eval_{name}']:.3f}" for name in shown if f"eval_{name}" in metrics]
            parts += [
                f"{name} {metrics[f'eval_{name}']:.0%}" for name in ("malformed", "failed") if metrics[f"eval_{name}"]
            ]
            tqdm.write("  ".join([f"validation at step {state.global_step}", *parts]))

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar.close()

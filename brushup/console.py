"""What a person sees on the terminal, with the libraries' chatter kept away; and the log file, which keeps it all."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import datasets
import diffusers
import huggingface_hub
import transformers
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import TrainerCallback


terminal = logging.getLogger("terminal")  # what was written there, for the log file only
terminal.propagate = False


def say(text: str) -> None:
    """Writes to the terminal, above a progress bar if there is one, and to the log file; on the main process only."""
    if PartialState().is_main_process:
        tqdm.write(text)
        for line in filter(None, text.splitlines()):
            terminal.info(line)


def log_to_file(path: Path, secrets: Iterable[str | None] = ()) -> None:
    """From here on `path` gets, with the time, what `say` says, log records, and the error that ends the run.

    Records are those of Brushup from INFO, of all others from WARNING; of the ranks but the first, errors only. The
    terminal stays as it is. A file that is there is continued: a resumed run has one log.

    Args:
        secrets: never written; the tokens that the environment holds are known.
    """
    state = PartialState()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8", delay=True)
    rank = "" if state.is_main_process else f"rank {state.process_index} "
    file.setFormatter(WithoutSecrets(f"%(asctime)s {rank}%(levelname)s %(name)s: %(message)s", secrets))
    file.setLevel(logging.INFO if state.is_main_process else logging.ERROR)
    root = logging.getLogger()
    root.addHandler(logging.lastResort)  # what Python does for the terminal as long as there is no handler
    for name in ("", "transformers", "diffusers", terminal.name):
        logging.getLogger(name).addHandler(file)
    for name in ("transformers", "diffusers"):
        logging.getLogger(name).propagate = False  # where CI is set transformers wants it otherwise: each line twice
    # Not of diffusers, which warns of every prompt that CLIP cuts: `render/tokens_cut` counts them.
    logging.getLogger("transformers").setLevel(logging.WARNING)
    logging.getLogger("brushup").setLevel(logging.INFO)
    terminal.setLevel(logging.INFO)
    show_error = sys.excepthook

    def log_error(kind, error, trace):
        terminal.error("the run ends with an error", exc_info=(kind, error, trace))
        show_error(kind, error, trace)

    sys.excepthook = log_error
    terminal.info(" ".join(sys.argv))


class WithoutSecrets(logging.Formatter):
    """Writes <SECRET> where a record holds one."""

    def __init__(self, format: str, secrets: Iterable[str | None]):
        super().__init__(format)
        known = [os.environ.get(name) for name in ("BRUSHUP_TOKEN", "WANDB_API_KEY")] + [huggingface_hub.get_token()]
        self.secrets = [secret for secret in (*secrets, *known) if secret]

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self.secrets:
            text = text.replace(secret, "<SECRET>")
        return text


def quiet_libraries() -> None:
    """Hides progress bars of loading and warnings about the inside of libraries; errors still show."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    for handler in logging.getLogger("transformers").handlers:
        handler.setLevel(logging.ERROR)  # also once `log_to_file` wants the warnings
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
        means |= {key.split("/")[1]: value for key, value in logs.items() if key.startswith("raw_rewards/")}
        if len(means) > 1:
            parts += [f"{name} {value:.3f}" for name, value in means.items() if value is not None]
        for name in ("malformed", "failed", "held_back"):
            if logs.get(f"render/{name}"):
                parts.append(f"{name.replace('_', ' ')} {logs[f'render/{name}']:.0%}")
        parts.append(f"{time.perf_counter() - self.start:.0f} s")
        say("  ".join(parts))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.is_world_process_zero:
            shown = ("reward", "above_original", "success_rate", "quality_score", "right_pictures")
            parts = [f"{name} {metrics[f'eval_{name}']:.3f}" for name in shown if f"eval_{name}" in metrics]
            parts += [
                f"{name} {metrics[f'eval_{name}']:.0%}" for name in ("malformed", "failed") if metrics[f"eval_{name}"]
            ]
            say("  ".join([f"validation at step {state.global_step}", *parts]))

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar.close()

"""The terminal, with the chatter of libraries kept away, and the log file, which keeps it all."""

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TextIO

import datasets
import huggingface_hub
import transformers
from accelerate import PartialState
from tqdm.auto import tqdm

from brushup.flags import say_after_launcher


FIRST_LINE_AFTER = 5.0  # seconds

terminal = logging.getLogger("terminal")  # the terminal's lines, for the log file only
terminal.propagate = False


def say(text: str, stream: TextIO | None = None) -> None:
    """Write to the terminal, above a progress bar if there is one, and to the log file; on the main process only.

    Args:
        text: lines.
        stream: default standard output.
    """
    if PartialState().is_main_process:
        tqdm.write(text, file=stream)
        for line in filter(None, text.splitlines()):
            terminal.info(line)


@contextmanager
def progress(work: str, total: int | None = None, done: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Show that work goes on inside this context: a bar on a terminal, otherwise a line now and then, the first after
    `FIRST_LINE_AFTER` seconds; on the main process only, on standard error.

    Args:
        work: what is done: "rendering".
        total: how many items it has; None if they can't be counted.
        done: returns how many of them are done; another thread calls it.
    """
    if not PartialState().is_main_process:
        yield
        return
    bar = tqdm(desc=work, total=total, leave=False, disable=None)
    ended = threading.Event()
    start = time.perf_counter()

    def show() -> None:
        pause = FIRST_LINE_AFTER
        while not ended.wait(pause if bar.disable else 0.2):
            count = done() if total is None else min(done(), total)
            if bar.disable:
                line = f"{work}{f' {count:,} of {total:,}' if total else ''}, {time.perf_counter() - start:.0f} s"
                tqdm.write(line, file=sys.stderr)
                terminal.info(line)
                pause = min(2 * pause, 60)
            else:
                bar.update(count - bar.n)
                bar.refresh()  # the seconds, even if the count stays

    shower = threading.Thread(target=show, name="progress", daemon=True)
    shower.start()
    try:
        yield
    finally:
        ended.set()
        shower.join()
        bar.close()


def log_to_file(path: Path, secrets: Iterable[str | None] = ()) -> None:
    """Write the lines of `say`, log records, and the error that ends the run to this file, with the time.

    Brushup's records are written from INFO on, other libraries' from WARNING on; ranks other than the first write
    errors only. The terminal stays as it is. An existing file is continued: a resumed run has one log.

    Args:
        path: the file; its folder is made.
        secrets: never written, nor are the tokens in the environment.
    """
    state = PartialState()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8", delay=True)
    rank = "" if state.is_main_process else f"rank {state.process_index} "
    file.setFormatter(WithoutSecrets(f"%(asctime)s {rank}%(levelname)s %(name)s: %(message)s", secrets))
    file.setLevel(logging.INFO if state.is_main_process else logging.ERROR)
    root = logging.getLogger()
    root.addHandler(logging.lastResort)  # Python drops this handler of the terminal once there is another one
    for name in ("", "transformers", "diffusers", terminal.name):
        logging.getLogger(name).addHandler(file)
    for name in ("transformers", "diffusers"):
        logging.getLogger(name).propagate = False  # transformers sets it where CI is set: each line would come twice
    # Not of diffusers, which warns of every prompt that CLIP cuts: `render/tokens_cut` counts them.
    logging.getLogger("transformers").setLevel(logging.WARNING)
    logging.getLogger("brushup").setLevel(logging.INFO if state.is_main_process else logging.ERROR)
    terminal.setLevel(logging.INFO)
    show_error = sys.excepthook

    def log_error(kind, error, trace):
        terminal.error("the run ends with an error", exc_info=(kind, error, trace))
        show_error(kind, error, trace)
        say_after_launcher(f"{kind.__name__}: {error}")

    sys.excepthook = log_error
    terminal.info(" ".join(sys.argv))


def end_run(text: str, status: int) -> NoReturn:
    """Say how the run ended, and what to do; then end the program with this exit status."""
    say(text)
    say_after_launcher(text)
    raise SystemExit(status)


class WithoutSecrets(logging.Formatter):
    """A formatter that writes <SECRET> in place of a secret."""

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
    """Hide the progress bars of loading, and warnings about the inside of libraries; errors still show."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # diffusers reads it when it is imported
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # if that has happened
    for handler in logging.getLogger("transformers").handlers:
        handler.setLevel(logging.ERROR)  # also once `log_to_file` wants the warnings
    datasets.disable_progress_bars()
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def serve_command() -> str:
    """Return the command that starts a render service with the settings file of this program."""
    flags = sys.argv[sys.argv.index("--config") :][:2] if "--config" in sys.argv else ["--config", "..."]
    return f"python recipes/serve.py {' '.join(flags)}"

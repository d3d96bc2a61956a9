"""Guards around rewards that users bring: one that hangs, exits, or changes its input harms itself alone."""

import contextvars
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoResultYet
from typing import Any

import torch
from PIL import Image


def call_guarded(function: Callable, seconds: float, *arguments: Any, **named: Any) -> Any:
    """Return the function's value, computed from copies of its arguments in a thread of its own.

    Raises:
        TimeoutError: it did not return within so many seconds. Its thread is left alone, and ends with the program.
        RuntimeError: it called `sys.exit`.
        Exception: any that it raises.
    """
    outcome: Future = Future()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def run() -> None:
        try:
            if device is not None:  # threads start on the first GPU
                torch.cuda.set_device(device)
            outcome.set_result(function(*copied(arguments), **copied(named)))
        except SystemExit as error:
            outcome.set_exception(RuntimeError(f"it called sys.exit({error.code!r})"))
        except BaseException as error:
            outcome.set_exception(error)

    # TRL and the trackers keep their state in context variables.
    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    try:
        return outcome.result(seconds)
    except NoResultYet:
        if outcome.done():  # it raised a TimeoutError by itself
            raise
        raise TimeoutError(f"it did not return within {seconds:g} s") from None


def copied(value: Any) -> Any:
    """Return a copy of nested lists, tuples and dicts with the images and tensors in them."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if isinstance(value, Image.Image) else value


class GuardedImageReward:
    """An image reward of a user, called with `call_guarded`.

    Args:
        reward: loaded.
        seconds: that a call may take.
    """

    def __init__(self, reward: Callable, seconds: float):
        self.takes_pixels = getattr(reward, "takes_pixels", False)
        self.__signature__ = inspect.signature(reward)  # names the columns that it reads
        self._reward = reward
        self._seconds = seconds

    def __call__(self, images: list, user_prompts: list[str], prompts: list[str], **columns: list) -> Any:
        return call_guarded(self._reward, self._seconds, images, user_prompts, prompts, **columns)

"""Weights of rewards in a single PyTorch file: a path, or `org/name/file` on the Hub."""

import pickle
from pathlib import Path

import torch


def find_checkpoint(source: str, setting: str) -> str:
    """Return the path of the file `source`; from the Hub it is downloaded once.

    Args:
        source: a path, or `org/name/file` on the Hub.
        setting: the entry of `reward_kwargs` that names another file, for the error: "hpsv2: {pretrained: ...}".

    Raises:
        FileNotFoundError: it is neither here nor on the Hub.
    """
    from huggingface_hub import hf_hub_download

    if Path(source).is_file():
        return source
    try:
        organization, name, file = source.split("/", 2)
        return hf_hub_download(f"{organization}/{name}", file)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no weights at {source!r}: there is no such file, and as `org/name/file` on the Hub: {error}. Set "
            f"reward_kwargs: {{{setting}}} to a file, or to `org/name/file` on the Hub"
        ) from error


def read_checkpoint(path: str, needs: str) -> dict[str, torch.Tensor]:
    """Load the tensors in the file at `path` onto the CPU; no code in it is run.

    Raises:
        ValueError: it is no file of tensors, or has no tensor of the name `needs`.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no PyTorch file of tensors alone: {str(error).splitlines()[0]}") from error
    if needs not in weights:
        raise ValueError(f"{path} holds other weights: it has no {needs!r}, but {', '.join(list(weights)[:5])}, ...")
    return weights


def linear_head(weights: dict[str, torch.Tensor], prefix: str) -> torch.nn.Sequential:
    """Return the head of the LAION aesthetic predictor or of ImageReward: five linear layers, nothing between them.

    Their code numbers the layers 0, 2, 4, 6, 7, because it has dropout between the first four; in inference that does
    nothing.

    Args:
        weights: of the checkpoint.
        prefix: of the layers' names, e.g. "layers.".
    """
    numbers = (0, 2, 4, 6, 7)
    head = torch.nn.Sequential(*(torch.nn.Linear(*weights[f"{prefix}{n}.weight"].T.shape) for n in numbers))
    head.load_state_dict(
        {f"{i}.{kind}": weights[f"{prefix}{n}.{kind}"] for i, n in enumerate(numbers) for kind in ("weight", "bias")}
    )
    return head.eval()

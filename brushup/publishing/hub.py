"""Publishing a trained policy on the Hub: checked before training and before the upload, and in one commit."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS
from safetensors import safe_open

from brushup.config import PromptEnhancerConfig
from brushup.evaluation.results import Results
from brushup.publishing.card import BEFORE_AFTER, base_model, is_hub_id, write_model_card


logger = logging.getLogger(__name__)

PUBLISHED = (  # the files that go to the Hub; never optimizer states, training_args.bin, logs or checkpoints
    *(ADAPTER_CONFIG, ADAPTER_WEIGHTS),
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "spiece.model"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("chat_template.jin*", "additional_chat_templates/*.jinja"),
    *("README.md", "results.json", "report.html", BEFORE_AFTER),
)


def open_repo(args: PromptEnhancerConfig) -> str | None:
    """Check, before hours of training, that `publish` may write to the repository. All ranks call it.

    Returns:
        The repository's full id (`user/name`), created if it was not there; None if `args` don't ask to push.

    Raises:
        ValueError: settings of `args` that don't fit.
        RuntimeError: the Hub does not let this user write there, on all ranks alike.
    """
    if args.hub_token:
        raise ValueError(
            "hub_token: a token in a settings file or a command is written to logs and checkpoints. Take it out, and "
            "if it was printed, revoke it; set HF_TOKEN in the environment or log in once with `hf auth login`"
        )
    if not args.push_to_hub:
        return None
    if not args.hub_model_id:
        raise ValueError("push_to_hub needs the name of the repository: --hub_model_id user/name")
    if args.hub_revision or args.hub_strategy not in ("every_save", "end"):
        raise ValueError(
            f"hub_strategy {args.hub_strategy.value}, hub_revision {args.hub_revision}: the trained policy is pushed "
            "once, at the end, to the branch main; leave both out"
        )
    outcome = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = _writable_repo(HfApi(), args.hub_model_id, args.hub_private_repo)
        except Exception as error:
            outcome[1] = str(error)
    repo_id, error = broadcast_object_list(outcome)
    if error:
        raise RuntimeError(
            f"hub_model_id: {args.hub_model_id} cannot be pushed to: {error}\nCheck the name, and that HF_TOKEN or "
            "`hf auth login` gives a token that may write there. Or train without push_to_hub, and publish later with "
            "recipes/publish.py"
        )
    return repo_id


def _writable_repo(api: HfApi, repo_id: str, private: bool | None) -> str:
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    api.auth_check(repo_id, write=True)  # one that was there already may be somebody else's
    return repo_id


def publish(folder: str | Path, repo_id: str, private: bool | None = None, keep_card: bool = False) -> str:
    """Push the trained policy in the folder, its card and its results to the Hub in one commit; return its address.

    Args:
        folder: the `output_dir` of a run.
        repo_id: `user/name`; created if it is not there.
        private: of a repository that is created; None: as the user's or organization's default is.
        keep_card: push `README.md` as it is, instead of writing it anew from the results.

    Raises:
        ValueError, FileNotFoundError: as `check_trained`.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses; and other errors of the network.
    """
    folder = Path(folder)
    check_trained(folder)
    adapter_config, base = folder / ADAPTER_CONFIG, base_model(folder)
    if adapter_config.is_file() and not is_hub_id(base):
        logger.warning(
            f"the adapter's base model, {base}, is a folder of this machine: others can't load the adapter. Publish "
            f"the base model too, and set base_model_name_or_path in {adapter_config} to its Hub id"
        )
    api = HfApi()
    repo_id = _writable_repo(api, repo_id, private)
    Results.load_trained(folder).save(folder)  # earlier versions wrote settings as they were typed
    if not keep_card:
        write_model_card(folder, repo_id)
    files = sorted({file for pattern in PUBLISHED for file in folder.glob(pattern)})
    api.create_commit(
        repo_id,
        [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files],
        commit_message="Trained with Brushup",
    )
    return f"{api.endpoint}/{repo_id}"


def check_trained(folder: str | Path) -> None:
    """Raise an error for weights that nobody should download.

    Args:
        folder: the `output_dir` of a run.

    Raises:
        ValueError: a weight is not finite; or training changed nothing: the adapter adds zero, as a fresh one does, or
            all weights are as in the adapter, or model, that training started from (if it is still on this machine).
        FileNotFoundError: there are no weights, or no results.json.
    """
    folder = Path(folder)
    files = _weight_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} holds no trained weights ({ADAPTER_WEIGHTS} or model.safetensors)")
    is_nonzero = []  # of each LoRA B matrix: a fresh adapter has only zeros here
    for name, tensor in _tensors(files):
        if not tensor.isfinite().all():
            raise ValueError(
                f"{folder} is not pushed: {name} is not finite, so training went wrong. Go on from a checkpoint "
                "before that (--resume_from_checkpoint) with a lower learning_rate"
            )
        if "lora_B" in name or "lora_embedding_A" in name:
            is_nonzero.append(bool(tensor.any()))
    if (is_nonzero and not any(is_nonzero)) or _equal(files, _weight_files(_start(folder))):
        raise ValueError(
            f"{folder} is not pushed: training changed nothing, the weights are those it started from. Check "
            "learning_rate, and whether the rewards of a group differ (frac_reward_zero_std)"
        )


def _weight_files(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    return sorted(folder.glob(ADAPTER_WEIGHTS)) or sorted(folder.glob("model*.safetensors"))


def _start(folder: Path) -> Path | None:
    """Return the folder of the adapter, or model, that training started from; None if it is not here."""
    settings = Results.load_trained(folder).settings
    start = Path(settings["policy"]).expanduser()
    if not start.is_dir():
        try:
            start = snapshot_download(
                settings["policy"],
                revision=settings["policy_revision"],
                allow_patterns="*.safetensors",
                local_files_only=True,
            )
        except (LocalEntryNotFoundError, HFValidationError):
            return None
    return None if Path(start).resolve() == folder.resolve() else Path(start)


def _tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                yield name, tensors.get_tensor(name)


def _equal(files: list[Path], start: list[Path]) -> bool:
    """Return whether all tensors of `files` are in `start`, with the same values."""
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in start]
        where = {name: tensors for tensors in opened for name in tensors.keys()}
        return all(
            name in where and torch.equal(tensor, where[name].get_tensor(name).to(tensor.dtype))
            for name, tensor in _tensors(files)
        )

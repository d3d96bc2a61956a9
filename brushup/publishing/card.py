"""The model card: card.md.jinja, filled from the files that a run left in its folder."""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from trl import ModelConfig

from brushup.config import DataConfig, PromptEnhancerConfig, RenderConfig
from brushup.evaluation.compare import results_table
from brushup.evaluation.results import Results, for_others
from brushup.evaluation.reward_hacking import distinct_signs
from brushup.evaluation.verdicts import MARK, has_mark, headline
from brushup.prompts.reading import PROMPT_FILES
from brushup.rewards.registry import RewardSpec


TEMPLATE = Path(__file__).with_name("card.md.jinja")
BEFORE_AFTER = "images/before_after.png"
HYPERPARAMETERS = ("learning_rate", "beta", "temperature", "max_staleness", "seed")


def run_settings(
    data: DataConfig,
    render: RenderConfig,
    args: PromptEnhancerConfig,
    model: ModelConfig,
    rewards: Sequence[RewardSpec],
    train_count: int,
    validation_count: int,
    step: int,
) -> dict[str, Any]:
    """Return the settings of a run for results.json and the card, without those that are as by default.

    Args:
        data, render, args, model, rewards: the settings.
        train_count, validation_count: numbers of prompts.
        step: of the policy that was kept.
    """
    default = RenderConfig(generator="").image_settings()
    shaping = [{"transform": spec.transforms, "gate": spec.gate, "gain_gate": spec.gain_gate} for spec in rewards]
    settings = {
        "policy": model.model_name_or_path,
        "policy_revision": model.model_revision,
        "train_prompts": {"file": data.train_prompts, "n": train_count},
        "validation_prompts": {"file": data.validation_prompts, "n": validation_count},
        "images": {name: value for name, value in render.image_settings().items() if value != default[name]},
        "rewards": {
            spec.name: {"weight": spec.weight, "kwargs": spec.kwargs}
            | {name: value for name, value in shape.items() if value is not None}
            for spec, shape in zip(rewards, shaping, strict=True)
        },
        "checker": args.checker,
        "validation_images_per_prompt": args.validation_images_per_prompt,
        "chosen_by_validation": args.load_best_model_at_end,
        "steps": step,
        "num_generations": args.num_generations,
        "images_per_prompt": args.images_per_prompt,
        "hyperparameters": {name: vars(args)[name] for name in HYPERPARAMETERS},
        "versions": {
            name: importlib.metadata.version(name) for name in ("brushup", "trl", "transformers", "diffusers")
        },
    }
    return for_others(settings)


def is_hub_id(name: str) -> bool:
    """Return whether the name is a Hub id, and not a folder or a prompt file."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists() and Path(name).suffix not in PROMPT_FILES


def adapter_config(folder: Path) -> dict[str, Any]:
    """Return PEFT's settings of the adapter in the folder; empty for a full model."""
    file = folder / ADAPTER_CONFIG
    return json.loads(file.read_text()) if file.is_file() else {}


def base_model(folder: Path) -> str:
    """Return the Hub id or folder of the model that the adapter belongs to, or that a full model was trained from.

    Raises:
        FileNotFoundError: as `Results.load_trained`.
    """
    adapter = adapter_config(folder)
    return adapter["base_model_name_or_path"] if adapter else Results.load_trained(folder).settings["policy"]


def write_model_card(folder: str | Path, repo_id: str | None = None) -> Path:
    """Write `README.md` from results.json, the adapter's settings, the validations and the image in the folder.

    Args:
        folder: the `output_dir` of a run.
        repo_id: its repository on the Hub, from which the card's example then loads it.

    Returns:
        The card's path.

    Raises:
        FileNotFoundError: as `Results.load_trained`.
        ValueError: results.json is of other policies.
    """
    folder = Path(folder)
    results = Results.load_trained(folder)
    settings, evaluation = results.settings, results.evaluation or {}
    arm = find_arm(folder, results)
    name = (repo_id or folder.resolve().name).split("/")[-1]
    held_out = for_others(evaluation.get("prompts", settings["validation_prompts"]["file"]))
    differences = {
        pair.removeprefix(f"{arm} - "): gains
        for pair, gains in results.differences.items()
        if pair.startswith(f"{arm} - ") and " - oracle " not in pair
    }
    gains = [
        (other, reward, values[reward])
        for other, values in differences.items()
        for reward in (*results.arms[arm]["rewards"], "reward")
        if reward in values and values[reward]["ci95"]
    ]
    win_rates = {other: values["win_rate"] for other, values in differences.items() if values["win_rate"] is not None}
    data = card_data(folder, results, name)
    data.eval_results = eval_results(results.arms[arm], gains, held_out)
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **{"name": name, "settings": settings, "held_out": held_out, "gains": gains, "arm_name": arm},
        base=base_model(folder),
        adapter=adapter_config(folder),
        before_after=BEFORE_AFTER if (folder / BEFORE_AFTER).is_file() else None,
        source=repo_id or str(folder),
        example_prompt=find_example(folder),
        images_per_prompt=evaluation.get("images_per_prompt", settings["validation_images_per_prompt"]),
        arms=results.arms,
        results_table=results_table(results.arms),
        headline=headline(results, arm),
        mark=MARK if has_mark(results) else "",
        win_rates=win_rates,
        signs=distinct_signs(results.reward_hacking),
        **{"is_hub_id": is_hub_id, "for_others": for_others, "link": _link, "code": _code},
        **{"json": _json, "literal": repr},
    )
    card.save(folder / "README.md")
    return folder / "README.md"


def card_data(folder: Path, results: Results, name: str) -> ModelCardData:
    """Return the card's metadata, without the figures."""
    base, adapter = base_model(folder), adapter_config(folder)
    sees_images = any((folder / file).is_file() for file in ("processor_config.json", "preprocessor_config.json"))
    train = results.settings["train_prompts"]["file"]
    lora = ["lora"] if adapter.get("peft_type") == "LORA" else []
    return ModelCardData(
        base_model=base if is_hub_id(base) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-text-to-text" if sees_images else "text-generation",
        tags=["brushup", "trl", "grpo", "prompt-enhancement", *lora],
        datasets=[train] if is_hub_id(train) else None,
        model_name=name,
    )


def eval_results(arm: dict[str, Any], gains: list[tuple[str, str, dict]], held_out: str) -> list[EvalResult]:
    """Return the figures for the card's metadata.

    Args:
        arm: the figures of the policy.
        gains: other arm, reward, and paired difference.
        held_out: the prompts: a Hub id or a file.
    """
    values = [(name, f"{name}, rewritten prompts", value) for name, value in arm["rewards"].items()]
    if arm["checker_accuracy"] is not None:
        values.append(("checker_accuracy", "share of images that the checker accepts", arm["checker_accuracy"]))
    for other, reward, gain in gains:
        values.append((f"{reward}_gain", f"{reward}, rewritten minus {other} prompts", gain["mean"]))
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Prompt enhancement",
            dataset_type=held_out if is_hub_id(held_out) else "held-out-prompts",
            dataset_name=f"{arm['n']} held-out prompts of {held_out}",
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for kind, title, value in values
    ]


def find_arm(folder: Path, results: Results) -> str:
    """Return the name of the folder's policy in the results of training, or of recipes/evaluate.py.

    Raises:
        ValueError: the results are of other policies.
    """
    policies = (results.evaluation or {}).get("policies", {"trained": folder})
    for name, policy in policies.items():
        if Path(policy).expanduser().resolve() == folder.resolve() and name != "untrained":
            return name
    raise ValueError(
        f"{folder / 'results.json'} is of other policies ({', '.join(map(str, policies.values()))}): run "
        f"recipes/evaluate.py for this one, with --output_dir {folder}"
    )


def find_example(folder: Path) -> str:
    """Return a held-out user prompt of the folder's validations."""
    validations = sorted(folder.glob("validation_*.json"))
    rows = json.loads(validations[0].read_text())["rows"] if validations else []
    return rows[0]["user_prompt"] if rows else "a cat on a red chair"


def _link(name: str) -> str:
    """Return a model or data set as the reader may find it."""
    return f"[{name}](https://huggingface.co/{name})" if is_hub_id(name) else f"`{for_others(name)}`"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _code(values: dict) -> str:
    return ", ".join(f"`{name}: {_json(value)}`" for name, value in values.items())

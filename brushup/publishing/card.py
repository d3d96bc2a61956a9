"""The model card: card.md.jinja, filled from the files that a run left in its folder."""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from trl import ModelConfig

from brushup.common import markdown_table
from brushup.config import DataConfig, PromptEnhancerConfig, RenderConfig
from brushup.evaluation.compare import results_table
from brushup.evaluation.results import Results, for_others
from brushup.evaluation.reward_hacking import distinct_signs
from brushup.rewards.registry import RewardSpec


PICTURE = "images/before_after.png"
MEANINGS = {
    "original": "the user's prompt as it is",
    "static": "the same with words that people add by hand",
    "untrained": "the rewrite of the policy before training",
}


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
    """Return the settings of a run for results.json and the card: no secrets, no folder that can be left out.

    Args:
        data, render, args, model, rewards: the settings.
        train_count, validation_count: numbers of prompts.
        step: of the policy that was kept.
    """
    default = RenderConfig(generator="").image_settings()
    shaping = {"transform": "transforms", "gate": "gate", "gain_gate": "gain_gate"}
    return for_others(
        {
            "policy": model.model_name_or_path,
            "policy_revision": model.model_revision,
            "train_prompts": {"file": data.train_prompts, "n": train_count},
            "validation_prompts": {"file": data.validation_prompts, "n": validation_count},
            "images": {name: value for name, value in render.image_settings().items() if value != default[name]},
            "rewards": {
                spec.name: {"weight": spec.weight, "kwargs": spec.kwargs}
                | {key: vars(spec)[name] for key, name in shaping.items() if vars(spec)[name] is not None}
                for spec in rewards
            },
            "checker": args.checker,
            "validation_images_per_prompt": args.validation_images_per_prompt,
            "chosen_by_validation": args.load_best_model_at_end,
            "steps": step,
            "num_generations": args.num_generations,
            "images_per_prompt": args.images_per_prompt,
            "hyperparameters": {
                name: vars(args)[name] for name in ("learning_rate", "beta", "temperature", "max_staleness", "seed")
            },
            "versions": {
                name: importlib.metadata.version(name) for name in ("brushup", "trl", "transformers", "diffusers")
            },
        }
    )


def is_hub_id(name: str) -> bool:
    """Return whether the name is a Hub id, and not a folder or a prompt file."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists() and Path(name).suffix not in (".jsonl", ".csv", ".parquet")


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
    """Write `folder/README.md` from results.json, adapter_config.json, the validation and the picture in the folder.

    Args:
        folder: the `output_dir` of a run.
        repo_id: its repository on the Hub, from which the card's example then loads it.

    Raises:
        FileNotFoundError: as `Results.load_trained`.
        ValueError: results.json is of other policies.
    """
    folder = Path(folder)
    results = Results.load_trained(folder)
    settings, arm_name, base, adapter = (
        results.settings,
        _arm_name(folder, results),
        base_model(folder),
        adapter_config(folder),
    )
    evaluation = results.evaluation or {}
    name = (repo_id or folder.resolve().name).split("/")[-1]
    held_out = for_others(evaluation["prompts"]) if evaluation else settings["validation_prompts"]["file"]
    meanings = MEANINGS | {arm_name: "the rewrite of this model"}
    variables = {
        "name": name,
        "settings": settings,
        "base": base,
        "base_is_on_hub": is_hub_id(base),
        "is_adapter": bool(adapter),
        "lora": adapter if adapter.get("peft_type") == "LORA" else None,
        "picture": PICTURE if (folder / PICTURE).is_file() else None,
        "source": repo_id or str(folder),
        "example_prompt": _example_prompt(folder),
        "held_out": held_out,
        "images_per_prompt": evaluation.get("images_per_prompt", settings["validation_images_per_prompt"]),
        "arm": results.arms[arm_name],
        "arm_name": arm_name,
        "meanings": "; ".join(f"*{arm}*: {words}" for arm, words in meanings.items() if arm in results.arms),
        "results_table": results_table(results.arms),
        "gains_table": _gains_table(results, arm_name),
        "wins": ", ".join(_wins(results, arm_name)),
        "render_settings": {key: value for key, value in settings["images"].items() if key != "generator"},
        "rewards_table": _rewards_table(settings["rewards"]),
        "signs": distinct_signs(results.reward_hacking),
        "uses_clip": any("clip" in reward.lower() for reward in settings["rewards"]),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brushup.publishing", "."), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "link": _link,
        "json": _json,
        "code": _code,
        "count_of": _count_of,
        "for_others": for_others,
    }
    card_data = _card_data(folder, results, arm_name, name, base, adapter, held_out)
    text = environment.get_template("card.md.jinja").render(card_data=card_data.to_yaml(), **variables)
    ModelCard(text).save(folder / "README.md")
    return folder / "README.md"


def _card_data(
    folder: Path, results: Results, arm_name: str, name: str, base: str, adapter: dict, held_out: str
) -> ModelCardData:
    """Return the card's metadata."""
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
        eval_results=_eval_results(results, arm_name, held_out),
    )


def _eval_results(results: Results, arm_name: str, held_out: str) -> list[EvalResult]:
    arm = results.arms[arm_name]
    values = [(name, f"{name}, rewritten prompts", value) for name, value in arm["rewards"].items()]
    if arm["checker_accuracy"] is not None:
        values.append(("checker_accuracy", "share of images that the checker accepts", arm["checker_accuracy"]))
    for other, reward, gain in _gains(results, arm_name):
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


def _arm_name(folder: Path, results: Results) -> str:
    """Return the name of the folder's policy in the results of training, or of recipes/evaluate.py."""
    policies = (results.evaluation or {}).get("policies", {"trained": folder})
    for name, policy in policies.items():
        if Path(policy).expanduser().resolve() == folder.resolve() and name != "untrained":
            return name
    raise ValueError(
        f"{folder / 'results.json'} is of other policies ({', '.join(map(str, policies.values()))}): run "
        f"recipes/evaluate.py for this one, with --output_dir {folder}"
    )


def _example_prompt(folder: Path) -> str:
    validations = sorted(folder.glob("validation_*.json"))
    rows = json.loads(validations[0].read_text())["rows"] if validations else []
    return rows[0]["user_prompt"] if rows else "a cat on a red chair"


def _differences(results: Results, arm_name: str) -> dict[str, dict]:
    """Return the paired differences of this arm to each other arm, by the other arm's name."""
    prefix = f"{arm_name} - "
    return {name.removeprefix(prefix): gain for name, gain in results.differences.items() if name.startswith(prefix)}


def _gains(results: Results, arm_name: str) -> list[tuple[str, str, dict]]:
    """Return (other arm, reward, paired difference) of each difference with an interval."""
    return [
        (other, reward, gains[reward])
        for other, gains in _differences(results, arm_name).items()
        for reward in (*results.arms[arm_name]["rewards"], "reward")
        if reward in gains and gains[reward]["ci95"]
    ]


def _gains_table(results: Results, arm_name: str) -> str:
    rows = []
    for other, reward, gain in _gains(results, arm_name):
        low, high = gain["ci95"]
        interval = f"{low:+.3f} to {high:+.3f}" + (" (holds 0: no difference shown)" if low <= 0 <= high else "")
        label = "weighted sum" if reward == "reward" else reward
        rows.append([f"{arm_name} - {other}", label, f"{gain['mean']:+.3f}", interval])
    return markdown_table([["prompts", "reward", "mean difference", "95 % interval"], *rows]) if rows else ""


def _wins(results: Results, arm_name: str) -> list[str]:
    rates = {other: gains["win_rate"] for other, gains in _differences(results, arm_name).items()}
    return [f"*{other}* on {rate:.1%}" for other, rate in rates.items() if rate is not None]


def _rewards_table(rewards: dict[str, dict]) -> str:
    rows = []
    for name, reward in rewards.items():
        shaping = {key: value for key, value in reward.items() if key not in ("weight", "kwargs")}
        rows.append([f"`{name}`", f"{reward['weight']:g}", _code(reward["kwargs"] | shaping)])
    return markdown_table([["reward", "weight", "settings"], *rows])


def _link(name: str) -> str:
    """Return a model or data set as the reader may find it."""
    return f"[{name}](https://huggingface.co/{name})" if is_hub_id(name) else f"`{for_others(name)}`"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _code(values: dict) -> str:
    return ", ".join(f"`{name}: {_json(value)}`" for name, value in values.items())


def _count_of(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count > 1)}"

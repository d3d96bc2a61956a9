"""The model card: what a reader of the Hub, or of `output_dir`, has to know before using a trained policy."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from trl import ModelConfig

from brushup.comparison import markdown_table, results_table
from brushup.config import DataConfig, PromptEnhancerConfig, RenderConfig, masked
from brushup.reward_hacking import signs_in
from brushup.rewards import label


PICTURE = "images/before_after.png"
SHAPING = {"transform": "reward_transforms", "gate": "reward_gates", "gain_gate": "gain_gates"}


def run_settings(
    data: DataConfig,
    render: RenderConfig,
    args: PromptEnhancerConfig,
    model: ModelConfig,
    train_count: int,
    validation_count: int,
    step: int,
) -> dict[str, Any]:
    """What results.json and the card say of a run: no secrets, and no folder of this machine that can be left out.

    Args:
        train_count, validation_count: how many prompts there were.
        step: of the policy that was kept.
    """
    default = RenderConfig(generator="").picture_settings()
    weights = args.reward_weights or [1.0] * len(args.reward_funcs)
    hyperparameters = ("learning_rate", "beta", "temperature", "seed")
    settings = {
        "policy": model.model_name_or_path,
        "policy_revision": model.model_revision,
        "train_prompts": {"file": data.train_prompts, "n": train_count},
        "validation_prompts": {"file": data.validation_prompts, "n": validation_count},
        "pictures": {name: value for name, value in render.picture_settings().items() if value != default[name]},
        "rewards": {
            label(name): {
                "weight": weight,
                "kwargs": args.kwargs_of_reward(name),
                **{
                    key: args.by_reward(setting)[written]
                    for key, setting in SHAPING.items()
                    for written in {name, label(name)} & args.by_reward(setting).keys()
                },
            }
            for name, weight in zip(args.reward_funcs, weights, strict=True)
        },
        "checker": args.checker,
        "validation_images_per_prompt": args.validation_images_per_prompt,
        "chosen_by_validation": args.load_best_model_at_end,
        "steps": step,
        "num_generations": args.num_generations,
        "images_per_prompt": args.images_per_prompt,
        "hyperparameters": {name: vars(args)[name] for name in hyperparameters},
        "versions": {
            name: importlib.metadata.version(name) for name in ("brushup", "trl", "transformers", "diffusers")
        },
    }
    return for_others(settings)


def for_others(value: Any) -> Any:
    """What can be shown to anybody: without secrets, and with paths from the working directory on, or from `~`."""
    return _without_folders(masked(value))


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return value.replace(f"{Path.cwd()}/", "").replace(f"{Path.home()}/", "~/") if isinstance(value, str) else value


def base_model(folder: Path) -> str:
    """The model that the adapter in `folder` belongs to, or that a full model was trained from: Hub id or folder.

    Raises:
        FileNotFoundError: as `read_results`.
    """
    adapter = _adapter_config(folder)
    return adapter["base_model_name_or_path"] if adapter else read_results(folder)["settings"]["policy"]


def _adapter_config(folder: Path) -> dict[str, Any]:
    """PEFT's settings; of a full model none."""
    file = folder / ADAPTER_CONFIG
    return json.loads(file.read_text()) if file.is_file() else {}


def read_results(folder: Path) -> dict[str, Any]:
    """The `results.json` of a run.

    Raises:
        FileNotFoundError: there is none, or none with the run's settings.
    """
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    if "settings" not in results:
        raise FileNotFoundError(
            f"{path} is not there, or has no `settings`: give the output_dir of a recipes/grpo.py run that ended; one "
            "that was stopped goes on with --resume_from_checkpoint true"
        )
    return results


def is_hub_id(name: str) -> bool:
    """Whether `name` is a Hub id, and not a folder or a prompt file."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists() and Path(name).suffix not in (".jsonl", ".csv", ".parquet")


def write_model_card(folder: str | Path, repo_id: str | None = None) -> Path:
    """Writes `folder/README.md` from what lies there: results.json, adapter_config.json, validation prompts, picture.

    Args:
        folder: the `output_dir` of a run.
        repo_id: where it is, or will be, on the Hub; the card's example then loads it from there.

    Raises:
        FileNotFoundError: as `read_results`.
        ValueError: results.json is of other policies.
    """
    folder = Path(folder)
    results = read_results(folder)
    own = _own_arm(folder, results)
    name = (repo_id or folder.resolve().name).split("/")[-1]
    text = "\n\n".join(
        [
            f"# {name}",
            _what_it_is(folder, results["settings"]),
            _how_to_use_it(folder, repo_id or str(folder)),
            _before_and_after(results, own),
            _how_it_was_trained(folder, results["settings"]),
            _limits(folder, results, own),
        ]
    )
    path = folder / "README.md"
    ModelCard(f"---\n{_metadata(folder, results, own, name).to_yaml()}\n---\n\n{text}\n").save(path)
    return path


def _own_arm(folder: Path, results: dict) -> str:
    """The name that the policy in `folder` has in the results of training, or of recipes/evaluate.py."""
    policies = results.get("evaluation", {}).get("policies", {"trained": folder})
    for name, policy in policies.items():
        if Path(policy).expanduser().resolve() == folder.resolve() and name != "untrained":
            return name
    raise ValueError(
        f"{folder / 'results.json'} is of other policies ({', '.join(map(str, policies.values()))}): run "
        f"recipes/evaluate.py for this one, with --output_dir {folder}"
    )


def _metadata(folder: Path, results: dict, own: str, name: str) -> ModelCardData:
    base = base_model(folder)
    adapter = _adapter_config(folder)
    sees = any((folder / file).is_file() for file in ("processor_config.json", "preprocessor_config.json"))
    train = results["settings"]["train_prompts"]["file"]
    return ModelCardData(
        base_model=base if is_hub_id(base) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        tags=[
            "brushup",
            "trl",
            "grpo",
            "prompt-enhancement",
            *(["lora"] if adapter.get("peft_type") == "LORA" else []),
        ],
        datasets=[train] if is_hub_id(train) else None,
        model_name=name,
        eval_results=_eval_results(results, own),
    )


def _eval_results(results: dict, own: str) -> list[EvalResult]:
    arm, prompts = results["arms"][own], _held_out(results)
    values = [(name, f"{name}, rewritten prompts", value) for name, value in arm["rewards"].items()]
    if arm["checker_accuracy"] is not None:
        values.append(("right_pictures", "pictures that the checker calls right", arm["checker_accuracy"]))
    for other, reward, gain in _gains(results, own):
        values.append((f"{reward}_gain", f"{reward}, rewritten minus {other} prompts", gain["mean"]))
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Prompt enhancement",
            dataset_type=prompts if is_hub_id(prompts) else "held-out-prompts",
            dataset_name=f"{arm['n']} held-out prompts of {prompts}",
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for kind, title, value in values
    ]


def _held_out(results: dict) -> str:
    """Which prompts the figures are of."""
    evaluation = results.get("evaluation")
    return for_others(evaluation["prompts"]) if evaluation else results["settings"]["validation_prompts"]["file"]


def _differences(results: dict, own: str) -> dict[str, dict]:
    """What the policy has more than each other arm, by that arm's name."""
    pairs = {name: gains for name, gains in results["differences"].items() if name.startswith(f"{own} - ")}
    return {name.removeprefix(f"{own} - "): gains for name, gains in pairs.items()}


def _gains(results: dict, own: str) -> list[tuple[str, str, dict]]:
    """The other arm, the reward, the paired difference."""
    return [
        (other, reward, gains[reward])
        for other, gains in _differences(results, own).items()
        for reward in (*results["arms"][own]["rewards"], "reward")
        if reward in gains and gains[reward]["ci95"]
    ]


def _link(name: str) -> str:
    """A model or data set, as the reader may find it."""
    return f"[{name}](https://huggingface.co/{name})" if is_hub_id(name) else f"`{for_others(name)}`"


def _what_it_is(folder: Path, settings: dict) -> str:
    base = base_model(folder)
    adapter = "An adapter ([PEFT](https://github.com/huggingface/peft)) for"
    kind = adapter if _adapter_config(folder) else "A fully fine-tuned version of"
    local = "" if is_hub_id(base) else " (a folder where it was trained, not on the Hub)"
    generator = _link(settings["pictures"]["generator"])
    text = (
        f"{kind} {_link(base)}{local}. It rewrites a user's short or odd prompt so that {generator} draws what the "
        "user meant. It was trained with [GRPO](https://huggingface.co/papers/2402.03300) by Brushup, on "
        "[TRL](https://github.com/huggingface/trl): each rewrite was drawn, and the picture was scored against the "
        "user's **own** prompt."
    )
    if (folder / PICTURE).is_file():
        text += f"\n\n![above: drawn from the users' prompts; below: drawn from the rewrites]({PICTURE})"
    return text


def _how_to_use_it(folder: Path, source: str) -> str:
    validated = sorted(folder.glob("validation_*.json"))
    rows = json.loads(validated[0].read_text())["rows"] if validated else []
    prompt = rows[0]["user_prompt"] if rows else "a cat on a red chair"
    base, local = base_model(folder), ""
    if _adapter_config(folder) and not is_hub_id(base):
        local = f"\n\nIt loads its base model from `{for_others(base)}`, seen from the folder that you run this in."
    return f"""## Use

With Brushup installed (`pip install -e .` in a clone of it):

```python
from brushup.enhancer import PromptEnhancer

enhancer = PromptEnhancer.from_pretrained({json.dumps(source)})
print(enhancer.enhance({json.dumps(prompt, ensure_ascii=False)}).prompt)
```{local}"""


def _before_and_after(results: dict, own: str) -> str:
    arms, settings = results["arms"], results["settings"]
    drawn = results.get("evaluation", {}).get("images_per_prompt", settings["validation_images_per_prompt"])
    meaning = {
        "original": "the user's prompt as it is",
        "static": "the same with words that people add by hand",
        "untrained": "what the policy made of it before training",
        own: "what this model makes of it",
    }
    meanings = "; ".join(f"*{name}*: {words}" for name, words in meaning.items() if name in arms)
    text = (
        f"## Before and after\n\nThe held-out prompts of {_link(_held_out(results))}, {_pictures(drawn)} "
        f"of each, every line from the same seeds. {meanings}. Rewrites are the likeliest "
        f"answers.\n\n{results_table(arms)}"
    )
    gains = [
        [
            f"{own} - {other}",
            "weighted sum" if reward == "reward" else reward,
            f"{gain['mean']:+.3f}",
            _interval(gain["ci95"]),
        ]
        for other, reward, gain in _gains(results, own)
    ]
    if gains:
        text += "\n\nThe differences, prompt by prompt, with 95 % bootstrap intervals:\n\n"
        text += markdown_table([["prompts", "reward", "mean difference", "95 % interval"], *gains])
    wins = [
        f"*{other}* on {gains['win_rate']:.1%}"
        for other, gains in _differences(results, own).items()
        if gains["win_rate"] is not None
    ]
    if wins:
        text += f"\n\nBy the weighted rewards, *{own}* beats {', '.join(wins)} of the prompts (a tie counts half)."
    if settings["checker"]:
        text += f"\n\n*right pictures* is the word of `{settings['checker']}`, which took no part in training."
    return text


def _interval(bounds: list[float]) -> str:
    low, high = bounds
    return f"{low:+.3f} to {high:+.3f}" + (" (holds 0: no difference shown)" if low <= 0 <= high else "")


def _how_it_was_trained(folder: Path, settings: dict) -> str:
    rewards = [
        [
            f"`{name}`",
            f"{reward['weight']:g}",
            _words(reward["kwargs"] | {key: reward[key] for key in SHAPING if key in reward}),
        ]
        for name, reward in settings["rewards"].items()
    ]
    drawing = {name: value for name, value in settings["pictures"].items() if name != "generator"}
    train, held_out = settings["train_prompts"], settings["validation_prompts"]
    lines = {
        "policy at the start": _link(settings["policy"]),
        "generator": ", ".join(filter(None, [_link(settings["pictures"]["generator"]), _words(drawing)])),
        "training prompts": f"{train['n']:,} of {_link(train['file'])}",
        "held-out prompts": f"{held_out['n']:,} of {_link(held_out['file'])}",
        "GRPO": f"{settings['steps']:,} steps, {settings['num_generations']} rewrites of a prompt, "
        f"{_pictures(settings['images_per_prompt'])} of a rewrite, {_words(settings['hyperparameters'])}",
        "versions": ", ".join(f"{name} {version}" for name, version in settings["versions"].items()),
    }
    adapter = _adapter_config(folder)
    if adapter.get("peft_type") == "LORA":
        lines["policy at the start"] += f", with LoRA (r {adapter['r']}, alpha {adapter['lora_alpha']})"
    items = "\n".join(f"- **{name}**: {value}" for name, value in lines.items())
    table = markdown_table([["reward", "weight", "settings"], *rewards])
    return f"## How it was trained\n\n{items}\n\n{table}\n\nAll figures are in [results.json](results.json)."


def _words(values: dict) -> str:
    return ", ".join(f"`{name}: {json.dumps(value, ensure_ascii=False)}`" for name, value in values.items())


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count > 1)}"


def _limits(folder: Path, results: dict, own: str) -> str:
    settings = results["settings"]
    limits = [
        "It learnt to please its rewards. A higher score is not always a better picture: look at pictures of your own "
        "prompts.",
        f"It learnt for one generator, drawing as above, from {settings['train_prompts']['n']:,} prompts. Other "
        "generators, settings, subjects and languages were not measured.",
        f"The figures are of {results['arms'][own]['n']:,} prompts and one training run; the intervals cover the "
        "choice of prompts, not that of the training seed.",
        "A rewrite may drop or change what was asked, or add what was not, and has the biases of the base model and "
        "of the scorer. It is no safety filter. A malformed answer is replaced by the user's own prompt.",
        f"The licence of {_link(base_model(folder))} holds for this model; the generator has its own.",
    ]
    if warnings := signs_in(results):
        limits[0] += " There were signs that it learnt to please them only:\n" + "\n".join(
            f"    - {warning}" for warning in warnings
        )
    if any("clip" in name.lower() for name in settings["rewards"]):
        limits.insert(
            1,
            "CLIP is nearly blind to what is left of, above or inside what, to counts, and to which colour goes with "
            "which thing; of a long prompt it reads 77 tokens.",
        )
    if settings["chosen_by_validation"]:
        limits.insert(
            3,
            f"The best checkpoint was chosen on {_link(settings['validation_prompts']['file'])}, which flatters "
            "figures of those same prompts a little.",
        )
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)

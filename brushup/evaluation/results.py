"""results.json, the outcome of a training run or of an evaluation: its schema, its reader and its writer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from brushup.config import masked
from brushup.evaluation.arm import Arm
from brushup.evaluation.compare import Measures, compare


FILE = "results.json"


@dataclass
class Results:
    """The outcome of a training run or of an evaluation; docs/results.md explains the figures.

    Attributes:
        arms: the figures of each arm, as `Measures.summary` returns them, with `by_category` and `by_difficulty`;
            after an evaluation also the arm's `seconds` and `images_drawn`.
        differences: by "A - B", as `Measures.differences` returns them, with `by_category` and `by_difficulty`.
        trained_minus_untrained: the paired difference of each reward; empty if one of the two arms is missing.
        win_rate: share of prompts, 0..1, on which trained beats untrained by the total; a tie counts half.
        validation: the mean rewards, by name, at each validation of the training, by step.
        seconds: that all of it took.
        images_drawn: images rendered, of all ranks.
        reward_hacking: sentences about what got worse while the reward rose, in `training` and on `held_out` prompts.
        settings: of the training run, as `run_settings` returns them; None without one.
        transfer: `arms` and `differences` of the same prompts, rendered by another `generator`; with its `seconds` and
            `images_drawn`; None if there was no other.
        evaluation: the settings of recipes/evaluate.py; None if it did not run.
    """

    arms: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)
    trained_minus_untrained: dict[str, dict[str, Any]] = field(default_factory=dict)
    win_rate: float | None = None
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    images_drawn: int = 0
    reward_hacking: dict[str, list[str]] = field(default_factory=dict)
    settings: dict[str, Any] | None = None
    transfer: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None

    @classmethod
    def compare(
        cls, arms: dict[str, Arm], measures: Measures, trained: Sequence[str] = ("trained",), **others: Any
    ) -> "Results":
        """Return the function `compare`'s comparison of the arms; `others` are the other attributes."""
        return cls(**compare(arms, measures, trained), **others)

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Return the results that lie in the folder; files of earlier versions are read as well.

        Raises:
            FileNotFoundError: there are none.
        """
        values = json.loads((folder / FILE).read_text())
        settings = values.get("settings", {})
        if "pictures" in settings:  # files from before 2026-12
            settings["images"] = settings.pop("pictures")
        return cls(**{name.name: values[name.name] for name in fields(cls) if name.name in values})

    @classmethod
    def load_trained(cls, folder: Path) -> "Results":
        """Return the results of a training run.

        Raises:
            FileNotFoundError: there are none, or none with the run's settings.
        """
        path = folder / FILE
        results = cls.load(folder) if path.is_file() else None
        if not results or not results.settings:
            raise FileNotFoundError(
                f"{path} is not there, or has no `settings`: give the output_dir of a recipes/grpo.py run that ended; "
                "one that was stopped goes on with --resume_from_checkpoint true"
            )
        return results

    def with_training(self, folder: Path) -> "Results":
        """Return these results of an evaluation with those that training left in the folder."""
        if not (folder / FILE).is_file():
            return self
        training = Results.load(folder)
        reward_hacking = training.reward_hacking | self.reward_hacking
        return replace(self, validation=training.validation, settings=training.settings, reward_hacking=reward_hacking)

    def for_others(self) -> "Results":
        """Return a copy that can be shown to anybody: see the function `for_others`."""
        return Results(**for_others(vars(self)))

    def save(self, folder: Path) -> None:
        """Write results.json into the folder, as `for_others` returns it; what is None is left out."""
        values = {name: value for name, value in vars(self.for_others()).items() if value is not None}
        (folder / FILE).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    @property
    def trained_policies(self) -> Sequence[str]:
        """The arms that are trained policies."""
        policies = self.evaluation["policies"] if self.evaluation else {"trained": None}
        return [name for name in policies if name != "untrained"]


def for_others(value: Any) -> Any:
    """Return a copy that can be shown to anybody: without secrets, and with paths that begin at the working directory
    or at `~`."""
    return _without_folders(masked(value))


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return value.replace(f"{Path.cwd()}/", "").replace(f"{Path.home()}/", "~/") if isinstance(value, str) else value

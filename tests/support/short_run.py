"""A short run of the tiny world: tests share one that was never interrupted, and stop and resume others."""

from pathlib import Path

from conftest import few_prompts


STEPS = 6
PROMPTS = 12  # held out


def flags(folder: Path, prompts: int = PROMPTS) -> list[str]:
    """Return the flags of the run, whose output goes to <folder>/out."""
    return [
        *("--validation_prompts", few_prompts(folder, prompts), "--output_dir", str(folder / "out")),
        *("--max_steps", str(STEPS), "--save_steps", "2", "--logging_steps", "1", "--log_images_steps", "2"),
        *("--eval_strategy", "steps", "--eval_steps", "3", "--report_to", "tensorboard"),
        *("--reward_funcs", "clip", "keyword_retention", "--reward_weights", "1.0", "0.1"),
    ]

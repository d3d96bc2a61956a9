"""Writes drafts to train the second turn on: rewrites by a policy, and the images that it will look at.

    python recipes/drafts.py --config recipes/tiny_cpu.yaml --output_dir runs/tiny_drafts
    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo.py --config recipes/tiny_cpu.yaml \\
        --train_prompts runs/tiny_drafts/train.jsonl --output_dir runs/tiny_revise

`output_dir/train.jsonl` has each training prompt with a sampled `draft` and its `draft_image`, which asks to revise
it. The reward of a revision is its gain over the draft. The drafts are by the policy before training, or by
`--adapter`. The first turn learns along, without rows of its own; the other way round it does not work: a policy that
was trained on the first turn alone answers the second with the same rewrite again (docs/second_turn.md).
"""

from brushup.flags import answer_at_once, parse


if __name__ == "__main__":  # before the imports below, which take ten seconds
    answer_at_once(__doc__, "DataConfig", "RenderConfig", "EvaluationConfig")

import json
from pathlib import Path

from brushup.config import DataConfig, RenderConfig
from brushup.console import progress, quiet_libraries, say
from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.dataset import load_prompts
from brushup.recipe_config import EvaluationConfig
from brushup.render.job import paired_seeds
from brushup.render.renderer import Renderer, RenderFailure


def main(data: DataConfig, render: RenderConfig, args: EvaluationConfig) -> None:
    prompts = load_prompts(data.train_prompts, "train", data.prompt_column, data.skip_bad_rows, data.max_train_samples)
    if {"image", "draft"} & {*prompts.column_names}:
        raise ValueError(f"train_prompts: {data.train_prompts} has images already; drafts are made of prompts alone")
    rows = prompts.remove_columns("prompt").to_list()
    user_prompts = [row["user_prompt"] for row in rows]

    # Rewrites, sampled as in training
    with progress("loading the policy and the generator"):
        enhancer = PromptEnhancer.from_pretrained((args.adapter or [args.model_name_or_path])[0], dtype=args.dtype)
        enhancer.ask_as(args)
        renderer = Renderer(render)
    with progress("rewriting", len(rows), lambda: enhancer.answered):
        enhancements = enhancer.enhance(
            user_prompts,
            max_new_tokens=args.max_completion_length,
            temperature=args.temperature,
            seed=args.seed,
            batch_size=args.per_device_eval_batch_size,
        )

    # Their images
    seeds = [paired_seeds(args.seed, "draft", user_prompt, 1)[0] for user_prompt in user_prompts]
    with progress("rendering", len(rows), lambda: renderer.images_drawn):
        images = renderer.render([(e.prompt, seed) for e, seed in zip(enhancements, seeds, strict=True)])
    folder = Path(args.output_dir) / "drafts"
    folder.mkdir(parents=True, exist_ok=True)
    drafted = []
    for number, (row, enhancement, image) in enumerate(zip(rows, enhancements, images, strict=True), 1):
        if not isinstance(image, RenderFailure):
            file = folder / f"{number:06d}.png"
            image.save(file)
            drafted.append({**row, "draft": enhancement.prompt, "draft_image": str(file.relative_to(args.output_dir))})
    lines = [json.dumps(row, ensure_ascii=False) for row in drafted]
    path = Path(args.output_dir) / "train.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    say(f"{path}: {len(drafted):,} drafts ({len(rows) - len(drafted)} failed)")


if __name__ == "__main__":
    quiet_libraries()
    main(*parse(DataConfig, RenderConfig, EvaluationConfig))

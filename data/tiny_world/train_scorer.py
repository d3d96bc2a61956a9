"""Train the scorer of the tiny world: an OpenCLIP model that reads captions and users' words."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import set_seed

import users
import world
from learning import DEVICE, KINDS, optimize, part_labels, to_tensor, train_clip_tokenizer, user_texts, wear


TEXT_LENGTH = 64  # tokens: the longest user prompts have more
VISION_STEPS, STEPS = 500, 3000


def pretrain_clip_vision(model: open_clip.CLIP, normalize: Callable, steps: int, rng: random.Random) -> None:
    """Train the image tower to tell what each part of an image shows; contrast alone teaches it that far slower."""
    head = torch.nn.Linear(model.visual.transformer.width, sum(map(len, KINDS))).to(DEVICE)

    def loss() -> torch.Tensor:
        pictures = [world.draw_scene(world.random_scene(rng), rng) for _ in range(64)]
        with torch.autocast(DEVICE, torch.bfloat16):
            _, tokens = model.visual(normalize(to_tensor(pictures) / 2 + 0.5))
            tokens = F.avg_pool2d(tokens.mT.unflatten(2, (6, 6)), 2).flatten(2).mT  # (n, 9, width)
            logits = head(tokens).float().split([len(names) for names in KINDS], dim=-1)
        labels = part_labels(pictures).unbind(-1)
        return sum(F.cross_entropy(found.mT, wanted) for found, wanted in zip(logits, labels, strict=True))

    model.visual.output_tokens = True
    optimize("vision", [*model.visual.parameters(), *head.parameters()], loss, steps, lr=1e-2)
    model.visual.output_tokens = False


def train_scorer(output: Path, scale: float, seed: int) -> None:
    """Train an OpenCLIP model (contrastive, Radford et al. 2021) that reads canonical captions and users' words alike.

    A batch has groups of four scenes that differ in one thing (Yuksekgonul et al. 2022, arXiv 2210.01936), so that
    the model must tell "a red square and a blue circle" from the swapped pair. Half of the images are blurred and
    made noisy, since it will judge generated ones.
    """
    set_seed(seed)
    rng = random.Random(seed)
    texts = [world.caption(world.random_scene(rng)) for _ in range(2000)] + user_texts(4000, rng)
    tokenizer = train_clip_tokenizer(texts, TEXT_LENGTH)
    text_cfg = {
        "context_length": TEXT_LENGTH,
        "vocab_size": len(tokenizer),
        "hf_tokenizer_name": "local",  # OpenCLIP then reads the tokenizer from the model's own folder
        "width": 128,
        "heads": 4,
        "layers": 3,
        "pool_type": "eos",
        "eos_id": tokenizer.eos_token_id,
    }
    vision_cfg = {"image_size": world.PICTURE_SIZE, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32}
    model_cfg = {"embed_dim": 128, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    model = open_clip.CLIP(**model_cfg, output_dict=True).to(DEVICE)
    loss_function = open_clip.ClipLoss()
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    mean, std = (torch.tensor(preprocess[name], device=DEVICE).view(1, 3, 1, 1) for name in ("mean", "std"))

    def normalize(pictures: torch.Tensor) -> torch.Tensor:
        return (pictures - mean) / std

    def text_of(scene: dict) -> str:
        if rng.random() < 0.35:
            return world.caption(scene)
        category = rng.choice((*users.CATEGORIES, "korean"))
        return users.user_prompt(scene, category, rng, rng.choice((True, False)))[0]

    def clip_loss() -> torch.Tensor:
        batch = []
        for _ in range(32):
            scene = world.random_scene(rng)
            batch += [scene, *(world.near_scene(scene, rng) for _ in range(3))]
        pictures = to_tensor([wear(world.draw_scene(scene, rng), rng) for scene in batch]) / 2 + 0.5
        texts = [text_of(scene) for scene in batch]
        length = TEXT_LENGTH
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        with torch.autocast(DEVICE, torch.bfloat16):
            features = model(normalize(pictures), tokens.input_ids.to(DEVICE))
        return loss_function(**{name: value.float() for name, value in features.items()})

    @torch.no_grad()
    def limit_scale() -> None:
        model.logit_scale.clamp_(max=4.6052)  # 100, as in CLIP

    pretrain_clip_vision(model, normalize, max(2, int(VISION_STEPS * scale)), rng)
    steps = max(2, int(STEPS * scale))
    optimize("scorer", list(model.parameters()), clip_loss, steps, lr=4e-3, after=limit_scale)
    folder = output / "scorer"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}, indent=2) + "\n"
    )
    tokenizer.save_pretrained(folder)

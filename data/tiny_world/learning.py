"""What the programs that train the tiny models share: the loop, images as tensors, what a part of an image shows."""

import os
import random
import string
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import distributed
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.transforms.functional import pil_to_tensor
from transformers import CLIPTokenizer

import users
import world
from brushup.config import RenderConfig
from brushup.render.renderer import Renderer


RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # of processes that train one model
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":  # with so few tokens, the gradient of fused attention takes five times as long as the plain one
    torch.backends.cuda.enable_flash_sdp(False)
# Background; shape, colour and size (None: nothing is there); column and row (None: the middle one).
KINDS = (
    *(tuple(world.BACKGROUNDS), (*world.SHAPES, None), (*world.COLORS, None), (*world.SIZES, None)),
    *(("left", "right", None), ("above", "below", None)),
)


def optimize(
    name: str,
    params: list,
    loss_of_batch: Callable[[], torch.Tensor],
    steps: int,
    lr: float,
    after: Callable[[], None] | None = None,
) -> None:
    """Minimize the loss, with a short warm-up and a cosine decay; print it twenty times.

    Matrices within the model learn by Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) at twice
    the rate `lr`, all else by AdamW: in short trials the tiny models learnt faster so (docs/tiny_world.md).
    """
    matrices, others = [], []
    for param in params:
        is_matrix = param.ndim == 2 and len(param) < 1000  # embeddings have a row for each of more tokens
        (matrices if is_matrix else others).append(param)
    optimizers = [torch.optim.AdamW(others, lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)] if others else []
    optimizers += [torch.optim.Muon(matrices, 2 * lr, weight_decay=0.01)] if matrices else []
    schedules = [
        OneCycleLR(optimizer, optimizer.defaults["lr"], total_steps=steps + 1, pct_start=0.05, cycle_momentum=False)
        for optimizer in optimizers
    ]
    start, recent = time.time(), []
    for step in range(1, steps + 1):
        loss = loss_of_batch()
        loss.backward()
        average_gradients(params)
        clip_grad_norm_(params, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if after:
            after()
        recent.append(loss.item())
        if step % max(1, steps // 20) == 0 and RANK == 0:
            mean = sum(recent) / len(recent)
            print(f"{name:>10} {step:5d}/{steps}  loss {mean:.4f}  {time.time() - start:4.0f} s", flush=True)
            recent = []


def average_gradients(params: list) -> None:
    """Replace the gradients by their means over the processes that train one model, each on batches of its own."""
    if RANKS == 1:
        return
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    gradients = [param.grad for param in params if param.grad is not None]
    total = parameters_to_vector(gradients)
    distributed.all_reduce(total)
    vector_to_parameters(total / RANKS, gradients)


def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    """Return images as (n, 3, 48, 48) in -1..1 on the device."""
    return torch.stack([pil_to_tensor(image) for image in images]).to(DEVICE) / 127.5 - 1


def wear(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Return the image, every second time blurred and noisy: a model that judges generated ones must bear that."""
    if rng.random() < 0.5:
        return picture
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8))), dtype=float)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, rng.uniform(0, 12), blurred.shape)
    shift = [rng.uniform(-10, 10) for _ in range(3)]
    return Image.fromarray((blurred + noise + shift).clip(0, 255).astype(np.uint8))


def load_generator(folder: Path) -> Renderer:
    sizes = {"num_inference_steps": 8, "guidance_scale": 3.0, "height": 48, "width": 48, "max_sequence_length": 1}
    without_t5 = {"text_encoder_3": None, "tokenizer_3": None}
    return Renderer(RenderConfig(str(folder), without_t5, sizes, render_batch_size=50))


def train_clip_tokenizer(texts: list[str], length: int) -> CLIPTokenizer:
    """Return a BPE tokenizer of CLIP's kind that knows each character as the end of a word, so no word is unknown."""
    characters = list(string.ascii_letters + string.digits + string.punctuation) * 10
    tokenizer = CLIPTokenizer().train_new_from_iterator(texts + characters, 2000, show_progress=False)
    tokenizer.model_max_length = length
    return tokenizer


def part_labels(pictures: list[Image.Image]) -> torch.Tensor:
    """Return the places in `KINDS` of what each of an image's nine parts shows, (n, 9, 6), as the checker reads it."""
    labels = torch.zeros(len(pictures), 9, len(KINDS), dtype=torch.long)
    labels[..., 1:4] = torch.tensor([len(names) - 1 for names in KINDS[1:4]])
    labels[..., 4] = torch.tensor([0, 2, 1]).repeat(3)
    labels[..., 5] = torch.tensor([0, 2, 1]).repeat_interleave(3)
    side = world.PICTURE_SIZE // 3
    for row, picture in enumerate(pictures):
        seen = world.read_picture(picture)
        labels[row, :, 0] = KINDS[0].index(seen["background"])
        for shape in seen["objects"]:
            place = 3 * int(shape["y"] // side) + int(shape["x"] // side)
            values = [names.index(shape[name]) for names, name in zip(KINDS[1:4], world.LOOK, strict=True)]
            labels[row, place, 1:4] = torch.tensor(values)
    return labels.to(DEVICE)


def user_texts(count: int, rng: random.Random) -> list[str]:
    categories = (*users.CATEGORIES, "korean")
    return [
        users.user_prompt(world.random_scene(rng), rng.choice(categories), rng, held_out=True)[0] for _ in range(count)
    ]

"""Build the tiny world from scratch: four small models of the real classes and the prompts to train with.

    python data/tiny_world/build.py --output data/tiny_world                     # all, under two hours on two cores
    python data/tiny_world/build.py --output data/tiny_world --only generator    # one part

A `StableDiffusion3Pipeline` (generator/) learns to render one style of caption, an OpenCLIP model (scorer/) to match
images with every style, a `Qwen2VLForConditionalGeneration` (judge/) to answer questions about images, and from there
another (policy/) to answer with rewrites of mixed quality, so that GRPO has something to improve. At the end all parts
are loaded from disk and measured; the report goes to README.md in the output folder. A GPU is used when there is one.
"""

import argparse
import json
import random
import string
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.functional import gaussian_blur, pil_to_tensor
from transformers import (
    AutoProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    set_seed,
)

import rewrites
import users
import world
from brushup.config import RenderConfig
from brushup.console import quiet_libraries
from brushup.evaluation.sheet import labelled_grid
from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.template import build_messages
from brushup.render.renderer import Renderer
from brushup.rewards.clip import ClipReward
from brushup.rewards.questions import ASK, QuestionsReward
from brushup.rewards.image_text_model import DOES_IT_SHOW


PARTS = ("prompts", "generator", "scorer", "judge", "policy")
TEXT_LENGTH = 24  # tokens that the generator's text encoders read: a canonical caption has at most 22
SCORER_TEXT_LENGTH = 64  # the longest user prompts have more
GENERATOR_BATCH, GENERATOR_STEPS = 32, 5000
SCORER_STEPS = 4000
VISION_STEPS, DESCRIBE_STEPS, JUDGE_STEPS = 300, 1500, 1500
REWRITE_STEPS, POLICY_STEPS = 2200, 500
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":  # with so few tokens, the gradient of fused attention takes five times as long as the plain one
    torch.backends.cuda.enable_flash_sdp(False)


def optimize(
    name: str,
    params: list,
    loss_of_batch: Callable[[], torch.Tensor],
    steps: int,
    lr: float,
    after: Callable[[], None] | None = None,
    decay_steps: int | None = None,
) -> None:
    """Minimize the loss by AdamW with a short warm-up and a cosine decay, which ends after `decay_steps` (default:
    `steps`); print it twenty times."""
    optimizer = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    total = (decay_steps or steps) + 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total, pct_start=0.05)
    start, recent = time.time(), []
    for step in range(1, steps + 1):
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        if after:
            after()
        recent.append(loss.item())
        if step % max(1, steps // 20) == 0:
            mean = sum(recent) / len(recent)
            print(f"{name:>10} {step:5d}/{steps}  loss {mean:.4f}  {time.time() - start:4.0f} s", flush=True)
            recent = []


def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    """Return images as (n, 3, 48, 48) in -1..1 on the device."""
    return torch.stack([pil_to_tensor(image) for image in images]).to(DEVICE) / 127.5 - 1


def train_clip_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """Return a BPE tokenizer of CLIP's kind that knows each character as the end of a word, so no word is unknown."""
    characters = list(string.ascii_letters + string.digits + string.punctuation) * 10
    tokenizer = CLIPTokenizer().train_new_from_iterator(texts + characters, 2000, show_progress=False)
    tokenizer.model_max_length = TEXT_LENGTH
    return tokenizer


def user_texts(count: int, rng: random.Random) -> list[str]:
    categories = (*users.CATEGORIES, "korean")
    return [users.user_prompt(world.random_scene(rng), rng.choice(categories), rng, "all")[0] for _ in range(count)]


# ---------------------------------------------------------------------------------------------------- the generator


def train_vae(pictures: torch.Tensor, scale: float) -> AutoencoderKL:
    """Return a VAE for images (n, 3, 48, 48): 4 channels of 12x12; first as a whole, then its decoder alone.

    Pixels around shapes count more than the background, those of faint shapes most: without the weights, small green
    crosses on gray decode as circles. The decoder learns on from latents with noise, since it will decode generated
    ones. Two channels and more share a normalization group, since a channel of its own would lose its level, and so
    the absolute colours.
    """
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=world.PICTURE_SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).to(DEVICE)

    def loss(noise: float = 0.0) -> torch.Tensor:
        batch = pictures[torch.randint(len(pictures), (16,))]
        with torch.autocast(DEVICE, torch.bfloat16):
            posterior = vae.encode(batch).latent_dist
            latents = posterior.sample()
            latents = latents + noise * torch.rand(16, 1, 1, 1, device=DEVICE) * torch.randn_like(latents)
            error = vae.decode(latents).sample.float() - batch
        contrast = (batch - batch[:, :, :1, :1]).abs().amax(1, keepdim=True)  # to the background
        contrast = F.max_pool2d(contrast, 5, stride=1, padding=2)
        weight = 1 + (contrast > 0.15).float() * 2 / (contrast.square() + 0.1)
        error = (weight * (error.square() + 0.1 * error.abs())).mean() / weight.mean()
        return error + 1e-4 * posterior.kl().float().mean() / 256

    optimize("VAE", list(vae.parameters()), loss, steps=max(2, int(2500 * scale)), lr=2.5e-3)
    vae.encoder.requires_grad_(False)
    params = list(vae.decoder.parameters())
    optimize("decoder", params, lambda: loss(noise=0.35), steps=max(2, int(1500 * scale)), lr=2e-3)
    return vae.eval().requires_grad_(False)


def text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(DEVICE)


def train_generator(output: Path, scale: float, seed: int) -> None:
    """Train a Stable Diffusion 3 (VAE, two CLIP text encoders, MMDiT; no T5) that knows `world.caption`s only.

    Rectified flow with logit-normal time steps, as in Esser et al. 2024 (arXiv 2403.03206); one caption in ten is
    dropped for classifier-free guidance.
    """
    set_seed(seed)
    rng = random.Random(seed)
    scenes = [world.random_scene(rng) for _ in range(max(256, int(40_000 * min(1, scale))))]
    captions = [world.caption(scene) for scene in scenes]
    pictures = to_tensor([world.draw_scene(scene, rng) for scene in scenes])
    vae = train_vae(pictures, scale)
    with torch.no_grad():
        latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures.split(256)])
    shift, spread = latents.mean().item(), latents.std().item()
    vae.register_to_config(shift_factor=shift, scaling_factor=1 / spread)
    latents = (latents - shift) / spread

    tokenizer = train_clip_tokenizer(captions[:3000])
    # SD3 reads the tokens before the last layer: three layers give what two have read
    encoders = [text_encoder(tokenizer, width=96, layers=3), text_encoder(tokenizer, width=32, layers=2)]
    transformer = SD3Transformer2DModel(
        sample_size=12,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=6,
        qk_norm="rms_norm",
    ).to(DEVICE)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )

    def flow_loss() -> torch.Tensor:
        index = torch.randint(len(latents), (GENERATOR_BATCH,))
        texts = [captions[i] if rng.random() > 0.1 else "" for i in index.tolist()]
        clean, noise = latents[index], torch.randn(GENERATOR_BATCH, 4, 12, 12, device=DEVICE)
        sigma = torch.sigmoid(torch.randn(GENERATOR_BATCH, device=DEVICE))
        mixed = noise * sigma.view(-1, 1, 1, 1) + clean * (1 - sigma.view(-1, 1, 1, 1))
        with torch.autocast(DEVICE, torch.bfloat16):
            embeds, _, pooled, _ = pipeline.encode_prompt(
                texts, None, None, device=DEVICE, do_classifier_free_guidance=False, max_sequence_length=1
            )
            predicted = transformer(mixed, embeds, pooled, sigma * 1000).sample
        return F.mse_loss(predicted.float(), noise - clean)

    modules = torch.nn.ModuleList([transformer, *encoders])
    params = list(modules.parameters())
    average = EMAModel(params, decay=0.998, foreach=True)
    steps = max(2, int(GENERATOR_STEPS * scale))
    decay = 2 * steps  # averaged weights need no decay to the end
    optimize("generator", params, flow_loss, steps, 1.5e-3, after=lambda: average.step(params), decay_steps=decay)
    average.copy_to(params)
    pipeline.to(torch.float16).save_pretrained(output / "generator")


# ------------------------------------------------------------------------------------------------ what a part shows

# Background, shape, colour and size; None: nothing is there.
KINDS = (tuple(world.BACKGROUNDS), (*world.SHAPES, None), (*world.COLORS, None), (*world.SIZES, None))


def part_labels(pictures: list[Image.Image]) -> torch.Tensor:
    """Return the places in `KINDS` of what each of an image's nine parts shows, (n, 9, 4), as the checker reads it."""
    labels = torch.zeros(len(pictures), 9, 4, dtype=torch.long)
    labels[..., 1:] = torch.tensor([len(names) - 1 for names in KINDS[1:]])
    side = world.PICTURE_SIZE // 3
    for row, picture in enumerate(pictures):
        seen = world.read_picture(picture)
        labels[row, :, 0] = KINDS[0].index(seen["background"])
        for shape in seen["objects"]:
            place = 3 * int(shape["y"] // side) + int(shape["x"] // side)
            values = [names.index(shape[name]) for names, name in zip(KINDS[1:], world.LOOK, strict=True)]
            labels[row, place, 1:] = torch.tensor(values)
    return labels.to(DEVICE)


# ------------------------------------------------------------------------------------------------------- the scorer


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
    optimize("vision", [*model.visual.parameters(), *head.parameters()], loss, steps, lr=2e-3)
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
    tokenizer = train_clip_tokenizer(texts)
    tokenizer.model_max_length = SCORER_TEXT_LENGTH
    text_cfg = {
        "context_length": SCORER_TEXT_LENGTH,
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
        return users.user_prompt(scene, category, rng, rng.choice(("all", None)))[0]

    def clip_loss() -> torch.Tensor:
        batch = []
        for _ in range(32):
            scene = world.random_scene(rng)
            batch += [scene, *(world.near_scene(scene, rng) for _ in range(3))]
        pictures = to_tensor([world.draw_scene(scene, rng) for scene in batch]) / 2 + 0.5
        worn = gaussian_blur(pictures[::2], 5, rng.uniform(0.3, 0.9))
        pictures[::2] = (worn + 0.08 * rng.random() * torch.randn_like(worn)).clip(0, 1)
        texts = [text_of(scene) for scene in batch]
        length = SCORER_TEXT_LENGTH
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        with torch.autocast(DEVICE, torch.bfloat16):
            features = model(normalize(pictures), tokens.input_ids.to(DEVICE))
        return loss_function(**{name: value.float() for name, value in features.items()})

    @torch.no_grad()
    def limit_scale() -> None:
        model.logit_scale.clamp_(max=4.6052)  # 100, as in CLIP

    pretrain_clip_vision(model, normalize, max(2, int(600 * scale)), rng)
    steps = max(2, int(SCORER_STEPS * scale))
    optimize("scorer", list(model.parameters()), clip_loss, steps, lr=1.5e-3, after=limit_scale)
    folder = output / "scorer"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}, indent=2) + "\n"
    )
    tokenizer.save_pretrained(folder)


# --------------------------------------------------------------------------------------------- the judge, the policy

# Qwen2-VL's own markup: system and user turns, pictures as placeholders that the processor expands.
CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'text' %}\
{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
DESCRIBE = "Describe this picture."


def rewrite_example(rng: random.Random, mixed: bool) -> tuple[str, str]:
    """Return a user prompt and a rewrite, good or of mixed quality."""
    scene = world.random_scene(rng)
    category = rng.choice((*users.CATEGORIES, "korean", "korean"))
    prompt, said, spoken = users.spoken_prompt(scene, category, rng, rng.choice(("words", None)))
    return prompt, rewrites.mixed_rewrite(scene, said, spoken, rng) if mixed else world.caption(scene)


def description(seen: dict) -> str:
    """Return a caption of an image as `read_picture` has it: the groups in reading order, without relations."""
    groups: dict[tuple, dict] = {}
    for shape in sorted(seen["objects"], key=lambda shape: (shape["y"] // 16, shape["x"])):
        look = {name: shape[name] for name in world.LOOK}
        group = groups.setdefault(tuple(look.values()), {**look, "count": 0})
        group["count"] += 1
    return world.caption({"objects": list(groups.values()), "relations": [], "background": seen["background"]})


def picture_examples(count: int, rng: random.Random, easy: float = 0.0) -> list[tuple[Image.Image, str, str]]:
    """Return images with a question and its answer: one in three asks for a description, one in six whether the image
    shows a user's prompt, the rest are those of the checker; half of these two are about a scene that differs.

    Args:
        easy: the share of the images, 0..1, that have only shapes of one look.
    """
    examples = []
    while len(examples) < count:
        scene = world.random_scene(rng, rng.choice(("single", "count")) if rng.random() < easy else None)
        picture = world.draw_scene(scene, rng)
        seen = world.read_picture(picture)
        examples.append((picture, DESCRIBE, description(seen)))
        for asked in (rng.choice((scene, world.near_scene(scene, rng))) for _ in range(2)):
            if rng.random() < 0.75:
                question = users.any_question(asked, rng)
                examples.append((picture, ASK.format(question), world.answer_question(seen, question)))
            else:
                prompt, said = users.user_prompt(asked, rng.choice((*users.CATEGORIES, "korean")), rng, "all")
                examples.append((picture, DOES_IT_SHOW.format(prompt), "yes" if world.shows(seen, said) else "no"))
    return examples[:count]


def language_model(tokenizer: Qwen2Tokenizer) -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    """Return an untrained Qwen2-VL of 1.4 million parameters, whose vision tower makes 9 tokens of an image."""
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
            "initializer_range": 0.08,  # the usual 0.02 is for wide layers: narrow ones learn nothing for long
        },
        vision_config={
            **{"depth": 3, "embed_dim": 96, "hidden_size": 128, "num_heads": 3, "patch_size": 8},
            "initializer_range": 0.08,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
        initializer_range=0.08,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    limits = {"patch_size": 8, "min_pixels": world.PICTURE_SIZE**2, "max_pixels": (4 * world.PICTURE_SIZE) ** 2}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**limits), tokenizer, Qwen2VLVideoProcessor(**limits), chat_template=CHAT_TEMPLATE
    )
    return model.to(DEVICE), processor


def train_qwen_tokenizer(rng: random.Random) -> Qwen2Tokenizer:
    """Return a BPE tokenizer of Qwen's kind, in which each answer to a question is one token."""
    specials = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    texts = [text for _ in range(4000) for text in rewrite_example(rng, mixed=True)]
    texts += [ASK.format(users.any_question(world.random_scene(rng), rng)) for _ in range(2000)]
    answers = ["yes", "no", "unclear", *world.NUMBER_WORDS, *world.COLORS, *world.BACKGROUNDS, *world.SHAPES]
    texts += [
        "\n".join([build_messages("")[0]["content"], DOES_IT_SHOW, DESCRIBE, *answers, "assistant\nsystem\nuser\n"])
    ] * 200
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, 1500, new_special_tokens=specials, show_progress=False)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def answer_loss(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    messages: list[list[dict]],
    answers: list[str],
    pictures: list[Image.Image] | None = None,
    by_answer: bool = False,
) -> torch.Tensor:
    """Return the mean cross entropy of the answers' tokens.

    With `by_answer` a long answer counts no more than a word; and questions whose answer is yes are learnt, too, which
    makes a model look: after "a red" the next word is the shape of the red thing in the image.
    """
    tokenizer = processor.tokenizer
    ends = [answer + "<|im_end|>" for answer in answers]
    heads = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    texts = [head + end for head, end in zip(heads, ends, strict=True)]
    inputs = processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt").to(DEVICE)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, end in enumerate(ends):
        length = len(tokenizer(end).input_ids)
        labels[row, -length:] = inputs["input_ids"][row, -length:]
    wanted = labels[:, 1:] != -100
    true = torch.tensor([by_answer and answer == "yes" for answer in answers], device=DEVICE)
    is_word = (inputs["input_ids"] > max(processor.image_token_id, processor.video_token_id))[:, 1:]  # and no markup
    guessed = is_word & true[:, None] & ~wanted
    with torch.autocast(DEVICE, torch.bfloat16):
        hidden = model.model(**inputs).last_hidden_state[:, :-1]
        logits = model.lm_head(torch.cat([hidden[wanted], hidden[guessed]]))
    tokens = torch.cat([labels[:, 1:][wanted], inputs["input_ids"][:, 1:][guessed]])
    answered, questions = F.cross_entropy(logits.float(), tokens, reduction="none").split(
        [int(wanted.sum()), int(guessed.sum())]
    )
    weights = (1 / wanted.sum(1, keepdim=True)).expand_as(wanted)[wanted] if by_answer else torch.ones_like(answered)
    return (weights * answered).sum() / weights.sum() + (2 * questions.mean() if len(questions) else 0)


def picture_loss(
    model, processor, count: int, rng: random.Random, easy: float = 0.0, by_answer: bool = True
) -> torch.Tensor:
    """Return the mean cross entropy of the answers to `count` questions about images, `easy` as `picture_examples`."""
    pictures, questions, answers = zip(*picture_examples(count, rng, easy), strict=True)
    content = [[{"type": "image"}, {"type": "text", "text": question}] for question in questions]
    messages = [[{"role": "user", "content": parts}] for parts in content]
    return answer_loss(model, processor, messages, list(answers), list(pictures), by_answer)


def word_tokens(tokenizer: Qwen2Tokenizer, word: str) -> list[int]:
    """Return the tokens of a word at the start of a text, within one, and in the plural."""
    spellings = (word, f" {word}", f" {world.plural(word)}")
    tokens = [tokenizer(spelling).input_ids for spelling in spellings]
    return [first for first, *rest in tokens if not rest]


def pretrain_vision(model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, steps: int, rng) -> None:
    """Train the vision tower to tell the background, and the shape, colour and size in each of the nine parts of an
    image, in the words of the language model: the likeliest is the one whose embedding has the largest dot product.

    From answers alone a language model learns to look far slower: here an image's red and the word "red" become alike.
    """
    kinds = [list(world.BACKGROUNDS), [*world.SHAPES, None], [*world.COLORS, None], [*world.SIZES, None]]
    tokens = [[word_tokens(processor.tokenizer, word) for word in names if word] for names in kinds]
    nothing = torch.nn.Parameter(torch.randn(len(kinds), model.config.text_config.hidden_size, device=DEVICE) * 0.08)
    embeddings = model.get_input_embeddings().weight
    side = world.PICTURE_SIZE // 3

    def loss() -> torch.Tensor:
        pictures = [world.draw_scene(world.random_scene(rng), rng) for _ in range(64)]
        labels = torch.zeros(64, 9, 4, dtype=torch.long)
        labels[..., 1:] = torch.tensor([len(names) - 1 for names in kinds[1:]])  # nothing there
        for row, picture in enumerate(pictures):
            seen = world.read_picture(picture)
            labels[row, :, 0] = kinds[0].index(seen["background"])
            for shape in seen["objects"]:
                place = 3 * int(shape["y"] // side) + int(shape["x"] // side)
                values = [names.index(shape[name]) for names, name in zip(kinds[1:], world.LOOK, strict=True)]
                labels[row, place, 1:] = torch.tensor(values)
        inputs = processor.image_processor(pictures, return_tensors="pt").to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):
            seen = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output.float()
        total = torch.zeros((), device=DEVICE)
        for kind, label in enumerate(labels.to(DEVICE).flatten(0, 1).unbind(-1)):
            words = [embeddings[spellings].mean(0) for spellings in tokens[kind]]
            words += [nothing[kind]] if kind else []  # every part has a background
            total = total + F.cross_entropy(seen @ torch.stack(words).T, label)
        return total

    params = [*model.model.visual.parameters(), embeddings, nothing]
    optimize("vision", params, loss, steps, lr=2e-3)


def train_judge(output: Path, scale: float, seed: int) -> None:
    """Train a Qwen2-VL that answers questions about images, for the rewards `questions` and `vqa`."""
    set_seed(seed)
    rng = random.Random(seed)
    model, processor = language_model(train_qwen_tokenizer(rng))
    params = list(model.parameters())
    pretrain_vision(model, processor, max(2, int(VISION_STEPS * scale)), rng)
    steps = max(2, int(DESCRIBE_STEPS * scale))
    easy = iter(max(0.0, 1 - 2.5 * step / steps) for step in range(steps))  # shapes of one look first

    def describing_loss() -> torch.Tensor:
        return picture_loss(model, processor, 63, rng, next(easy), by_answer=False)

    optimize("describing", params, describing_loss, steps, lr=1.5e-3)
    for folder in (output / "policy", output / "judge"):  # the policy learns on from here
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    steps = max(2, int(JUDGE_STEPS * scale))
    optimize("judge", params, lambda: picture_loss(model, processor, 63, rng), steps, lr=1.5e-3)
    model.half().save_pretrained(output / "judge")


def train_policy(output: Path, scale: float, seed: int) -> None:
    """Train the model that describes images to rewrite prompts, too: first well and without a system message, which
    is most of the tokens, then with one and with mixed quality; it keeps on answering questions about images."""
    set_seed(seed)
    rng = random.Random(seed + 1)
    model = Qwen2VLForConditionalGeneration.from_pretrained(output / "policy", dtype=torch.float32).to(DEVICE)
    processor = AutoProcessor.from_pretrained(output / "policy")

    def loss(mixed: bool) -> torch.Tensor:
        prompts, answers = zip(*(rewrite_example(rng, mixed) for _ in range(64)), strict=True)
        messages = [build_messages(prompt)[0 if mixed else 1 :] for prompt in prompts]
        return answer_loss(model, processor, messages, list(answers)) + picture_loss(model, processor, 15, rng)

    params = list(model.parameters())
    optimize("rewrites", params, lambda: loss(mixed=False), max(2, int(REWRITE_STEPS * scale)), lr=2e-3)
    optimize("policy", params, lambda: loss(mixed=True), max(2, int(POLICY_STEPS * scale)), lr=1e-3)
    model.half().save_pretrained(output / "policy")
    processor.save_pretrained(output / "policy")


# ------------------------------------------------------------------------------------------------ prompts and report


def write_prompts(output: Path, scale: float, seed: int) -> None:
    """Write train.jsonl and validation.jsonl. The scene, which the checker needs, is in validation alone."""
    for name, count, unseen in (("train", 1000, False), ("validation", 300, True)):
        rows = users.prompt_rows(count, unseen, seed + unseen)
        if name == "train":
            rows = [{key: value for key, value in row.items() if key != "scene"} for row in rows]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (output / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{output / name}.jsonl: {count} prompts, e.g. {rows[0]['user_prompt']!r}")


def measure(output: Path, seed: int, count: int = 500) -> list[tuple[str, float, str, bool]]:
    """Measure the parts, loaded from disk: (name, value in 0..1, the aim, whether it is met) of each."""
    rng = random.Random(seed + 1000)
    scenes = [world.random_scene(rng) for _ in range(count)]
    rows = users.prompt_rows(count, unseen=True, seed=seed + 1001)
    sizes = {"num_inference_steps": 8, "guidance_scale": 3.0, "height": 48, "width": 48, "max_sequence_length": 1}
    without_t5 = {"text_encoder_3": None, "tokenizer_3": None}
    renderer = Renderer(RenderConfig(str(output / "generator"), without_t5, sizes, render_batch_size=50))
    captions = [world.caption(scene) for scene in scenes]
    drawn = renderer.render([(text, index) for index, text in enumerate(captions)])
    canonical = sum(world.check_pictures(drawn, scenes)) / count
    raw_drawn = renderer.render([(row["user_prompt"], index) for index, row in enumerate(rows)])
    raw = sum(world.check_pictures(raw_drawn, [row["scene"] for row in rows])) / count
    world_sheet(scenes, captions, drawn).save(output / "pictures.png")
    results = [
        ("canonical captions that the generator draws right", canonical, ">= 90 %", canonical >= 0.9),
        ("users' prompts that the generator draws right", raw, "<= 10 %", raw <= 0.1),
    ]
    by_skill: dict[str, list[bool]] = {}
    for picture, scene in zip(drawn, scenes, strict=True):
        seen = world.read_picture(picture)
        for row in users.questions_of(scene):
            by_skill.setdefault(row["skill"], []).append(world.answer_question(seen, row["question"]) == row["answer"])
    for skill, right in sorted(by_skill.items()):
        share = sum(right) / len(right)
        results.append((f"questions about them with the right answer: {skill}", share, ">= 95 %", share >= 0.95))

    results += agreement(output, [*drawn, *raw_drawn], [*scenes, *(row["scene"] for row in rows)])

    clip = ClipReward(f"local-dir:{output / 'scorer'}")
    right = near_right = 0
    for scene in scenes:
        picture = world.draw_scene(scene, rng)
        texts = [world.caption(world.random_scene(rng)) for _ in range(63)]
        near = [world.caption(world.near_scene(scene, rng)) for _ in range(3)]
        caption_score, *rest = clip([picture] * 67, [world.caption(scene), *texts, *near], [""] * 67)
        right += all(score < caption_score for score in rest[:63])
        near_right += all(score < caption_score for score in rest[63:])

    processor = AutoProcessor.from_pretrained(output / "policy")
    policy = Qwen2VLForConditionalGeneration.from_pretrained(output / "policy", dtype=torch.float32).to(DEVICE)
    enhancer = PromptEnhancer(policy, processor)
    prompts = [row["user_prompt"] for row in rows]
    answers = enhancer.enhance(prompts, max_new_tokens=40, temperature=1.0, batch_size=100)
    parsed = sum(not answer.malformed for answer in answers) / count
    repeated = enhancer.enhance(prompts[:64], n=8, max_new_tokens=40, temperature=1.0, batch_size=128)
    varied = sum(len({answer.prompt for answer in group}) >= 4 for group in repeated) / len(repeated)
    asked = [example for example in picture_examples(3 * count, rng) if example[1] != DESCRIBE][:count]
    answered = sum(ask(policy, processor, *example) for example in asked) / count
    return [
        *results,
        ("real pictures whose caption the scorer picks out of 64", right / count, ">= 85 %", right / count >= 0.85),
        (
            "real pictures whose caption it picks out of 4 near ones",
            near_right / count,
            ">= 85 %",
            near_right >= 0.85 * count,
        ),
        ("answers of the policy that parse", parsed, ">= 95 %", parsed >= 0.95),
        ("prompts with at least 4 different answers of 8", varied, ">= 95 %", varied >= 0.95),
        ("questions about real pictures that the policy answers right", answered, ">= 90 %", answered >= 0.9),
    ]


def agreement(output: Path, pictures: list[Image.Image], scenes: list[dict]) -> list[tuple]:
    """Measure how often the judge and the checker agree whether a generated image has the expected answer to a
    question about its scene, for each skill: each question alone, whatever it needs."""
    questions = [[{**row, "needs": []} for row in users.questions_of(scene)] for scene in scenes]
    scores = QuestionsReward(str(output / "judge"), batch_size=100).ask(pictures, [""] * len(pictures), questions)
    agreed: dict[str, list[bool]] = {}
    for picture, rows, found in zip(pictures, questions, scores, strict=True):
        seen = world.read_picture(picture)
        for row, score in zip(rows, found, strict=True):
            is_right = world.answer_question(seen, row["question"]) == row["answer"]
            agreed.setdefault(row["skill"], []).append((score > 0.5) == is_right)
    shares = {skill: sum(found) / len(found) for skill, found in sorted(agreed.items())}
    return [
        (f"questions on which the judge agrees with the checker: {skill}", share, ">= 95 %", share >= 0.95)
        for skill, share in shares.items()
    ]


@torch.no_grad()
def ask(policy: Qwen2VLForConditionalGeneration, processor, picture: Image.Image, question: str, answer: str) -> bool:
    """Return whether the policy answers a question about an image right."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    message = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        message, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(DEVICE)
    written = policy.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(written, skip_special_tokens=True).strip() == answer


def world_sheet(scenes: list[dict], captions: list[str], drawn: list[Image.Image]) -> Image.Image:
    """Return a sheet of the world's images above the generator's, for six captions, enlarged without blur."""
    rng = random.Random(0)
    size = (4 * world.PICTURE_SIZE,) * 2
    real = [world.draw_scene(scene, rng) for scene in scenes[:6]]
    rows = [
        (
            name,
            [
                (picture.resize(size, Image.Resampling.NEAREST), caption)
                for picture, caption in zip(pictures, captions, strict=False)
            ],
        )
        for name, pictures in (("real pictures", real), ("drawn by the generator", drawn[:6]))
    ]
    return labelled_grid(rows)


def write_report(output: Path, seconds: dict[str, float], seed: int) -> None:
    results = measure(output, seed)
    lines = [
        "| measured on the files in this folder | value | aim | |",
        "| --- | --- | --- | --- |",
        *(f"| {what} | {value:.1%} | {aim} | {'met' if met else 'missed'} |" for what, value, aim, met in results),
    ]
    table = "\n".join(lines)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) / 1e6
    machine = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} CPU cores"
    timing = ", ".join(f"{part} {used:.0f} s" for part, used in seconds.items())
    report = f"""# The tiny world

Made by `python data/tiny_world/build.py --output data/tiny_world --seed {seed}`; nothing in it comes from elsewhere.

- `policy/`: a `Qwen2VLForConditionalGeneration` that sees, fine-tuned on rewrites of mixed quality.
- `judge/`: the same before it learnt to rewrite: it answers questions about pictures.
- `generator/`: a `StableDiffusion3Pipeline` without T5 that draws 48x48 pictures and knows one caption style.
- `scorer/`: an OpenCLIP model that understands that style and users' words, English and Korean.
- `train.jsonl`, `validation.jsonl`: users' prompts. Each of validation asks for a pair of colour and shape that
  neither a training prompt nor a rewrite that the policy was fine-tuned on names; many have words and patterns of
  their own.
- `hand_written.jsonl`: 60 prompts that no pattern made.

![real pictures above, the generator's below](pictures.png)

{table}

Each share is of 500 (of 64 prompts for the different answers); pictures are judged by a checker that reads the pixels
(`world.py`). {size:.1f} MB in all. Trained on {machine}: {timing}.
"""
    (output / "README.md").write_text(report)
    print("\n" + report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--only", choices=PARTS, help="build one part; the report needs all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the training steps, to try the code out")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    builders = {
        "prompts": write_prompts,
        "generator": train_generator,
        "scorer": train_scorer,
        "judge": train_judge,
        "policy": train_policy,
    }
    seconds = {}
    for part in [arguments.only] if arguments.only else PARTS:
        start = time.time()
        builders[part](arguments.output, arguments.scale, arguments.seed)
        seconds[part] = round(time.time() - start)
    if all((arguments.output / part).exists() for part in ("generator", "scorer", "judge", "policy")):
        write_report(arguments.output, seconds, arguments.seed)


if __name__ == "__main__":
    quiet_libraries()
    main()

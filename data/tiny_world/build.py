"""Build the tiny world from scratch: three small models of the real classes and the prompts to train with.

    python data/tiny_world/build.py --output data/tiny_world                     # all, under an hour on two cores
    python data/tiny_world/build.py --output data/tiny_world --only generator    # one part

A `StableDiffusion3Pipeline` (generator/) learns to render one style of caption, an OpenCLIP model (scorer/) to match
images with every style, and a `Qwen2VLForConditionalGeneration` (policy/) to answer with rewrites of mixed quality,
so that GRPO has something to improve. At the end all parts are loaded from disk and measured; the report goes to
README.md in the output folder. A GPU is used when there is one.
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
from datasets import Dataset
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
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

import world
from brushup.config import RenderConfig
from brushup.console import quiet_libraries
from brushup.evaluation.sheet import labelled_grid
from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.template import build_messages
from brushup.render.renderer import Renderer
from brushup.rewards.clip import ClipReward
from brushup.training.callbacks import TrainingProgress


PARTS = ("prompts", "generator", "scorer", "policy")
TEXT_LENGTH = 32  # tokens that the generator's and the scorer's text encoders read
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def optimize(
    name: str,
    params: list,
    loss_of_batch: Callable[[], torch.Tensor],
    steps: int,
    lr: float,
    after: Callable[[], None] | None = None,
):
    """Minimize the loss by AdamW with a short warm-up and a cosine decay; print it twenty times."""
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.05)
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
    """Return images as (n, 3, 32, 32) in -1..1 on the device."""
    return torch.stack([pil_to_tensor(image) for image in images]).to(DEVICE) / 127.5 - 1


def train_clip_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """Return a BPE tokenizer of CLIP's kind that knows each character as the end of a word, so no word is unknown."""
    characters = list(string.ascii_letters + string.digits + string.punctuation) * 10
    tokenizer = CLIPTokenizer().train_new_from_iterator(texts + characters, 2000, show_progress=False)
    tokenizer.model_max_length = TEXT_LENGTH
    return tokenizer


def user_texts(count: int, rng: random.Random) -> list[str]:
    scenes = world.all_scenes()
    return [world.user_prompt(rng.choice(scenes), rng.choice(world.CATEGORIES), rng)[0] for _ in range(count)]


# ---------------------------------------------------------------------------------------------------- the generator


def train_generator(output: Path, scale: float, seed: int) -> None:
    """Train a Stable Diffusion 3 (VAE, two CLIP text encoders, MMDiT; no T5) that knows canonical captions only.

    Rectified flow with logit-normal time steps, as in Esser et al. 2024 (arXiv 2403.03206); one caption in ten is
    dropped for classifier-free guidance. The odd pairs of the world are seen ten times less often than the others.
    """
    set_seed(seed)
    rng = random.Random(seed)
    scenes = world.all_scenes()
    weights = [0.1 if world.is_unseen(scene) else 1.0 for scene in scenes]
    drawn = rng.choices(scenes, weights, k=max(256, int(16_000 * min(1, scale))))
    captions = [world.canonical_caption(scene) for scene in drawn]
    pictures = to_tensor([world.draw_scene(scene, rng) for scene in drawn])

    vae = AutoencoderKL(
        block_out_channels=(16, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=world.PICTURE_SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).to(DEVICE)

    def vae_loss() -> torch.Tensor:
        batch = pictures[torch.randint(len(pictures), (64,))]
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        return F.mse_loss(decoded, batch) + 0.1 * F.l1_loss(decoded, batch) + 1e-4 * posterior.kl().mean() / 256

    optimize("VAE", list(vae.parameters()), vae_loss, steps=max(2, int(1200 * scale)), lr=3e-3)
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures.split(256)])
    shift, spread = latents.mean().item(), latents.std().item()
    vae.register_to_config(shift_factor=shift, scaling_factor=1 / spread)
    latents = (latents - shift) / spread

    tokenizer = train_clip_tokenizer([world.canonical_caption(scene) for scene in scenes])
    encoders = [
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                projection_dim=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=TEXT_LENGTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ).to(DEVICE)
        for _ in range(2)
    ]
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    ).to(DEVICE)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )

    def flow_loss() -> torch.Tensor:
        index = torch.randint(len(latents), (64,))
        texts = [captions[i] if rng.random() > 0.1 else "" for i in index.tolist()]
        embeds, _, pooled, _ = pipeline.encode_prompt(
            texts, None, None, device=DEVICE, do_classifier_free_guidance=False, max_sequence_length=1
        )
        clean, noise = latents[index], torch.randn(64, 4, 8, 8, device=DEVICE)
        sigma = torch.sigmoid(torch.randn(64, device=DEVICE))
        mixed = noise * sigma.view(-1, 1, 1, 1) + clean * (1 - sigma.view(-1, 1, 1, 1))
        predicted = transformer(mixed, embeds, pooled, sigma * 1000).sample
        return F.mse_loss(predicted, noise - clean)

    modules = torch.nn.ModuleList([transformer, *encoders])
    params = list(modules.parameters())
    average = EMAModel(params, decay=0.998)
    optimize("generator", params, flow_loss, int(max(2, 4000 * scale)), lr=1.5e-3, after=lambda: average.step(params))
    average.copy_to(params)
    pipeline.to(torch.float16).save_pretrained(output / "generator")


# ------------------------------------------------------------------------------------------------------- the scorer


def train_scorer(output: Path, scale: float, seed: int) -> None:
    """Train an OpenCLIP model (contrastive, Radford et al. 2021) that reads canonical captions and users' words alike.

    Half of the images are blurred and made noisy, since it will judge generated ones.
    """
    set_seed(seed)
    rng = random.Random(seed)
    scenes = world.all_scenes()
    tokenizer = train_clip_tokenizer([world.canonical_caption(s) for s in scenes] + user_texts(4000, rng))
    text_cfg = {
        "context_length": TEXT_LENGTH,
        "vocab_size": len(tokenizer),
        "hf_tokenizer_name": "local",  # OpenCLIP then reads the tokenizer from the model's own folder
        "width": 96,
        "heads": 3,
        "layers": 2,
        "pool_type": "eos",
        "eos_id": tokenizer.eos_token_id,
    }
    vision_cfg = {"image_size": world.PICTURE_SIZE, "patch_size": 4, "width": 96, "layers": 3, "head_width": 32}
    model_cfg = {"embed_dim": 64, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    model = open_clip.CLIP(**model_cfg, output_dict=True).to(DEVICE)
    loss_function = open_clip.ClipLoss()
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    mean, std = (torch.tensor(preprocess[name], device=DEVICE).view(1, 3, 1, 1) for name in ("mean", "std"))

    def clip_loss() -> torch.Tensor:
        batch = rng.choices(scenes, k=192)
        pictures = to_tensor([world.draw_scene(scene, rng) for scene in batch]) / 2 + 0.5
        worn = gaussian_blur(pictures[::2], 5, rng.uniform(0.3, 1.0))
        pictures[::2] = (worn + 0.08 * rng.random() * torch.randn_like(worn)).clip(0, 1)
        texts = [
            world.canonical_caption(scene)
            if rng.random() < 0.35
            else world.user_prompt(scene, rng.choice(world.CATEGORIES), rng)[0]
            for scene in batch
        ]
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
        return loss_function(**model((pictures - mean) / std, tokens.input_ids.to(DEVICE)))

    optimize("scorer", list(model.parameters()), clip_loss, steps=max(2, int(800 * scale)), lr=1.5e-3)
    folder = output / "scorer"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}, indent=2) + "\n"
    )
    tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------- the policy

# Qwen2-VL's own markup: system and user turns, pictures as placeholders that the processor expands.
CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'text' %}\
{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

FLOURISHES = ("highly detailed", "4k", "best quality", "sharp focus", "digital art")


def mixed_rewrite(scene: dict[str, str], user_words: dict[str, str | None], rng: random.Random) -> str:
    """Return an answer of mixed quality: a quarter good, half sloppy, a quarter wrong; one in ten wrapped in chatter.

    A good answer is the canonical caption. A sloppy one keeps the user's words, of which the generator knows few
    (of Korean ones about half), or leaves out again what the user left out. A wrong one is a canonical caption with
    one or two words exchanged.
    """
    quality = rng.choices(("good", "sloppy", "wrong"), (0.25, 0.5, 0.25))[0]
    if quality == "good":
        answer = world.canonical_caption(scene)
    elif quality == "wrong":
        options = {"shape": list(world.SHAPES), "size": list(world.SIZES)}
        options |= {"color": list(world.COLORS), "background": list(world.COLORS)}
        changed = {name: rng.choice(options[name]) for name in rng.sample(world.ATTRIBUTES, rng.choice((1, 1, 2)))}
        if (changed.get("color", scene["color"]), changed.get("shape", scene["shape"])) in world.UNSEEN_PAIRS:
            changed = {}
        answer = world.canonical_caption(scene | changed)
    else:
        translated = {name: word and not word.isascii() and rng.random() < 0.5 for name, word in user_words.items()}
        kept = {name: word if word and not translated[name] else scene[name] for name, word in user_words.items()}
        answer = world.canonical_caption(kept)
        if user_words["background"] is None and rng.random() < 0.7:
            answer = answer.split(" on a")[0]
        if rng.random() < 0.3:
            answer += ", " + rng.choice(FLOURISHES)
    if rng.random() < 0.1:
        answer = rng.choice(('"{}"', "Enhanced prompt: {}", "Sure! Here is the prompt:\n\n{}", "**{}**")).format(
            answer
        )
    return answer if rng.random() > 0.015 else ""


def policy_examples(count: int, rng: random.Random) -> list[dict]:
    """Return conversations to fine-tune on, about the pairs that validation does not ask for."""
    scenes = [scene for scene in world.all_scenes() if not world.is_unseen(scene)]
    examples = []
    for _ in range(count):
        scene = rng.choice(scenes)
        prompt, words = world.user_prompt(scene, rng.choice(world.CATEGORIES), rng)
        answer = mixed_rewrite(scene, words, rng)
        examples.append({"prompt": build_messages(prompt), "completion": [{"role": "assistant", "content": answer}]})
    return examples


def train_policy(output: Path, scale: float, seed: int) -> None:
    """Train a Qwen2-VL, text and vision tower, by TRL's SFTTrainer on `mixed_rewrite`s."""
    set_seed(seed)
    rng = random.Random(seed)
    batch, steps = 64, max(2, int(1500 * scale))
    examples = policy_examples(max(batch * 4, int(batch * steps / 2)), rng)
    specials = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    texts = [message["content"] for row in examples[:4000] for message in row["prompt"][1:] + row["completion"]]
    texts += [row["content"] + "\nassistant\nsystem\nuser\n" for row in examples[0]["prompt"][:1]] * 100
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, 900, new_special_tokens=specials, show_progress=False)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
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
        },
        vision_config={"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "patch_size": 4},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    limits = {"patch_size": 4, "min_pixels": world.PICTURE_SIZE**2, "max_pixels": (4 * world.PICTURE_SIZE) ** 2}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**limits), tokenizer, Qwen2VLVideoProcessor(**limits), chat_template=CHAT_TEMPLATE
    )
    arguments = SFTConfig(
        output_dir=str(output / "policy"),
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        max_length=256,
        gradient_checkpointing=False,
        bf16=False,
        logging_steps=max(1, steps // 20),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        use_cpu=DEVICE == "cpu",
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[TrainingProgress()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.half().save_pretrained(output / "policy")
    processor.save_pretrained(output / "policy")


# ------------------------------------------------------------------------------------------------ prompts and report


def write_prompts(output: Path, scale: float, seed: int) -> None:
    """Write train.jsonl and validation.jsonl. The scene, which the checker needs, is in validation alone."""
    for name, count, unseen in (("train", 1000, False), ("validation", 200, True)):
        rows = world.prompt_rows(count, unseen, seed + unseen)
        if name == "train":
            rows = [{key: value for key, value in row.items() if key != "scene"} for row in rows]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (output / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{output / name}.jsonl: {count} prompts, e.g. {rows[0]['user_prompt']!r}")


def measure(output: Path, seed: int, count: int = 500) -> list[tuple[str, float, str, bool]]:
    """Measure the parts, loaded from disk: (name, value in 0..1 or a count, the aim, whether it is met) of each."""
    rng = random.Random(seed + 1000)
    scenes = rng.choices(world.all_scenes(), k=count)
    rows = world.prompt_rows(count, unseen=True, seed=seed + 1001)
    sizes = {"num_inference_steps": 6, "guidance_scale": 3.0, "height": 32, "width": 32, "max_sequence_length": 1}
    without_t5 = {"text_encoder_3": None, "tokenizer_3": None}
    renderer = Renderer(RenderConfig(str(output / "generator"), without_t5, sizes, render_batch_size=50))
    captions = [world.canonical_caption(scene) for scene in scenes]
    drawn = renderer.render([(caption, index) for index, caption in enumerate(captions)])
    canonical = sum(world.check_pictures(drawn, scenes)) / count
    raw_drawn = renderer.render([(row["user_prompt"], index) for index, row in enumerate(rows)])
    raw = sum(world.check_pictures(raw_drawn, [row["scene"] for row in rows])) / count
    world_sheet(scenes, captions, drawn).save(output / "pictures.png")

    clip = ClipReward(f"local-dir:{output / 'scorer'}")
    right = alike = 0
    for scene in scenes:
        picture = world.draw_scene(scene, rng)
        others = rng.sample([other for other in world.all_scenes() if other != scene], 63)
        texts = [world.canonical_caption(shown) for shown in (scene, *others)]
        synonym = world.user_prompt(scene, "synonym", rng)[0]
        caption_score, *rest, other_words = clip([picture] * 65, [*texts, synonym], [""] * 65)
        rank, synonym_rank = (sum(score >= best for score in rest) for best in (caption_score, other_words))
        right += rank == 0
        alike += rank == synonym_rank

    processor = AutoProcessor.from_pretrained(output / "policy")
    policy = Qwen2VLForConditionalGeneration.from_pretrained(output / "policy", dtype=torch.float32).to(DEVICE)
    enhancer = PromptEnhancer(policy, processor)
    prompts = [row["user_prompt"] for row in rows]
    answers = enhancer.enhance(prompts, max_new_tokens=32, temperature=1.0, batch_size=100)
    parsed = sum(not answer.malformed for answer in answers) / count
    repeated = enhancer.enhance(prompts[:64], n=8, max_new_tokens=32, temperature=1.0, batch_size=128)
    varied = sum(len({answer.prompt for answer in group}) >= 4 for group in repeated) / len(repeated)

    picture = world.draw_scene(scenes[0], rng)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": prompts[0]}]
    message = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        message, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(DEVICE)
    seen = bool(torch.isfinite(policy(**inputs).logits).all()) and "pixel_values" in inputs

    return [
        ("canonical captions that the generator draws right", canonical, ">= 90 %", canonical >= 0.9),
        ("users' prompts that the generator draws right", raw, "<= 60 %", raw <= 0.6),
        ("real pictures whose caption the scorer picks out of 64", right / count, ">= 85 %", right / count >= 0.85),
        ("synonym captions ranked as the canonical one", alike / count, ">= 80 %", alike / count >= 0.8),
        ("answers of the policy that parse", parsed, ">= 95 %", parsed >= 0.95),
        ("prompts with at least 4 different answers of 8", varied, ">= 95 %", varied >= 0.95),
        ("image message answered (1 = yes)", float(seen), "1", seen),
    ]


def world_sheet(scenes: list[dict], captions: list[str], drawn: list[Image.Image]) -> Image.Image:
    """Return a sheet of the world's images above the generator's, for the first six captions."""
    rng = random.Random(0)
    real = [(world.draw_scene(scene, rng), caption) for scene, caption in zip(scenes[:6], captions, strict=False)]
    rendered = list(zip(drawn[:6], captions, strict=False))
    return labelled_grid([("real pictures", real), ("drawn by the generator", rendered)])


def write_report(output: Path, seconds: dict[str, float], seed: int) -> None:
    results = measure(output, seed)
    lines = [
        "| measured on the files in this folder | value | aim | |",
        "| --- | --- | --- | --- |",
        *(f"| {what} | {value:.1%} | {aim} | {'met' if met else 'missed'} |" for what, value, aim, met in results),
    ]
    table = "\n".join(lines).replace("| 100.0% | 1 |", "| 1 | 1 |")
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) / 1e6
    machine = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} CPU cores"
    timing = ", ".join(f"{part} {used:.0f} s" for part, used in seconds.items())
    report = f"""# The tiny world

Made by `python data/tiny_world/build.py --output data/tiny_world --seed {seed}`; nothing in it comes from elsewhere.

- `policy/`: a `Qwen2VLForConditionalGeneration`, fine-tuned on rewrites of mixed quality.
- `generator/`: a `StableDiffusion3Pipeline` without T5 that draws 32x32 pictures and knows one caption style.
- `scorer/`: an OpenCLIP model that understands that style and users' words, English and Korean.
- `train.jsonl`, `validation.jsonl`: users' prompts. Validation asks only for pairs of colour and shape that neither a
  training prompt nor a rewrite that the policy was fine-tuned on names.

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
    builders = {"prompts": write_prompts, "generator": train_generator, "scorer": train_scorer, "policy": train_policy}
    seconds = {}
    for part in [arguments.only] if arguments.only else PARTS:
        start = time.time()
        builders[part](arguments.output, arguments.scale, arguments.seed)
        seconds[part] = round(time.time() - start)
    if all((arguments.output / part).exists() for part in ("generator", "scorer", "policy")):
        write_report(arguments.output, seconds, arguments.seed)


if __name__ == "__main__":
    quiet_libraries()
    main()

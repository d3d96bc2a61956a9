"""Train the language models of the tiny world: a Qwen2-VL that answers questions about images and rewrites prompts."""

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AutoProcessor,
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
from brushup.policy.chat import Draft, ask
from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.template import REVISE, build_messages, parse_answer
from brushup.rewards.image_text_model import DOES_IT_SHOW
from brushup.rewards.questions import ASK
from free_users import FreeSpeaker
from language_losses import answer_loss, batches_of, question_loss
from learning import DEVICE, KINDS, RANK, RANKS, load_generator, optimize, part_labels, wear
from odd_users import OddSpeaker
from other_users import OtherSpeaker
from pattern_users import PatternSpeaker


# Ways of speaking, of users whom pretraining hears: a quarter speak as the training prompts do.
WAYS = (*[users.Speaker] * 2, FreeSpeaker, OddSpeaker, OtherSpeaker, *[PatternSpeaker] * 3)
REWRITE_STEPS, VISION_STEPS, JUDGE_STEPS, POLICY_STEPS, EYES_STEPS = 3000, 1000, (2000, 2500), 5400, 600


# Qwen2-VL's own markup: system and user turns, pictures as placeholders that the processor expands.
CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'text' %}\
{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
DESCRIBE = "Describe this picture."


def rewrite_example(rng: random.Random, mixed: bool) -> tuple[str, str]:
    """Return a user prompt, in any of the `WAYS`, and a rewrite, good or of mixed quality."""
    scene, prompt, said, spoken = _asked(world.random_scene(rng), rng)
    return prompt, rewrites.mixed_rewrite(scene, said, spoken, rng) if mixed else world.caption(scene)


def description(seen: dict) -> str:
    """Return a caption of an image as `read_picture` has it: the groups in reading order, without relations."""
    groups: dict[tuple, dict] = {}
    for shape in sorted(seen["objects"], key=lambda shape: (shape["y"] // 16, shape["x"])):
        look = {name: shape[name] for name in world.LOOK}
        group = groups.setdefault(tuple(look.values()), {**look, "count": 0})
        group["count"] += 1
    return world.caption({"objects": list(groups.values()), "relations": [], "background": seen["background"]})


def questions_about(scene: dict, picture: Image.Image, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Return `count` questions about an image of a scene, with the checker's answers.

    The first asks for a description, the second whether the image shows a caption or a user's prompt.
    """
    seen = world.read_picture(picture)
    about = scene if rng.random() < 0.5 else world.near_scene(scene, rng)
    prompt, said = world.caption(about), about
    if rng.random() < 0.5:
        prompt, said = users.user_prompt(about, rng.choice((*users.CATEGORIES, "korean")), rng, True)
    rows = [(DESCRIBE, description(seen))]
    rows.append((DOES_IT_SHOW.format(prompt), "yes" if world.shows(seen, said) else "no"))
    for _ in range(count - 2):
        about = scene if rng.random() < 0.85 else world.near_scene(scene, rng)
        question = users.any_question(about, seen, rng)
        rows.append((ASK.format(question), world.answer_question(seen, question)))
    return rows


@dataclass
class Drawn:
    """A rewrite and its image: the user means `scene`, and says `said` of it, in `prompt`, with the words `spoken`."""

    scene: dict
    prompt: str
    said: dict
    spoken: dict[str, str]
    rewrite: str
    picture: Image.Image | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the checker can tell all that the image shows."""
        seen = world.read_picture(self.picture)
        told = all(shape[name] for shape in seen["objects"] for name in world.LOOK)
        return bool(told and seen["background"] and 1 <= len(seen["objects"]) <= world.MAX_SHAPES)


def draw_rewrites(output: Path, count: int, rng: random.Random) -> list[Drawn]:
    """Return images by the generator: two in three of captions, the others of mixed rewrites."""
    drawn = []
    for index in range(count):
        scene = world.random_scene(rng)
        prompt, said, spoken = users.spoken_prompt(scene, rng.choice(users.CATEGORIES), rng, held_out=True)
        scene = rewrites.in_order_of_mention(scene, prompt, spoken)
        answer = world.caption(scene) if index % 3 else rewrites.mixed_rewrite(scene, said, spoken, rng)
        drawn.append(Drawn(scene, prompt, said, spoken, parse_answer(answer, prompt) or prompt))
    return with_pictures(drawn, output)


def draw_drafts(enhancer: PromptEnhancer, output: Path, count: int, rng: random.Random) -> list[Drawn]:
    """Return images of the policy's likeliest rewrites: a prompt that it misreads once it learns to read again."""
    asked = [_asked(world.random_scene(rng), rng) for _ in range(count)]
    written = enhancer.enhance([prompt for _, prompt, _, _ in asked], max_new_tokens=32, batch_size=64)
    return with_pictures([Drawn(*a, w.prompt) for a, w in zip(asked, written, strict=True)], output)


def with_pictures(drawn: list[Drawn], output: Path) -> list[Drawn]:
    """Return the rewrites with their images by the generator, from the seeds 0, 1, 2, ..."""
    seeded = [(rewrite.rewrite, seed) for seed, rewrite in enumerate(drawn)]
    pictures = load_generator(output / "generator").render(seeded)
    return [replace(rewrite, picture=picture) for rewrite, picture in zip(drawn, pictures, strict=True)]


def _asked(scene: dict, rng: random.Random) -> tuple[dict, str, dict, dict]:
    """Return the scene in the order of the prompt, the prompt of a user who means it, what the prompt says of it, and
    the user's words."""
    category = rng.choice((*users.CATEGORIES, "korean", "korean"))
    prompt, said, spoken = users.spoken_prompt(scene, category, rng, rng.choice((True, False)), rng.choice(WAYS))
    return rewrites.in_order_of_mention(scene, prompt, spoken), prompt, said, spoken


def revision_example(drawn: list[Drawn], rng: random.Random) -> tuple[str, Draft, str]:
    """Return a user prompt, a draft, and an answer of mixed quality to its image.

    Two thirds are of `drawn`; of the others, which are drawn here, half show all that the user meant.
    """
    if rng.random() < 0.67:
        draft = rng.choice(drawn)
        scene, prompt, said, spoken = draft.scene, draft.prompt, draft.said, draft.spoken
        text, picture = draft.rewrite, draft.picture
    else:
        scene, prompt, said, spoken = _asked(world.random_scene(rng), rng)
        shown = scene
        if rng.random() < 0.5:
            shown = rng.choice((world.near_scene, world.near_scene, _nearer, _other))(scene, rng)
        text, picture = world.caption(shown), world.draw_scene(shown, rng)
    is_right = world.shows(world.read_picture(picture), said)
    answer = rewrites.mixed_revision(text, is_right, scene, said, spoken, rng)
    return prompt, Draft(text, wear(picture, rng)), answer


def _nearer(scene: dict, rng: random.Random) -> dict:
    return world.near_scene(world.near_scene(scene, rng), rng)


def _other(scene: dict, rng: random.Random) -> dict:
    return world.random_scene(rng)


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
    for _ in range(2000):
        scene = world.random_scene(rng)
        texts += [ASK.format(row["question"]) for row in users.questions_of(scene)]
    answers = ["yes", "no", "unclear", *world.NUMBER_WORDS, *world.COLORS, *world.BACKGROUNDS, *world.SHAPES]
    texts += [
        "\n".join([build_messages("")[0]["content"], REVISE, DESCRIBE, *answers, "assistant\nsystem\nuser\n"])
    ] * 200
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, 1500, new_special_tokens=specials, show_progress=False)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def picture_loss(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    count: int,
    generated: list[tuple[dict, Image.Image]],
    rng: random.Random,
) -> torch.Tensor:
    """Return the `question_loss` of `count` images: a half are drawn, the others `generated`, if there are any, which
    look a little different."""
    shown = [(scene, world.draw_scene(scene, rng)) for scene in (world.random_scene(rng) for _ in range(count // 2))]
    shown += rng.choices(generated, k=count // 2) if generated else []  # a bad generator's images tell nothing
    questions = [questions_about(scene, picture, 12, rng) for scene, picture in shown]
    return question_loss(model, processor, [picture for _, picture in shown], questions)


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
    tokens = [[word_tokens(processor.tokenizer, word) for word in names if word] for names in KINDS]
    nothing = torch.nn.Parameter(torch.randn(len(KINDS), model.config.text_config.hidden_size, device=DEVICE) * 0.08)
    embeddings = model.get_input_embeddings().weight.detach()

    def loss() -> torch.Tensor:
        pictures = [world.draw_scene(world.random_scene(rng), rng) for _ in range(64)]
        worn = [wear(picture, rng) for picture in pictures]
        inputs = processor.image_processor(worn, return_tensors="pt").to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):
            seen = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output.float()
        total = torch.zeros((), device=DEVICE)
        for kind, label in enumerate(part_labels(pictures).flatten(0, 1).unbind(-1)):
            words = [embeddings[spellings].mean(0) for spellings in tokens[kind]]
            words += [nothing[kind]] if kind else []  # every part has a background
            total = total + F.cross_entropy(seen @ torch.stack(words).T, label)
        return total

    optimize("vision", [*model.model.visual.parameters(), nothing], loss, steps, lr=1e-2)


def train_judge(
    output: Path,
    scale: float,
    seed: int,
    wait_for_generator: Callable[[], object] = lambda: None,
    at_half: Callable[[], None] = lambda: None,
) -> None:
    """Train a Qwen2-VL that answers questions about images, for the rewards `questions` and `vqa`.

    It learns to rewrite prompts first: questions about images it then learns in a tenth of the time. Halfway through
    these, at the end of the first of two decays of the rate, it is saved as the start of the policy.

    Args:
        wait_for_generator: called before the generator is loaded, which may be trained meanwhile.
        at_half: called when the start of the policy is saved.
    """
    set_seed(seed)
    rng = random.Random(seed)
    model, processor = language_model(train_qwen_tokenizer(rng))
    params = list(model.parameters())

    examples = batches_of(lambda: rewrite_example(rng, mixed=False), 64, processor.tokenizer)

    def rewriting_loss() -> torch.Tensor:  # without a system message, which would cost half as much again
        prompts, answers = zip(*next(examples), strict=True)
        return answer_loss(model, processor, [build_messages(prompt)[1:] for prompt in prompts], list(answers))

    optimize("rewriting", params, rewriting_loss, max(2, int(REWRITE_STEPS * scale)), lr=4e-3)
    pretrain_vision(model, processor, max(2, int(VISION_STEPS * scale)), rng)
    wait_for_generator()
    drawn = draw_rewrites(output, max(8, int(2400 * scale)), rng)
    generated = [(rewrite.scene, rewrite.picture) for rewrite in drawn if rewrite.is_clear]
    loss = functools.partial(picture_loss, model, processor, 24, generated, rng)
    optimize("judge", params, loss, max(1, int(JUDGE_STEPS[0] * scale)), lr=3e-3)
    model.save_pretrained(output / "policy")
    processor.save_pretrained(output / "policy")
    at_half()
    optimize("judge", params, loss, max(1, int(JUDGE_STEPS[1] * scale)), lr=3e-3)
    processor.save_pretrained(output / "judge")
    model.half().save_pretrained(output / "judge")


def train_policy(output: Path, scale: float, seed: int) -> None:
    """Train the judge of halfway to rewrite prompts again, with mixed quality now; it learns on about images, too.

    Several processes (`RANKS`) train one policy.
    """
    set_seed(seed + RANK)
    rng = random.Random(seed + 1 + RANK)
    model = Qwen2VLForConditionalGeneration.from_pretrained(output / "policy", dtype=torch.float32).to(DEVICE)
    processor = AutoProcessor.from_pretrained(output / "policy")
    params, steps = list(model.parameters()), max(2, int(POLICY_STEPS * scale))
    count = max(8, int(1200 * scale) // RANKS)
    drawn = draw_rewrites(output, count, rng)
    generated = [(rewrite.scene, rewrite.picture) for rewrite in drawn if rewrite.is_clear]
    turn, done = itertools.count(), itertools.count(1)
    reading = batches_of(lambda: rewrite_example(rng, mixed=False), 64, processor.tokenizer)
    rewriting = batches_of(lambda: rewrite_example(rng, mixed=True), 64, processor.tokenizer)
    to_revise = batches_of(lambda: revision_example(drawn, rng), 32, processor.tokenizer)

    def look_at_drafts() -> None:  # of the policy itself, halfway, when it can write
        if next(done) == steps // 2:
            drawn.extend(draw_drafts(PromptEnhancer(model, processor), output, 3 * count, rng))

    def loss(images: int = 0) -> torch.Tensor:
        # Of eight steps three revise drafts; two have the system message, which costs half as much again; two have
        # questions about images. For three fifths of the steps rewrites are good, as reading is learnt sooner so.
        step = next(turn)
        kind = step % 8
        first = 0 if kind in (0, 1) else 1
        if kind % 3 == 1:
            prompts, drafts, answers = zip(*next(to_revise), strict=True)
            asked = zip(prompts, drafts, strict=True)
            messages = [ask(processor, prompt, draft=draft)[first:] for prompt, draft in asked]
            error = answer_loss(model, processor, messages, list(answers), [draft.image for draft in drafts])
        else:
            prompts, answers = zip(*next(reading if step < 0.6 * steps else rewriting), strict=True)
            messages = [build_messages(prompt)[first:] for prompt in prompts]
            error = answer_loss(model, processor, messages, list(answers))
            images = images or (6 if kind in (0, 5) else 0)
        return error + picture_loss(model, processor, images, generated, rng) if images else error

    optimize("policy", params, loss, steps, lr=3e-3, after=look_at_drafts)
    # Of so few images it has forgotten some of what the judge sees.
    optimize("eyes", params, lambda: loss(24 // RANKS), max(1, int(EYES_STEPS * scale)), lr=2e-3)
    if RANK == 0:
        model.half().save_pretrained(output / "policy")
        processor.save_pretrained(output / "policy")

"""`vqa`, `image_reward` and `ocr` put the right picture above a wrong one.

None of the tiny world's models fits the first two, so small ones of the real classes are trained here, in about a
minute each, and asked about scenes that they were not trained on.
"""

import random

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import TINY_WORLD
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoConfig, AutoProcessor, BertTokenizer, BlipTextConfig, Qwen2VLForConditionalGeneration
from transformers.models.blip.modeling_blip_text import BlipTextModel

import world
from brushup.rewards.image_reward import DEVIATION, MEAN
from brushup.rewards.image_text_model import DOES_IT_SHOW as QUESTION
from support.rewards import load_reward


VALUES = {"shape": world.SHAPES, "color": world.COLORS, "size": world.SIZES, "background": world.COLORS}


def split_scenes(rng):
    """The scenes to train on, 504, and the others, 168."""
    scenes = world.all_scenes()
    rng.shuffle(scenes)
    return scenes[168:], scenes[:168]


def change_one_thing(scene, scenes, rng):
    """Another of `scenes`, that differs from `scene` in one thing: shape, colour, size or background alike."""
    while True:
        name = rng.choice(world.ATTRIBUTES)
        other = scene | {name: rng.choice(list(VALUES[name]))}
        if other != scene and other in scenes:
            return other


def near_misses(scene, scenes):
    """All of `scenes` that differ from `scene` in one thing."""
    return [other for other in scenes if sum(other[name] != scene[name] for name in world.ATTRIBUTES) == 1]


def draw(scenes, rng):
    return [world.draw_scene(scene, rng) for scene in scenes]


def share_right(reward, prompts, right, wrong, rng):
    """The share of prompts whose right scene `reward` puts above the wrong one."""
    scores = (reward(draw(scenes, rng), prompts, prompts) for scenes in (right, wrong))
    return sum(good > bad for good, bad in zip(*scores, strict=True)) / len(prompts)


def train(parameters, loss_of_batch, steps, lr):
    """AdamW with a short warm-up and a cosine decay."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of_batch().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


def train_tower(tower, look, width, scenes, steps, rng):
    """Teaches a picture encoder to name what it sees, as those of the real models can before they are tuned.

    Its weights are fixed from then on: else it forgets shapes before the words for them are learnt.

    `look` gives (pictures, width) features of a list of pictures, with the weights of the module `tower`.
    """
    names = torch.nn.Linear(width, sum(map(len, VALUES.values())))

    def loss():
        batch = rng.choices(scenes, k=64)
        guesses = names(look(draw(batch, rng))).split([len(values) for values in VALUES.values()], dim=1)
        return sum(
            F.cross_entropy(guess, torch.tensor([list(values).index(scene[name]) for scene in batch]))
            for (name, values), guess in zip(VALUES.items(), guesses, strict=True)
        )

    train([*tower.parameters(), *names.parameters()], loss, steps, lr=2e-3)
    tower.requires_grad_(False)


# --------------------------------------------------------------------------------------------------------------- vqa


def question(prompt, processor):
    content = [{"type": "image"}, {"type": "text", "text": QUESTION.format(prompt)}]
    conversation = [{"role": "user", "content": content}]
    return processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)


def train_judge(folder, seed):
    """Saves a Qwen2-VL that answers yes or no; returns the scenes that it was not trained on, and the rng.

    It learns to answer, and to guess each word of the question before it reads it where the answer is yes: that is
    how it gets to look at the picture soon.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    scenes, held_out = split_scenes(rng)
    processor = AutoProcessor.from_pretrained(TINY_WORLD / "policy")
    texts = [QUESTION.format(world.canonical_caption(scene)) for scene in scenes] + ["user\nassistant\nyes no"] * 500
    tokenizer = processor.tokenizer.train_new_from_iterator(texts, 900, show_progress=False)
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.chat_template = processor.chat_template
    processor.tokenizer, processor.image_processor.patch_size = tokenizer, 8
    answers = tokenizer.convert_tokens_to_ids(["no", "yes"])
    config = AutoConfig.from_pretrained(TINY_WORLD / "policy", dtype=torch.float32)
    config.vision_config.patch_size = 8
    text = config.text_config
    text.vocab_size, text.num_hidden_layers, text.layer_types = len(tokenizer), 2, text.layer_types[:2]
    for part in (config, config.text_config, config.vision_config):
        part.initializer_range = 0.08  # of so narrow layers
    model = Qwen2VLForConditionalGeneration(config).train()

    def look(images):
        inputs = processor.image_processor(images, return_tensors="pt")
        tokens = model.model.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw).pooler_output
        return tokens.unflatten(0, (len(images), -1)).mean(1)

    def loss():
        shown = rng.choices(scenes, k=32)
        captioned = [rng.choice([change_one_thing(scene, scenes, rng), rng.choice(scenes)]) for scene in shown]
        captioned[::2] = shown[::2]
        right = torch.tensor([int(caption == other) for caption, other in zip(captioned, shown, strict=True)])
        inputs = processor(
            text=[question(world.canonical_caption(scene), processor) for scene in captioned],
            images=draw(shown, rng),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        logits = model(**inputs).logits
        words = inputs.attention_mask.bool() & (inputs.input_ids != config.image_token_id) & (right[:, None] == 1)
        guesses = F.cross_entropy(logits[:, :-1][words[:, 1:]], inputs.input_ids[:, 1:][words[:, 1:]])
        return F.cross_entropy(logits[:, -1, answers], right) + 3 * guesses

    train_tower(model.model.visual, look, 128, scenes, 250, rng)
    train(model.model.language_model.parameters(), loss, 520, lr=2e-3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return held_out, rng


@pytest.mark.nightly
def test_vqa_puts_the_right_picture_above_another(tmp_path):
    held_out, rng = train_judge(tmp_path, seed=0)
    reward = load_reward("vqa", model_name=str(tmp_path))
    # Any other scene: after a minute it tells four of five of those apart that differ in one thing.
    wrong = [rng.choice([other for other in held_out if other != scene]) for scene in held_out]
    assert share_right(reward, list(map(world.canonical_caption, held_out)), held_out, wrong, rng) >= 0.8


# ------------------------------------------------------------------------------------------------------ image_reward


def train_image_reward(folder, seed):
    """Writes `ImageReward.pt` and a tokenizer; returns the scenes that it was not trained on, and the rng.

    The loss is the paper's: -log sigmoid(r of the better picture - r of the other), over all pairs of four pictures.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    scenes, held_out = split_scenes(rng)
    width, pictures, groups = 128, 4, 16
    spoken = " ".join([*world.SYNONYMS, *(word for words in world.SYNONYMS.values() for word in words)])
    words = sorted(set(f"{spoken} a an on background".replace("-", " - ").split()))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vision = timm.models.VisionTransformer(32, 8, embed_dim=width, depth=2, num_heads=2, num_classes=0, global_pool="")
    for weight in vision.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.08)  # timm's 0.02 is for wider layers
    config = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        encoder_hidden_size=width,
        initializer_range=0.05,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    text = BlipTextModel(config, add_pooling_layer=False)
    widths = [width, 1024, 128, 64, 16, 1]
    head = torch.nn.Sequential(*map(torch.nn.Linear, widths, widths[1:]))
    preprocess = open_clip.image_transform(32, is_train=False)

    def look(images):
        return vision(torch.stack([preprocess(image) for image in images]))

    def marks():
        """Of each prompt of a group for each picture of the group: (groups, prompts, pictures)."""
        batch = []
        for _ in range(groups):
            group = [rng.choice(scenes)]
            while len(group) < pictures:
                other = change_one_thing(rng.choice(group), scenes, rng) if rng.random() < 0.8 else rng.choice(scenes)
                group += [other] if other not in group else []
            batch += group
        prompts = [world.user_prompt(scene, "synonym", rng)[0] for scene in batch]
        tokens = tokenizer(prompts, padding=True, return_tensors="pt")
        seen = look(draw(batch, rng)).unflatten(0, (groups, pictures)).repeat_interleave(pictures, dim=0).flatten(0, 1)
        states = text(
            tokens.input_ids.repeat_interleave(pictures, dim=0),
            attention_mask=tokens.attention_mask.repeat_interleave(pictures, dim=0),
            encoder_hidden_states=seen,
        ).last_hidden_state
        return head(states[:, 0]).view(groups, pictures, pictures)

    def loss():
        group_marks = marks()
        ahead = group_marks.diagonal(dim1=1, dim2=2)[..., None] - group_marks
        return -F.logsigmoid(ahead[:, ~torch.eye(pictures, dtype=torch.bool)]).mean()

    train_tower(vision, lambda images: look(images)[:, 0], width, scenes, 300, rng)
    train([*text.parameters(), *head.parameters()], loss, 240, lr=1e-3)
    with torch.no_grad():  # the mean and deviation that ImageReward's marks have; else the sigmoid is 1 for many
        group_marks = marks()
        scale = DEVIATION / group_marks.std()
        head[-1].weight.mul_(scale)
        head[-1].bias.sub_(group_marks.mean()).mul_(scale).add_(MEAN)
    weights = {
        f"blip.{name}.{key}": weight
        for name, part in {"visual_encoder": vision, "text_encoder": text}.items()
        for key, weight in part.state_dict().items()
    }
    for number, layer in zip((0, 2, 4, 6, 7), head, strict=True):
        weights |= {f"mlp.layers.{number}.{key}": weight for key, weight in layer.state_dict().items()}
    torch.save(weights, folder / "ImageReward.pt")
    return held_out, rng


@pytest.mark.nightly
def test_image_reward_puts_the_right_picture_above_a_near_miss(tmp_path):
    held_out, rng = train_image_reward(tmp_path, seed=0)
    reward = load_reward("image_reward", pretrained=f"{tmp_path}/ImageReward.pt", tokenizer=str(tmp_path))
    chosen = [scene for scene in held_out if near_misses(scene, held_out)]
    prompts = [world.user_prompt(scene, "synonym", rng)[0] for scene in chosen]
    wrong = [rng.choice(near_misses(scene, held_out)) for scene in chosen]
    assert len(chosen) > 140
    assert share_right(reward, prompts, chosen, wrong, rng) >= 0.8


# --------------------------------------------------------------------------------------------------------------- ocr


def sign(words, rng):
    """A picture that reads `words`, one below the other."""
    picture = Image.new("RGB", (320, 160), rng.choice(["papayawhip", "white", "lightblue"]))
    for number, word in enumerate(words):
        place = (rng.randint(10, 60), 20 + 60 * number)
        ImageDraw.Draw(picture).text(place, word, rng.choice(["navy", "black", "darkred"]), ImageFont.load_default(40))
    return picture


def share_of_signs_right(seed):
    """The share of 20 signs of two words that are above the sign where one word is another."""
    rng = random.Random(seed)
    words = (
        "OPEN BAKERY HARBOR MUSEUM GARDEN PIZZA LIBRARY SUMMER TICKETS STATION "
        "COFFEE MARKET WELCOME EXIT FLOWERS CINEMA VILLAGE RECORDS BICYCLE HOTEL"
    ).split()
    right_pairs = [rng.sample(words, 2) for _ in range(20)]
    other = [[first, rng.choice([word for word in words if word not in (first, last)])] for first, last in right_pairs]
    prompts = [f'a shop sign that reads "{" ".join(pair)}"' for pair in right_pairs]
    reward = load_reward("ocr")
    right, wrong = (reward([sign(pair, rng) for pair in pairs], prompts, prompts) for pairs in (right_pairs, other))
    return sum(good > bad for good, bad in zip(right, wrong, strict=True)) / len(prompts)


@pytest.mark.slow
def test_ocr_puts_the_right_sign_above_another():
    assert share_of_signs_right(seed=0) >= 0.8

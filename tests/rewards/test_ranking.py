"""`vqa`, `image_reward` and `ocr` put the right picture above a wrong one.

None of the tiny world's models fits `image_reward`, so a small one of the real class is trained here, in about a
minute, and asked about scenes that it was not trained on.
"""

import itertools
import random
import re

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import TINY_WORLD
from PIL import Image, ImageDraw, ImageFont
from transformers import BertTokenizer, BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

import users
import world
from brushup.rewards.image_reward import DEVIATION, MEAN
from support.rewards import load_reward


VALUES = {"shape": world.SHAPES, "color": world.COLORS, "size": world.SIZES, "background": world.BACKGROUNDS}


def scene_of(look):
    """The scene of one shape."""
    group = {name: look[name] for name in world.LOOK} | {"count": 1}
    return {"objects": [group], "relations": [], "background": look["background"]}


def split_looks(rng):
    """The looks of one shape to train on, 228, and the others, 76."""
    looks = [dict(zip(VALUES, values, strict=True)) for values in itertools.product(*VALUES.values())]
    looks = [look for look in looks if look["color"] != look["background"]]
    rng.shuffle(looks)
    return looks[76:], looks[:76]


def change_one_thing(scene, scenes, rng):
    """Another of `scenes`, that differs from `scene` in one thing: shape, colour, size or background alike."""
    while True:
        name = rng.choice(list(VALUES))
        other = scene | {name: rng.choice(list(VALUES[name]))}
        if other != scene and other in scenes:
            return other


def near_misses(scene, scenes):
    """All of `scenes` that differ from `scene` in one thing."""
    return [other for other in scenes if sum(other[name] != scene[name] for name in VALUES) == 1]


def draw(looks, rng):
    return [world.draw_scene(scene_of(look), rng) for look in looks]


def ask_for(look, rng):
    return users.user_prompt(scene_of(look), "plain", rng)[0]


def share_right(reward, prompts, right, wrong):
    """The share of prompts whose right image `reward` puts above the wrong one."""
    scores = (reward(images, prompts, prompts) for images in (right, wrong))
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


def test_vqa_puts_the_right_picture_above_a_near_miss():
    rng = random.Random(0)
    scenes = [world.random_scene(rng) for _ in range(100)]
    right = [world.draw_scene(scene, rng) for scene in scenes]
    wrong = [world.draw_scene(world.near_scene(scene, rng), rng) for scene in scenes]
    reward = load_reward("vqa", model_name=str(TINY_WORLD / "judge"))
    assert share_right(reward, list(map(world.caption, scenes)), right, wrong) >= 0.8


# ------------------------------------------------------------------------------------------------------ image_reward


def train_image_reward(folder, seed):
    """Writes `ImageReward.pt` and a tokenizer; returns the scenes that it was not trained on, and the rng.

    The loss is the paper's: -log sigmoid(r of the better picture - r of the other), over all pairs of four pictures.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    scenes, held_out = split_looks(rng)
    width, pictures, groups = 128, 4, 16
    spoken = " ".join([*itertools.chain(*users.WORDS.values()), *users.FRAMES["plain"]])
    words = sorted(set(re.findall(r"\w+|[^\w\s]", f"{spoken} an")))
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
        prompts = [ask_for(scene, rng) for scene in batch]
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
    prompts = [ask_for(scene, rng) for scene in chosen]
    wrong = [rng.choice(near_misses(scene, held_out)) for scene in chosen]
    assert len(chosen) > 60
    assert share_right(reward, prompts, draw(chosen, rng), draw(wrong, rng)) >= 0.8


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

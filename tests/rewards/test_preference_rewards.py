"""The rewards on large models, against other implementations of the same models."""

import gc
import json
import random
import weakref

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torchmetrics.functional.multimodal import clip_score
from torchvision.transforms.functional import pil_to_tensor
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
)

import users
import world
from support.reward_models import SCORER, write_head
from support.rewards import load_reward


pytest_plugins = ["support.reward_models"]


BATCH = {"batch_size": 3}  # several batches, the last one not full


def noise_images(count):
    """Images of noise, of different sizes."""
    rng = torch.Generator().manual_seed(0)
    sizes = [(40, 40), (64, 40), (33, 80)]
    return [
        Image.fromarray(torch.randint(0, 256, (*sizes[i % 3][::-1], 3), generator=rng, dtype=torch.uint8).numpy())
        for i in range(count)
    ]


TEXTS = ["a red circle", "a big blue square", "a red circle", "draw a cross, please", "green"]
NO_REWRITES = [""] * len(TEXTS)


def original_head(weights, prefix="layers."):
    """The head as its authors write it."""
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    width = weights[f"{prefix}0.weight"].shape[1]
    layers = torch.nn.Sequential(
        *(linear(width, 1024), dropout(0.2), linear(1024, 128), dropout(0.2)),
        *(linear(128, 64), dropout(0.1), linear(64, 16), linear(16, 1)),
    )
    layers.load_state_dict({k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)})
    return layers.eval()


# ------------------------------------------------------------------------------------------- against the originals


def test_clip_is_the_clip_score_of_torchmetrics(transformers_scorer):
    """Another library, another implementation of CLIP, the same weights."""

    class Features(CLIPModel):
        """As torchmetrics expects it: transformers 5 returns the features as a part of a larger output."""

        def get_image_features(self, *inputs):
            return super().get_image_features(*inputs).pooler_output

        def get_text_features(self, *inputs):
            return super().get_text_features(*inputs).pooler_output

    model = Features.from_pretrained(transformers_scorer)
    processor = CLIPProcessor.from_pretrained(transformers_scorer)
    clip = load_reward("clip", model_name=f"local-dir:{SCORER}", precision="fp32", **BATCH)
    rng = random.Random(0)
    scenes = [world.random_scene(rng) for _ in range(10)]
    images = [world.draw_scene(scene, rng) for scene in scenes]
    texts = [users.user_prompt(scene, "plain", rng)[0] for scene in scenes]
    with torch.no_grad():
        seen = model.get_image_features(processor(images=images, return_tensors="pt").pixel_values)
        read = model.get_text_features(*processor(text=texts, padding=True, return_tensors="pt").values())
    assert torch.allclose(clip.backbone.image_features(images, 3), torch.nn.functional.normalize(seen), atol=1e-5)
    assert torch.allclose(clip.backbone.text_features(texts, 3), torch.nn.functional.normalize(read), atol=1e-5)
    scores = clip(images, texts, [""] * 10)
    assert min(scores) > 0  # torchmetrics cuts the mean at 0, and not each score
    expected = clip_score([pil_to_tensor(image) for image in images], texts, lambda: (model, processor))
    assert 100 * sum(scores) / 10 == pytest.approx(expected.item(), abs=1e-3)
    single = clip_score(pil_to_tensor(images[0]), texts[0], lambda: (model, processor))
    assert 100 * scores[0] == pytest.approx(single.item(), abs=1e-3)


def test_hpsv2_is_the_cosine_of_padded_images(architectures):
    """As in the authors' code: images keep their shape, black makes them square."""
    reward = load_reward("hpsv2", pretrained=f"{architectures}/clip.pt", model_name="tiny-clip", **BATCH)
    model = open_clip.create_model("tiny-clip", pretrained=f"{architectures}/clip.pt").eval()
    images = noise_images(len(TEXTS))
    inputs = []
    for image in images:
        scale = 48 / max(image.size)
        small = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
        square = Image.new("RGB", (48, 48))
        square.paste(small, ((48 - small.width) // 2, (48 - small.height) // 2))
        inputs.append(open_clip.image_transform(48, is_train=False)(square))
    with torch.no_grad():
        seen, read, _ = model(torch.stack(inputs), open_clip.get_tokenizer("tiny-clip")(TEXTS))
    assert reward(images, TEXTS, NO_REWRITES) == pytest.approx((seen @ read.T).diagonal().tolist(), abs=1e-5)


def test_siglip_is_the_probability_of_the_pair(architectures):
    reward = load_reward("siglip", model_name="tiny-siglip", pretrained=f"{architectures}/siglip.pt", **BATCH)
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-siglip", f"{architectures}/siglip.pt")
    images = noise_images(len(TEXTS))
    with torch.no_grad():
        logits, _ = model.eval().get_logits(
            torch.stack([preprocess(image) for image in images]), open_clip.get_tokenizer("tiny-siglip")(TEXTS)
        )
    expected = logits.diagonal().sigmoid().tolist()
    assert reward(images, TEXTS, NO_REWRITES) == pytest.approx(expected, abs=1e-5)
    assert 0 < min(expected) < 0.1 < max(expected) < 1  # the bias counts, and images differ


def test_siglip_in_half_precision(architectures):
    settings = {"model_name": "tiny-siglip", "pretrained": f"{architectures}/siglip.pt", **BATCH}
    images = noise_images(len(TEXTS))
    whole = load_reward("siglip", **settings)(images, TEXTS, NO_REWRITES)
    half = load_reward("siglip", precision="bf16", **settings)(images, TEXTS, NO_REWRITES)
    assert half == pytest.approx(whole, abs=0.05)


def test_aesthetic_is_the_head_on_clips_features(architectures, tmp_path):
    weights = write_head(tmp_path / "head.pth", 128)
    settings = {"model_name": "tiny-clip", "pretrained": f"{architectures}/clip.pt"}
    reward = load_reward("aesthetic", head=str(tmp_path / "head.pth"), **settings, **BATCH)
    model, _, preprocess = open_clip.create_model_and_transforms(**settings)
    images = noise_images(5)
    with torch.no_grad():
        features = model.eval().encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        marks = original_head(weights)(features).squeeze(-1)
    scores = reward(images, TEXTS, NO_REWRITES)
    assert scores == pytest.approx((marks / 10).tolist(), abs=1e-5)
    assert reward(images, ["other"] * 5, NO_REWRITES) == scores


RENAMED = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
    ".attn.": ".self_attn.",
    ".ln_1": ".layer_norm1",
    ".ln_2": ".layer_norm2",
    ".c_fc": ".fc1",
    ".c_proj": ".fc2",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
}


def as_transformers_names(weights):
    """The weights of an OpenCLIP model as transformers' `CLIPModel` names and shapes them."""
    converted = {}
    for name, weight in weights.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if ".in_proj_" in name:  # query, key and value in one
            for part, rows in zip("qkv", weight.chunk(3), strict=True):
                converted[name.replace("in_proj_", f"{part}_proj.")] = rows
        else:
            converted[name] = weight.T if "_projection" in name else weight
    return converted


@pytest.fixture(scope="module")
def transformers_scorer(tmp_path_factory):
    """The tiny world's OpenCLIP scorer as a `CLIPModel` of transformers with its processor: the same weights."""
    folder = tmp_path_factory.mktemp("scorer")
    settings = json.loads((SCORER / "open_clip_config.json").read_text())
    shape = settings["model_cfg"]
    vision, text = shape["vision_cfg"], shape["text_cfg"]
    both = {"hidden_act": "gelu"}  # transformers' default is OpenAI's approximation of it
    vision_config = both | {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "hidden_size": vision["width"],
        "intermediate_size": 4 * vision["width"],
        "num_hidden_layers": vision["layers"],
        "num_attention_heads": vision["width"] // vision["head_width"],
    }
    text_config = both | {
        "vocab_size": text["vocab_size"],
        "max_position_embeddings": text["context_length"],
        "hidden_size": text["width"],
        "intermediate_size": 4 * text["width"],
        "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"],
        "bos_token_id": 0,
        "eos_token_id": text["eos_id"],
        "pad_token_id": text["eos_id"],
    }
    config = CLIPConfig(vision_config=vision_config, text_config=text_config, projection_dim=shape["embed_dim"])
    model = CLIPModel(config)
    model.load_state_dict(as_transformers_names(load_file(SCORER / "open_clip_model.safetensors")))
    model.save_pretrained(folder)
    size, norm = vision["image_size"], settings["preprocess_cfg"]
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=norm["mean"],
        image_std=norm["std"],
    )
    CLIPProcessor(image_processor, AutoTokenizer.from_pretrained(SCORER)).save_pretrained(folder)
    return str(folder)


def test_pickscore_is_that_of_the_model_card(tiny_pickscore):
    reward = load_reward("pickscore", model_name=tiny_pickscore, processor=tiny_pickscore, **BATCH)
    model, processor = CLIPModel.from_pretrained(tiny_pickscore), CLIPProcessor.from_pretrained(tiny_pickscore)
    images, expected = noise_images(len(TEXTS)), []
    for image, text in zip(images, TEXTS, strict=True):
        with torch.no_grad():
            pairs = model(**processor(text=[text], images=[image], return_tensors="pt"))
        expected.append(pairs.logits_per_image.item() / 100)
    assert reward(images, TEXTS, NO_REWRITES) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01  # so that a wrong pairing shows
    half = load_reward("pickscore", model_name=tiny_pickscore, processor=tiny_pickscore, dtype="bfloat16", **BATCH)
    assert half(images, TEXTS, NO_REWRITES) == pytest.approx(expected, abs=0.01)


def test_pickscore_cuts_long_prompts(tiny_pickscore):
    reward = load_reward("pickscore", model_name=tiny_pickscore, processor=tiny_pickscore, dtype="bfloat16", **BATCH)
    score, other = reward(noise_images(1) * 2, ["a cat " * 100, "a cat " * 200], ["", ""])
    assert score == other


@pytest.fixture(scope="module")
def tiny_image_reward(tmp_path_factory):
    """Random weights under the names of ImageReward's checkpoint, and the models of timm and BERT that have them."""
    folder = tmp_path_factory.mktemp("image_reward")
    torch.manual_seed(3)
    vision = timm.models.VisionTransformer(32, 8, embed_dim=128, depth=2, num_heads=2, num_classes=0, global_pool="")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for text in TEXTS for w in text.split()})]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    text = BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            is_decoder=True,
            add_cross_attention=True,
            initializer_range=0.2,
        ),
        add_pooling_layer=False,
    )
    torch.nn.init.zeros_(text.embeddings.token_type_embeddings.weight)  # BLIP has none
    parts = {"blip.visual_encoder.": vision, "blip.text_encoder.": text}
    weights = {f"{prefix}{k}": w for prefix, part in parts.items() for k, w in part.state_dict().items()}
    del weights["blip.text_encoder.embeddings.token_type_embeddings.weight"]
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    weights["blip.text_proj.weight"] = torch.zeros(2, 2)  # there, but of no use here
    weights = write_head(folder / "ImageReward.pt", 128, "mlp.layers.", weights)
    return folder, vision.eval(), text.eval(), original_head(weights, "mlp.layers.")


def test_image_reward_is_blips_mark(tiny_image_reward):
    """BLIP is ViT as timm has it, and BERT with attention to the image that sees the whole prompt."""
    folder, vision, text, head = tiny_image_reward
    reward = load_reward("image_reward", pretrained=f"{folder}/ImageReward.pt", tokenizer=str(folder), **BATCH)
    tokenizer, transform = BertTokenizer.from_pretrained(folder), open_clip.image_transform(32, is_train=False)
    images, expected = noise_images(len(TEXTS)), []
    for image, prompt in zip(images, TEXTS, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        everything = torch.zeros(1, 1, ids.shape[1], ids.shape[1])  # to attend to; else BERT hides what comes later
        with torch.no_grad():
            seen = vision(transform(image)[None])
            state = text(ids, attention_mask=everything, encoder_hidden_states=seen).last_hidden_state[:, 0]
            expected.append(torch.sigmoid((head(state) - 0.16717362830052426) / 1.0333394966054072).item())
    scores = reward(images, TEXTS, NO_REWRITES)
    assert scores == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01
    half = load_reward(
        "image_reward", pretrained=f"{folder}/ImageReward.pt", tokenizer=str(folder), dtype="bfloat16", **BATCH
    )
    assert half(images, TEXTS, NO_REWRITES) == pytest.approx(scores, abs=0.05)


# ------------------------------------------------------------------------------------------- right above wrong


@pytest.mark.parametrize("name", ["clip", "hpsv2", "pickscore", "siglip"])
def test_the_right_image_is_above_a_wrong_one(name, architectures, transformers_scorer):
    """With the tiny world's trained scorer, prompts in users' words and wrong images that differ in one thing."""
    kind = "siglip" if name == "siglip" else "clip"
    settings = {"model_name": f"tiny-{kind}", "pretrained": f"{architectures}/{kind}.pt", "precision": "fp32"}
    if name == "pickscore":
        settings = {"model_name": transformers_scorer, "processor": transformers_scorer}
    reward = load_reward(name, **settings)
    rng, prompts, right, wrong = random.Random(0), [], [], []
    for _ in range(100):
        scene = world.random_scene(rng)
        prompts.append(users.user_prompt(scene, "plain", rng)[0])
        right.append(world.draw_scene(scene, rng))
        wrong.append(world.draw_scene(world.near_scene(scene, rng), rng))
    scores = zip(reward(right, prompts, prompts), reward(wrong, prompts, prompts), strict=True)
    assert sum(good > bad for good, bad in scores) >= 80


# ------------------------------------------------------------------------------------------- one model, shared


@pytest.fixture
def shared(architectures, tmp_path):
    """`clip` and `aesthetic` with equal settings, and a list that grows by one for each pass over images."""
    write_head(tmp_path / "head.pth", 128)
    settings = {"model_name": "tiny-clip", "pretrained": f"{architectures}/clip.pt"}
    clip = load_reward("clip", **settings)
    aesthetic = load_reward("aesthetic", head=str(tmp_path / "head.pth"), **settings)
    passes = []
    clip.backbone.model.visual.register_forward_hook(lambda *_: passes.append(1))
    return clip, aesthetic, passes


def test_equal_settings_share_the_model_and_the_pass(shared):
    clip, aesthetic, passes = shared
    assert clip.backbone.model is aesthetic.backbone.model
    images = noise_images(5)
    alone = aesthetic(images, TEXTS, NO_REWRITES)
    assert len(passes) == 1
    clip(images, TEXTS, NO_REWRITES)
    assert aesthetic(images, TEXTS, NO_REWRITES) == alone
    assert len(passes) == 1


def test_other_settings_have_a_model_of_their_own(shared, architectures):
    clip = shared[0]
    settings = {"model_name": "tiny-clip", "pretrained": f"{architectures}/clip.pt"}
    half = load_reward("clip", precision="bf16", **settings)
    padded = load_reward("hpsv2", precision="fp32", **settings)
    assert len({clip.backbone.model, half.backbone.model, padded.backbone.model}) == 3


def test_another_list_of_images_is_encoded_anew(shared):
    clip, aesthetic, passes = shared
    images = noise_images(5)
    clip(images, TEXTS, NO_REWRITES)
    before = aesthetic(images, TEXTS, NO_REWRITES)
    images = [image.copy() for image in images]
    images[0].paste("red", (0, 0, *images[0].size))
    painted = aesthetic(images, TEXTS, NO_REWRITES)
    assert abs(painted[0] - before[0]) > 1e-3
    assert painted[1:] == pytest.approx(before[1:], abs=1e-5)
    assert aesthetic(images[::-1], TEXTS, NO_REWRITES) == pytest.approx(painted[::-1], abs=1e-5)
    assert len(passes) == 3


def test_an_unused_model_is_freed(architectures):
    settings = {"model_name": "tiny-clip", "pretrained": f"{architectures}/clip.pt"}
    clip = load_reward("clip", **settings, precision="pure_bf16")
    model = weakref.ref(clip.backbone.model)
    clip(noise_images(2), TEXTS[:2], NO_REWRITES[:2])
    del clip
    gc.collect()
    assert model() is None


# ------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("hpsv2", {"pretrained": "no/such/file.pt"}, "no weights at 'no/such/file.pt'.*hpsv2: {pretrained"),
        ("hpsv2", {"pretrained": "hps.pt"}, "no weights at 'hps.pt'"),
        ("aesthetic", {"head": "no/such/head.pth"}, "no weights at 'no/such/head.pth'.*aesthetic: {head"),
        ("image_reward", {}, "no weights at 'THUDM/ImageReward/ImageReward.pt'.*image_reward: {pretrained"),
        ("pickscore", {"model_name": "no/model"}, "(?s)'pickscore' does not load.*no/model.*pickscore: {model_name"),
        ("siglip", {}, "ViT-L-16-SigLIP2-256"),
        ("siglip", {"model_name": f"local-dir:{SCORER}"}, "is no SigLIP model"),
    ],
)
def test_missing_weights_are_named(name, settings, message):
    with pytest.raises((OSError, ValueError, RuntimeError), match=message):
        load_reward(name, **settings)


def test_weights_of_another_model_are_refused(tmp_path, architectures, tiny_pickscore):
    write_head(tmp_path / "head.pth", 768)
    with pytest.raises(ValueError, match="the head reads 768 features and tiny-clip has 128"):
        load_reward(
            "aesthetic",
            head=str(tmp_path / "head.pth"),
            model_name="tiny-clip",
            pretrained=f"{architectures}/clip.pt",
        )
    with pytest.raises(ValueError, match="head.pth holds other weights: it has no 'blip.visual_encoder.cls_token'"):
        load_reward("image_reward", pretrained=str(tmp_path / "head.pth"))
    model = CLIPModel.from_pretrained(tiny_pickscore)
    half = {name: weight for name, weight in model.state_dict().items() if not name.startswith("vision_model")}
    model.save_pretrained(tmp_path, state_dict=half)
    with pytest.raises(ValueError, match="lacks .* weights of a CLIPModel, such as vision_model"):
        load_reward("pickscore", model_name=str(tmp_path), processor=tiny_pickscore)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"layers.0.weight": Harm()}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match="is no PyTorch file of tensors alone"):
        load_reward("aesthetic", head=str(tmp_path / "head.pth"))
    assert not (tmp_path / "harm").exists()

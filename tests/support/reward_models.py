"""Tiny models for the rewards on large ones; `architectures` and `tiny_pickscore` are fixtures to import."""

import json

import open_clip
import pytest
import torch
from conftest import TINY_WORLD
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer


SCORER = TINY_WORLD / "scorer"


@pytest.fixture(scope="session")
def architectures(tmp_path_factory):
    """The tiny world's scorer as architectures of OpenCLIP, `tiny-clip` and `tiny-siglip`, and its trained weights."""
    folder = tmp_path_factory.mktemp("architectures")
    model = json.loads((SCORER / "open_clip_config.json").read_text())["model_cfg"]
    model["text_cfg"]["hf_tokenizer_name"] = str(SCORER)
    (folder / "tiny-clip.json").write_text(json.dumps(model))
    (folder / "tiny-siglip.json").write_text(json.dumps(model | {"init_logit_bias": -10.0, "custom_text": True}))
    open_clip.add_model_config(folder)
    weights = load_file(SCORER / "open_clip_model.safetensors")
    torch.save({"state_dict": weights}, folder / "clip.pt")
    softer = {"logit_scale": torch.tensor(3.0), "logit_bias": torch.tensor(-7.5)}  # at 100, all that fit have 1.0
    torch.save({"state_dict": weights | softer}, folder / "siglip.pt")
    return folder


def write_head(path, width, prefix="layers.", others=None):
    """A head of random weights, shaped and named as the LAION aesthetic predictor's."""
    rng = torch.Generator().manual_seed(1)
    widths = [width, 1024, 128, 64, 16, 1]
    weights = dict(others or {})
    for number, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        weights[f"{prefix}{number}.weight"] = torch.randn(after, before, generator=rng) / before**0.5
        weights[f"{prefix}{number}.bias"] = torch.randn(after, generator=rng)
    torch.save(weights, path)
    return weights


@pytest.fixture(scope="session")
def tiny_pickscore(tmp_path_factory):
    """A `CLIPModel` of random weights with its processor, as PickScore is stored."""
    folder = tmp_path_factory.mktemp("pickscore")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [","]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(2)
    model = CLIPModel(
        CLIPConfig(
            text_config={**sizes, **special, "vocab_size": len(tokens)},
            vision_config={**sizes, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
    )
    torch.nn.init.constant_(model.logit_scale, 4.2)
    model.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square), tokenizer).save_pretrained(folder)
    return str(folder)


# What to replace, in this order, in OpenCLIP's names for those of transformers.

import json
import os
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of a Hugging Face library: tests need no network
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

from brushup.render import Renderer
from brushup.rewards import load_reward
from brushup.worker import LocalWorker


REPOSITORY = Path(__file__).parent.parent
TINY_WORLD = REPOSITORY / "data" / "tiny_world"
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}
RENDER_KWARGS = {
    "num_inference_steps": 6,
    "guidance_scale": 3.0,
    "height": 32,
    "width": 32,
    "max_sequence_length": 1,
}


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    return Renderer(str(TINY_WORLD / "generator"), WITHOUT_T5, RENDER_KWARGS, batch_size=8, device="cpu")


@pytest.fixture(scope="session")
def clip():
    return load_reward("clip", model_name=f"local-dir:{TINY_WORLD / 'scorer'}", device="cpu")


@pytest.fixture(scope="session")
def worker(renderer, clip) -> LocalWorker:
    return LocalWorker(renderer, {"clip": clip})


@pytest.fixture(scope="session")
def validation_rows() -> list[dict]:
    return [json.loads(line) for line in (TINY_WORLD / "validation.jsonl").read_text().splitlines()]

"""The arithmetic of benchmarks/memory.py: parameters, bytes alive at once, and what fits."""

import importlib.util
import sys

import pytest
import torch
from conftest import REPOSITORY
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture(scope="module")
def memory():
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))  # Python puts the folder of a script that it starts there
    spec = importlib.util.spec_from_file_location("memory", REPOSITORY / "benchmarks" / "memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("policy", "parameters"), [("2B", 2_208_985_600), ("7B", 8_291_375_616)])
def test_policies_have_the_parameters_of_the_published_ones(memory, policy, parameters):
    count, in_4_bits, of_lora = memory.sizes(policy)
    assert count == parameters
    text = memory.QWEN2_VL[policy]
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    keys = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    assert of_lora == 28 * 16 * (4 * hidden + 2 * (hidden + keys) + 3 * (hidden + inner))
    embeddings = text["vocab_size"] * hidden * (1 if text["tie_word_embeddings"] else 2)
    assert in_4_bits == pytest.approx(count - embeddings, rel=0.01)  # but norms and the patches' convolution


def test_bytes_are_counted_once_and_while_they_live(memory):
    with FakeTensorMode(), memory.LiveBytes() as bytes_:
        kept = torch.empty(1000)
        view = kept.view(10, 100)
        doubled = kept * 2
        assert bytes_.live == bytes_.peak == 8000
        del doubled
        half = view[:5].to(torch.bfloat16)
        assert (bytes_.live, bytes_.peak) == (5000, 8000)
        del kept
        assert bytes_.live == 5000  # the view holds it
        del view, half
        assert bytes_.live == 0


def test_a_step_on_fake_tensors_takes_what_one_on_real_tensors_does(memory):
    tiny = memory.SMALL | {"num_hidden_layers": 2, "vocab_size": 40_000}  # two tiles of the vocabulary

    def taken(batch: int, count) -> int:
        model = memory.policy_on_meta(tiny, lora=True, vision_depth=1)
        with count as bytes_:
            memory.materialize(model)
            before = bytes_.peak = bytes_.live
            memory.training_step(model, batch, length=32)
        return bytes_.peak - before

    fake = taken(2, memory.counting(as_on_a_gpu=False))
    assert fake == pytest.approx(taken(2, memory.LiveBytes()), rel=1e-3)
    assert fake > 2 * 32 * 32768 * 4  # at least a tile of logits in float32
    assert 3 * fake < taken(8, memory.counting(as_on_a_gpu=False)) < 4 * fake
    assert taken(2, memory.counting()) < fake  # as on a GPU, which needs no copies of the tile


def test_the_parts_of_a_peak(memory, monkeypatch):
    monkeypatch.setattr(memory, "activation_bytes", lambda policy, lora, batch, *_: batch * memory.GIB)
    lora = memory.peak(memory.Setting("2B", "LoRA", batch=1))
    assert lora["weights"] == 2 * 2_208_985_600
    assert lora["trained"] == 16 * memory.sizes("2B")[2]  # weight, gradient and two Adam states in float32
    assert lora["cache"] == 4 * 384 * 2 * 2 * 28 * 256  # of 4 rewrites, kept: the length is a multiple of 128
    assert lora["peak"] == lora["weights"] + lora["trained"] + lora["cache"] + 2 * memory.GIB  # a step's, CUDA's own
    eager = memory.peak(memory.Setting("2B", "LoRA", batch=1, compiled_policy=False))
    assert eager["cache"] == 0 and eager["peak"] == lora["peak"] - lora["cache"]
    qlora = memory.peak(memory.Setting("2B", "QLoRA", batch=1))
    assert 0.3 < qlora["weights"] / lora["weights"] < 0.4 and qlora["peak"] < lora["peak"]
    sharded = memory.peak(memory.Setting("2B", "LoRA", "3", 8, batch=1))
    assert sharded["weights"] == lora["weights"] / 8
    assert sharded["generating"] > lora["weights"]  # whole again while it writes
    full = [
        memory.peak(memory.Setting("2B", "full", stage, 8, batch=1))["weights"] for stage in ("2", "3", "3, offload")
    ]
    assert full == [4 * 2_208_985_600, 4 * 2_208_985_600 / 8, 0]  # with the reference model


@pytest.mark.parametrize(("policy", "embeddings"), [("2B", 151_936 * 1536), ("7B", 2 * 152_064 * 3584)])
def test_the_units_that_fsdp2_gathers(memory, policy, embeddings):
    layer, outside = memory.fsdp2_units(policy)
    text = memory.QWEN2_VL[policy]
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    keys = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    matrices = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    assert layer == matrices + hidden + 2 * keys + 2 * hidden  # biases of q, k and v, two norms
    merger = 5120 * (5120 + 1 + hidden) + hidden  # of four patches
    assert embeddings + merger < outside < embeddings + merger + 2_000_000  # patches and norms
    of_vision = memory.sizes(policy)[0] - 28 * layer - outside
    assert of_vision == 32 * (1280 * (3 + 1 + 4 + 4) * 1280 + 1280 * (3 + 1 + 4 + 1) + 4 * 1280)


def test_the_parts_of_a_peak_with_fsdp2(memory, monkeypatch):
    monkeypatch.setattr(memory, "activation_bytes", lambda policy, lora, batch, *_: batch * memory.GIB)
    monkeypatch.setattr(memory, "generator_bytes", lambda *_: (0, 100 * memory.GIB))
    count, _, of_lora = memory.sizes("7B")
    layer, outside = memory.fsdp2_units("7B")
    lora, zero3 = (memory.peak(memory.Setting("7B", "LoRA", stage, 8, batch=1)) for stage in ("FSDP2", "3"))
    assert lora["weights"] == zero3["weights"] == 2 * count / 8
    assert lora["trained"] == 16 * of_lora / 8  # weight, gradient and two Adam states in float32
    assert lora["communication"] == 2 * (outside + 2 * layer) and lora["referring"] == 0
    assert lora["generating"] == zero3["generating"] - 2 * count  # layer by layer while it writes
    assert lora["training"] == memory.GIB

    full, zero3 = (memory.peak(memory.Setting("7B", "full", stage, 8, batch=1)) for stage in ("FSDP2", "3"))
    assert full["weights"] == 2 * count / 8  # the reference model's; the policy's own are in float32
    assert full["trained"] == 16 * count / 8
    assert full["weights"] + full["trained"] == zero3["weights"] + zero3["trained"]
    assert full["training"] == memory.GIB + 2 * count  # gradients whole until the last micro-batch
    assert full["referring"] == 4 * count  # gathered at once, into a buffer and from there
    before = full["weights"] + full["trained"] + full["communication"] + memory.GIB
    assert full["peak"] == before + 4 * count
    rendering = memory.peak(memory.Setting("7B", "full", "FSDP2", 8, "SD3", batch=1))  # beside the reference model
    assert rendering["peak"] == before + memory.SCORER + 4 * count + 100 * memory.GIB


def test_what_fits(memory):
    assert [memory.fits(gib * memory.GIB) for gib in (21.5, 22, 44, 100, 130)] == ["24", "48", "80", "141", "none"]


def test_rendering_takes_what_was_measured_on_an_h100(memory):
    for *way, measured in memory.RENDERED[-2:]:
        assert sum(memory.generator_bytes(*way)) == pytest.approx(measured * memory.GIB, rel=0.05), way

"""The decoding step is compiled once for each batch size, and what is written stays the same."""

import pytest
import torch
from conftest import TINY_WORLD
from torch._dynamo.utils import counters
from transformers import Gemma3TextConfig, StaticCache

from brushup.policy.compiled import compiled_decoding
from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.dataset import load_prompts
from support.training import POLICY, StubWorker, make_trainer


@pytest.fixture
def enhancer():
    return PromptEnhancer.from_pretrained(POLICY, device="cpu")


def frozen_weights(trainer):
    return {name: weight.clone() for name, weight in trainer.model.named_parameters() if not weight.requires_grad}


@pytest.mark.slow
def test_training_and_validation_compile_once_for_each_batch_size(tmp_path, compiled_on_cpu):
    held_out = load_prompts(str(TINY_WORLD / "validation.jsonl")).select(range(18))
    trainer = make_trainer(
        tmp_path,
        StubWorker(),
        eval_dataset=held_out,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=4,  # four full batches, and one of two prompts
        gradient_checkpointing=True,
    )
    before = frozen_weights(trainer)
    trainer.train()
    assert counters["stats"]["unique_graphs"] == 2  # 8 rewrites in training, 4 in validation
    assert len(trainer.model.get_input_embeddings()._forward_hooks) == 1
    assert all(torch.equal(weight, before[name]) for name, weight in frozen_weights(trainer).items())


def test_the_same_is_written(enhancer, compiled_on_cpu, monkeypatch, capsys):
    prompts = sorted(load_prompts(str(TINY_WORLD / "validation.jsonl"))["user_prompt"], key=len)[:18]  # one cache size
    compiled = enhancer.enhance(prompts, batch_size=4)
    assert counters["stats"]["unique_graphs"] == 1
    said = capsys.readouterr()
    assert "compiling the writing of 4 rewrites at once" in said.err and said.out == ""
    monkeypatch.undo()
    assert compiled == enhancer.enhance(prompts, batch_size=4)


def test_training_writes_what_trl_writes(tmp_path, request):
    """Greedy answers, in float32."""
    written = []
    for _ in range(2):
        trainer = make_trainer(tmp_path, StubWorker(), max_steps=1, generation_kwargs={"do_sample": False})
        trainer.train()
        written.append(list(trainer._logs["completion"]))
        request.getfixturevalue("compiled_on_cpu")
    assert counters["stats"]["unique_graphs"] == 1 and len(written[0]) == 8
    assert written[0] == written[1]


def test_few_prompts_are_not_worth_compiling(enhancer, compiled_on_cpu):
    enhancer.enhance(["a tiny azure ball"] * 15, batch_size=4)
    assert counters["stats"]["unique_graphs"] == 0


def test_caches_stay_where_they_are(enhancer, compiled_on_cpu):
    """PyTorch would record a CUDA graph anew for each new address, 128 times, and then give up."""
    model = enhancer.model
    settings = compiled_decoding(model) | {"max_new_tokens": 4, "return_dict_in_generate": True}
    ids = [torch.full((2, length), 5) for length in (9, 30, 140)]
    short, longer, longest, again = (model.generate(x, **settings).cache.layers[0].keys for x in (*ids, ids[0]))
    assert short.data_ptr() == longer.data_ptr() and again.data_ptr() == longest.data_ptr()
    assert short.shape[2] == 128 and longest.shape[2] == 256


def test_so_do_caches_with_a_sliding_window(enhancer, compiled_on_cpu, monkeypatch):
    """Their layers hold fewer tokens than was asked for."""
    config = Gemma3TextConfig(num_hidden_layers=2, layer_types=["sliding_attention"] * 2, sliding_window=64)
    make = lambda self, max_cache_len, **others: StaticCache(config=config, max_cache_len=max_cache_len)  # noqa: E731
    monkeypatch.setattr(type(enhancer.model), "_prepare_static_cache", make)
    compiled_decoding(enhancer.model)
    first, again = (enhancer.model._prepare_static_cache(batch_size=2, max_cache_len=100) for _ in range(2))
    assert again is first


def test_weights_that_are_spread_over_gpus_are_not_compiled(enhancer, compiled_on_cpu):
    assert compiled_decoding(enhancer.model)
    next(enhancer.model.parameters()).ds_id = 0  # as ZeRO-3 marks it
    assert compiled_decoding(enhancer.model) == {}


def test_a_cpu_compiles_nothing(enhancer):
    assert compiled_decoding(enhancer.model) == {}

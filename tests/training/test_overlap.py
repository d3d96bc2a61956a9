"""Rendering while the policy works: rewrites sent in parts, and those of the next step written ahead."""

from concurrent.futures import Future

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from brushup.render.job import paired_seeds
from brushup.training.hacking_watch import RewardHackingWatch
from support.training import StubWorker, history, make_trainer, table


class RecordingWorker(StubWorker):
    """Remembers at which step of the training each batch came."""

    def submit(self, jobs, return_images=False):
        self.steps.append(self.trainer.state.global_step)
        return super().submit(jobs, return_images)


def train(tmp_path, **options):
    worker = RecordingWorker()
    trainer = make_trainer(tmp_path, worker, **options)
    worker.trainer, worker.steps = trainer, []
    trainer.train()
    return trainer, worker


def seeds_of(jobs):
    return {(job.user_prompt, job.seed) for job in jobs}


IN_PARTS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}  # 4 groups of 4


def test_rewrites_are_sent_in_parts_of_whole_groups(tmp_path):
    whole, all_at_once = train(tmp_path / "whole", max_steps=1, learning_rate=0.0, **IN_PARTS)
    parted, in_parts = train(tmp_path / "parts", max_steps=1, learning_rate=0.0, steps_per_generation=2, **IN_PARTS)
    assert len(all_at_once.batches) == 1 and len(in_parts.batches) == 2
    assert all(len({job.user_prompt for job in jobs}) == 2 for jobs in in_parts.batches)
    assert seeds_of(sum(in_parts.batches, [])) == seeds_of(all_at_once.batches[0])
    rewrites = table(parted, "rewrite")
    assert table(parted, "clip") == pytest.approx([0 if r is None else len(r) % 7 / 7 for r in rewrites])
    assert table(parted, "user_prompt") == table(whole, "user_prompt")
    names = {name for entry in parted.state.log_history for name in entry}
    assert names == {name for entry in whole.state.log_history for name in entry}


def canned_answers(trainer):
    """Instead of sampled ones: the same for each row, whether it is written alone or with others; some are cut."""
    written = iter(range(10**6))

    def generate(self, prompt_ids, *args, **kwargs):
        numbers = [number for _, number in zip(prompt_ids, written, strict=False)]
        texts = [f"a red circle{', big' * (number % 5)} {number % 3}" for number in numbers]
        ids = self.processing_class(text=texts)["input_ids"]
        ends = [self.eos_token_ids[:1] if number % 6 else [] for number in numbers]
        return [some + end for some, end in zip(ids, ends, strict=True)], None

    return generate


@pytest.mark.parametrize("options", [{}, {"loss_type": "grpo", "beta": 0.05}, {"mask_truncated_completions": True}])
def test_parts_train_the_same_as_the_whole(tmp_path, monkeypatch, options):
    weights = {}
    for parts in (1, 4):
        trainer = make_trainer(
            tmp_path / str(parts), StubWorker(), optim="sgd", steps_per_generation=4 // parts, **IN_PARTS, **options
        )
        monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", canned_answers(trainer))
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        after = dict(trainer.model.named_parameters())
        weights[parts] = torch.cat([(after[name] - old).flatten() for name, old in before.items()])
    assert weights[1].abs().max() > 1e-5
    assert torch.allclose(weights[4], weights[1], rtol=1e-3, atol=1e-3 * weights[1].abs().max().item())


class AskedFor(Future):
    """Says when its result is asked for."""

    def __init__(self, events, results):
        super().__init__()
        self.events = events
        self.set_result(results)

    def result(self, timeout=None):
        self.events.append("images")
        return super().result(timeout)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_part_is_trained_on_before_the_next_is_waited_for(tmp_path, max_staleness):
    events = []

    class Worker(StubWorker):
        def submit(self, jobs, return_images=False):
            events.append("sent")
            return AskedFor(events, super().submit(jobs, return_images).result())

    trainer = make_trainer(
        tmp_path, Worker(), steps_per_generation=1, max_staleness=max_staleness, beta=0.05, **IN_PARTS, max_steps=2
    )
    compute_loss = trainer._compute_loss

    def train(model, inputs):
        events.append("trained")
        return compute_loss(model, inputs)

    trainer._compute_loss = train
    trainer.train()
    sent, step = ["sent"] * 4, ["images", "trained"] * 4
    assert events == [*sent, *sent, *step, *step] if max_staleness else [*sent, *step, *sent, *step]
    assert len(history(trainer, "render/wait_seconds")) == len(history(trainer, "reward_hacking/length")) == 2
    assert len(trainer.callback(RewardHackingWatch).batches) == 2


def test_parts_that_fail_count_as_one_batch(tmp_path):
    def broken(job):
        raise ConnectionError("no worker at this address")

    trainer = make_trainer(tmp_path, StubWorker(broken), steps_per_generation=1, max_failed_batches=2, **IN_PARTS)
    with pytest.raises(RuntimeError, match="no rewrite of the last 2 batches"):
        trainer.train()
    assert trainer.state.global_step == 0  # no step trains on nothing


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_staleness": 1, "use_transformers_continuous_batching": True}, "use_transformers_continuous_batching"),
        ({"generate_in_parts": "4"}, "generate_in_parts: 4 is now TRL's steps_per_generation"),
        ({"lookahead": "1"}, "lookahead: 1 is now called max_staleness: 1"),
    ],
)
def test_settings_that_do_not_go_together_or_are_gone(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        make_trainer(tmp_path, StubWorker(), **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "beta": 0.05}, {"num_iterations": 2}],
)
def test_the_next_batch_is_sent_before_this_one_is_trained_on(tmp_path, options):
    trainer, worker = train(tmp_path, max_steps=4, max_staleness=1, log_images_steps=2, **options)
    trained, plain = train(tmp_path / "plain", max_steps=4, log_images_steps=2, **options)
    rewrites = [jobs for jobs in worker.batches if any(job.prompt != job.user_prompt for job in jobs)]
    steps = 4 // options.get("num_iterations", 1)
    assert len(rewrites) == steps  # none that is not trained on
    ahead = [step for step, jobs in zip(worker.steps, worker.batches, strict=True) if jobs in rewrites]
    every = options.get("num_iterations", 1)
    assert ahead == [0, *(every * step for step in range(steps - 1))]
    # The same prompts in the same order, from the seeds of the step that trains on them
    order = [jobs for jobs in plain.batches if any(job.prompt != job.user_prompt for job in jobs)]
    assert [{job.user_prompt for job in jobs} for jobs in rewrites] == [{j.user_prompt for j in o} for o in order]
    for number, jobs in enumerate(rewrites):
        for job in jobs:
            assert job.seed in paired_seeds(trainer.args.seed, every * number, job.user_prompt, 1)
    assert len(history(trainer, "reward")) == len(history(trained, "reward")) == steps
    names = {name for entry in trained.state.log_history for name in entry}
    assert names == {name for entry in trainer.state.log_history for name in entry}


class Snapshots(TrainerCallback):
    """The trainable weights at the beginning of each step."""

    def __init__(self):
        self.weights = []

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.weights.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_log_probabilities_are_those_of_the_policy_that_wrote(tmp_path, compiled_on_cpu, dtype, tolerance):
    """At step t that is the policy before the update of step t-1; TRL weighs its loss by the ratio of the two."""
    options = {"max_staleness": 1, "model_init_kwargs": {"dtype": dtype}}
    trainer = make_trainer(tmp_path, StubWorker(), max_steps=3, **options)
    snapshots = Snapshots()
    trainer.add_callback(snapshots)
    compute_loss, seen = trainer._compute_loss, []

    def log_probabilities(model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        with torch.no_grad():
            return trainer._get_per_token_logps_and_entropies(model, ids, mask, inputs["completion_ids"].shape[1])[0]

    def load(model, weights):
        parameters = dict(model.named_parameters())
        for name, weight in weights.items():
            parameters[name].data.copy_(weight)

    def compare(model, inputs):
        step, mask = trainer.state.global_step, inputs["completion_mask"].bool()
        old = inputs["old_per_token_logps"][mask]
        now = log_probabilities(model, inputs)[mask]
        load(model, snapshots.weights[max(0, step - 1)])
        before = log_probabilities(model, inputs)[mask]
        load(model, snapshots.weights[step])
        seen.append(((old - before).abs().max().item(), (old - now).abs().max().item()))
        return compute_loss(model, inputs)

    trainer._compute_loss = compare
    trainer.train()
    assert len(seen) == 3
    assert all(to_writer < tolerance for to_writer, _ in seen)
    assert seen[0][1] < tolerance
    if dtype == "float32":
        assert all(to_now > 1e-3 for _, to_now in seen[1:])


def test_an_error_in_the_batch_ahead_reaches_the_user(tmp_path):
    def broken(job):
        raise ConnectionError("no worker at this address")

    trainer = make_trainer(tmp_path, StubWorker(broken), max_steps=9, max_staleness=1, max_failed_batches=2)
    with pytest.raises(RuntimeError, match="no rewrite of the last 2 batches .* no worker at this address"):
        trainer.train()


class StandInForVLLM:
    """Has what TRL asks of `VLLMGeneration`; the policy itself writes."""

    def __init__(self, model, generation_kwargs=None, **settings):
        self.model = model
        self.generation_kwargs = generation_kwargs or {}
        self.syncs = 0

    def sync_weights(self):
        self.syncs += 1

    def generate(self, prompts, images, num_generations, profiler):
        self.asked_with = self.generation_kwargs
        answers, log_probabilities = [], []
        for ids in prompts:
            written = self.model.generate(
                input_ids=torch.tensor([ids]),
                max_new_tokens=24,
                do_sample=True,
                output_logits=True,
                return_dict_in_generate=True,
            )
            tokens = written.sequences[0, len(ids) :].tolist()
            answers.append(tokens)
            scores = (torch.log_softmax(logits[0], -1) for logits in written.logits)
            log_probabilities.append([[score[token].item()] for score, token in zip(scores, tokens, strict=True)])
        return prompts, answers, log_probabilities, None


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_with_vllm(tmp_path, monkeypatch, max_staleness):
    """vLLM itself needs a GPU. It is told not to write placeholders of pictures, and gets each step's weights."""
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", StandInForVLLM)
    trainer = make_trainer(tmp_path, StubWorker(), use_vllm=True, vllm_mode="colocate", max_staleness=max_staleness)
    trainer.train()
    config, vllm = trainer.model.config, trainer.vllm_generation
    assert vllm.asked_with["logit_bias"] == {config.image_token_id: -100.0, config.video_token_id: -100.0}
    assert vllm.syncs == 2 - max_staleness and len(history(trainer, "reward")) == 2
    assert history(trainer, "render/malformed")[0] < 0.5

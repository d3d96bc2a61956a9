"""Drawing while the policy works: rewrites sent in parts, and the next batch written ahead."""

import pytest
import torch
from test_trainer import StubWorker, history, make_trainer, table
from transformers import TrainerCallback

from brushup.worker import paired_seeds


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


def test_rewrites_are_sent_in_parts_of_whole_groups(tmp_path):
    whole, all_at_once = train(tmp_path / "whole", max_steps=1, learning_rate=0.0)
    parted, in_parts = train(tmp_path / "parts", max_steps=1, learning_rate=0.0, generate_in_parts=2)
    assert len(all_at_once.batches) == 1 and len(in_parts.batches) == 2
    assert all(len({job.user_prompt for job in jobs}) == 1 for jobs in in_parts.batches)
    assert seeds_of(sum(in_parts.batches, [])) == seeds_of(all_at_once.batches[0])
    rewrites = table(parted, "rewrite")
    assert table(parted, "clip") == pytest.approx([0 if r is None else len(r) % 7 / 7 for r in rewrites])
    assert table(parted, "user_prompt") == table(whole, "user_prompt")


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "beta": 0.05}, {"num_iterations": 2}],
)
def test_the_next_batch_is_sent_before_this_one_is_trained_on(tmp_path, options):
    trainer, worker = train(tmp_path, max_steps=4, lookahead=1, log_images_steps=2, **options)
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


def test_log_probabilities_are_those_of_the_policy_that_wrote(tmp_path):
    """At step t that is the policy before the update of step t-1; TRL weighs its loss by the ratio of the two."""
    trainer = make_trainer(tmp_path, StubWorker(), max_steps=3, lookahead=1)
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
    assert all(to_writer < 1e-4 for to_writer, _ in seen)
    assert seen[0][1] < 1e-4 and all(to_now > 1e-3 for _, to_now in seen[1:])


def test_a_batch_that_does_not_begin_with_a_step_cannot_be_looked_ahead_to(tmp_path):
    with pytest.raises(ValueError, match=r"make steps_per_generation \(1\) a multiple of gradient_acc"):
        make_trainer(tmp_path, StubWorker(), lookahead=1, gradient_accumulation_steps=2, steps_per_generation=1)


def test_an_error_in_the_batch_ahead_reaches_the_user(tmp_path):
    def broken(job):
        raise ConnectionError("no worker at this address")

    trainer = make_trainer(tmp_path, StubWorker(broken), max_steps=9, lookahead=1, max_failed_batches=2)
    with pytest.raises(RuntimeError, match="no rewrite of the last 2 batches .* no worker at this address"):
        trainer.train()

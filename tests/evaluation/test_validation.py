"""Validation while training: what it measures, writes and keeps, and that training does not notice it."""

import json

import pytest
import torch
from conftest import TINY_WORLD
from PIL import Image
from safetensors.torch import load_file

from brushup.evaluation.validation import Validation
from brushup.policy.enhancer import Enhancement, PromptEnhancer
from brushup.prompts.dataset import load_prompts
from brushup.recipe_config import EvaluationConfig
from brushup.rewards.combine import Objective
from support.training import StubWorker, history, make_trainer


ROWS = [
    {"user_prompt": "a crimson disk", "category": "synonym", "difficulty": "easy"},
    {"user_prompt": "a tiny azure ball on snow", "category": "size", "difficulty": "hard"},
    {"user_prompt": "box, green, huge", "category": "size", "difficulty": "hard"},
]


class ValidationWorker(StubWorker):
    """Gives each validation the next of `scores` for every rewrite, and the users' own prompts 0.5."""

    def __init__(self, scores):
        super().__init__(self.score)
        self.scores = iter(scores)
        self.validations = []

    def score(self, job):
        if job.user_prompt not in [row["user_prompt"] for row in ROWS]:
            return len(job.prompt) % 7 / 7
        return 0.5 if job.prompt == job.user_prompt else self.now

    def submit(self, jobs, return_images=False):
        if {job.user_prompt for job in jobs} <= {row["user_prompt"] for row in ROWS}:
            self.validations.append(jobs)
            if any(job.prompt != job.user_prompt for job in jobs):
                self.now = next(self.scores)
        return super().submit(jobs, return_images)


def trainer_with_validation(tmp_path, worker, **options):
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    rows = load_prompts(str(tmp_path / "validation.jsonl"))
    settings = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "success_threshold": 0.6}
    return make_trainer(tmp_path, worker, eval_dataset=rows, **(settings | options))


def test_what_a_validation_measures_and_writes(tmp_path):
    worker = ValidationWorker([0.4, 0.7])
    trainer = trainer_with_validation(tmp_path, worker, max_steps=1, validation_images_per_prompt=2)
    trainer.train()
    assert history(trainer, "eval_reward") == pytest.approx([0.4, 0.7])
    assert history(trainer, "eval_success_rate") == [0.0, 1.0]
    assert history(trainer, "eval_above_original") == [0.0, 1.0]
    assert history(trainer, "eval_rewards/clip/mean") == pytest.approx([0.4, 0.7])
    assert history(trainer, "eval_reward_by_category/size") == pytest.approx([0.4, 0.7])
    assert all(0 <= score <= 1 for score in history(trainer, "eval_quality_score"))
    written = json.loads((tmp_path / "validation_1.json").read_text())
    assert written["step"] == 1 and written["metrics"]["reward"] == pytest.approx(0.7)
    assert [row["user_prompt"] for row in written["rows"]] == [row["user_prompt"] for row in ROWS]
    assert written["rows"][1]["category"] == "size" and written["rows"][1]["original_rewards"] == {"clip": 0.5}
    assert all(row["rewrite"] and row["rewards"] == {"clip": pytest.approx(0.7)} for row in written["rows"])


def test_the_same_seeds_each_time_and_the_originals_only_once(tmp_path):
    worker = ValidationWorker([0.4, 0.7, 0.8])
    trainer_with_validation(tmp_path, worker, max_steps=2).train()
    originals = [jobs for jobs in worker.validations if all(job.prompt == job.user_prompt for job in jobs)]
    seeds = [[job.seed for job in jobs] for jobs in worker.validations]
    assert len(worker.validations) == 4 and len(originals) == 1
    assert all(other == seeds[0] for other in seeds) and len(set(seeds[0])) == 3
    for jobs in worker.batches:  # with `eval_render_kwargs` in validation, and only there
        assert {job.for_evaluation for job in jobs} == {jobs in worker.validations}


def test_the_best_of_several_rewrites(caplog):
    """Chosen by the reward at the paired seeds, the likeliest rewrite included; equal ones are rendered once."""
    scores = {row["user_prompt"]: 0.5 for row in ROWS} | {"a": 0.2, "b": 0.7, "c": 0.9, "d": "out of memory"}
    worker = StubWorker(lambda job: scores[job.prompt])
    args = EvaluationConfig(output_dir="runs", model_name_or_path="policy", validation_images_per_prompt=2)
    validation = Validation([row | {"prompt": []} for row in ROWS], worker, {}, Objective({"clip": 1.0}), args)
    samples = [["a", "b", "a"], ["b", "c", "c"], ["d", "d", "b"]]
    likeliest = validation.render_rewrites([Enhancement("", "a", False, "a")] * 3)
    before = worker.images_drawn
    best = validation.best_of(likeliest, [Enhancement("", text, False, text) for row in samples for text in row])
    assert (best.prompts, best.totals) == (["b", "c", "b"], [0.7, 0.9, 0.7])
    assert worker.images_drawn - before == 2 * (1 + 2 + 2) and "out of memory" in caplog.text
    seeds = {job.user_prompt: set() for batch in worker.batches for job in batch}
    for job in (job for batch in worker.batches for job in batch):
        seeds[job.user_prompt].add(job.seed)
    assert all(len(of_prompt) == 2 for of_prompt in seeds.values())
    assert validation.best_of(likeliest, []).prompts == likeliest.prompts


def test_training_goes_on_as_if_there_were_no_validation(tmp_path):
    with_it = trainer_with_validation(tmp_path, ValidationWorker([0.4] * 4), max_steps=3)
    with_it.train()
    without = make_trainer(tmp_path, StubWorker(), max_steps=3)
    without.train()
    for name in ("reward", "loss", "entropy", "render/malformed"):
        assert history(with_it, name) == history(without, name)


def test_the_best_checkpoint_is_kept(tmp_path):
    worker = ValidationWorker([0.4, 0.6, 0.9, 0.7])
    keep_best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "greater_is_better": True}
    trainer = trainer_with_validation(
        tmp_path, worker, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1, **keep_best
    )
    trainer.train()
    assert trainer.state.best_global_step == 2
    trainer.save_model(tmp_path)
    best, last = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors"), trainer.model.state_dict()
    kept = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], best[name]) for name in best)
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in last.items())


def test_progress_changes_no_rewrite(tmp_path, monkeypatch, capsys):
    """The batches of the rewriting stay as they are; a file in place of the terminal gets a line."""
    monkeypatch.setattr("brushup.console.FIRST_LINE_AFTER", 0.01)
    rows = load_prompts(str(TINY_WORLD / "validation.jsonl"), max_samples=10)
    validation = make_trainer(tmp_path, StubWorker(), eval_dataset=rows, per_device_eval_batch_size=4).validation
    enhancer = PromptEnhancer.from_pretrained(TINY_WORLD / "policy", device="cpu")
    capsys.readouterr()
    rewrites = validation.rewrite(enhancer)
    assert rewrites == enhancer.enhance(rows["user_prompt"], max_new_tokens=validation.max_new_tokens, batch_size=4)
    assert " of 10, 0 s" in capsys.readouterr().err


def test_an_image_that_fails_leaves_its_prompt_out(tmp_path, caplog):
    def verdict(job):
        return "out of memory (said the test)" if job.user_prompt == ROWS[0]["user_prompt"] else 0.5

    trainer = trainer_with_validation(tmp_path, StubWorker(verdict), max_steps=1)
    metrics = trainer.evaluate()
    assert metrics["eval_failed"] == pytest.approx(1 / 3) and metrics["eval_reward"] == 0.5
    assert "1 of 3 validation prompts are left out: 1 x out of memory" in caplog.text
    assert json.loads((tmp_path / "validation_0.json").read_text())["rows"][0]["rewards"] is None


def test_it_stops_when_no_prompt_can_be_scored(tmp_path):
    def broken(job):
        raise ConnectionError("no worker at this address")

    with pytest.raises(RuntimeError, match="none of the 3 validation prompts .* no worker at this address"):
        trainer_with_validation(tmp_path, StubWorker(broken)).evaluate()


def test_a_validation_can_be_read_again(tmp_path):
    trainer = trainer_with_validation(tmp_path, ValidationWorker([0.4]))
    trainer.evaluate()
    again = trainer.validation.load(tmp_path / "validation_0.json")
    summary = trainer.validation.summary
    assert summary(again) == summary(trainer.arms[0]) and again.prompts == trainer.arms[0].prompts
    path = tmp_path / "validation_0.json"
    path.write_text(path.read_text().replace("checker_accuracy", "right_pictures"))  # as it was called before
    assert trainer.validation.load(path).checker_accuracy == trainer.arms[0].checker_accuracy
    trainer.validation.rows = trainer.validation.rows[:2]
    assert trainer.validation.load(tmp_path / "validation_0.json") is None  # of other prompts
    assert trainer.validation.load(tmp_path / "validation_9.json") is None


def test_an_image_beside_a_held_out_prompt_reaches_the_policy(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    rows = [{"user_prompt": "like this", "image": "red.png"}, {"user_prompt": "a red ball", "image": None}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trainer = make_trainer(
        tmp_path, StubWorker(), eval_dataset=load_prompts(str(tmp_path / "prompts.jsonl"), "validation")
    )
    shown = []
    trainer.model.get_base_model().model.visual.register_forward_hook(lambda *_: shown.append(1))
    trainer.evaluate()
    assert shown


def test_tokens_that_the_generator_cuts_are_counted(tmp_path):
    trainer = make_trainer(tmp_path, StubWorker(), max_steps=1)  # the stand-in reads four words
    trainer.train()
    rewrites = [rewrite for rewrite in trainer._logs["extra"]["rewrite"] if rewrite is not None]
    cut = [max(0, len(rewrite.split()) - 4) for rewrite in rewrites]
    assert history(trainer, "render/tokens_cut/words") == [pytest.approx(sum(cut) / len(cut))]
    assert history(trainer, "render/share_cut/words") == [pytest.approx(sum(n > 0 for n in cut) / len(cut))]


def test_the_tiny_policy_answers_validation_prompts(tmp_path, worker):
    rows = load_prompts(str(TINY_WORLD / "validation.jsonl"), max_samples=8)
    trainer = make_trainer(tmp_path, worker, eval_dataset=rows, checker="data/tiny_world/world.py:check_pictures")
    metrics = trainer.evaluate()
    assert metrics["eval_above_original"] > 0.5 and 0 <= metrics["eval_checker_accuracy"] <= 1

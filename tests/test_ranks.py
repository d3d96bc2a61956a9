"""Two ranks on this machine: what goes wrong on one must never leave the other waiting."""

import json
import os
import subprocess
import sys

import pandas
import pytest
from conftest import REPOSITORY

from brushup.worker import RenderJob, paired_seeds


TRAIN = """
import json, sys
sys.path.insert(0, "tests")
from pathlib import Path
from accelerate import PartialState
from test_trainer import StubWorker, make_trainer

folder, failing = Path(sys.argv[1]), sys.argv[2]
rank = PartialState(cpu=True, backend="gloo").process_index

def verdict(job):
    if failing == "always" or (failing == "once on rank 1" and rank == 1 and len(worker.batches) == 1):
        raise ConnectionError(f"no worker for rank {rank}")
    return len(job.prompt) % 7 / 7

worker = StubWorker(verdict)
trainer = make_trainer(
    folder, worker, per_device_train_batch_size=4, max_steps=3, max_failed_batches=2, ddp_backend="gloo"
)
outcome = {"world": trainer.accelerator.num_processes}
try:
    trainer.train()
except RuntimeError as error:
    outcome["error"] = str(error)
outcome["seeds"] = sorted({(job.user_prompt, job.seed) for job in worker.batches[0]})
outcome["names"] = sorted(trainer._metrics["train"]) + [sorted(entry) for entry in trainer.state.log_history]
outcome["reward"] = [entry.get("reward") for entry in trainer.state.log_history]
outcome["failed"] = [entry["render/failed"] for entry in trainer.state.log_history if "render/failed" in entry]
(folder / f"rank{rank}.json").write_text(json.dumps(outcome))
trainer.accelerator.wait_for_everyone()  # a rank that leaves early can break the other's shutdown
trainer.end()
"""


def on_two_ranks(*command: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


def two_ranks(folder, failing):
    (folder / "train.py").write_text(TRAIN)
    on_two_ranks(str(folder / "train.py"), str(folder), failing)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_a_batch_that_fails_on_one_rank_is_left_out_and_both_go_on(tmp_path):
    first, second = two_ranks(tmp_path, "once on rank 1")
    assert first["world"] == second["world"] == 2
    assert first["failed"] == [0.5, 0.0, 0.0] and "error" not in first
    assert (first["names"], first["reward"], first["failed"]) == (
        second["names"],
        second["reward"],
        second["failed"],
    )


@pytest.mark.slow
def test_all_ranks_stop_alike_when_nothing_can_be_scored(tmp_path):
    first, second = two_ranks(tmp_path, "always")
    assert first["error"] == second["error"]
    assert "no rewrite of the last 2 batches could be scored" in first["error"]


@pytest.mark.slow
def test_the_recipe_shares_its_work_between_ranks(tmp_path, worker, validation_rows):
    """Each rank rewrites and draws half of the held-out prompts; the table is over all of them, in their order."""
    rows = validation_rows[:7]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    on_two_ranks(
        *("recipes/grpo.py", "--config", "recipes/tiny_cpu.yaml", "--use_cpu", "true", "--ddp_backend", "gloo"),
        *("--validation_prompts", str(tmp_path / "validation.jsonl"), "--output_dir", str(tmp_path / "out")),
        *("--per_device_train_batch_size", "8", "--max_steps", "2", "--logging_steps", "1"),
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [arm["n"] for arm in results["arms"].values()] == [7, 7, 7]
    jobs = [
        RenderJob(row["user_prompt"], row["user_prompt"], paired_seeds(0, "validation", row["user_prompt"], 1)[0])
        for row in rows
    ]
    alone = [result.scores["clip"] for result in worker.score(jobs)]
    assert results["arms"]["original"]["rewards"]["clip"] == pytest.approx(sum(alone) / 7, abs=1e-3)
    completions = pandas.read_parquet(tmp_path / "out" / "completions" / "completions_00002.parquet")
    assert len(completions) == 16 and completions["user_prompt"].nunique() == 2

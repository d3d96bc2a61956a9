"""Two ranks on this machine: what goes wrong on one must never leave the other waiting."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY


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
"""


def two_ranks(folder, failing):
    (folder / "train.py").write_text(TRAIN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(folder / "train.py"), str(folder), failing]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
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

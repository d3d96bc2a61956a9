"""Two ranks, the policy sharded in each way: what goes wrong on one must never leave the other waiting."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from support.launching import on_two_cpus, run


TRAIN = """
import json, os, sys
sys.path.insert(0, "tests")
from pathlib import Path
import deepspeed
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from support.training import StubWorker, make_trainer

folder, failing, turns, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(os.environ["RANK"])

def verdict(job):
    if (failing == "after the first step" and len(worker.batches) > 1) or (
        failing == "once on rank 1" and rank == 1 and len(worker.batches) == 1):
        raise ConnectionError(f"no worker for rank {rank}")
    return len(job.prompt) % 7 / 7

worker = StubWorker(verdict)
trainer = make_trainer(
    folder,
    worker,
    per_device_train_batch_size=4 if turns == 1 else 6,
    max_steps=3,
    max_failed_batches=2,
    ddp_backend="gloo",
    turns=turns,
)
outcome = {"world": trainer.accelerator.num_processes, "drafts": []}
write = trainer._write

def noting_drafts(rows, *args):
    outcome["drafts"].append(sorted({row.get("draft") or "" for row in rows}))
    return write(rows, *args)

trainer._write = noting_drafts
try:
    trainer.train()
except RuntimeError as error:
    outcome["error"] = str(error)
outcome["seeds"] = [sorted({(job.user_prompt, job.seed) for job in jobs}) for jobs in worker.batches]
outcome["prompts"] = [[job.prompt for job in jobs] for jobs in worker.batches]
outcome["names"] = sorted(trainer._metrics["train"]) + [sorted(entry) for entry in trainer.state.log_history]
outcome["reward"] = [entry.get("reward") for entry in trainer.state.log_history]
outcome["failed"] = [entry["render/failed"] for entry in trainer.state.log_history if "render/failed" in entry]
(folder / f"rank{rank}.json").write_text(json.dumps(outcome))

trainer.save_model(folder / "saved")
with deepspeed.zero.GatheredParameters(list(trainer.model.parameters())):
    adapter = get_peft_model_state_dict(trainer.accelerator.unwrap_model(trainer.model_wrapped))
    whole = {name: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for name, t in adapter.items()}
if rank == 0:
    save_file(whole, folder / "gathered.safetensors")
trainer.accelerator.wait_for_everyone()  # a rank that leaves early can break the other's shutdown
trainer.end()
"""


def two_ranks(name, folder, failing="", turns=1):
    (folder / "train.py").write_text(TRAIN)
    run(on_two_cpus(name, folder, str(folder / "train.py"), str(folder), failing, str(turns)))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multi_gpu", "deepspeed_zero3", "fsdp2"])
def test_a_batch_that_fails_on_one_rank_is_left_out_and_both_go_on(name, tmp_path):
    first, second = two_ranks(name, tmp_path, "once on rank 1")
    assert first["world"] == second["world"] == 2
    assert first["failed"] == [0.5, 0.0, 0.0] and "error" not in first
    assert (first["names"], first["reward"], first["failed"]) == (
        second["names"],
        second["reward"],
        second["failed"],
    )
    # Different prompts, one on each rank, each with one seed for all of its group
    for mine, other in zip(first["seeds"], second["seeds"], strict=True):
        assert len(mine) == len(other) == 1 and mine[0][0] != other[0][0]
    # What is saved is whole, and what the ranks hold
    saved, gathered = (
        load_file(tmp_path / file) for file in ("saved/adapter_model.safetensors", "gathered.safetensors")
    )
    assert saved.keys() == gathered.keys() and all(torch.equal(saved[key], gathered[key]) for key in saved)
    assert all(tensor.abs().max() > 0 for tensor in saved.values())


@pytest.mark.slow
def test_a_group_on_two_ranks_revises_one_draft(tmp_path):
    """Of three groups of four rewrites the second is on both ranks: six rows each."""
    first, second = two_ranks("fsdp2", tmp_path, turns=2)
    # Of the second step's drafts two are by the first rank, one is by the other.
    (earlier, shared), (later,) = first["prompts"][1], second["prompts"][1]
    assert first["drafts"] == [[""], sorted({earlier, shared}), [""]]
    assert second["drafts"] == [[""], sorted({shared, later}), [""]]
    assert first["reward"] == second["reward"] and first["names"] == second["names"]


@pytest.mark.slow
def test_all_ranks_stop_alike_when_nothing_can_be_scored(tmp_path):
    """And leave a checkpoint to go on from."""
    first, second = two_ranks("deepspeed_zero3", tmp_path, "after the first step")
    assert first["error"] == second["error"]
    assert "no rewrite of the last 2 batches could be scored" in first["error"]
    checkpoint = re.search(r"--resume_from_checkpoint (\S+)", first["error"])[1]
    assert load_file(f"{checkpoint}/adapter_model.safetensors") and "checkpoint-1" in checkpoint

"""Several machines: accelerate_configs/multi_node.yaml, launched once for each, here as two launches on this one."""

import json
import re
import socket
import subprocess

import pandas
import pytest
from conftest import REPOSITORY
from launching import ACCELERATE, ENVIRONMENT, RECIPE, TWO_CPU_RANKS
from safetensors.torch import load_file


@pytest.mark.slow
def test_the_recipe_on_two_machines(tmp_path, validation_rows):
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, validation_rows[:5])))
    config = (REPOSITORY / "accelerate_configs" / "multi_node.yaml").read_text()
    (tmp_path / "multi_node.yaml").write_text(re.sub("use_cpu: false", "use_cpu: true", config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path / "out"

    def launch(machine: int) -> subprocess.Popen:
        return subprocess.Popen(
            [*ACCELERATE, str(tmp_path / "multi_node.yaml"), "--num_machines", "2", "--num_processes", "2"]
            + ["--machine_rank", str(machine), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
            + [*RECIPE, *TWO_CPU_RANKS, "--validation_prompts", str(tmp_path / "validation.jsonl")]
            + ["--output_dir", str(out), "--max_steps", "1", "--per_device_train_batch_size", "8", "--save_steps", "1"],
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    machines = [launch(0), launch(1)]
    try:
        said = [machine.communicate(timeout=240)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(text[-2000:] for text in said)

    # Each wrote rewrites of its own prompt and its share of the held-out ones; the first alone reports
    completions = pandas.read_parquet(out / "completions" / "completions_00001.parquet")
    assert len(completions) == 16 and completions["user_prompt"].nunique() == 2
    assert [arm["n"] for arm in json.loads((out / "results.json").read_text())["arms"].values()] == [5, 5, 5]
    assert ["trained beats untrained" in text for text in said] == [True, False]

    # Both have the same policy: the optimizer state that each saved is its half, and the adapter is the whole
    assert len(list((out / "checkpoint-1" / "global_step1").glob("*_optim_states.pt"))) == 2
    adapter = load_file(out / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in adapter.items())

"""Several machines: accelerate_configs/multi_node.yaml, launched once for each, and the job of recipes/slurm.sh."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pandas
import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import REPOSITORY, few_prompts
from safetensors.torch import load_file
from trl import TrlParser

from brushup.config import RenderConfig, RewardConfig
from brushup.recipe_config import ServeConfig
from support.launching import ACCELERATE, RECIPE, TWO_CPU_RANKS, free_port, run


# In place of Slurm's commands and of what asks the network: writes the call down; srun runs until scancel is called.
COMMAND = """#!/bin/bash
echo "${0##*/} ${*@Q}" >> calls
case "${0##*/} $*" in
    "scontrol show"*) printf '%s\\n' machine-{1,2} localhost localhost ;;
    scancel*) touch stop ;;
    srun*) until [ -e stop ]; do sleep 0.1; done; exit 1 ;;
esac
"""


@pytest.mark.slow
def test_the_recipe_on_two_machines(tmp_path):
    """Two launches on this machine, as if each was on its own."""
    config = (REPOSITORY / "accelerate_configs" / "multi_node.yaml").read_text()
    (tmp_path / "multi_node.yaml").write_text(re.sub("use_cpu: false", "use_cpu: true", config))
    port, out = str(free_port()), tmp_path / "out"
    command = [
        *(*ACCELERATE, str(tmp_path / "multi_node.yaml"), "--num_machines", "2", "--num_processes", "2"),
        *("--main_process_ip", "127.0.0.1", "--main_process_port", port),
    ]
    program = [
        *(*RECIPE, *TWO_CPU_RANKS, "--output_dir", str(out), "--max_steps", "1", "--save_steps", "1"),
        *("--per_device_train_batch_size", "8", "--validation_prompts", few_prompts(tmp_path, 5)),
    ]
    with ThreadPoolExecutor(2) as machines:
        launches = [
            machines.submit(run, [*command, "--machine_rank", str(rank), *program], real=True) for rank in (0, 1)
        ]
        said = [launch.result().stdout for launch in launches]

    # Each wrote rewrites of its own prompt and its share of the held-out ones; the first alone reports
    completions = pandas.read_parquet(out / "completions" / "completions_00001.parquet")
    assert len(completions) == 16 and completions["user_prompt"].nunique() == 2
    assert [arm["n"] for arm in json.loads((out / "results.json").read_text())["arms"].values()] == [5, 5, 5]
    assert ["trained beats untrained" in text for text in said] == [True, False]

    # Each saved its half of the optimizer's state; the adapter is whole
    assert len(list((out / "checkpoint-1" / "global_step1").glob("*_optim_states.pt"))) == 2
    adapter = load_file(out / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in adapter.items())


def test_the_slurm_job(tmp_path):
    """What it starts where, and that at the time limit training gets SIGTERM and the job goes back into the queue."""
    (tmp_path / "bin").mkdir()
    for name in ("scontrol", "srun", "scancel", "openssl", "curl"):
        (tmp_path / "bin" / name).write_text(COMMAND)
        (tmp_path / "bin" / name).chmod(0o755)
    given = {"SLURM_NNODES": "4", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "any", "SLURM_JOB_ID": "7"}
    given["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    config = "recipes/tiny_cpu.yaml"
    job = subprocess.Popen(
        ["bash", str(REPOSITORY / "recipes" / "slurm.sh"), config, "--seed", "1"],
        cwd=tmp_path,
        env=os.environ | given,
    )

    def calls() -> list[list[str]]:
        file = tmp_path / "calls"
        return [shlex.split(line) for line in file.read_text().splitlines()] if file.exists() else []

    try:
        deadline = time.monotonic() + 30
        while [call[0] for call in calls()].count("srun") < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)  # until it waits for the training
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=30) == 1
    finally:
        job.kill()
        (tmp_path / "stop").touch()
    started = [call for call in calls() if call[0] == "srun"]  # both in the background: either may be first
    service, training = sorted(started, key=lambda call: "--relative=0" in call)
    assert {"--relative=2", "--nodes=2", "--ntasks=2"} <= set(service)
    assert {"--relative=0", "--nodes=2", "--ntasks=2"} <= set(training)
    assert calls()[-2:] == [["scancel", "--signal=TERM", "7.1"], ["scontrol", "requeue", "7"]]

    serve = service[service.index("recipes/serve.py") + 1 :]
    serve[serve.index(config)] = str(REPOSITORY / config)
    *_, serving, _, unknown = TrlParser((RenderConfig, RewardConfig, ServeConfig)).parse_args_and_config(
        serve, return_remaining_strings=True, separate_remaining_strings=True
    )
    assert (serving.num_replicas, serving.ray_address, unknown) == (16, "127.0.0.1:6379", [])

    launch = launch_command_parser().parse_args(training[training.index("-") + 1 :])
    assert (launch.num_machines, launch.num_processes, launch.main_process_ip) == (2, 16, "machine-1")
    assert (REPOSITORY / launch.config_file).exists() and launch.training_script == "recipes/grpo.py"
    settings = ["--config", config, "--worker", "http://127.0.0.1:8100", "--resume_from_checkpoint", "true"]
    assert launch.training_script_args == [*settings, "--seed", "1"]

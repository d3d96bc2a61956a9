"""recipes/minimal.py: the idea without Brushup's package."""

import json
import re
import subprocess
import sys

from conftest import REPOSITORY


def test_it_trains_and_saves_without_the_package(tmp_path):
    """Two of its steps, as a user starts it; rewards are logged, and the adapter is saved."""
    blocked = "import runpy, sys; sys.modules['brushup'] = None; "  # an import of it fails
    program = blocked + "runpy.run_path('recipes/minimal.py', run_name='__main__')"
    flags = ["--max_steps", "2", "--output_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags], cwd=REPOSITORY, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"Mean reward of the first 1 logged steps: 0\.\d+, of the last 1: 0\.\d+", done.stdout)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "rewards/clip/mean" in entry]
    assert len(logged) == 2 and all(-1 < entry["reward"] < 1 and entry["reward_std"] > 0 for entry in logged)

"""The simulation of benchmarks/simulate.py against steps that can be computed by hand."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def simulate():
    spec = importlib.util.spec_from_file_location("simulate", REPOSITORY / "benchmarks" / "simulate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup(simulate):
    """64 pictures in batches of 8, each batch 1 + 8 x 0.5 s: 40 s of drawing; a service that takes no time."""
    times = simulate.Times(generate=3.0, train=7.0, fixed=1.0, picture=0.5, pictures=64, batch_size=8)
    return simulate.Setup(times, costs=simulate.FREE, jitter=0)


def test_one_rank_and_one_replica_take_what_is_computed_by_hand(simulate, setup):
    assert simulate.step_seconds(setup) == pytest.approx(3 + 40 + 7)
    assert simulate.step_seconds(replace(setup, lookahead=True)) == pytest.approx(40)  # drawing never stops
    quick = replace(setup.times, fixed=0.1, picture=0.1)  # 7.2 s of drawing
    assert simulate.step_seconds(replace(setup, times=quick, lookahead=True)) == pytest.approx(3 + 7)
    # Written in 2 parts of 1.5 s, each drawn in 3.6 s: the first is trained on while the second is drawn
    assert simulate.step_seconds(replace(setup, times=quick, parts=2)) == pytest.approx(1.5 + 3.6 + 3.6 + 3.5)
    assert simulate.step_seconds(replace(setup, times=quick)) == pytest.approx(3 + 7.2 + 7)


def test_a_step_of_more_ranks_waits_for_all_pictures(simulate, setup):
    assert simulate.step_seconds(replace(setup, ranks=3)) == pytest.approx(3 + 3 * 40 + 7)


def test_batches_close_after_20_ms_when_they_do_not_fill(simulate, setup):
    few = replace(setup, times=replace(setup.times, pictures=4))
    assert simulate.step_seconds(few) == pytest.approx(3 + 0.02 + (1 + 4 * 0.5) + 7)


def test_more_replicas_halve_drawing_until_the_policy_is_the_limit(simulate, setup):
    many = replace(setup, ranks=8, lookahead=True, times=replace(setup.times, fixed=0.0))  # 256 s of drawing
    steps = [simulate.step_seconds(replace(many, replicas=2**power)) for power in range(9)]
    for before, after in zip(steps[:4], steps[1:4], strict=False):  # 256, 128, 64, 32 s
        assert after == pytest.approx(before / 2, rel=0.1)
    assert steps[-1] == pytest.approx(10) == simulate.limit(many)
    assert simulate.what_limits(many) == "render GPUs"
    assert simulate.what_limits(replace(many, replicas=256)) == "policy"


def test_with_many_replicas_the_gateway_is_the_limit(simulate, setup):
    chunk = 0.1
    costs = replace(simulate.FREE, gateway=(0.0, chunk))
    many = replace(setup, ranks=4, replicas=500, costs=costs, lookahead=True)
    assert simulate.step_seconds(many) == pytest.approx(4 * 64 * chunk, rel=0.02)  # each job is a chunk
    assert simulate.what_limits(many) == "gateway"
    few = replace(many, replicas=4)  # then drawing is, and no step is faster on the average than that
    assert simulate.step_seconds(few) >= 4 * 64 * 0.5 / 4
    assert simulate.fewest(many) is None


def test_processes_share_the_cores(simulate, setup):
    costs = replace(simulate.FREE, client=(1.0, 0.0), proxy=(1.0, 0.0))
    quick = replace(setup.times, fixed=0.0, picture=0.0)
    busy = replace(setup, times=quick, costs=costs)  # four requests, each 1 s in the client and 1 s in the proxy
    alone = simulate.step_seconds(replace(busy, cores=1))
    assert alone == pytest.approx(3 + 4 * 2 + 7, abs=0.1)
    assert simulate.step_seconds(replace(busy, cores=2)) == pytest.approx(simulate.step_seconds(busy), abs=0.6)
    assert simulate.step_seconds(busy) < alone - 2


@pytest.mark.parametrize("mode", [{}, {"parts": 4}, {"lookahead": True}])
def test_the_recommended_number_is_the_smallest_near_the_limit(simulate, setup, mode):
    setup = replace(setup, ranks=2, **mode)
    found = simulate.fewest(setup)
    assert found > 1
    near = simulate.NEAR * simulate.limit(setup)
    assert simulate.with_replicas(setup, found) <= near < simulate.with_replicas(setup, found - 1)
    best = simulate.cheapest(setup, found)
    assert simulate.cost(setup, best) <= min(simulate.cost(setup, many) for many in (1, 2, 4, 16, 64, found))


def test_measured_times(simulate, tmp_path):
    step = {"generate": 2.0, "draw": 9.0, "score": 6.4, "train": 3.0, "the rest": -1.0, "pictures": 64}
    ways = {"one at a time, bfloat16, 512 px, 20 steps": 2.0, "batches of 4": 2.5, "batches of 16": 4.0}
    ways |= {"batches of 16, without T5": 5.0}
    ways = {name: {"pictures_per_second": rate} for name, rate in ways.items()}
    (tmp_path / "gpu.json").write_text(json.dumps({"steps": {"7B": step}, "ways": ways}))
    times = simulate.measured_times(tmp_path / "gpu.json", "7B")
    assert (times.generate, times.train, times.pictures, times.batch_size) == (2.0, 3.0, 64, 16)
    assert times.fixed + times.picture == pytest.approx(0.5 + 0.1)  # drawn and scored
    assert times.fixed + 16 * times.picture == pytest.approx(4.0 + 1.6)


def test_as_a_user_types_it(tmp_path):
    service = {"costs": {"client": [0, 0], "proxy": [0, 0], "gateway": [0.01, 0.001], "replica": [0, 0]}}
    (tmp_path / "service.json").write_text(json.dumps(service))
    command = [sys.executable, "benchmarks/simulate.py", "--policy_gpus", "1", "2", "--pictures", "16"]
    command += ["--train", "30", "--service", str(tmp_path / "service.json"), "--output", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ASSUMED, NOT MEASURED" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["times"]["train"] == 30 and found["given"] == {"train": 30, "pictures": 16}
    assert [row["policy_gpus"] for row in found["sizes"]["lookahead"]] == [1, 2]
    for rows in found["sizes"].values():
        for row in rows:
            assert row["near"]["step"] <= 1.1 * row["limit"]
            assert row["cheapest"]["gpu_seconds"] <= row["near"]["gpu_seconds"]
            both = row["policy_gpus"] + row["near"]["render_gpus"]
            assert row["near"]["gpu_seconds"] == pytest.approx(both * row["near"]["step"])
    last = found["scaling"]["lookahead"][-1]
    assert last["render_gpus"] == 1000 and last["limit"] == "policy"

"""Does anything get lost when replicas keep dying? 10,000 jobs from 8 clients, a replica killed every 20 s.

    python benchmarks/soak.py --output soak.json

The replicas are stand-ins that sleep 100 ms a batch of 4; the score of a job says which job it was. The limit is four
replicas x 40 jobs a second. Each client sends its jobs 50 at a time. Memory is that of the service's gateway.
"""

import argparse
import json
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import ray
from ray import serve

from brushup.client import HttpWorker
from brushup.console import quiet_libraries
from brushup.service import make_application
from brushup.worker import RenderJob, RenderResult


PORT = 8198
CLIENTS, JOBS, AT_ONCE, REPLICAS = 8, 10_000, 50, 4
KILL_EVERY = 20  # seconds


class Sleeper:
    """A stand-in for `LocalWorker`: 100 ms for any batch, no CPU."""

    token_limits: dict[str, int] = {}

    def score(self, jobs: list[RenderJob], return_images: bool) -> list[RenderResult]:
        time.sleep(0.1)
        return [RenderResult({"seed": float(job.seed)}) for job in jobs]


def processes(name: str) -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [each for each in mine if f"ServeReplica:brushup:{name}" in " ".join(each.cmdline())]


def client(number: int) -> list[tuple[int, RenderResult]]:
    """Each of this client's jobs with its result."""
    worker = HttpWorker(f"http://127.0.0.1:{PORT}", ["seed"], 120, "")
    mine = [RenderJob(f"prompt {i}", "a cat", i) for i in range(number, JOBS, CLIENTS)]
    pairs = []
    for begin in range(0, len(mine), AT_ONCE):
        some = mine[begin : begin + AT_ONCE]
        pairs += [(job.seed, result) for job, result in zip(some, worker.score(some), strict=True)]
    return pairs


def kill_now_and_then(done: threading.Event, killed: list[float], memory: list[float]) -> None:
    start = time.monotonic()
    while not done.wait(1):
        memory.append(sum(each.memory_info().rss for each in processes("Gateway")) / 2**20)
        if (time.monotonic() - start) // KILL_EVERY > len(killed) and (there := processes("Replica")):
            os.kill(random.choice(there).pid, signal.SIGKILL)
            killed.append(time.monotonic() - start)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", required=True)
    output = arguments.parse_args().output
    quiet_libraries()
    ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, num_cpus=1, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(make_application(Sleeper, {}, ["seed"], 60, 4, REPLICAS, {"num_cpus": 0}, None), name="brushup")

    done, killed, memory = threading.Event(), [], []
    killer = threading.Thread(target=kill_now_and_then, args=(done, killed, memory))
    killer.start()
    begin = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        pairs = [pair for some in clients.map(client, range(CLIENTS)) for pair in some]
    seconds = time.perf_counter() - begin
    done.set()
    killer.join()
    right = [seed for seed, result in pairs if result.error is None and result.scores == {"seed": float(seed)}]
    fifth = len(memory) // 5
    results = {
        "jobs": JOBS,
        "answered": len(pairs),
        "answered_right": len(right),
        "answered_twice": len(right) - len(set(right)),
        "failed": sorted({result.error for _, result in pairs if result.error}),
        "replicas_killed": len(killed),
        "seconds": seconds,
        "jobs_per_second": JOBS / seconds,
        "of_limit": JOBS / seconds / (REPLICAS * 40),
        "gateway_mib_first_fifth": max(memory[:fifth]),
        "gateway_mib_last_fifth": max(memory[-fifth:]),
    }
    Path(output).write_text(json.dumps(results, indent=2) + "\n")
    for name, value in results.items():
        print(f"{name:>24}: {value if not isinstance(value, float) else f'{value:.2f}'}")
    ray.shutdown()


if __name__ == "__main__":
    main()

"""What does the service cost, and does it scale? Images a second, as ratios within one run.

    python benchmarks/worker.py --output worker.json

192 images of the tiny world are rendered and scored in three ways, in turns, three times: `direct` is `LocalWorker` at
its best batch size; `service` is the same worker behind the service, with 32 jobs in flight; `one_by_one` is
`LocalWorker` with a prompt at a time. The limit of the service is `direct`. Then 1, 2, 4, 8 and 16 stand-in replicas
that sleep 100 ms a batch of 8.
"""

import argparse
import dataclasses
import functools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import ray
import torch
import yaml
from ray import serve

from brushup.config import RenderConfig, RewardConfig
from brushup.console import quiet_libraries
from brushup.render.job import RenderJob, RenderResult
from brushup.render.service.client import HttpWorker
from brushup.render.service.server import make_application
from brushup.render.worker import load_worker
from brushup.rewards.registry import parse_rewards


PORT = 8199
IN_FLIGHT = 32
IMAGES = 192
ROUNDS = 3


class Sleeper:
    """A stand-in for `LocalWorker` that sleeps 100 ms for any batch."""

    token_limits: dict[str, int] = {}
    columns: tuple[str, ...] = ()

    def score(self, jobs: list[RenderJob], return_images: bool) -> list[RenderResult]:
        time.sleep(0.1)
        return [RenderResult({"seed": float(job.seed)}) for job in jobs]


def start(make_worker, rewards: list[str], batch_size: int, num_replicas: int, cpus: float) -> HttpWorker:
    """Start a service with these replicas, and return its client."""
    application = make_application(make_worker, {}, rewards, 60, batch_size, num_replicas, {"num_cpus": cpus}, None)
    serve.run(application, name="brushup")
    return HttpWorker(f"http://127.0.0.1:{PORT}", rewards, 120, "")


def rate(score, jobs: list[RenderJob]) -> float:
    """Return the jobs a second of `score(jobs)`."""
    begin = time.perf_counter()
    results = score(jobs)
    assert all(result.error is None for result in results), [r.error for r in results if r.error][:3]
    return len(jobs) / (time.perf_counter() - begin)


def in_flight(worker: HttpWorker, jobs: list[RenderJob]) -> list[RenderResult]:
    """Score with `IN_FLIGHT` jobs at any time, as if two ranks each submitted half as many."""
    half = IN_FLIGHT // 2
    with ThreadPoolExecutor(2) as ranks:
        parts = ranks.map(worker.score, [jobs[begin : begin + half] for begin in range(0, len(jobs), half)])
        return [result for results in parts for result in results]


def make_jobs(count: int, seed: int) -> list[RenderJob]:
    """Return so many jobs, no two of them equal, nor equal to those of another seed."""
    lines = Path("data/tiny_world/validation.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["user_prompt"] for line in lines]
    return [RenderJob(prompts[i % len(prompts)], prompts[i % len(prompts)], seed * 100_000 + i) for i in range(count)]


def rendering(settings: dict) -> dict:
    """Measure the rates of the three ways, and their ratios."""
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    render = RenderConfig(**{name: settings[name] for name in ("generator", "generator_init_kwargs", "render_kwargs")})
    rewards = parse_rewards(RewardConfig(reward_funcs=["clip"], reward_kwargs=settings["reward_kwargs"]))
    local = load_worker(render, rewards)
    local.score(make_jobs(8, 0))  # the first batch is slower

    by_size = {}
    for size in (8, 16, 32, 64):
        local.renderer.batch_size = size
        by_size[size] = rate(local.score, make_jobs(64, size))
        print(f"batch of {size:>2}: {by_size[size]:.1f} images/s", flush=True)
    best = max(by_size, key=by_size.get)
    render = dataclasses.replace(render, render_batch_size=best)
    service_batch = min(best, IN_FLIGHT // 2)  # so that one batch waits while the other is rendered
    remote = start(functools.partial(load_worker, render, rewards), ["clip"], service_batch, 1, threads)
    in_flight(remote, make_jobs(32, 1))

    rates = {"direct": [], "service": [], "one_by_one": []}
    for turn in range(ROUNDS):
        local.renderer.batch_size = best
        rates["direct"].append(rate(local.score, make_jobs(IMAGES, 10 + turn)))
        rates["service"].append(rate(functools.partial(in_flight, remote), make_jobs(IMAGES, 20 + turn)))
        alone = make_jobs(IMAGES // 4, 30 + turn)
        rates["one_by_one"].append(rate(lambda jobs: [local.score([job])[0] for job in jobs], alone))
    serve.delete("brushup")
    middle = {name: median(values) for name, values in rates.items()}
    for name, value in middle.items():
        print(f"{name:>10}: {value:6.1f} images/s   (each turn: {', '.join(f'{r:.1f}' for r in rates[name])})")
    return {
        "best_batch_size": best,
        "service_batch_size": service_batch,
        "images_per_second": rates,
        "service_over_direct": median(s / d for s, d in zip(rates["service"], rates["direct"], strict=True)),
        "service_over_one_by_one": median(s / o for s, o in zip(rates["service"], rates["one_by_one"], strict=True)),
    }


def scaling() -> dict[int, dict[str, float]]:
    """Measure stand-in replicas; the limit is 80 jobs a second each."""
    found = {}
    for replicas in (1, 2, 4, 8, 16):
        worker = start(Sleeper, ["seed"], 8, replicas, 0)
        jobs = [RenderJob(f"prompt {i}", "a cat", i) for i in range(80 * replicas * 5)]
        worker.score(jobs[:64])
        cpu, begin = os.times(), time.perf_counter()
        per_second = rate(worker.score, jobs)
        busy = (sum(os.times()[:2]) - sum(cpu[:2])) / (time.perf_counter() - begin)
        found[replicas] = {
            "jobs_per_second": per_second,
            "of_linear": per_second / (80 * replicas),
            "client_cpus": busy,
        }
        print(
            f"{replicas} replicas: {per_second:6.1f} jobs/s, {found[replicas]['of_linear']:.2f} of linear", flush=True
        )
        serve.delete("brushup")
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", required=True)
    output = arguments.parse_args().output
    quiet_libraries()
    settings = yaml.safe_load(Path("recipes/tiny_cpu.yaml").read_text())
    ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, num_cpus=os.cpu_count(), log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    results = rendering(settings)
    results["scaling"] = scaling()
    Path(output).write_text(json.dumps(results, indent=2) + "\n")
    print(
        f"service / direct {results['service_over_direct']:.2f}; / one by one {results['service_over_one_by_one']:.2f}"
    )
    ray.shutdown()


if __name__ == "__main__":
    main()

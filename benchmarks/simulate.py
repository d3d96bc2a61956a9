"""How many render GPUs does a policy on N GPUs want, what does a step cost, and where does it stop scaling?

    python benchmarks/simulate.py --output simulate.json                       # GPU times assumed, see below
    python benchmarks/simulate.py --gpu gpu.json --service service.json        # measured ones
    python benchmarks/simulate.py --check 1 2 4 8 --output service.json        # against the real service

GRPO steps, event by event. Each policy GPU writes its rewrites and sends them, 16 jobs a request and 16 requests at
once. The proxy and the gateway are one process each, and take processor time for every request, and for every chunk of
it that goes to a replica. A replica makes batches as Ray Serve does (of what comes within 20 ms) and draws one after
the other. All policy GPUs wait for each other's scores, then train. The limit is a step with infinitely many render
GPUs and a service that takes no time.

**The GPU times are assumptions until there is a gpu.json**: the work of Stable Diffusion 3 with T5 and of Qwen2-VL 7B
with LoRA is counted, the share of an H100 that they reach is guessed (`assumed_times`). The service's processor times
are measured, by --check: with one replica that does nothing it calibrates, and then predicts what replicas that sleep
do. Left out: the network, other programs, and that parts of a batch are written less efficiently than all of it.
"""

import argparse
import itertools
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import psutil
import simpy


JOBS_PER_REQUEST = REQUESTS_AT_ONCE = 16  # as in brushup/client.py
BATCH_WAIT = 0.02  # seconds, as in brushup/service.py
MOST = 1000  # render GPUs
NEAR = 1.1
MODES = {"on-policy": {}, "on-policy, 4 parts": {"parts": 4}, "lookahead": {"lookahead": True}}


@dataclass(frozen=True)
class Times:
    """Seconds on the GPUs: a policy GPU's for its share of a step, and a batch of n pictures: fixed + n x picture."""

    generate: float
    train: float
    fixed: float
    picture: float
    pictures: int = 64
    """Of each policy GPU in a step."""
    batch_size: int = 16


@dataclass(frozen=True)
class Costs:
    """Seconds of a processor for a request of 16 jobs, and for each chunk of it; as --check found them."""

    client: tuple[float, float] = (0.0049, 0.0000)
    proxy: tuple[float, float] = (0.0092, 0.0003)
    gateway: tuple[float, float] = (0.0099, 0.0040)
    replica: tuple[float, float] = (0.0022, 0.0045)


FREE = Costs((0, 0), (0, 0), (0, 0), (0, 0))


@dataclass(frozen=True)
class Setup:
    """What is simulated. `cores`: all processes share them, and the ranks are one process; None: a core for each."""

    times: Times
    ranks: int = 1
    replicas: int = 1
    parts: int = 1
    lookahead: bool = False
    costs: Costs = field(default_factory=Costs)
    cores: int | None = None
    jitter: float = 0.05
    """Batches take 1 - jitter to 1 + jitter times as long."""
    steps: int = 2
    """With lookahead an even number: batches may come back in pairs, and every other step waits for none."""

    @property
    def warm_up(self) -> int:
        """Steps that do not count: with lookahead it takes some until they are alike, or every other one is."""
        return 3 * self.lookahead


def assumed_times() -> Times:
    """Counted work over an assumed share of an H100's peak. Not measured.

    A step of a policy GPU is that of benchmarks/gpu.py, 64 answers of 64 tokens. Log-probabilities of the reference
    are one forward pass, training is three (forward, again for gradient checkpointing, backward: LoRA has no gradient
    of the weights). They are taken for training, though the first is computed while pictures are drawn.
    """
    peak, bandwidth = 989e12, 3.35e12  # FLOP/s in bfloat16 and bytes/s, as NVIDIA has it
    share = 0.4  # assumed, of the peak: drawing in batches, training, reading prompts
    alone = 0.2  # assumed, of the peak: drawing one picture
    decoding = 1 / 6  # assumed, of the bandwidth: writing one token after the other
    parameters, prompt, answer, rows = 8.29e9, 224, 64, 64
    forward = 2 * parameters * (prompt + answer) * rows / (share * peak)
    reading = 2 * parameters * prompt * rows / (share * peak)
    generate = reading + answer * 2 * parameters / (decoding * bandwidth)
    work, batch = 91.6e12, 16  # FLOP of a picture: 512 px, 20 steps with guidance, T5; benchmarks/README.md
    return line_through(generate, 4 * forward, work / (alone * peak), batch * work / (share * peak), batch)


def line_through(generate: float, train: float, one: float, batch: float, size: int) -> Times:
    """With the seconds of one picture and of a batch."""
    picture = (batch - one) / (size - 1)
    return Times(generate, train, max(0.0, one - picture), picture, batch_size=size)


def measured_times(file: str, policy: str) -> Times:
    """What benchmarks/gpu.py found."""
    gpu = json.loads(Path(file).read_text())
    step, ways = gpu["steps"][policy], gpu["ways"]
    rates = {name: way["pictures_per_second"] for name, way in ways.items()}
    alone = next(rate for name, rate in rates.items() if name.startswith("one at a time"))
    batches = {int(name.split()[-1]): rate for name, rate in rates.items() if name.split()[-1].isdigit()}
    batches.pop(1, None)
    size = max(batches, key=batches.get)
    score = step["score"] / step["pictures"]
    train = step["train"] + max(0.0, step["the rest"])
    found = line_through(step["generate"], train, 1 / alone + score, size * (1 / batches[size] + score), size)
    return replace(found, pictures=step["pictures"])


LOOP = Times(0.4, 0.4, 0.1, 0, 32, 8)  # of the check: ranks that sleep


def cut(many: int, size: int) -> list[int]:
    return [min(size, many - begin) for begin in range(0, many, size)]


class Process:
    """Does one thing at a time, in the order in which it is asked to, on one of the cores."""

    def __init__(self, env: simpy.Environment, cores: simpy.Resource | None):
        self.env, self.cores = env, cores
        self.turn = simpy.Resource(env)
        self.free = 0.0

    def work(self, seconds: float) -> Iterator[simpy.Event]:
        if not self.cores:  # the same with a third of the events
            self.free = max(self.free, self.env.now) + seconds
            yield self.env.timeout(self.free - self.env.now)
            return
        with self.turn.request() as turn:
            yield turn
            with self.cores.request() as core:
                yield core
                yield self.env.timeout(seconds)


class Replica:
    """Ray Serve's batches: closed when full, or 20 ms after their first chunk, whether or not the GPU is busy."""

    def __init__(self, simulation: "Simulation"):
        self.simulation, self.env = simulation, simulation.env
        self.ongoing = 0  # chunks, which is what Ray Serve's router compares
        self.open: list[tuple[int, simpy.Event]] = []
        self.closed = simpy.Store(self.env)
        self.process = Process(self.env, simulation.cores)
        self.env.process(self.draw())

    def put(self, jobs: int, drawn: simpy.Event) -> None:
        size, setup = sum(chunk for chunk, _ in self.open), self.simulation.setup
        if self.open and size + jobs > setup.times.batch_size:
            self.close(self.open)
            size = 0
        self.ongoing += 1
        self.open.append((jobs, drawn))
        if size + jobs >= setup.times.batch_size:
            self.close(self.open)
        elif len(self.open) == 1:
            batch = self.open
            self.env.timeout(BATCH_WAIT).callbacks.append(lambda _: self.close(batch))

    def close(self, batch: list) -> None:
        if batch is self.open:  # else it was full before its time was up
            self.closed.put(batch)
            self.open = []

    def draw(self) -> Iterator[simpy.Event]:
        setup, random_ = self.simulation.setup, self.simulation.random
        while True:
            batch = yield self.closed.get()
            jobs, (of_request, of_chunk) = sum(chunk for chunk, _ in batch), setup.costs.replica
            seconds = setup.times.fixed + setup.times.picture * jobs
            yield self.env.timeout(seconds * random_.uniform(1 - setup.jitter, 1 + setup.jitter))
            yield from self.process.work(of_request * jobs / JOBS_PER_REQUEST + of_chunk * len(batch))
            self.ongoing -= len(batch)
            for _, drawn in batch:
                drawn.succeed()


class Simulation:
    """Some steps of a run; `step_seconds` is their mean."""

    def __init__(self, setup: Setup):
        self.setup, self.random = setup, random.Random(0)
        self.env = simpy.Environment()
        self.cores = simpy.Resource(self.env, setup.cores) if setup.cores else None
        self.proxy, self.gateway, shared = (Process(self.env, self.cores) for _ in range(3))
        self.replicas = [Replica(self) for _ in range(setup.replicas)]
        self.arrived, self.all_there = 0, self.env.event()
        self.ends = [0.0]
        clients = [shared if setup.cores else Process(self.env, None) for _ in range(setup.ranks)]
        ranks = [self.env.process(self.rank(number, client)) for number, client in enumerate(clients)]
        self.env.run(self.env.all_of(ranks))
        self.step_seconds = (self.ends[-1] - self.ends[setup.warm_up]) / setup.steps

    def rank(self, number: int, client: Process) -> Iterator[simpy.Event]:
        setup, slots = self.setup, simpy.Resource(self.env, REQUESTS_AT_ONCE)
        batches: deque[list[simpy.Event]] = deque()
        if setup.lookahead:
            batches.append((yield from self.write(client, slots)))
        for _ in range(setup.warm_up + setup.steps):
            batches.append((yield from self.write(client, slots)))
            for pictures in batches.popleft():
                yield pictures
                yield from self.wait_for_the_others()
                yield self.env.timeout(setup.times.train / setup.parts)
            if not number:
                self.ends.append(self.env.now)

    def write(self, client: Process, slots: simpy.Resource) -> Iterator[simpy.Event]:
        """Returns an event for each part: its pictures are there."""
        times, sent = self.setup.times, []
        for jobs in cut(times.pictures, -(-times.pictures // self.setup.parts)):
            yield self.env.timeout(times.generate * jobs / times.pictures)
            requests = [self.env.process(self.request(client, slots, n)) for n in cut(jobs, JOBS_PER_REQUEST)]
            sent.append(self.env.all_of(requests))
        return sent

    def wait_for_the_others(self) -> Iterator[simpy.Event]:
        """The rewards of all ranks are gathered."""
        self.arrived += 1
        if self.arrived < self.setup.ranks:
            yield self.all_there
        else:
            self.arrived, now, self.all_there = 0, self.all_there, self.env.event()
            now.succeed()

    def request(self, client: Process, slots: simpy.Resource, jobs: int) -> Iterator[simpy.Event]:
        """Half of each process's work on the way there, half on the way back."""
        setup, costs = self.setup, self.setup.costs
        chunks = cut(jobs, min(setup.times.batch_size, -(-jobs // setup.replicas)))  # as `Gateway.score` does
        way = [(client, costs.client), (self.proxy, costs.proxy), (self.gateway, (costs.gateway[0], 0.0))]
        halves = [(process, (cost[0] + cost[1] * len(chunks)) / 2) for process, cost in way]
        with slots.request() as slot:
            yield slot
            for process, seconds in halves:
                yield from process.work(seconds)
            yield self.env.all_of([self.env.process(self.answer(chunk)) for chunk in chunks])
            for process, seconds in reversed(halves):
                yield from process.work(seconds)

    def answer(self, chunk: int) -> Iterator[simpy.Event]:
        """The better of two replicas, taken at random, as Ray Serve's router does it."""
        yield from self.gateway.work(self.setup.costs.gateway[1] / 2)
        drawn = self.env.event()
        count = len(self.replicas)
        first = int(self.random.random() * count)
        second = (first + 1 + int(self.random.random() * (count - 1))) % count
        two = self.replicas[first], self.replicas[second]
        min(two, key=lambda replica: replica.ongoing).put(chunk, drawn)
        yield drawn
        yield from self.gateway.work(self.setup.costs.gateway[1] / 2)


@cache
def step_seconds(setup: Setup) -> float:
    return Simulation(setup).step_seconds


def limit(setup: Setup) -> float:
    """Seconds of a step with infinitely many render GPUs and a service that takes no time."""
    times = setup.times
    picture = times.fixed + times.picture
    if setup.lookahead:
        return max(times.generate + times.train, picture)
    end = times.generate
    for part in range(1, setup.parts + 1):
        end = max(end, times.generate * part / setup.parts + picture) + times.train / setup.parts
    return end


def with_replicas(setup: Setup, replicas: int) -> float:
    return step_seconds(replace(setup, replicas=replicas))


def fewest(setup: Setup) -> int | None:
    """Render GPUs for a step within `NEAR` of the limit; one less is too few. None: none of 1, 2, 4, ..., `MOST`."""
    low, high = 0, 1
    while with_replicas(setup, high) > NEAR * limit(setup):
        if high == MOST:
            return None
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if with_replicas(setup, middle) <= NEAR * limit(setup) else (middle, high)
    return high


def cost(setup: Setup, replicas: int) -> float:
    """GPU-seconds of a step, of all GPUs, also while they wait."""
    return (setup.ranks + replicas) * with_replicas(setup, replicas)


def cheapest(setup: Setup, near: int | None) -> int:
    """The number of render GPUs with the cheapest step, of `near` and 1, 2, 3, 4, 6, 8, 12, ..."""
    sizes = sorted({near or 1} | {min(MOST, base * 2**power) for base in (1, 3) for power in range(11)})
    best = sizes[0]
    for size in sizes:
        if cost(setup, size) < cost(setup, best):
            best = size
        elif cost(setup, size) > 1.5 * cost(setup, best):
            break
    return best


def what_limits(setup: Setup) -> str:
    """The policy, near the limit; else what shortens the step most if it is twice as fast or twice as much."""
    if step_seconds(setup) <= NEAR * limit(setup):
        return "policy"
    times, (request, chunk) = setup.times, setup.costs.gateway
    others = {
        "render GPUs": replace(setup, replicas=2 * setup.replicas),
        "a picture's own time": replace(setup, times=replace(times, fixed=times.fixed / 2, picture=times.picture / 2)),
        "gateway": replace(setup, costs=replace(setup.costs, gateway=(request / 2, chunk / 2))),
    }
    seconds = {name: step_seconds(other) for name, other in others.items()}
    name = min(seconds, key=seconds.get)
    if name == "a picture's own time" and seconds["render GPUs"] < 0.9 * step_seconds(setup):
        return "render GPUs"  # more of them and faster ones are the same
    return name


def sizes_wanted(times: Times, costs: Costs, ranks: list[int]) -> dict[str, list[dict]]:
    """For each mode and number of policy GPUs: the fewest render GPUs near the limit, and the cheapest."""
    found: dict[str, list[dict]] = {}
    for mode, settings in MODES.items():
        print(f"\n{mode}: seconds a step, GPU-seconds a picture (policy GPUs too)")
        print(" policy    limit |  near it    step    cost |  cheapest    step    cost")
        for many in ranks:
            setup = Setup(times, many, costs=costs, **settings)
            row: dict = {"policy_gpus": many, "limit": limit(setup)}
            rows = found.setdefault(mode, [])
            hopeless = bool(rows) and rows[-1]["near"] is None  # then a larger policy wants even more of the service
            near = None if hopeless else fewest(setup)
            for name, size in (("near", near), ("cheapest", cheapest(setup, near))):
                row[name] = size and {
                    "render_gpus": size,
                    "step": with_replicas(setup, size),
                    "gpu_seconds": cost(setup, size),
                    "gpu_seconds_a_picture": cost(setup, size) / (many * times.pictures),
                }
            rows.append(row)
            columns = [
                "{render_gpus:>{0}}{step:>8.2f}{gpu_seconds_a_picture:>8.2f}".format(width, **row[name])
                if row[name]
                else f"none up to {MOST}".rjust(width + 16)
                for name, width in (("near", 8), ("cheapest", 9))
            ]
            print(f"{many:>7}{row['limit']:>9.2f} | {' | '.join(columns)}", flush=True)
    return found


def scaling(times: Times, costs: Costs, ranks: int) -> dict[str, list[dict]]:
    """How a step of this many policy GPUs falls with the render GPUs, and what limits it."""
    found: dict[str, list[dict]] = {}
    for mode in ("on-policy", "lookahead"):
        print(f"\n{mode}, {ranks} policy GPUs\n{'render':>7}{'step':>9}{'pictures/s':>12}  limit")
        for replicas in [2**power for power in range(10)] + [MOST]:
            setup = Setup(times, ranks, replicas, costs=costs, **MODES[mode])
            seconds, by = step_seconds(setup), what_limits(setup)
            rate = ranks * times.pictures / seconds
            row = {"render_gpus": replicas, "step": seconds, "pictures_per_second": rate, "limit": by}
            found.setdefault(mode, []).append(row)
            print(f"{replicas:>7}{seconds:>9.2f}{rate:>12.1f}  {by}", flush=True)
    return found


def processor_seconds() -> dict[str, float]:
    """Taken so far by this process, which is the client, and by those of the service."""
    names = {"ProxyActor": "proxy", "ServeReplica:brushup:Gateway": "gateway", "ServeReplica:brushup:Rep": "replica"}
    found = {"client": sum(psutil.Process().cpu_times()[:2])} | dict.fromkeys(names.values(), 0.0)
    for process in psutil.Process().children(recursive=True):
        for text, name in names.items():
            if text in " ".join(process.cmdline()):
                found[name] += sum(process.cpu_times()[:2])
    return found


def processor_seconds_of(worker, count: int) -> tuple[dict[str, float], float]:
    """For each request of 16 jobs, if so many jobs are sent; and seconds by the clock."""
    worker.score(new_jobs(256))
    before, begin, jobs = processor_seconds(), time.perf_counter(), new_jobs(count)
    results = worker.score(jobs)
    seconds, after = time.perf_counter() - begin, processor_seconds()
    assert [result.scores for result in results] == [{"seed": job.seed} for job in jobs]
    return {name: (after[name] - before[name]) * JOBS_PER_REQUEST / count for name in before}, seconds


numbers = itertools.count()


def new_jobs(count: int) -> list:
    from brushup.worker import RenderJob

    return [RenderJob(f"prompt {number}", "a cat", number) for number in itertools.islice(numbers, count)]


def calibrate() -> Costs:
    """From one replica that does nothing, with requests cut into 2 chunks and into 16."""
    from ray import serve
    from worker import Sleeper, start

    from brushup.worker import RenderResult

    class Instant(Sleeper):
        def score(self, jobs, return_images):
            return [RenderResult({"seed": float(job.seed)}) for job in jobs]

    found = {}
    for size in (8, 1):
        found[size], _ = processor_seconds_of(start(Instant, ["seed"], size, 1, 0), 1024)
        serve.delete("brushup")
    chunk = {name: max(0.0, (found[1][name] - found[8][name]) / 14) for name in found[1]}
    return Costs(**{name: (max(0.0, found[8][name] - 2 * chunk[name]), chunk[name]) for name in chunk})


def real_step(worker, setup: Setup) -> float:
    """Seconds of a step of threads that sleep instead of computing; the pictures are those of the real service."""
    from brushup.client import HttpWorker

    together, times = threading.Barrier(setup.ranks), setup.times

    def rank(client: HttpWorker) -> list[float]:
        batches, ends = deque(), []

        def write() -> None:
            time.sleep(times.generate)
            batches.append(client.submit(new_jobs(times.pictures)))

        if setup.lookahead:
            write()
        for _ in range(1 + setup.steps):
            write()
            assert not any(result.error for result in batches.popleft().result())
            together.wait()
            time.sleep(times.train)
            ends.append(time.perf_counter())
        return ends

    clients = [HttpWorker(worker.url, ["seed"], 120, "") for _ in range(setup.ranks)]
    with ThreadPoolExecutor(setup.ranks) as ranks:
        ends = next(ranks.map(rank, clients))
    return (ends[-1] - ends[0]) / setup.steps


def check(sizes: list[int], service: str | None) -> dict:
    """Predicts what stand-in replicas do that sleep 100 ms a batch of 8, with what one that does nothing costs."""
    import ray
    from ray import serve
    from worker import PORT, Sleeper, start

    ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, num_cpus=1, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    costs = load_costs(service) if service else calibrate()
    print(f"milliseconds of a processor for a request of {JOBS_PER_REQUEST} jobs, and for each chunk of it:")
    for name, (request, chunk) in asdict(costs).items():
        print(f"{name:>10}: {1000 * request:6.2f} + {1000 * chunk:5.2f} a chunk")
    rows, cores = [], len(os.sched_getaffinity(0))

    def row(replicas: int, what: str, predicted: float, measured: float) -> None:
        rows.append({"replicas": replicas, "what": what, "predicted": predicted, "measured": measured})
        print(f"{replicas:>9} {what:<29}{predicted:>11.2f}{measured:>10.2f}{predicted / measured:>13.2f}", flush=True)

    print(f"\n replicas {'':<29}{'predicted':>11}{'measured':>10}{'pred./meas.':>13}")
    for replicas in sizes:
        worker = start(Sleeper, ["seed"], 8, replicas, 0)
        shared = Setup(Times(0, 0, 0.1, 0, 320 * replicas, 8), 1, replicas, 1, False, costs, cores, 0)
        taken, seconds = processor_seconds_of(worker, shared.times.pictures)
        chunks = -(-JOBS_PER_REQUEST // min(8, -(-JOBS_PER_REQUEST // replicas)))
        for name, (request, chunk) in asdict(costs).items():
            row(replicas, f"{name}, ms a request", 1000 * (request + chunk * chunks), 1000 * taken[name])
        row(replicas, "jobs/s", shared.times.pictures / step_seconds(shared), shared.times.pictures / seconds)
        for mode in ("on-policy", "lookahead"):
            loop = replace(shared, times=LOOP, ranks=4, steps=4, **MODES[mode])
            row(replicas, f"{mode}, s a step", step_seconds(loop), real_step(worker, loop))
        serve.delete("brushup")
    ray.shutdown()
    return {"cores": cores, "costs": asdict(costs), "checked": rows}


def load_costs(path: str) -> Costs:
    costs = json.loads(Path(path).read_text())["costs"]
    return Costs(**{name: tuple(both) for name, both in costs.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", metavar="FILE", help="what benchmarks/gpu.py wrote")
    parser.add_argument("--policy", default="7B", help="which of its policies")
    parser.add_argument("--service", metavar="FILE", help="what --check wrote")
    for name in Times.__dataclass_fields__:
        kind = int if name in ("pictures", "batch_size") else float
        parser.add_argument(f"--{name}", type=kind, help="instead of what is measured or assumed")
    parser.add_argument("--policy_gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--check", type=int, nargs="*", metavar="REPLICAS", help="against the real service")
    parser.add_argument("--output", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.check is not None:
        found = check(arguments.check, arguments.service)
    else:
        times = measured_times(arguments.gpu, arguments.policy) if arguments.gpu else assumed_times()
        given = {name: value for name in asdict(times) if (value := getattr(arguments, name)) is not None}
        times, costs = replace(times, **given), load_costs(arguments.service) if arguments.service else Costs()
        source = f"from {arguments.gpu}" if arguments.gpu else "ASSUMED, NOT MEASURED: see assumed_times"
        print(f"GPU times, {source}{'; given: ' if given else ''}{', '.join(given)}")
        print("  " + ", ".join(f"{name} {value:.4g}" for name, value in asdict(times).items()))
        print(f"Service, from {arguments.service or 'a shared machine of two cores'}: {asdict(costs)}")
        found = {"gpu_times": source, "given": given, "times": asdict(times), "costs": asdict(costs)}
        found["sizes"] = sizes_wanted(times, costs, arguments.policy_gpus)
        found["scaling"] = scaling(times, costs, min(16, arguments.policy_gpus[-1]))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

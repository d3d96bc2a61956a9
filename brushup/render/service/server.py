"""The worker as a service: replicas that render and score, behind HTTP, on a Ray cluster.

Ray Serve (https://docs.ray.io/en/latest/serve) places the replicas, queues the jobs, balances them, makes batches over
all clients, and starts a replica again that died.
"""

import asyncio
import functools
import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import prometheus_client
from fastapi import Depends, FastAPI, HTTPException, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from pydantic import TypeAdapter
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from brushup.render.job import RenderJob, RenderResult
from brushup.render.service.guard import Guard, problems, refuse
from brushup.render.service.metrics import Metrics
from brushup.render.service.protocol import Info, ScoreReply, ScoreRequest, split_between_rewrites
from brushup.render.worker import LocalWorker


logger = logging.getLogger("ray.serve")
ATTEMPTS = 4  # of jobs whose replica died
RESULT = TypeAdapter(RenderResult)


@serve.deployment(health_check_period_s=5, health_check_timeout_s=30, graceful_shutdown_timeout_s=5)
class Replica:
    """A worker in a separate process, with a GPU to itself if there are GPUs.

    Args:
        make_worker: loads the generator and the rewards.
        render_timeout: seconds for a batch.
        batch_size: jobs rendered at once.
    """

    def __init__(self, make_worker: Callable[[], LocalWorker], render_timeout: float, batch_size: int):
        # Models are loaded where they are used: on a CPU a second pool of OpenMP threads costs a fifth of the speed.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self.worker = self._thread.submit(make_worker).result()
        self.render_timeout = render_timeout
        self._gateway = serve.get_deployment_handle("Gateway")  # of the same application
        self._turn = asyncio.Lock()
        self._rendering: asyncio.Future | None = None
        self._started = 0.0
        self.score.set_max_batch_size(batch_size)

    def token_limits(self) -> dict[str, int]:
        return self.worker.token_limits

    def check_health(self) -> None:
        """Raise if a batch will never end: Ray Serve then replaces the replica."""
        is_late = time.monotonic() - self._started > 3 * self.render_timeout
        if is_late and self._rendering and not self._rendering.done():
            raise RuntimeError(f"a batch takes more than three times render_timeout = {self.render_timeout} s")

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.02, batch_size_fn=lambda chunks: sum(map(len, chunks)))
    async def score(self, chunks: list[list[RenderJob]]) -> list[list[RenderResult]]:
        """Render the chunks, of several requests, as one batch."""
        results = iter(await self.score_now(list(itertools.chain(*chunks))))
        return [list(itertools.islice(results, len(chunk))) for chunk in chunks]

    async def score_now(self, jobs: list[RenderJob]) -> list[RenderResult]:
        """Render the jobs as a batch that is not shared with other requests."""
        self._gateway.count_batch.remote(len(jobs))
        async with self._turn:
            if self._rendering and not self._rendering.done():
                await asyncio.wait([self._rendering])  # a batch that took too long holds the GPU until it ends
            self._started = time.monotonic()
            rendering = self._rendering = asyncio.wrap_future(self._thread.submit(self.worker.score, jobs, True))
            done, _ = await asyncio.wait([rendering], timeout=self.render_timeout)
        if not done:
            error = f"timeout: rendering took more than {self.render_timeout:g} s"
            return [RenderResult.failed(error, "timeout")] * len(jobs)
        if error := rendering.exception():
            return [RenderResult.failed(error)] * len(jobs)
        return rendering.result()


app = FastAPI(title="Brushup render service", version="1")
app.add_middleware(Guard)
app.add_exception_handler(RequestValidationError, refuse)
LOCKED = [Depends(HTTPBearer(auto_error=False, description="BRUSHUP_TOKEN, if the service has one"))]  # see Guard


@serve.deployment(max_ongoing_requests=1000, graceful_shutdown_timeout_s=2, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Gateway:
    """The HTTP side: it checks requests, hands each job to a replica, and gives it to another if the replica dies."""

    def __init__(self, replicas: DeploymentHandle, info: dict[str, Any], batch_size: int, token: str | None):
        self.replicas = replicas
        self._info = info
        self.batch_size = batch_size
        self.token = token
        self.info: Info | None = None
        self.metrics = Metrics()
        self.waiting = 0  # jobs of all requests
        self.metrics.queued.set_function(lambda: self.waiting)
        self._loading = asyncio.get_running_loop().create_task(self._wait_for_models())

    async def _wait_for_models(self) -> None:
        limits = await self.replicas.token_limits.remote()
        self.info = Info(**self._info, token_limits=limits)

    def _ready(self) -> Info:
        if not self.info:
            raise HTTPException(503, "the models are loading")
        return self.info

    @app.get("/health", responses=problems(503))
    async def health(self) -> dict[str, str]:
        """Answer 200 once the models are loaded, 503 before."""
        self._ready()
        return {"status": "ok"}

    @app.get("/v1/info", dependencies=LOCKED, responses=problems(401, 503))
    async def get_info(self) -> Info:
        """Return the settings that images are rendered and scored with."""
        return self._ready()

    @app.get("/metrics", dependencies=LOCKED, responses=problems(401), response_class=PlainTextResponse)
    async def get_metrics(self) -> Response:
        """Return the metrics for Prometheus."""
        return Response(self.metrics.text(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def count_batch(self, size: int) -> None:
        """Note for the metrics how many jobs a replica renders at once."""
        self.metrics.batches.observe(size)

    @app.post("/v1/score", dependencies=LOCKED, responses=problems(400, 401, 413, 422, 503))
    async def score(self, request: ScoreRequest) -> ScoreReply:
        """Render and score each job. A job that the machine failed has an `error`; the others are not touched."""
        rewards = self._ready().rewards
        for name in request.rewards:
            if name not in rewards:
                raise HTTPException(422, f"this service has no reward {name!r}; it was started with {rewards}")
        # Chunks small enough that all replicas have work, and no smaller: each costs the gateway a call.
        self.waiting += len(request.jobs)
        size = min(self.batch_size, -(-self.waiting // self.info.num_replicas))
        chunks = await asyncio.gather(*map(self._start, split_between_rewrites(request.jobs, size)))
        results = [
            replace(
                result,
                scores={name: score for name, score in result.scores.items() if name.split("/")[0] in request.rewards},
                image=None if request.images == "none" else result.image,
            )
            for chunk in chunks
            for result in chunk
        ]
        # Lossless images take most of a second each to encode: in threads, on all cores.
        encode = functools.partial(RESULT.dump_json, context={"image_format": request.images})
        bodies = await asyncio.gather(*(asyncio.to_thread(encode, result) for result in results))
        return Response(b'{"results":[' + b",".join(bodies) + b"]}", media_type="application/json")

    def _start(self, jobs: list[RenderJob]) -> asyncio.Task:
        """Return the task that scores the jobs. They no longer wait when it ends, also if it is cancelled unbegun."""

        def leave(_: asyncio.Task) -> None:
            self.waiting -= len(jobs)

        task = asyncio.create_task(self._score(jobs))
        task.add_done_callback(leave)
        return task

    async def _score(self, jobs: list[RenderJob]) -> list[RenderResult]:
        start = time.perf_counter()
        results = await self._render(jobs)
        self.metrics.count(results, time.perf_counter() - start)
        return results

    async def _render(self, jobs: list[RenderJob]) -> list[RenderResult]:
        """Return the results of a replica, or of another one if that dies. Jobs that took too long are tried again,
        rewrite by rewrite: another job of the batch may be the reason."""
        is_larger_than_a_batch = len(jobs) > self.batch_size  # the images of one rewrite, which stay together
        score = self.replicas.score_now if is_larger_than_a_batch else self.replicas.score
        for _ in range(ATTEMPTS):
            try:
                results = dict(zip(jobs, await score.remote(jobs), strict=True))
                late = [job for job, result in results.items() if result.kind == "timeout"]
                for rewrite in split_between_rewrites(late, 1):
                    results |= zip(rewrite, await self.replicas.score_now.remote(rewrite), strict=True)
                return [results[job] for job in jobs]
            except RayActorError as death:
                logger.warning("a replica died with %d jobs; another gets them: %s", len(jobs), death)
                self.metrics.retries.inc(len(jobs))
        return [RenderResult.failed(f"replica died: {ATTEMPTS} replicas died with this job")] * len(jobs)


def make_application(
    make_worker: Callable[[], LocalWorker],
    settings: dict[str, Any],
    rewards: list[str],
    render_timeout: float,
    batch_size: int,
    num_replicas: int,
    actor_options: dict[str, Any],
    token: str | None,
) -> serve.Application:
    """Return the application for `ray.serve.run`.

    Args:
        make_worker: loads the generator and the rewards, in each replica.
        settings: as `settings_of` returns them.
        rewards: the names of the image rewards.
        render_timeout: seconds for a batch.
        batch_size: jobs rendered at once.
        num_replicas: copies of the worker.
        actor_options: of Ray: the CPUs and GPUs of a replica.
        token: the secret that clients must know; None: nobody is asked.
    """
    replicas = Replica.options(
        num_replicas=num_replicas,
        ray_actor_options=actor_options,
        max_ongoing_requests=10_000,  # jobs wait in the replicas: to full ones the router comes back too late
    ).bind(make_worker, render_timeout, batch_size)
    info = {
        "settings": settings,
        "rewards": rewards,
        "render_timeout": render_timeout,
        "num_replicas": num_replicas,
    }
    return Gateway.bind(replicas, info, batch_size, token)

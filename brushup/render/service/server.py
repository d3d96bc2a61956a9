"""The worker as a service: replicas that render and score, behind HTTP, on a Ray cluster.

Ray Serve (https://docs.ray.io/en/latest/serve) places the replicas, queues the jobs, balances them, makes batches over
all clients, and starts a replica again that died.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import prometheus_client
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from brushup.render.job import FailureKind, RenderJob, RenderResult
from brushup.render.service.guard import Guard
from brushup.render.service.protocol import Info, Problem, ScoreReply, ScoreRequest, split_between_rewrites
from brushup.render.worker import LocalWorker


logger = logging.getLogger("ray.serve")
ATTEMPTS = 4  # of jobs whose replica died


class RenderedChunk(NamedTuple):
    """The results of a chunk of jobs.

    Attributes:
        results: in the order of the jobs.
        batch_size: how many jobs were rendered at once; None but for the first chunk of a batch.
    """

    results: list[RenderResult]
    batch_size: int | None


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
        self._turn = asyncio.Lock()
        self._drawing: asyncio.Future | None = None
        self._started = 0.0
        self.score.set_max_batch_size(batch_size)

    def token_limits(self) -> dict[str, int]:
        return self.worker.token_limits

    def check_health(self) -> None:
        """Raise if a batch will never end: Ray Serve then replaces the replica."""
        if self._drawing and not self._drawing.done() and time.monotonic() - self._started > 3 * self.render_timeout:
            raise RuntimeError(f"a batch takes more than three times render_timeout = {self.render_timeout} s")

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.02, batch_size_fn=lambda chunks: sum(map(len, chunks)))
    async def score(self, chunks: list[list[RenderJob]]) -> list[RenderedChunk]:
        """Render the chunks, of several requests, as one batch."""
        results = iter(await self.score_now([job for chunk in chunks for job in chunk]))
        size = sum(map(len, chunks))
        return [
            RenderedChunk([next(results) for _ in chunk], None if index else size)
            for index, chunk in enumerate(chunks)
        ]

    async def score_now(self, jobs: list[RenderJob]) -> list[RenderResult]:
        """Render the jobs as a batch that is not shared with other requests."""
        async with self._turn:
            if self._drawing and not self._drawing.done():  # a batch that took too long holds the GPU until it ends
                await asyncio.wait([self._drawing])
            self._started = time.monotonic()
            drawing = self._drawing = asyncio.wrap_future(self._thread.submit(self.worker.score, jobs, True))
            done, _ = await asyncio.wait([drawing], timeout=self.render_timeout)
        if not done:
            error = f"timeout: drawing took more than {self.render_timeout:g} s"
            return [RenderResult.failed(error, "timeout")] * len(jobs)
        if error := drawing.exception():
            return [RenderResult.failed(error)] * len(jobs)
        return drawing.result()


PROBLEMS = {
    400: "The body is no JSON.",
    401: "The token is missing or wrong.",
    413: "The body is too large.",
    422: "The request is not as described here, or names a reward that the service was not started with.",
    503: "The models are loading.",
}


def problems(*statuses: int) -> dict[int, dict[str, Any]]:
    """Return the responses with these statuses, for the OpenAPI description."""
    content = {"application/json": {"schema": Problem.model_json_schema()}}
    return {status: {"description": PROBLEMS[status], "content": content} for status in statuses}


app = FastAPI(title="Brushup render service", version="1")
app.add_middleware(Guard)
LOCKED = [Depends(HTTPBearer(auto_error=False, description="BRUSHUP_TOKEN, if the service has one"))]  # see Guard


@app.exception_handler(RequestValidationError)
async def refuse(_: Request, invalid: RequestValidationError) -> JSONResponse:
    """Answer 422 and the errors, without the request itself: that may be large."""
    errors = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in invalid.errors()[:5]]
    if isinstance(invalid.body, bytes):
        errors = ["send JSON, with the header Content-Type: application/json"]
    return JSONResponse({"detail": "; ".join(error[:200] for error in errors)}, 422)


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
        registry = self.registry = prometheus_client.CollectorRegistry()
        self.queued = prometheus_client.Gauge("brushup_jobs_waiting", "Jobs not answered yet", registry=registry)
        self.drawn = prometheus_client.Counter("brushup_images", "Pictures drawn and scored", registry=registry)
        self.failures = prometheus_client.Counter("brushup_failures", "Jobs that failed", ["kind"], registry=registry)
        for kind in get_args(FailureKind):
            self.failures.labels(kind)  # each is there, as 0, from the start
        self.retries = prometheus_client.Counter("brushup_retries", "Jobs sent to another replica", registry=registry)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128)
        self.batches = prometheus_client.Histogram(
            "brushup_batch_size", "Pictures drawn at once", buckets=sizes, registry=registry
        )
        self.seconds = prometheus_client.Histogram(
            "brushup_job_seconds",
            "From request to result",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
            registry=registry,
        )
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
    async def metrics(self) -> Response:
        """Return the metrics for Prometheus."""
        return Response(
            prometheus_client.generate_latest(self.registry), media_type=prometheus_client.CONTENT_TYPE_LATEST
        )

    @app.post("/v1/score", dependencies=LOCKED, responses=problems(400, 401, 413, 422, 503))
    async def score(self, request: ScoreRequest) -> ScoreReply:
        """Render and score each job. A job that the machine failed has an `error`; the others are not touched."""
        rewards = self._ready().rewards
        for name in request.rewards:
            if name not in rewards:
                raise HTTPException(422, f"this service has no reward {name!r}; it was started with {rewards}")
        # Chunks small enough that all replicas have work.
        size = min(self.batch_size, -(-len(request.jobs) // self.info.num_replicas))
        chunks = await asyncio.gather(*map(self._score, split_between_rewrites(request.jobs, size)))
        results = [
            replace(
                result,
                scores={name: score for name, score in result.scores.items() if name in request.rewards},
                image=None if request.images == "none" else result.image,
            )
            for chunk in chunks
            for result in chunk
        ]
        context = {"image_format": request.images}
        body = await asyncio.to_thread(ScoreReply(results=results).model_dump_json, context=context)
        return Response(body, media_type="application/json")

    async def _score(self, jobs: list[RenderJob]) -> list[RenderResult]:
        start = time.perf_counter()
        self.queued.inc(len(jobs))
        try:
            results = await self._render(jobs)
        finally:
            self.queued.dec(len(jobs))
        for result in results:
            self.seconds.observe(time.perf_counter() - start)
            if result.error:
                self.failures.labels(result.kind).inc()
            else:
                self.drawn.inc()
        return results

    async def _render(self, jobs: list[RenderJob]) -> list[RenderResult]:
        """Return the results of a replica, or of another one if that dies. Jobs that took too long are tried again,
        rewrite by rewrite: another job of the batch may be the reason."""
        is_larger_than_a_batch = len(jobs) > self.batch_size  # the images of one rewrite, which stay together
        for _ in range(ATTEMPTS):
            try:
                if is_larger_than_a_batch:
                    chunk = RenderedChunk(await self.replicas.score_now.remote(jobs), len(jobs))
                else:
                    chunk = await self.replicas.score.remote(jobs)
                if chunk.batch_size:
                    self.batches.observe(chunk.batch_size)
                results = dict(zip(jobs, chunk.results, strict=True))
                late = [job for job, result in results.items() if result.kind == "timeout"]
                for rewrite in split_between_rewrites(late, 1):
                    results |= zip(rewrite, await self.replicas.score_now.remote(rewrite), strict=True)
                return [results[job] for job in jobs]
            except RayActorError as death:
                logger.warning("a replica died with %d jobs; another gets them: %s", len(jobs), death)
                self.retries.inc(len(jobs))
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

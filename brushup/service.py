"""The worker as a service: replicas that draw and score, behind HTTP, on a Ray cluster.

Ray Serve (https://docs.ray.io/en/latest/serve) places the replicas, queues the jobs, balances them, makes batches over
all clients, and starts a replica again that died. What goes over HTTP is in brushup/protocol.py.
"""

import asyncio
import functools
import hmac
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import prometheus_client
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from brushup.protocol import MAX_BODY_BYTES, Info, Problem, Result, ScoreReply, ScoreRequest, whole_rewrites
from brushup.worker import LocalWorker, RenderJob, RenderResult


logger = logging.getLogger("ray.serve")
ATTEMPTS = 4  # of jobs whose replica died
TIMEOUT = "timeout"


@serve.deployment(health_check_period_s=5, health_check_timeout_s=30, graceful_shutdown_timeout_s=5)
class Replica:
    """A worker in a process of its own, on its own GPU or share of one.

    Args:
        make_worker: loads the generator and the rewards.
        render_timeout: seconds for a batch.
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
        """Ray Serve replaces a replica that raises here: its batch will never end."""
        if self._drawing and not self._drawing.done() and time.monotonic() - self._started > 3 * self.render_timeout:
            raise RuntimeError(f"a batch takes more than three times render_timeout = {self.render_timeout} s")

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.02, batch_size_fn=lambda some: sum(map(len, some)))
    async def score(self, chunks: list[list[RenderJob]]) -> list[tuple[list[RenderResult], int]]:
        """The results of each chunk, and the size of the batch that was drawn with the first of them, else 0."""
        results = iter(await self.score_now([job for chunk in chunks for job in chunk]))
        size = sum(map(len, chunks))
        return [([next(results) for _ in chunk], 0 if index else size) for index, chunk in enumerate(chunks)]

    async def score_now(self, jobs: list[RenderJob]) -> list[RenderResult]:
        """The results of these jobs, as a batch of their own."""
        async with self._turn:
            if self._drawing and not self._drawing.done():  # a batch that took too long holds the GPU until it ends
                await asyncio.wait([self._drawing])
            self._started = time.monotonic()
            drawing = self._drawing = asyncio.wrap_future(self._thread.submit(self.worker.score, jobs, True))
            done, _ = await asyncio.wait([drawing], timeout=self.render_timeout)
        if not done:
            return [RenderResult(error=f"{TIMEOUT}: drawing took more than {self.render_timeout} s")] * len(jobs)
        if error := drawing.exception():
            return [RenderResult(error=f"{type(error).__name__}: {error}")] * len(jobs)
        return drawing.result()


class Guard:
    """ASGI middleware: 401 without the token, 413 for a body of more than `MAX_BODY_BYTES`; both before it is read."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        token = serve.get_replica_context().servable_object.token
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        known = scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), (token or "").encode())
        if token and not known and scope["path"] != "/health":
            message = "this service wants its BRUSHUP_TOKEN as a bearer token"
            return await JSONResponse({"detail": message}, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        too_large = f"the body is larger than {MAX_BODY_BYTES} bytes: send fewer jobs at once"
        if int(headers.get(b"content-length", 0)) > MAX_BODY_BYTES:
            return await JSONResponse({"detail": too_large}, 413)(scope, receive, send)
        read = 0

        async def counted() -> dict:  # a body that comes in chunks does not say how large it is
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                raise HTTPException(413, too_large)
            return message

        await self.app(scope, counted, send)


PROBLEMS = {
    400: "The body is no JSON.",
    401: "The token is missing or wrong.",
    413: "The body is too large.",
    422: "The request is not as described here, or names a reward that the service was not started with.",
    503: "The models are loading.",
}


def problems(*statuses: int) -> dict[int, dict[str, Any]]:
    """For the OpenAPI description."""
    content = {"application/json": {"schema": Problem.model_json_schema()}}
    return {status: {"description": PROBLEMS[status], "content": content} for status in statuses}


app = FastAPI(title="Brushup render service", version="1")
app.add_middleware(Guard)
LOCKED = [Depends(HTTPBearer(auto_error=False, description="BRUSHUP_TOKEN, if the service has one"))]  # see Guard


@app.exception_handler(RequestValidationError)
async def refuse(_: Request, invalid: RequestValidationError) -> JSONResponse:
    """422 and what is wrong, without the request itself: that may be large."""
    errors = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in invalid.errors()[:5]]
    if isinstance(invalid.body, bytes):
        errors = ["send JSON, with the header Content-Type: application/json"]
    return JSONResponse({"detail": "; ".join(error[:200] for error in errors)}, 422)


@serve.deployment(max_ongoing_requests=1000, graceful_shutdown_timeout_s=2, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Gateway:
    """The HTTP side: checks requests, hands each job to a replica, and gives it to another if the replica dies."""

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
        """200 once the models are loaded, 503 before."""
        self._ready()
        return {"status": "ok"}

    @app.get("/v1/info", dependencies=LOCKED, responses=problems(401, 503))
    async def get_info(self) -> Info:
        """The settings that pictures are drawn and scored with."""
        return self._ready()

    @app.get("/metrics", dependencies=LOCKED, responses=problems(401), response_class=PlainTextResponse)
    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(
            prometheus_client.generate_latest(self.registry), media_type=prometheus_client.CONTENT_TYPE_LATEST
        )

    @app.post("/v1/score", dependencies=LOCKED, responses=problems(400, 401, 413, 422, 503))
    async def score(self, request: ScoreRequest) -> ScoreReply:
        """Draws and scores each job. A job that the machine failed has an `error`; the others are not touched."""
        rewards = self._ready().rewards
        for name in request.rewards:
            if name not in rewards:
                raise HTTPException(422, f"this service has no reward {name!r}; it was started with {rewards}")
        jobs = [RenderJob(job.prompt, job.user_prompt, job.seed) for job in request.jobs]
        size = min(self.batch_size, -(-len(jobs) // self.info.num_replicas))  # so that all replicas have something
        parts = await asyncio.gather(*map(self._score, whole_rewrites(jobs, size)))
        results = [result for part in parts for result in part]
        encode = functools.partial(Result.of, rewards=request.rewards, image_format=request.images)
        if request.images == "none":
            return ScoreReply(results=list(map(encode, results)))
        return ScoreReply(results=await asyncio.gather(*(asyncio.to_thread(encode, result) for result in results)))

    async def _score(self, jobs: list[RenderJob]) -> list[RenderResult]:
        start = time.perf_counter()
        self.queued.inc(len(jobs))
        try:
            results = await self._draw(jobs)
        finally:
            self.queued.dec(len(jobs))
        for result in results:
            self.seconds.observe(time.perf_counter() - start)
            if result.error:
                self.failures.labels(result.error.split(":")[0]).inc()
            else:
                self.drawn.inc()
        return results

    async def _draw(self, jobs: list[RenderJob]) -> list[RenderResult]:
        """The results of a replica; of another one if that dies; one rewrite after the other if it takes too long."""
        for _ in range(ATTEMPTS):
            try:
                if (
                    len(jobs) > self.batch_size
                ):  # the pictures of one rewrite: the replica draws them in several batches
                    results, batch_size = await self.replicas.score_now.remote(jobs), len(jobs)
                else:
                    results, batch_size = await self.replicas.score.remote(jobs)
                if batch_size:
                    self.batches.observe(batch_size)
                # It may have been another job of the batch that took so long
                late = [
                    job for job, result in zip(jobs, results, strict=True) if (result.error or "").startswith(TIMEOUT)
                ]
                again: dict[RenderJob, RenderResult] = {}
                for pictures in whole_rewrites(late, 1):
                    again |= zip(pictures, await self.replicas.score_now.remote(pictures), strict=True)
                return [again.get(job, result) for job, result in zip(jobs, results, strict=True)]
            except RayActorError as death:
                logger.warning("a replica died with %d jobs; another gets them: %s", len(jobs), death)
                self.retries.inc(len(jobs))
        return [RenderResult(error=f"replica died: {ATTEMPTS} replicas died with this job")] * len(jobs)


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
    """The application for `ray.serve.run`."""
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

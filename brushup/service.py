"""The worker as a service: replicas that draw and score, behind HTTP, on a Ray cluster.

Ray Serve (https://docs.ray.io/en/latest/serve) places the replicas, queues the jobs, balances them, makes batches over
all clients, and starts a replica again that died. What goes over HTTP is in brushup/protocol.py.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import prometheus_client
from fastapi import Depends, FastAPI, HTTPException, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from brushup.protocol import MAX_BODY_BYTES, ImageFormat, Info, Job, Result, ScoreReply, ScoreRequest
from brushup.worker import LocalWorker, RenderJob, RenderResult


logger = logging.getLogger("ray.serve")
ATTEMPTS = 4  # of a job whose replica died


@serve.deployment(health_check_period_s=5, health_check_timeout_s=30, graceful_shutdown_timeout_s=5)
class Replica:
    """A worker in a process of its own, on its own GPU or share of one.

    Args:
        make_worker: loads the generator and the rewards.
        render_timeout: seconds for a batch.
    """

    def __init__(self, make_worker: Callable[[], LocalWorker], render_timeout: float, batch_size: int):
        self.worker = make_worker()
        self.render_timeout = render_timeout
        self._thread = ThreadPoolExecutor(max_workers=1)
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

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.02)
    async def score(self, jobs: list[RenderJob]) -> list[tuple[RenderResult, int]]:
        """The result of each job, and the size of the batch it was in with the first of its jobs, else 0."""
        results = await self._score(jobs)
        return [(result, 0 if index else len(jobs)) for index, result in enumerate(results)]

    async def score_alone(self, job: RenderJob) -> tuple[RenderResult, int]:
        """In a batch of its own: for a job whose batch took too long."""
        return (await self._score([job]))[0], 1

    async def _score(self, jobs: list[RenderJob]) -> list[RenderResult]:
        async with self._turn:
            if self._drawing and not self._drawing.done():  # a batch that took too long holds the GPU until it ends
                await asyncio.wait([self._drawing])
            self._started = time.monotonic()
            self._drawing = asyncio.wrap_future(self._thread.submit(self.worker.score, jobs, True))
            done, _ = await asyncio.wait([self._drawing], timeout=self.render_timeout)
        if not done:
            return [RenderResult(error=f"timeout: drawing took more than {self.render_timeout} s")] * len(jobs)
        if error := self._drawing.exception():
            return [RenderResult(error=f"{type(error).__name__}: {error}")] * len(jobs)
        return self._drawing.result()


class LimitBody:
    """ASGI middleware: 413 for a body of more than `MAX_BODY_BYTES`, before it is read into memory."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        read = 0

        async def counted() -> dict:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes: send fewer jobs at once")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


app = FastAPI(title="Brushup render service", version="1")
app.add_middleware(LimitBody)
bearer = HTTPBearer(auto_error=False)


@serve.deployment(max_ongoing_requests=1000, graceful_shutdown_timeout_s=2, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Gateway:
    """The HTTP side: checks requests, hands each job to a replica, and gives it to another if the replica dies."""

    def __init__(self, replicas: DeploymentHandle, info: dict[str, Any], token: str | None):
        self.replicas = replicas
        self._info = info
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
        self.seconds = prometheus_client.Histogram("brushup_job_seconds", "From request to result", registry=registry)
        self._loading = asyncio.get_running_loop().create_task(self._wait_for_models())

    async def _wait_for_models(self) -> None:
        limits = await self.replicas.token_limits.remote()
        self.info = Info(**self._info, token_limits=limits)

    async def _authorized(self, sent: HTTPAuthorizationCredentials | None) -> None:
        given = sent.credentials if sent else ""
        if self.token and not hmac.compare_digest(given.encode(), self.token.encode()):
            raise HTTPException(
                401, "this service wants its BRUSHUP_TOKEN as a bearer token", {"WWW-Authenticate": "Bearer"}
            )

    def _ready(self) -> Info:
        if not self.info:
            raise HTTPException(503, "the models are loading")
        return self.info

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        """200 once the models are loaded, 503 before."""
        self._ready()
        return {"status": "ok"}

    @app.get("/v1/info")
    async def get_info(self, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> Info:
        """The settings that pictures are drawn and scored with."""
        await self._authorized(sent)
        return self._ready()

    @app.get("/metrics")
    async def metrics(self, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> Response:
        """For Prometheus."""
        await self._authorized(sent)
        return Response(
            prometheus_client.generate_latest(self.registry), media_type=prometheus_client.CONTENT_TYPE_LATEST
        )

    @app.post("/v1/score")
    async def score(
        self, request: ScoreRequest, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> ScoreReply:
        """Draws and scores each job. A job that the machine failed has an `error`; the others are not touched."""
        await self._authorized(sent)
        unknown = set(request.rewards) - set(self._ready().rewards)
        if unknown:
            raise HTTPException(
                422, f"this service has no reward {sorted(unknown)}; it was started with {self._ready().rewards}"
            )
        results = await asyncio.gather(*(self._score(job, request.rewards, request.images) for job in request.jobs))
        return ScoreReply(results=results)

    async def _score(self, job: Job, rewards: list[str], image_format: ImageFormat) -> Result:
        start = time.perf_counter()
        with self.queued.track_inprogress():
            result = await self._draw(RenderJob(job.prompt, job.user_prompt, job.seed))
        self.seconds.observe(time.perf_counter() - start)
        if result.error:
            self.failures.labels(result.error.split(":")[0]).inc()
        else:
            self.drawn.inc()
        return Result.of(result, rewards, image_format)

    async def _draw(self, job: RenderJob) -> RenderResult:
        send = self.replicas.score
        for _ in range(ATTEMPTS):
            try:
                result, batch_size = await send.remote(job)
            except RayActorError as death:
                logger.warning("a replica died with a job; another gets it: %s", str(death).splitlines()[0])
                self.retries.inc()
                continue
            if batch_size:
                self.batches.observe(batch_size)
            if (result.error or "").startswith("timeout") and send is self.replicas.score:
                send = self.replicas.score_alone  # perhaps it was another job of the batch
                continue
            return result
        return RenderResult(error=f"replica died: {ATTEMPTS} replicas died, or took too long, with this job")


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
        max_ongoing_requests=3 * batch_size,  # one batch that is drawn, and the next one waiting
    ).bind(make_worker, render_timeout, batch_size)
    info = {
        "settings": settings,
        "rewards": rewards,
        "render_timeout": render_timeout,
        "num_replicas": num_replicas,
    }
    return Gateway.bind(replicas, info, token)

"""The client of the render service: a worker that works elsewhere."""

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from brushup.config import RenderConfig
from brushup.render.job import MAX_PROMPT_CHARS, RenderJob, RenderResult
from brushup.render.service.address import (
    NoRenderService,
    check_token,
    check_url,
    is_temporary,
    what_it_said,
    why_no_http,
)
from brushup.render.service.protocol import Info, ScoreReply, ScoreRequest, settings_of, split_between_rewrites
from brushup.rewards.registry import RewardSpec, columns_read, resolve


logger = logging.getLogger(__name__)
JOBS_PER_REQUEST = 16
REQUESTS_AT_ONCE = 16
SAY_EVERY = 5  # seconds, while waiting for a service that does not answer
CONNECT_TIMEOUT = 10  # seconds
FIRST_TIMEOUT = 5  # seconds for the answer to the first request, which a service has at hand; then it is asked again
Model = TypeVar("Model", bound=BaseModel)


class WorkerUnavailable(ConnectionError):
    """The service did not answer in time."""


class HttpWorker:
    """A render service as a worker. Jobs are seeded, so a job that is sent again has the same result.

    Args:
        url: of the service, e.g. `http://127.0.0.1:8100`.
        rewards: names of the image rewards to ask for.
        timeout: seconds for one `submit`, waiting for a service that is started again included.
        start_command: what a user types to start the service, for the error message, without its port.
        token: default the environment variable BRUSHUP_TOKEN.
        columns: of the prompts, that the rewards read beside `user_prompt`.

    Raises:
        ValueError: the address is malformed or answers as no render service does, or the token is malformed.
        WorkerUnavailable: it does not answer within `timeout`.
        PermissionError: it wants another token.
    """

    is_remote = True

    def __init__(
        self,
        url: str,
        rewards: list[str],
        timeout: float,
        start_command: str,
        token: str | None = None,
        columns: Sequence[str] = (),
    ):
        token = check_token(token or os.environ.get("BRUSHUP_TOKEN"))
        address = check_url(url)
        self.url = str(address)
        self.rewards = rewards
        self.timeout = timeout
        self.columns = columns
        self.start_command = f"{start_command} --port {address.port or (443 if address.scheme == 'https' else 80)}"
        self.images_drawn = 0
        self.seconds: dict[str, float] = {}  # the service knows them
        self._in_flight: dict[tuple[RenderJob, bool], asyncio.Future[RenderResult]] = {}
        self._said = 0.0
        self._client = httpx.AsyncClient(
            base_url=address,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            transport=httpx.AsyncHTTPTransport(),  # else HTTP_PROXY & co. would get the token and the prompts
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),  # `_request` has the deadline
        )
        self._slots = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="render client", daemon=True).start()
        self.info: Info | None = None  # until a render service has answered
        self.info = self._wait(self._request(Info, "GET", "/v1/info", self._deadline()))

    def __str__(self) -> str:
        return f"{self.info.settings['generator']} on {self.info.num_replicas} replicas at {self.url}"

    @property
    def token_limits(self) -> dict[str, int]:
        """Tokens of a prompt that each tokenizer of the generator reads."""
        return self.info.token_limits

    def submit(self, jobs: Sequence[RenderJob], return_images: bool = False) -> "Future[list[RenderResult]]":
        """Start `score` and return at once."""
        return asyncio.run_coroutine_threadsafe(self._score(jobs, return_images), self._loop)

    def score(self, jobs: Sequence[RenderJob], return_images: bool = False) -> list[RenderResult]:
        """Render and score each job; equal jobs, also of another `submit` that is under way, are sent once.

        Returns:
            A result for each job, in order. A job that failed, or that the service did not answer in time, has an
            `error` and no scores.
        """
        return self.submit(jobs, return_images).result()

    def _deadline(self) -> float:
        return time.monotonic() + self.timeout

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _score(self, jobs: Sequence[RenderJob], return_images: bool) -> list[RenderResult]:
        new = [job for job in dict.fromkeys(jobs) if (job, return_images) not in self._in_flight]
        futures = {job: self._loop.create_future() for job in new}
        self._in_flight |= {(job, return_images): future for job, future in futures.items()}
        waiting = [self._in_flight[job, return_images] for job in jobs]
        deadline = self._deadline()
        parts = split_between_rewrites(new, JOBS_PER_REQUEST)
        await asyncio.gather(*(self._send(part, futures, return_images, deadline) for part in parts))
        return [replace(result) for result in await asyncio.gather(*waiting)]

    async def _send(
        self,
        jobs: list[RenderJob],
        futures: dict[RenderJob, "asyncio.Future[RenderResult]"],
        return_images: bool,
        deadline: float,
    ) -> None:
        too_long = [job for job in jobs if max(len(job.prompt), len(job.user_prompt)) > MAX_PROMPT_CHARS]
        sent = [job for job in jobs if job not in too_long]
        results = {
            job: RenderResult.failed(f"the prompt has more than {MAX_PROMPT_CHARS} characters") for job in too_long
        }
        try:
            if sent:
                request = ScoreRequest(jobs=sent, rewards=self.rewards, images="webp" if return_images else "none")
                reply = await self._request(ScoreReply, "POST", "/v1/score", deadline, request.model_dump_json())
                results |= zip(sent, reply.results, strict=True)
        except Exception as error:
            kind = "timeout" if isinstance(error, WorkerUnavailable) else "other"
            results |= {job: RenderResult.failed(error, kind) for job in sent}
        for job in jobs:
            self.images_drawn += results[job].error is None
            futures[job].set_result(results[job])
            del self._in_flight[job, return_images]

    async def _request(
        self, model: type[Model], method: str, path: str, deadline: float, content: str | None = None
    ) -> Model:
        """Return the reply; ask again, ever more slowly, until the deadline (of `time.monotonic`).

        Raises:
            WorkerUnavailable: the time is up.
            PermissionError: the service wants another token.
            ValueError: the service refused, and would again, or is none.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((TimeoutError, httpx.TransportError, httpx.HTTPStatusError)),
            wait=wait_random_exponential(multiplier=0.5, max=5),
            stop=stop_before_delay(max(deadline - time.monotonic(), 0)),
            before_sleep=lambda attempt: self._say(attempt.outcome.exception(), deadline),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    return self._read(model, path, await self._send_request(method, path, deadline, content))
        except (TimeoutError, httpx.TransportError, httpx.HTTPStatusError) as error:
            raise WorkerUnavailable(
                f"the worker at {self.url} did not answer for {self.timeout:.0f} s (worker_timeout; last: "
                f"{what_it_said(error)}). Start it with: {self.start_command}"
            ) from error

    async def _send_request(self, method: str, path: str, deadline: float, content: str | None) -> httpx.Response:
        seconds = max(deadline - time.monotonic(), 0.1)
        headers = {"Content-Type": "application/json"}
        try:
            # httpx limits each read: a peer that sends a byte now and then would never be late.
            async with asyncio.timeout(seconds if self.info else min(seconds, FIRST_TIMEOUT)), self._slots:
                return await self._client.request(method, path, content=content, headers=headers)
        except (TimeoutError, httpx.TransportError) as error:
            if not self.info and (reason := await asyncio.to_thread(why_no_http, self._client.base_url, error)):
                raise self._no_render_service(reason) from error
            raise

    def _read(self, model: type[Model], path: str, reply: httpx.Response) -> Model:
        """Return the content of a reply; raise the error that another status means."""
        status = reply.status_code
        if status == 401:
            raise PermissionError(f"{self.url} refused: set BRUSHUP_TOKEN to the secret of the service")
        if is_temporary(reply) or (self.info and status == 404):  # it has answered before: it will be back
            reply.raise_for_status()
        text = reply.headers["Location"] if reply.has_redirect_location else reply.text[:500]
        if reply.is_success:
            try:
                return model.model_validate_json(reply.content)
            except ValidationError:
                text = f"no {model.__name__}, but {text[:200]!r}"
        if not self.info:
            raise self._no_render_service(f"{path} answers {status}, {text}")
        raise ValueError(f"{self.url}{path} refused ({status}): {text}")

    def _no_render_service(self, reason: str) -> NoRenderService:
        return NoRenderService(
            f"{self.url} is no render service ({reason}). Set `worker` to the address that recipes/serve.py prints; "
            f"start it with: {self.start_command}"
        )

    def _say(self, error: BaseException, deadline: float) -> None:
        now = time.monotonic()
        if now - self._said > SAY_EVERY:
            self._said = now
            logger.warning(
                "the worker at %s does not answer (%s): asking again for up to %.0f s; last: %s",
                self.url,
                type(error).__name__,
                deadline - now,
                what_it_said(error),
            )


def connect(url: str, render: RenderConfig, rewards: Sequence[RewardSpec], serve_command: str) -> HttpWorker:
    """Return the service at this address, if it renders and scores as the settings of this run say.

    Args:
        url: of the service.
        render, rewards: the settings of this run; its image rewards are asked for.
        serve_command: the command that starts the service, for the error message, without its port.

    Raises:
        ValueError: as `HttpWorker`, or its settings differ; the message has each that differs, with both values.
        WorkerUnavailable: it does not answer.
        PermissionError: it wants another token.
    """
    image_rewards = [spec for spec in rewards if spec.looks_at_images]
    columns = sorted({name for spec in image_rewards for name in columns_read(resolve(spec.source))})
    names = [spec.name for spec in image_rewards]
    worker = HttpWorker(url, names, render.worker_timeout, serve_command, columns=columns)
    ours, theirs = json.loads(json.dumps(settings_of(render, rewards))), dict(worker.info.settings)
    # The service may know more rewards than this run asks for.
    theirs["reward_funcs"] = sorted(set(ours["reward_funcs"]) & set(theirs["reward_funcs"]))
    theirs["reward_kwargs"] = {n: kw for n, kw in theirs["reward_kwargs"].items() if n in ours["reward_funcs"]}
    differ = [
        f"{name}: here {ours[name]!r}, there {theirs.get(name)!r}" for name in ours if ours[name] != theirs.get(name)
    ]
    if differ:
        raise ValueError(f"the worker at {url} was started with other settings: {'; '.join(differ)}")
    return worker

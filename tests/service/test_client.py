"""The client against a small HTTP server that answers as the test says."""

import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import uvicorn
from conftest import RENDER_KWARGS, WITHOUT_T5
from fastapi import FastAPI, HTTPException, Request, Response
from PIL import Image

from brushup.config import RenderConfig
from brushup.render.job import RenderJob, RenderResult, columns_of
from brushup.render.service.client import HttpWorker, WorkerUnavailable, connect
from brushup.render.service.protocol import Info, ScoreReply, ScoreRequest, settings_of
from brushup.rewards.registry import RewardSpec
from support.launching import free_port


RENDER = RenderConfig(generator="some/generator", generator_init_kwargs=WITHOUT_T5, render_kwargs=RENDER_KWARGS)
REWARDS = [RewardSpec("clip")]
SERVE = "python recipes/serve.py --config X.yaml"
IMAGE = Image.new("RGB", (32, 32), (10, 200, 30))


class Server:
    """Scores a job with the length of its prompt; `answer(request)` may raise before."""

    def __init__(self):
        app = FastAPI()
        self.requests: list[ScoreRequest] = []
        self.jobs = Counter()
        self.now = self.most = 0
        self.answer = lambda request: None
        self.token = None

        @app.get("/v1/info")
        def info(request: Request) -> Info:
            if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
                raise HTTPException(401)
            settings = settings_of(RENDER, REWARDS)
            return Info(
                settings=settings, rewards=["clip"], token_limits={"clip": 77}, render_timeout=9, num_replicas=1
            )

        @app.post("/v1/score")
        def score(request: ScoreRequest) -> Response:
            self.requests.append(request)
            self.jobs.update((job.prompt, job.seed) for job in request.jobs)
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                self.answer(request)
            finally:
                self.now -= 1
            image = None if request.images == "none" else IMAGE
            results = [
                RenderResult({"clip": len(job.prompt) / 100}, image, tokens={"clip": 5}) for job in request.jobs
            ]
            body = ScoreReply(results=results).model_dump_json(context={"image_format": request.images})
            return Response(body, media_type="application/json")

        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        threading.Thread(target=self.server.run, daemon=True).start()
        while not self.server.started:
            time.sleep(0.01)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.server.should_exit = True


def jobs(*prompts: str, seed: int = 1) -> list[RenderJob]:
    return [RenderJob(prompt, "a cat", seed) for prompt in prompts]


def worker_at(server: Server, timeout: float = 10) -> HttpWorker:
    return HttpWorker(server.url, ["clip"], timeout, "python recipes/serve.py --config X.yaml")


def test_results_come_in_the_order_of_the_jobs_and_pictures_only_when_asked_for(server):
    worker = worker_at(server)
    prompts = [f"{'x' * n} cat" for n in range(40)]
    results = worker.score(jobs(*prompts))
    assert [result.scores["clip"] for result in results] == [len(prompt) / 100 for prompt in prompts]
    assert all(result.image is None and result.error is None and result.tokens == {"clip": 5} for result in results)
    assert len(server.requests) > 1 and worker.images_drawn == 40 and worker.token_limits == {"clip": 77}
    drawn = worker.score(jobs("a cat"), return_images=True)[0].image
    assert drawn.tobytes() == IMAGE.tobytes()  # lossless
    columns = columns_of({"questions": [{"question": "Is there a cat?", "needs": []}]}, ["questions", "scene"])
    kinds = [replace(job, for_evaluation=kind, columns=columns) for job in jobs("a cat") for kind in (True, False)]
    worker.score(kinds)  # by `eval_render_kwargs` and not
    assert server.requests[-1].jobs == kinds


def test_equal_jobs_in_flight_are_sent_once(server):
    worker = worker_at(server)
    server.answer = lambda request: time.sleep(0.3)
    first, second = worker.submit(jobs("a cat", "a dog", "a cat")), worker.submit(jobs("a dog", "a cow"))
    assert [len(first.result()), len(second.result())] == [3, 2]
    assert set(server.jobs.values()) == {1} and len(server.jobs) == 3
    assert len(worker.score(jobs("a cat"))) == 1 and server.jobs["a cat", 1] == 2  # later it is sent again


def test_not_all_requests_at_once(server):
    worker = worker_at(server, timeout=60)
    server.answer = lambda request: time.sleep(0.05)
    assert len(worker.score(jobs(*map(str, range(1000))))) == 1000
    assert 2 <= server.most <= 16


def test_it_asks_again_while_the_service_is_overloaded_and_says_so(server, caplog):
    times = []

    def busy(request):
        times.append(time.monotonic())
        if len(times) < 4:
            raise HTTPException(503, "the models are loading")

    server.answer = busy
    assert worker_at(server).score(jobs("a cat"))[0].error is None
    assert len(times) == 4 and f"the worker at {server.url} does not answer" in caplog.text


def test_no_answer_in_time_is_the_error_of_the_jobs(server):
    def down(request):
        raise HTTPException(500)

    server.answer = down
    start = time.monotonic()
    results = worker_at(server, timeout=2).score(jobs("a cat", "a dog"))
    assert time.monotonic() - start < 4 and len(server.requests) > 1
    for result in results:
        assert f"the worker at {server.url} did not answer for 2 s" in result.error and result.scores == {}
        assert result.kind == "timeout" and "Start it with: python recipes/serve.py --config X.yaml" in result.error


def test_what_the_service_refuses_is_not_asked_again(server):
    def refuse(request):
        raise HTTPException(422, "this service has no reward ['pickscore']")

    server.answer = refuse
    assert "refused (422): " in worker_at(server).score(jobs("a cat"))[0].error and len(server.requests) == 1


def test_a_prompt_that_is_too_long_does_not_keep_the_others_back(server):
    long, short = worker_at(server).score(jobs("x" * 10_000, "a cat"))
    assert "more than 8000 characters" in long.error and short.error is None


def test_nobody_there():
    with pytest.raises(WorkerUnavailable, match="did not answer for 1 s .* Start it with: python"):
        HttpWorker(f"http://127.0.0.1:{free_port()}", ["clip"], 1, "python recipes/serve.py")


def test_the_token(server, monkeypatch):
    server.token = "secret"
    with pytest.raises(PermissionError, match="set BRUSHUP_TOKEN"):
        worker_at(server)
    monkeypatch.setenv("BRUSHUP_TOKEN", "secret")
    assert worker_at(server).info.num_replicas == 1


def test_a_service_with_other_settings_is_refused(server):
    assert connect(server.url, RENDER, REWARDS, SERVE)
    other = RenderConfig(generator="some/generator", generator_init_kwargs=WITHOUT_T5, render_kwargs={"height": 64})
    with pytest.raises(ValueError, match="other settings: render_kwargs: here {'height': 64}, there {.*'height': 48"):
        connect(server.url, other, REWARDS, SERVE)
    other = replace(RENDER, eval_render_kwargs={"height": 64})
    with pytest.raises(ValueError, match="other settings: eval_render_kwargs: here {'height': 64}, there {}$"):
        connect(server.url, other, REWARDS, SERVE)

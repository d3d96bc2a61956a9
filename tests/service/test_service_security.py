"""The render service against requests that mean harm and requests that are just wrong."""

import asyncio
import base64
import io
import ipaddress
import json
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import grpc
import httpx
import psutil
import pytest
import schemathesis
from conftest import REPOSITORY
from hypothesis import settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

from brushup.render.job import MAX_IMAGE_PIXELS, MAX_PROMPT_CHARS, RenderJob, RenderResult
from brushup.render.service.protocol import MAX_BODY_BYTES, MAX_JOBS, ScoreReply, ScoreRequest
from brushup.render.service.server import Gateway, app
from support.launching import ENVIRONMENT, RECIPE, TOKEN


SERVE = [sys.executable, "recipes/serve.py", "--config", RECIPE[2]]
BEARER = {"Authorization": f"Bearer {TOKEN}"}
JOB = {"prompt": "a red circle", "user_prompt": "a crimson disk", "seed": 7}
REQUEST = {"jobs": [JOB], "rewards": ["clip"]}


class Method:
    """Of a Ray Serve handle."""

    def __init__(self, function):
        self.function = function

    async def remote(self, *args):
        return self.function(*args)


def unpacked(image: str) -> Image.Image:
    """Return the image of a reply that holds this one, in base64."""
    reply = {"results": [{"image": image}]}
    return ScoreReply.model_validate_json(json.dumps(reply)).results[0].image


def draw(jobs: list[RenderJob]) -> list[RenderResult]:
    return [RenderResult({"clip": 0.5}, Image.new("RGB", (32, 32)), tokens={"tokenizer": 5}) for _ in jobs]


@pytest.fixture
def gateway(monkeypatch):
    """The HTTP side of the service outside Ray Serve, with replicas that draw a black picture at once."""
    replicas = SimpleNamespace(token_limits=Method(lambda: {"tokenizer": 77}), score=Method(draw))
    info = {"settings": {"generator": "g"}, "rewards": ["clip"], "render_timeout": 1.0, "num_replicas": 1}

    async def build():
        gateway = Gateway.func_or_class.__mro__[1](replicas, info, 8, TOKEN)  # the class without Ray Serve's wrapper
        await gateway._loading
        return gateway

    gateway = asyncio.run(build())
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(servable_object=gateway))
    return gateway


@pytest.fixture
def send(gateway):
    def send(method: str = "POST", path: str = "/v1/score", **request) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # they are a 500, as for users
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, path, **request)

        return asyncio.run(go())

    return send


@pytest.mark.parametrize("path", ["/v1/info", "/v1/score", "/metrics", "/docs", "/openapi.json", "/nothing"])
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer a-secret", f"Basic {TOKEN}", "Bearer sécret"]
)
def test_without_the_token_only_health_answers(send, path, header):
    headers = {} if header is None else {"Authorization": header.encode()}
    refused = send("POST", path, headers=headers, content=b"{not even JSON")
    assert refused.status_code == 401
    assert "BRUSHUP_TOKEN" in refused.json()["detail"] and TOKEN not in refused.text
    assert send("GET", "/health", headers=headers).json() == {"status": "ok"}


def test_with_the_token(send):
    reply = send(json=REQUEST, headers=BEARER)
    assert reply.status_code == 200
    assert reply.json()["results"] == [
        {"scores": {"clip": 0.5}, "image": None, "error": None, "kind": None, "tokens": {"tokenizer": 5}}
    ]
    assert send("GET", "/v1/info", headers={"authorization": f"bearer {TOKEN}"}).json()["rewards"] == ["clip"]


@pytest.mark.parametrize("format_", ["webp", "png"])
def test_images_come_back_losslessly(send, format_):
    reply = send(json=REQUEST | {"jobs": [JOB] * 3, "images": format_}, headers=BEARER)
    results = ScoreReply.model_validate_json(reply.content).results
    assert [result.image.tobytes() for result in results] == [bytes(32 * 32 * 3)] * 3


def test_failures_are_counted_by_their_kind(send, gateway):
    """Prometheus keeps each label value for ever, so the error itself, which may say anything, is none."""
    gateway.replicas.score = Method(lambda jobs: [RenderResult.failed("no memory for job 7", "out_of_memory")])
    assert send(json=REQUEST, headers=BEARER).json()["results"][0]["kind"] == "out_of_memory"
    metrics = send("GET", "/metrics", headers=BEARER).text
    counts = dict(re.findall(r'brushup_failures_total\{kind="(.*)"\} (.*)', metrics))
    assert counts == {"timeout": "0.0", "out_of_memory": "1.0", "bad_image": "0.0", "reward": "0.0", "other": "0.0"}


def test_few_jobs_go_to_all_replicas_and_many_in_whole_batches(gateway):
    """Each call costs the gateway and a replica some milliseconds: one by one, the gateway would be the limit."""
    sizes = []

    class Replicas:
        async def remote(self, jobs):
            sizes.append(len(jobs))
            await asyncio.sleep(0.1)
            return draw(jobs)

    async def ask(requests: int) -> list[int]:
        sizes.clear()
        every = [[RenderJob("a circle", f"{request}, {job}", job) for job in range(16)] for request in range(requests)]
        replies = await asyncio.gather(*(gateway.score(ScoreRequest(jobs=jobs, rewards=["clip"])) for jobs in every))
        assert all(len(json.loads(reply.body)["results"]) == 16 for reply in replies)
        return list(sizes)

    gateway.info = gateway.info.model_copy(update={"num_replicas": 16})
    gateway.replicas.score = Replicas()
    assert asyncio.run(ask(1)) == [1] * 16
    of_many = asyncio.run(ask(16))
    assert sum(of_many) == 256 and len(of_many) < 64 and of_many[-16:] == [8] * 16

    async def leave_at_once() -> None:
        request = asyncio.create_task(ask(1))
        while not gateway.waiting:
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    asyncio.run(leave_at_once())
    assert gateway.waiting == 0
    assert asyncio.run(ask(1)) == [1] * 16  # nobody waits any more


def test_a_service_without_a_token_asks_for_none(send, gateway):
    gateway.token = None
    assert send(json=REQUEST).status_code == 200


def job(**changed) -> dict:
    return REQUEST | {"jobs": [JOB | changed]}


@pytest.mark.parametrize(
    "request_, message",
    [
        (job(seed=True), "body.jobs.0.seed: Input should be a valid integer"),
        (job(seed=1.5), "body.jobs.0.seed: Input should be a valid integer"),
        (job(seed="7"), "body.jobs.0.seed: Input should be a valid integer"),
        (job(seed=None), "body.jobs.0.seed: Input should be a valid integer"),
        (job(seed=float("nan")), "body.jobs.0.seed: Input should be a valid integer"),
        (job(seed=float("inf")), "body.jobs.0.seed: Input should be a valid integer"),
        (job(seed=-1), "body.jobs.0.seed: Input should be greater than or equal to 0"),
        (job(seed=2**64), "body.jobs.0.seed: Input should be less than 18446744073709551616"),
        (job(prompt=""), "body.jobs.0.prompt: String should have at least 1 character"),
        (job(prompt="a" * (MAX_PROMPT_CHARS + 1)), "body.jobs.0.prompt: String should have at most 8000 characters"),
        (job(prompt="\ud800"), "body.jobs.0.prompt: Input should be a valid string"),  # half a surrogate pair
        (job(prompt=["a"]), "body.jobs.0.prompt: Input should be a valid string"),
        (job(for_evaluation="yes"), "body.jobs.0.for_evaluation: Input should be a valid boolean"),
        (job(generator="/etc/passwd"), "body.jobs.0.generator: Unexpected keyword argument"),
        (job(**{"\ud800": 1}), "body.jobs.0: Input should be a valid string"),
        (job(**{"🎨" * 10_000: 1}), "body.jobs.0.🎨🎨"),
        (REQUEST | {"jobs": []}, "body.jobs: List should have at least 1 item"),
        (REQUEST | {"jobs": [JOB] * (MAX_JOBS + 1)}, "body.jobs: List should have at most 256 items"),
        (REQUEST | {"jobs": {}}, "body.jobs: Input should be a valid list"),
        (REQUEST | {"jobs": [JOB] * 33, "images": "webp"}, "at most 32 jobs a request when images are asked for"),
        (REQUEST | {"images": "bmp"}, "body.images: Input should be 'none', 'webp' or 'png'"),
        (REQUEST | {"images": "../../etc/passwd"}, "body.images: Input should be 'none', 'webp' or 'png'"),
        (REQUEST | {"height": 100_000}, "body.height: Extra inputs are not permitted"),
        (REQUEST | {"rewards": ["os:system"]}, "no reward 'os:system'; it was started with ['clip']"),
        (REQUEST | {"rewards": ["rewards/evil.py:f"]}, "no reward 'rewards/evil.py:f'"),
        (REQUEST | {"rewards": ["\ud800"]}, "body.rewards.0: Input should be a valid string"),
        (REQUEST | {"rewards": ["clip"] * 101}, "body.rewards: List should have at most 100 items"),
        ({"jobs": [JOB]}, "body.rewards: Field required"),
        ([], "body: Input should be a valid dictionary"),
        (None, "body: Input should be a valid dictionary"),
    ],
)
def test_a_request_that_is_not_as_described(send, request_, message):
    content = json.dumps(request_).encode()
    refused = send(content=content, headers=BEARER | {"Content-Type": "application/json"})
    assert refused.status_code == 422
    assert message in refused.json()["detail"]
    assert len(refused.content) < 5000


@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
def test_odd_requests_that_are_right(send, seed):
    assert send(json=job(seed=seed, prompt="\0 \t🎨\u202e</s>"), headers=BEARER).status_code == 200
    assert send(json=REQUEST | {"jobs": [JOB] * MAX_JOBS, "rewards": []}, headers=BEARER).status_code == 200


@pytest.mark.parametrize(
    "body, status, message",
    [
        (b"{", 422, "JSON"),
        (b"", 422, "body: Field required"),
        (b'{"jobs": "\xff"}', 400, "parsing the body"),
        (b"[" * 2_000_000, 400, "parsing the body"),  # deeper than Python's stack
        (b'{"jobs": ' + b"9" * 10_000 + b"}", 400, "parsing the body"),  # more digits than Python reads
        (b'{"jobs": [' + b"0," * 2_000_000 + b"0]}", 422, "body.jobs"),
        (b"{" + b",".join(b'"%d": 0' % i for i in range(200_000)) + b"}", 422, "Extra inputs"),
        (b'{"jobs": "' + b"a" * (MAX_BODY_BYTES - 20) + b'"}', 422, "body.jobs: Input should be a valid list"),
        (b"a" * (MAX_BODY_BYTES + 1), 413, f"larger than {MAX_BODY_BYTES} bytes"),
    ],
    ids=["cut", "empty", "bytes", "nested", "digits", "many", "keys", "long", "huge"],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_that_would_fill_the_memory(send, body, status, message, chunked):
    async def chunks():
        for start in range(0, len(body), 2**16):
            yield body[start : start + 2**16]

    start = time.process_time()
    content = chunks() if chunked else body
    refused = send(content=content, headers=BEARER | {"Content-Type": "application/json"})
    assert refused.status_code == status, refused.text[:300]
    assert message in refused.json()["detail"]
    assert len(refused.content) < 5000
    assert time.process_time() - start < 5


def test_a_body_too_large_is_not_read(send):
    async def endless():
        raise AssertionError("it was read")
        yield b""

    headers = BEARER | {"Content-Length": str(MAX_BODY_BYTES + 1)}
    assert send(content=endless(), headers=headers).status_code == 413
    assert send(content=endless(), headers={"Content-Length": "10"}).status_code == 401


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/x-pickle"])
def test_only_json_is_read(send, content_type):
    refused = send(content=json.dumps(REQUEST), headers=BEARER | {"Content-Type": content_type})
    assert refused.status_code == 422
    assert "Content-Type: application/json" in refused.json()["detail"]


@pytest.mark.parametrize(
    "method, path, status", [("GET", "/v1/score", 405), ("POST", "/health", 405), ("GET", "/v1/../etc/passwd", 404)]
)
def test_wrong_method_or_path(send, method, path, status):
    assert send(method, path, headers=BEARER).status_code == status


api = schemathesis.openapi.from_dict(app.openapi())
api.app = app


@api.parametrize()
@settings(max_examples=50, deadline=None)
@pytest.mark.usefixtures("gateway")
def test_fuzz(case):
    """No 5xx; each answer is one that the OpenAPI description has; none without the token, or to what it excludes."""
    unsaid = [positive_data_acceptance]  # the description does not say which rewards there are
    case.call_and_validate(headers=BEARER, excluded_checks=unsaid)


def picture(width: int, height: int, format_: str) -> str:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, format_)
    return base64.b64encode(file.getvalue()).decode()


def test_a_client_does_not_unpack_an_enormous_picture():
    assert unpacked(picture(64, 48, "PNG")).size == (64, 48)
    with pytest.raises(ValueError, match=f"10000 x 10000 pixels, more than {MAX_IMAGE_PIXELS}"):
        unpacked(picture(10_000, 10_000, "PNG"))
    with pytest.raises(Image.DecompressionBombError):
        unpacked(picture(20_000, 20_000, "PNG"))
    with pytest.raises(Image.UnidentifiedImageError):  # only the formats that the service sends
        unpacked(picture(64, 48, "TIFF"))


@pytest.mark.parametrize(
    "host, token, message",
    [
        ("0.0.0.0", None, "host: 0.0.0.0 can be reached by others. Set BRUSHUP_TOKEN"),
        ("::", "", "host: :: can be reached by others. Set BRUSHUP_TOKEN"),
        ("my-host", TOKEN, "host: 'my-host' is no IP address"),
        ("127.0.0.1", "two words", "BRUSHUP_TOKEN has a space"),
    ],
)
def test_serve_refuses_before_it_loads_anything(monkeypatch, host, token, message):
    monkeypatch.syspath_prepend(REPOSITORY / "recipes")
    from serve import check_access

    with pytest.raises(SystemExit, match=message):
        check_access(host, token)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_token(monkeypatch, host):
    monkeypatch.syspath_prepend(REPOSITORY / "recipes")
    from serve import check_access

    check_access(host, None)


@pytest.mark.slow
def test_serve_on_all_addresses_needs_a_token():
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "BRUSHUP_TOKEN"}
    refused = subprocess.run(
        [*SERVE, "--host", "0.0.0.0"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 1
    assert "host: 0.0.0.0 can be reached by others. Set BRUSHUP_TOKEN" in refused.stderr
    assert "Ray" not in refused.stderr


@pytest.mark.slow
def test_the_service_as_started(service):
    """The token, limits over real HTTP, and which addresses its processes listen on."""
    url = service.url
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/v1/info").status_code == 401
    assert httpx.get(f"{url}/v1/info", headers={"Authorization": "Bearer wrong"}).status_code == 401
    with httpx.Client(base_url=url, headers=BEARER, timeout=60) as client:
        assert client.get("/v1/info").json()["rewards"] == ["Breaking", "clip", "questions"]
        before = counts(client)
        assert "clip" in client.post("/v1/score", json=REQUEST).json()["results"][0]["scores"]
        assert client.post("/v1/score", content=b"a" * (MAX_BODY_BYTES + 1)).status_code == 413
        assert client.post("/v1/score", content=(b"a" * 2**20 for _ in range(20))).status_code == 413
        for prompt in ("\ud800", "a" * (MAX_PROMPT_CHARS + 1)):
            content = json.dumps(job(prompt=prompt))
            headers = {"Content-Type": "application/json"}
            assert client.post("/v1/score", content=content, headers=headers).status_code == 422
        assert client.get("/health").status_code == 200
        assert counts(client) == [number + 1 for number in before]
    check_listening(service.process.pid)
    assert TOKEN not in service.log.read_text()


def counts(client: httpx.Client) -> list[float]:
    """Return how many images, and how many batches of the replicas, the service has counted."""
    text = client.get("/metrics").text
    names = ("brushup_images_total", "brushup_batch_size_count")
    return [float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1]) for name in names]


def check_listening(pid: int) -> None:
    """All of it is on this machine's own addresses, but for a port of each replica that wants Ray's secret."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    listening = [
        (process, address.laddr)
        for process in processes
        for address in process.net_connections("inet")
        if address.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 5  # Ray's, too
    others = [each for each in listening if not is_own(each[1].ip)]
    for process, address in others:
        assert "ServeReplica" in process.cmdline()[0], f"{process.cmdline()} listens on {address}"
        for secret in (None, [("authorization", "Bearer wrong")]):
            with grpc.insecure_channel(f"127.0.0.1:{address.port}") as channel:
                call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
                with pytest.raises(grpc.RpcError) as refused:
                    call(b"", metadata=secret, timeout=10)
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def is_own(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback

"""The client against peers that are no render service, or not yet, and against proxies."""

import itertools
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from brushup.render.job import RenderJob
from brushup.render.service.client import HttpWorker, NoRenderService, WorkerUnavailable
from support.launching import free_port


INFO = {
    "settings": {"generator": "g"},
    "rewards": ["clip"],
    "token_limits": {"clip": 77},
    "render_timeout": 9,
    "num_replicas": 1,
}
JOBS = [RenderJob("a red ball", "a cat", 1)]
SECRET = "open-sesame"


@contextmanager
def peer(*answers: Callable[[socket.socket], None]) -> Iterator[int]:
    """Give the port of a server that treats one connection by each answer, and further ones by the last."""
    server = socket.create_server(("127.0.0.1", 0))
    remaining = itertools.chain(answers, itertools.repeat(answers[-1]))

    def treat(connection: socket.socket, answer: Callable[[socket.socket], None]) -> None:
        with connection:
            try:
                answer(connection)
            except OSError:  # the client has gone
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # the end, below
                return
            threading.Thread(target=treat, args=(connection, next(remaining)), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def http(status: int, body: str | dict = "", *headers: str) -> Callable[[socket.socket], None]:
    """Return the answer of an HTTP server."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", "Connection: close", *headers, "", ""]

    def answer(connection: socket.socket) -> None:
        connection.recv(2**16)
        connection.sendall("\r\n".join(lines).encode() + content)

    return answer


def says(text: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: (connection.sendall(text), connection.recv(2**16))


def trickles(connection: socket.socket) -> None:
    """Send an endless answer, in chunks, a byte now and then."""
    connection.recv(2**16)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\n \r\n")
        time.sleep(0.1)


def hangs_up(connection: socket.socket) -> None:
    connection.recv(2**16)


def worker_at(port: int, timeout: float = 60, scheme: str = "http", token: str | None = SECRET) -> HttpWorker:
    return HttpWorker(f"{scheme}://127.0.0.1:{port}", ["clip"], timeout, "python recipes/serve.py", token)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (http(404, "nothing here"), "answers 404, nothing here"),
        (http(200, "<!doctype html><title>Welcome</title>"), "answers 200, no Info, but '<!doctype html>"),
        (http(200, {"status": "ok"}), "answers 200, no Info"),
        (http(200), "answers 200, no Info, but ''"),
        (http(204), "answers 204, no Info"),
        (http(302, "", "Location: https://login.example/"), "answers 302, https://login.example/"),
        (http(403, "forbidden"), "answers 403, forbidden"),
        (http(501, "no"), "answers 501, no"),
        (says(b"SSH-2.0-OpenSSH_9.2p1\r\n"), "does not speak HTTP"),
        (says(b"-ERR unknown command\r\n"), "does not speak HTTP"),
        (says(b"\0\0\0\x16mysql_native_password"), "does not speak HTTP"),
    ],
)
def test_a_stranger_is_said_at_once(answer, reason):
    start = time.monotonic()
    with peer(answer) as port, pytest.raises(NoRenderService, match=reason) as error:
        worker_at(port)
    assert time.monotonic() - start < 5
    assert f"http://127.0.0.1:{port} is no render service" in str(error.value)
    assert f"start it with: python recipes/serve.py --port {port}" in str(error.value)
    assert SECRET not in str(error.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*command, "-keyout", folder / "key", "-out", folder / "cert"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    return context


def test_tls_on_one_side_only(certificate):
    def tls(connection: socket.socket) -> None:
        with certificate.wrap_socket(connection, server_side=True) as secured:
            secured.recv(2**16)

    with peer(tls) as port:
        with pytest.raises(NoRenderService, match="it speaks TLS: write https://"):
            worker_at(port)
        with pytest.raises(NoRenderService, match="TLS failed: .*self-signed certificate"):
            worker_at(port, scheme="https")
    with peer(http(200, INFO)) as port, pytest.raises(NoRenderService, match="TLS failed"):
        worker_at(port, scheme="https")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:99999",
        "http://127.0.0.1:-1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:port",
        "http://",
        "http://:8100",
        "http://[::1:8100",
        "ftp://127.0.0.1:8100",
        "127.0.0.1:8100",
        "http://127.0.0.1:8100?x=1",
        f"http://me:{SECRET}@127.0.0.1:8100",
        f"http://me:{SECRET}@127.0.0.1:99999",
    ],
)
def test_a_malformed_address(url):
    with pytest.raises(
        ValueError, match="^worker: '.*' is none of local, auto, spawn and http://host:port: "
    ) as error:
        HttpWorker(url, ["clip"], 60, "")
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "starting",
    [
        hangs_up,  # also an SSH tunnel whose far end is not there yet
        http(503, {"detail": "the models are loading"}),
        http(502, "<html>Bad Gateway</html>"),
        http(504),
        http(404, "Path '/v1/info' not found. Ping http://.../-/routes for available routes."),  # Ray Serve's proxy
    ],
)
def test_a_service_that_starts_is_waited_for(starting):
    with peer(starting, starting, http(200, INFO)) as port:
        assert worker_at(port).token_limits == {"clip": 77}


def test_a_service_once_known_is_waited_for_whatever_its_port_answers(caplog):
    reply = {"results": [{"scores": {"clip": 0.5}}]}
    restart = (hangs_up, says(b"SSH-2.0\r\n"), http(404, "another program"), http(503), http(200, reply))
    with peer(http(200, INFO), *restart) as port:
        assert worker_at(port).score(JOBS)[0].scores == {"clip": 0.5}
    assert f"http://127.0.0.1:{port} does not answer" in caplog.text


def test_the_deadline_holds_against_a_peer_that_trickles():
    start = time.monotonic()
    with peer(trickles) as port, pytest.raises(WorkerUnavailable, match="did not answer for 1 s .*no complete answer"):
        worker_at(port, timeout=1)
    with peer(http(200, INFO), trickles) as port:
        result = worker_at(port, timeout=1).score(JOBS)[0]
    assert result.kind == "timeout" and "no complete answer in time" in result.error
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("token", ["two words", "line\nfeed", "feed-at-the-end\n", "\ttab", "비밀", "clé", " "])
def test_a_token_that_no_header_can_hold(token, monkeypatch):
    monkeypatch.setenv("BRUSHUP_TOKEN", token)
    with pytest.raises(ValueError, match="BRUSHUP_TOKEN has a space, a line break or") as error:
        worker_at(free_port(), token=None)
    assert token.strip() not in str(error.value) or not token.strip()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "render.example"])
def test_no_proxy_gets_the_token(host, monkeypatch):
    heard = []
    with peer(lambda connection: heard.append(connection.recv(2**16))) as proxy, peer(http(200, INFO)) as port:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        if host == "render.example":  # nobody: without the proxy its name is unknown
            with pytest.raises(WorkerUnavailable):
                HttpWorker(f"http://{host}:{port}", ["clip"], 1, "", SECRET)
        else:
            assert HttpWorker(f"http://{host}:{port}", ["clip"], 10, "", SECRET).info
    assert not heard

"""The address and the secret of a render service, and how to tell a peer that is none."""

import re
import socket
import ssl

import httpx
from pydantic import AnyHttpUrl, TypeAdapter, ValidationError


class NoRenderService(ValueError):
    """Something else than a render service answers at the address."""


def check_token(token: str | None) -> str | None:
    """Return the token, None for an empty one; raise a ValueError (without it) if no HTTP header can hold it."""
    if token and not re.fullmatch("[!-~]+", token):
        raise ValueError(
            "BRUSHUP_TOKEN has a space, a line break or a character that is not ASCII: an HTTP header can't hold it. "
            "Set it to a secret without, e.g. export BRUSHUP_TOKEN=$(openssl rand -hex 32)"
        )
    return token or None


def check_url(text: str) -> httpx.URL:
    """Return the address of a service; raise a ValueError if it is malformed or holds more than an address."""
    shown = re.sub(r"//[^/]*@", "//<USER:PASSWORD>@", text)
    wrong = f"worker: {shown!r} is none of local, auto, spawn and http://host:port"
    try:
        url = TypeAdapter(AnyHttpUrl).validate_python(text)
    except ValidationError as error:
        raise ValueError(f"{wrong}: {error.errors()[0]['msg']}") from None  # the error itself shows a password
    if url.username or url.password:
        raise ValueError(f"{wrong}: it takes no user or password, but the secret in BRUSHUP_TOKEN")
    if url.port == 0 or url.query is not None or url.fragment is not None:
        raise ValueError(f"{wrong}: it has port 0, a query or a fragment")
    return httpx.URL(str(url).rstrip("/"))


def is_temporary(reply: httpx.Response) -> bool:
    """Return whether the same request may succeed later: the service is overloaded or starting, or a gateway waits.

    While the routes load, Ray Serve answers 404 itself, and names its own path /-/routes.
    """
    starting = reply.status_code == 404 and b"/-/routes" in reply.content
    return starting or reply.status_code in (408, 425, 429, 500, 502, 503, 504)


def why_no_http(url: httpx.URL, error: Exception) -> str | None:
    """Return why no request to this address will ever succeed; None if the service may still be starting."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return f"TLS failed: {cause}"
        cause = cause.__cause__ or cause.__context__
    if url.scheme == "https" or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return None
    address = url.host, url.port or 80
    try:  # a TLS server closes the connection without a word, as an SSH tunnel to nobody does
        ssl.get_server_certificate(address, timeout=5)
        return "it speaks TLS: write https:// instead of http://"
    except OSError:
        pass
    try:
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: %s\r\n\r\n" % url.netloc)
            first = connection.recv(40)
    except OSError:
        return None
    return f"it does not speak HTTP, but begins with {first!r}" if first and not first.startswith(b"HTTP/") else None


def what_it_said(error: BaseException) -> str:
    """Return the reason of a failed request in one line."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"{error.response.status_code} {error.response.text[:200]!r}"
    text = "no complete answer in time" if isinstance(error, TimeoutError | httpx.TimeoutException) else str(error)
    return f"{type(error).__name__}: {text}"

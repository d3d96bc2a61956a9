"""The address and the secret of a render service, and how to tell a peer that is none."""

import asyncio
import re
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


async def why_no_http(url: httpx.URL, error: httpx.TransportError) -> str | None:
    """Return why no request to this address will ever succeed; None if the service may still be starting."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return f"TLS failed: {cause}"
        cause = cause.__cause__
    if not isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return None
    if url.scheme == "http":  # a TLS server closes the connection without a word, as an SSH tunnel to nobody does
        try:
            await asyncio.to_thread(ssl.get_server_certificate, (url.host, url.port or 80), timeout=5)
            return "it speaks TLS: write https:// instead of http://"
        except OSError:
            pass
    closed = "disconnected" in str(error) or "closed" in str(error)
    return None if closed or isinstance(error, httpx.ReadError) else f"it does not speak HTTP: {error}"


def what_it_said(error: BaseException) -> str:
    """Return the reason of a failed request in one line."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"{error.response.status_code} {error.response.text[:200]!r}"
    text = "no complete answer in time" if isinstance(error, TimeoutError | httpx.TimeoutException) else str(error)
    return f"{type(error).__name__}: {text}"

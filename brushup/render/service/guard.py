"""The guard of the render service: which requests it refuses, and with which answer."""

import hmac
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve

from brushup.render.service.protocol import MAX_BODY_BYTES, Problem


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


async def refuse(_: Request, invalid: RequestValidationError) -> JSONResponse:
    """Answer 422 and the errors, without the request itself: that may be large."""
    errors = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in invalid.errors()[:5]]
    if isinstance(invalid.body, bytes):
        errors = ["send JSON, with the header Content-Type: application/json"]
    return JSONResponse({"detail": "; ".join(error[:200] for error in errors)}, 422)


class Guard:
    """ASGI middleware that refuses before a body is read: 401 without the token, 413 for a body that is too large."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        token = serve.get_replica_context().servable_object.token
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        is_known = scheme.lower() == b"bearer" and hmac.compare_digest(secret.strip(), (token or "").encode())
        if token and not is_known and scope["path"] != "/health":
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

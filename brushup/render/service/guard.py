"""The guard of the render service: who may come in, and with how much."""

import hmac
from collections.abc import Callable

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from ray import serve

from brushup.render.service.protocol import MAX_BODY_BYTES


class Guard:
    """ASGI middleware that refuses before a body is read: 401 without the token, 413 for a body that is too large."""

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

"""A bound on the size of requests, held while they arrive."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware that answers 413 to a body larger than `max_bytes`, announced or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = f"The request is larger than {self.max_bytes} bytes: send a smaller image."
        announced = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if scope["type"] == "http" and announced.isdigit() and int(announced) > self.max_bytes:
            await JSONResponse({"error": {"message": text, "type": "Refused"}}, 413)(scope, receive, send)
            return
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self.max_bytes:
                raise HTTPException(413, text)
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)

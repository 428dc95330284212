"""The HTTP API: caption, ask, health, and the chat-completions shape. docs/serve.md documents it.

Every error is {"error": {"message": a sentence, "type": a name}}.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from excitor_mm.config import DecodingConfig
from excitor_mm.errors import DataError, ExcitorError
from excitor_mm.serve import chat
from excitor_mm.serve.batching import Busy
from excitor_mm.serve.engine import Engine
from excitor_mm.serve.images import Limits, read_image_url
from excitor_mm.serve.limits import BodyLimit

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class DecodingOptions(BaseModel):
    """Replaces the adapter's own decoding; bounded, because others wait."""

    beams: int | None = Field(default=None, ge=1, le=8)
    max_new_tokens: int | None = Field(default=None, ge=1, le=256)
    sample: bool | None = None
    temperature: float | None = Field(default=None, gt=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)

    def over(self, default: DecodingConfig) -> DecodingConfig:
        """The default with these laid over it."""
        return dataclasses.replace(default, **self.model_dump(exclude_none=True))


class CaptionRequest(BaseModel):
    """A picture to caption."""

    image: str
    adapter: str = ""
    decoding: DecodingOptions = DecodingOptions()


class AskRequest(BaseModel):
    """A question, with what was asked and answered before."""

    question: str = Field(min_length=1, max_length=4000)
    image: str | None = None
    history: list[tuple[str, str]] = Field(default=[], max_length=32)
    adapter: str = ""
    decoding: DecodingOptions = DecodingOptions()


def make_app(
    engines: Mapping[str, Engine], *, keys: Sequence[str] = (), limits: Limits, exposed: bool = False
) -> FastAPI:
    """The application.

    Args:
        engines: name -> engine; the first is the default.
        keys: one of them must come with every call but /health, as `Authorization: Bearer KEY`; none: all may call.
        limits: of what clients send.
        exposed: answer to any host name, not to this machine's own only (which keeps web pages from calling in).
    """
    app = FastAPI(title="excitor-mm", docs_url="/docs/api", redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=limits.max_bytes)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["*"] if exposed else [*LOOPBACK, "testserver"])
    _explain_errors(app)

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if keys and not any(secrets.compare_digest(given.encode(), key.encode()) for key in keys):
            raise HTTPException(401, "The API key is missing or wrong: send Authorization: Bearer KEY.")

    def engine_of(name: str) -> Engine:
        if name and name not in engines:
            raise HTTPException(404, f"There is no adapter {name!r}: choose one of {', '.join(engines)}.")
        return engines[name or next(iter(engines))]

    guard = [Depends(allowed)]

    @app.get("/health")
    def health() -> dict[str, Any]:
        waiting = {name: len(engine.batcher.waiting) for name, engine in engines.items()}
        return {"status": "ok", "adapters": list(engines), "waiting": waiting}

    @app.get("/v1/models", dependencies=guard)
    def models() -> dict[str, Any]:
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "excitor-mm"} for name in engines]
        return {"object": "list", "data": rows}

    @app.post("/v1/caption", dependencies=guard)
    async def caption(body: CaptionRequest) -> dict[str, Any]:
        engine = engine_of(body.adapter)
        decoding = body.decoding.over(engine.model.config.decoding)
        text = await _answer(lambda: engine.caption(read_image_url(body.image, limits), decoding))
        return {"caption": text, "adapter": engine.name, "decoding": dataclasses.asdict(decoding)}

    @app.post("/v1/caption/file", dependencies=guard)
    async def caption_file(request: Request, adapter: str = "") -> dict[str, Any]:
        engine, content = engine_of(adapter), await request.body()
        return {"caption": await _answer(lambda: engine.caption(content)), "adapter": engine.name}

    @app.post("/v1/ask", dependencies=guard)
    async def ask(body: AskRequest) -> dict[str, Any]:
        engine = engine_of(body.adapter)
        decoding = body.decoding.over(engine.model.config.decoding)

        def start() -> Future[str]:
            image = read_image_url(body.image, limits) if body.image else None
            return engine.ask(image, body.question, body.history, decoding=decoding)

        return {"answer": await _answer(start), "adapter": engine.name}

    @app.post("/v1/chat/completions", dependencies=guard)
    async def chat_completions(body: chat.ChatRequest) -> Any:
        engine = engine_of(body.model)
        decoding = chat.decoding_of(body, engine.model.config.decoding)

        def start(listener: Callable[[str], None] | None = None) -> Future[str]:
            talk = chat.read_conversation(body.messages, limits)
            if talk.image is not None and chat.wants_caption(talk) and not (talk.question and engine.can_answer):
                return engine.caption(talk.image, decoding, listener)
            return engine.ask(talk.image, talk.question, talk.turns, talk.system, decoding, listener)

        if body.stream:
            pieces: asyncio.Queue[str | None] = asyncio.Queue()
            loop = asyncio.get_running_loop()

            def hear(text: str) -> None:
                loop.call_soon_threadsafe(pieces.put_nowait, text)

            future = await asyncio.to_thread(start, hear)
            return StreamingResponse(_events(engine.name, future, pieces, loop), media_type="text/event-stream")
        return chat.completion(engine.name, text := await _answer(start), 0, engine.count_tokens(text))

    return app


async def _answer(start: Callable[[], Future[str]]) -> str:
    """Decode in a thread, wait without one."""
    return await asyncio.wrap_future(await asyncio.to_thread(start))


async def _events(
    name: str, future: Future[str], pieces: asyncio.Queue[str | None], loop: asyncio.AbstractEventLoop
) -> AsyncIterator[str]:
    """Server-sent events: what is new of each text so far."""
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(pieces.put_nowait, None))
    head, sent = chat.chunk_head(name), ""
    try:
        while (text := await pieces.get()) is not None:
            if text.startswith(sent) and len(text) > len(sent):
                yield f"data: {json.dumps(chat.chunk(head, text[len(sent) :]))}\n\n"
                sent = text
        future.result()
        yield f"data: {json.dumps(chat.chunk(head, None))}\n\n"
    except Exception as error:  # the status line has gone out already
        yield f"data: {json.dumps(_error(error, 'stream'))}\n\n"
    finally:
        future.cancel()
    yield "data: [DONE]\n\n"


def _error(error: object, kind: str) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": kind}}


def _explain_errors(app: FastAPI) -> None:
    """One shape for all errors."""

    @app.exception_handler(ExcitorError)
    def bad_input(request: Request, error: ExcitorError) -> JSONResponse:
        return JSONResponse(_error(error, type(error).__name__), 400)

    @app.exception_handler(Busy)
    def busy(request: Request, error: Busy) -> JSONResponse:
        return JSONResponse(_error(error, "Busy"), 503, {"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(_error(error.detail, "Refused"), error.status_code)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(place) for place in first["loc"][1:])
        return JSONResponse(_error(DataError(f"{where}: {first['msg']}"), "Malformed"), 422)

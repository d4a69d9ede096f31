"""The routes: POST /predict, GET /classes, GET /health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from examples.serving.batching import Batcher, Busy, Limits, Unavailable
from examples.serving.parsing import BadRequest, parse
from examples.serving.worker import Source, WorkerFailed


def create_app(source: Source, limits: Limits, max_bytes: int = 10_000_000, resize: bool = False) -> Starlette:
    """The application; its workers start and end with it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        batcher = app.state.batcher = Batcher(source, limits)
        app.state.model = await batcher.start()
        try:
            yield
        finally:
            await batcher.close()

    async def predict(request: Request) -> JSONResponse:
        model = request.app.state.model
        body = await _body(request, max_bytes)
        content_type, forget = request.headers.get("content-type", ""), request.query_params.getlist("forget")
        # In a thread: decoding a large image would hold up every other request.
        image, classes = await asyncio.to_thread(parse, body, content_type, forget, model, resize)
        logits = (await request.app.state.batcher.submit(image, classes)).tolist()
        best = max(range(len(logits)), key=logits.__getitem__)
        name = model.class_names[best] if model.class_names else str(best)
        return JSONResponse({"class": name, "number": best, "forgotten": sorted(classes), "logits": logits})

    async def classes(request: Request) -> JSONResponse:
        return JSONResponse(asdict(request.app.state.model))

    async def health(request: Request) -> JSONResponse:
        batcher: Batcher = request.app.state.batcher
        workers = [
            {"pid": worker.pid, "ready": worker.ready, "restarts": worker.starts - 1} for worker in batcher.workers
        ]
        alive = any(worker["ready"] for worker in workers)
        content = {"status": "ok" if alive else "no worker", "waiting": len(batcher.waiting), "workers": workers}
        return JSONResponse(content, 200 if alive else 503)

    return Starlette(
        routes=[
            Route("/predict", predict, methods=["POST"]),
            Route("/classes", classes),
            Route("/health", health),
        ],
        lifespan=lifespan,
        exception_handlers={
            BadRequest: lambda _request, error: _refused(error.status, error),
            Busy: lambda _request, error: _refused(503, error, {"retry-after": "1"}),
            Unavailable: lambda _request, error: _refused(503, error, {"retry-after": "1"}),
            WorkerFailed: lambda _request, _error: _refused(
                500, "the model could not compute this: see the server's log"
            ),
            HTTPException: lambda _request, error: _refused(error.status_code, error.detail, error.headers),
        },
    )


def _refused(status: int, why: object, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": str(why)}, status, headers)


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body, read no further than is allowed. Raises BadRequest."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise BadRequest(413, f"the body is larger than {max_bytes:,} bytes")
    return bytes(body)

"""The service over HTTP, as an ASGI application.

``POST /v1/reconstruct`` takes a form (multipart/form-data) and answers with an image file; ``GET /v1/info`` says what
it may ask for. ``GET /healthz`` is 200 unless the process should be replaced, ``GET /readyz`` 200 while requests are
taken, ``GET /metrics`` for Prometheus. Everything but images and metrics is JSON, a refusal
``{"error": {"status": 422, "code": "invalid", "message": "`noise_std` must be given: ..."}}``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .config import OPERATORS
from .parsing import FIELDS, FILES
from .refusals import RequestError, busy, draining, expired, invalid, not_acceptable, too_large
from .service import Answer, Service

__all__ = ["create_app"]

log = logging.getLogger(__name__)
# It warns of every malformed body, which any client can send at will; the answer and the counters say so already.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

_FIELD_BYTES = 4096
_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(service: Service) -> Starlette:
    """The application of a service; when it shuts down it finishes what was accepted.

    ``app.state.service`` is the service, ``app.state.in_flight`` the number of requests that have no answer yet.
    """
    # Decoding and encoding take milliseconds of processor time, which the event loop must not.
    workers = concurrent.futures.ThreadPoolExecutor(2, "rmp-fast-files")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)
        workers.shutdown()

    async def reconstruct(request: Request) -> Response:
        arrived = time.monotonic()
        operator = ["unknown"]
        app.state.in_flight += 1
        try:
            answer = await _reconstruct(request, service, workers, arrived, operator)
            response = Response(answer.body, 200, answer.headers, answer.media_type)
        except RequestError as error:
            response = _refusal(error)
        except ClientDisconnect:
            response = _refusal(invalid("the body ended before it was complete", 400))
        except Exception:
            log.exception("a request failed")
            response = _refusal(RequestError(500, "internal", "the service failed on this request; its log says why"))
        finally:
            app.state.in_flight -= 1
        service.metrics.requests.labels(operator[0], str(response.status_code)).inc()
        service.metrics.request_seconds.labels(operator[0]).observe(time.monotonic() - arrived)
        return response

    async def info(request: Request) -> Response:
        return JSONResponse(service.info())

    async def healthz(request: Request) -> Response:
        try:
            service.check()
        except RuntimeError as error:
            return _refusal(RequestError(503, "unhealthy", f"{error}; restart it"))
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        return JSONResponse({"status": "ready"}) if service.ready else _refusal(draining())

    async def metrics(request: Request) -> Response:
        body, content_type = await asyncio.to_thread(service.metrics.render)
        return Response(body, headers={"Content-Type": content_type})

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "invalid")
        message = f"{request.method} {request.url.path} is not offered; POST /v1/reconstruct and GET /v1/info are"
        response = _refusal(RequestError(error.status_code, code, message))
        response.headers.update(error.headers or {})
        return response

    app = Starlette(
        routes=[
            Route("/v1/reconstruct", reconstruct, methods=["POST"]),
            Route("/v1/info", info),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: refused},
    )
    app.state.service, app.state.in_flight, app.state.upload_bytes = service, 0, 0
    return app


async def _reconstruct(
    request: Request,
    service: Service,
    workers: concurrent.futures.Executor,
    arrived: float,
    operator: list[str],
) -> Answer:
    loop = asyncio.get_running_loop()
    fields, files = await _form(request, service)
    if fields.get("operator") in OPERATORS:
        operator[0] = fields["operator"]
    job = await loop.run_in_executor(workers, service.parse, fields, files)
    ticket = service.submit(job, arrived)
    try:
        async with asyncio.timeout(ticket.due - time.monotonic()):
            outcome = await asyncio.wrap_future(ticket.outcome)
    except TimeoutError:
        raise expired(job.deadline) from None
    finally:
        ticket.give_up()  # a finished ticket does not mind
    return await loop.run_in_executor(workers, service.answer, ticket, outcome)


class _Form(MultiPartParser):
    """Kept in memory, which the limit of the body bounds; knows whether the form came to its end."""

    spool_max_size = sys.maxsize
    complete = False

    def on_end(self) -> None:
        self.complete = True


async def _form(request: Request, service: Service) -> tuple[dict[str, str], dict[str, bytes]]:
    """Fields and files of a request, each once.

    Raises:
        RequestError: 400 no complete form, 408 too slow, 413 too large, 415 no form at all, 429 too many at once.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise not_acceptable(
            f"the body must be multipart/form-data, got {kind[:60] or 'no content type'}; with curl: -F image=@FILE"
        )
    body = await _body(request, service)

    async def stream() -> Any:
        yield body

    parser = _Form(request.headers, stream(), max_files=len(FILES), max_fields=len(FIELDS), max_part_size=_FIELD_BYTES)
    try:
        items = (await parser.parse()).multi_items()
    except MultiPartException as error:
        raise invalid(f"the body must be a form: {error.message}", 400) from error
    if not parser.complete:
        raise invalid("the body must be a complete form, its closing boundary is missing", 400)
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for name, value in items:
        if name in fields or name in files:
            raise invalid(f"`{name[:40]}` must be given once", 400)
        if isinstance(value, UploadFile):
            files[name] = value.file.read()
        else:
            fields[name] = value
    return fields, files


async def _body(request: Request, service: Service) -> bytes:
    limit, seconds = service.config.max_bytes, service.config.body_seconds
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise too_large(f"the body must have at most {limit} bytes, got {stated}")
    chunks, size, state = [], 0, request.app.state
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                state.upload_bytes += len(chunk)
                if size > limit:
                    raise too_large(f"the body must have at most {limit} bytes, got more")
                if state.upload_bytes > service.config.upload_bytes:
                    raise busy(f"{state.upload_bytes} bytes are on their way in; try again in 1 s", 1)
                chunks.append(chunk)
    except TimeoutError:
        message = f"the body must come within {seconds:g} s, got {size} bytes of it"
        raise RequestError(408, "slow", message) from None
    finally:
        state.upload_bytes -= size
    return b"".join(chunks)


def _refusal(error: RequestError) -> Response:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    body = {"error": {"status": error.status, "code": error.code, "message": error.message}}
    return JSONResponse(body, error.status, headers)

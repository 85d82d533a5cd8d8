"""The HTTP side: `/predict`, `/healthz`, `/metadata`, `/openapi.json`, and two pages that need nothing from elsewhere.

Every refusal is {"detail": one line}: 4xx for what a client can change, 429 with Retry-After while the queue is full,
500 for a request that failed, 503 while the model compiles or the server stops, 504 for an answer that came too late.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from jaxptft import __version__
from jaxptft.recipes.serving.batcher import Batcher, Closed, Overloaded
from jaxptft.recipes.serving.requests import ROWS, Asked, BadRequest, parse, schema

DRAINED = 8
"""Bodies up to so many times the largest are read, and thrown away, before they are refused: who still sends when a
connection is closed may lose the answer."""
_LOG = logging.getLogger(__name__)
_PAGE_HEADERS = {  # a page loads nothing from elsewhere, and talks to this server alone
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
}
_REFUSALS = {
    "400": "The body is not JSON.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "415": "The content type is not JSON.",
    "422": "A field is unknown, missing or of a wrong type, or there are too many rows; the message names it.",
    "429": "The queue is full; ask again after Retry-After seconds.",
    "500": "The request failed.",
    "503": "The model is not ready, or the server is stopping.",
    "504": "The answer did not come in time.",
}


class PrepareRows(Protocol):
    """What is made of a request's rows before they wait."""

    def __call__(self, rows: Sequence[dict[str, Any]], *, single: bool) -> Sequence[dict[str, Any]]: ...


class Limits(NamedTuple):
    """Of one request: its body in bytes, its rows, the seconds until its answer; and what becomes of long texts."""

    max_bytes: int
    max_rows: int
    timeout: float
    too_long: Literal["cut", "refuse"]


class Readiness:
    """Whether everything is compiled; set by the batcher's thread."""

    def __init__(self) -> None:
        self.ready = False


def make_app(
    task: str,
    batcher: Batcher,
    limits: Limits,
    about: Callable[[], Mapping[str, Any]],
    *,
    prepare_rows: PrepareRows | None = None,
    prepare: Callable[[], bool] = lambda: True,
    grace: float = 30.0,
) -> FastAPI:
    """The application; `prepare` is that of `Batcher.start`, and `about` gives the metadata.

    `prepare_rows`: (rows, single=whether they came as one) -> what is submitted, in a thread; raises BadRequest.

    When it stops, what waits is answered within `grace` seconds.
    """
    state, kind = Readiness(), ROWS[task]

    def begin() -> bool:
        state.ready = prepare()
        return state.ready

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start(begin)
        yield
        await asyncio.to_thread(batcher.close, min(grace, 5.0))  # nobody waits for an answer any more

    app = FastAPI(
        title="jaxptft serve",
        version=__version__,
        description=f"Answers of a model for {task.replace('_', ' ')}.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> Response:
        return _refusal(error.status_code, str(error.detail))

    body = {"required": True, "content": {"application/json": {"schema": schema(kind, most=limits.max_rows)}}}
    refusals: dict[int | str, Any] = {status: {"description": told} for status, told in _REFUSALS.items()}

    @app.post("/predict", summary="Answer one row or several", openapi_extra={"requestBody": body}, responses=refusals)
    async def predict(request: Request) -> Response:
        """One row gives one answer; rows give predictions, in their order. An answer holds what jaxptft predict says,
        and of a text "truncated": whether it was longer than the model reads, and cut."""
        if batcher.closing:
            return _refusal(503, "the server is stopping")
        if not state.ready:
            return _refusal(503, "the model is not ready yet; see /healthz", retry=1)
        if batcher.full:  # before the body is read
            return _overloaded()
        try:
            async with asyncio.timeout(limits.timeout):
                content = await _read(request, limits.max_bytes)
        except TimeoutError:
            return _refusal(408, f"the body did not come within {limits.timeout:g} seconds")
        except BadRequest as error:
            return _refusal(error.status, error.message)
        except ClientDisconnect:
            return Response(status_code=400)
        try:
            asked = parse(content, kind, most=limits.max_rows)
            async with asyncio.timeout(limits.timeout):
                rows = asked.rows if prepare_rows is None else await _prepared(asked, prepare_rows, batcher)
                answers = await asyncio.wrap_future(batcher.submit(rows))
        except BadRequest as error:
            return _refusal(error.status, error.message)
        except Overloaded:
            return _overloaded()
        except Closed as error:
            return _refusal(503, str(error))
        except TimeoutError:
            return _refusal(504, f"no answer within {limits.timeout:g} seconds", retry=1)
        except Exception as error:  # which has been logged
            return _refusal(500, f"the request failed ({type(error).__name__}); the server's log has more")
        if limits.too_long == "refuse":
            for number, answer in enumerate(answers):
                if answer.get("truncated"):
                    place = "the row" if asked.single else f"rows.{number}"
                    return _refusal(422, f"{place} is longer than the model reads (see max_length of /metadata)")
        return _json(answers[0] if asked.single else {"predictions": list(answers)})

    @app.get("/healthz", summary="Whether the model is ready", responses={503: {"description": "Not, or no more."}})
    async def health() -> Response:
        status = "stopping" if batcher.closing else "ready" if state.ready else "compiling"
        return _json({"status": status}, 200 if status == "ready" else 503)

    @app.get("/metadata", summary="The model, its labels and limits, and what is compiled")
    async def metadata() -> Response:
        return _json({**about(), "limits": limits._asdict()})

    for path, name in (("/", "page.html"), ("/docs", "docs.html")):
        _add_page(app, path, Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return app


async def _prepared(asked: Asked, prepare_rows: PrepareRows, batcher: Batcher) -> Sequence[dict[str, Any]]:
    """What is made of the rows, for which there must be room: a thread would otherwise find ever more of them."""
    with batcher.reserved(len(asked.rows)):
        try:
            return await asyncio.to_thread(prepare_rows, asked.rows, single=asked.single)
        except BadRequest:
            raise
        except Exception:
            _LOG.exception("%d rows could not be made ready", len(asked.rows))
            raise


async def _read(request: Request, most: int) -> bytes:
    """The body, as long as it is JSON and of `most` bytes at most; raises BadRequest."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise BadRequest(415, f"the content type is {kind!r}; expected application/json")
    large = BadRequest(413, f"the body has more than {most} bytes; send fewer rows at a time")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and (len(length) > 18 or int(length) > DRAINED * most):
        raise large
    parts, total = [], 0
    async for part in request.stream():
        total += len(part)
        if total > DRAINED * most:
            raise large
        if total <= most:
            parts.append(part)
        else:
            parts.clear()
    if total > most:
        raise large
    return b"".join(parts)


def _add_page(app: FastAPI, path: str, content: str) -> None:
    @app.get(path, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(content, headers=_PAGE_HEADERS)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(content, ensure_ascii=False).encode("utf-8")
    return Response(text, status, dict(headers or {}), media_type="application/json")


def _refusal(status: int, message: str, *, retry: int | None = None) -> Response:
    headers = {} if retry is None else {"Retry-After": str(retry)}
    if status in (408, 413):  # the rest of the body is not read
        headers["Connection"] = "close"
    return _json({"detail": message}, status, headers)


def _overloaded() -> Response:
    return _refusal(429, "too many rows wait already; ask again later", retry=1)

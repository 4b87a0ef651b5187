"""What surrounds the routes: the edge in front of them, errors behind them, and the files of the web app."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.exceptions import NotFoundException as RouteNotFound
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from llamaherd_shared.errors import HerdError, NotFound, Unavailable, http_status
from llamaherd_shared.log import structlog
from llamaherd_ui.edge import HEADERS, find_refusal
from llamaherd_ui.settings import UiSettings
from llamaherd_ui.views import ErrorBody, render_error
from llamaherd_ui.web_files import CONTENT_TYPES, NOT_BUILT, cache_control, is_page, relative_path

STATIC: Final = Path(__file__).parent / "static"
"""The built web app; made by `hatch_build.py`."""

_RAW_HEADERS: Final = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
_log = structlog.get_logger("llamaherd.ui")


class Edge:
    """ASGI application in front of the routes: refuses foreign hosts and origins, adds the security headers."""

    def __init__(self, app: ASGIApp, settings: UiSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_RAW_HEADERS]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = find_refusal(
            scope["method"], headers, bound_to=self._settings.host, allowed=self._settings.allowed_hosts
        )
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
        else:
            await _send_error(send_with_headers, *refusal)


async def _send_error(send: Callable[[Any], Any], status: int, message: str) -> None:
    body = msgspec.json.encode(render_error(status, message, error_id=_new_error_id()))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def answer_herd_error(_request: Request[Any, Any, Any], error: HerdError) -> Response[ErrorBody]:
    """An expected failure: its own status and sentence."""
    headers = {}
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        headers["Retry-After"] = f"{error.retry_after_s:.0f}"
    body = render_error(http_status(error), error.message, error_id=_new_error_id(), kind=error.kind)
    return Response(body, status_code=http_status(error), media_type="application/json", headers=headers)


def answer_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorBody]:
    """What Litestar refuses: unknown routes, wrong methods, parameters that do not fit."""
    if isinstance(error, RouteNotFound):
        message = f"there is nothing at {request.url.path}; /api/docs lists what there is"
    else:
        message = f"{request.method} {request.url.path}: {_describe(error)}"
    body = render_error(error.status_code, message, error_id=_new_error_id())
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return Response(body, status_code=error.status_code, media_type="application/json", headers=headers)


def _describe(error: HTTPException) -> str:
    """The parameters that do not fit and why, else Litestar's own sentence."""
    extra = error.extra if isinstance(error.extra, list) else []
    found = [f"`{item['key']}`: {item['message']}" for item in extra if isinstance(item, dict) and "key" in item]
    return "; ".join(found) or error.detail


def answer_bug(request: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
    """Anything unexpected: an id that leads to the traceback in the log, and nothing about our insides."""
    error_id = _new_error_id()
    _log.error(f"{request.method} {request.url.path} failed unexpectedly", id=error_id, exc_info=error)
    body = render_error(
        500, "this is a bug in llamaherd: the log of `ui` has the details under this id", error_id=error_id
    )
    return Response(body, status_code=500, media_type="application/json")


EXCEPTION_HANDLERS: Final[dict[Any, Any]] = {
    HerdError: answer_herd_error,
    HTTPException: answer_http_error,
    Exception: answer_bug,
}


def _new_error_id() -> str:
    return secrets.token_hex(8)


@get(["/", "/{path:path}"], include_in_schema=False)
async def show_web_app(path: str = "/") -> Response[bytes]:
    """A file of the web app; for the address of one of its pages, the app itself."""
    name = relative_path(path)
    if name is None:
        raise NotFound(f"there is nothing at {path}; /api/docs lists what there is")
    file = STATIC / name
    if not file.is_file() and is_page(name):
        name, file = "index.html", STATIC / "index.html"
        if not file.is_file():
            return Response(NOT_BUILT.encode(), status_code=503, media_type="text/html; charset=utf-8")
    if not file.is_file():
        raise NotFound(f"the web app has no file {name}")
    return Response(
        file.read_bytes(),
        media_type=CONTENT_TYPES.get(file.suffix, "application/octet-stream"),
        headers={"Cache-Control": cache_control(name)},
    )

"""Every route that is not relayed, as a small ASGI application: the list of models, health, and the rest as errors."""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from llamaherd_gateway.dialects.openai import render_models, render_problem
from llamaherd_gateway.problems import Problem
from llamaherd_gateway.routes import ROUTES as RELAYED
from llamaherd_gateway.routing import unknown_model_message
from llamaherd_gateway.store import View

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

MODELS: Final = "/v1/models"
ROUTES: Final = (
    *(f"POST {route.path}" for route in RELAYED),
    f"GET {MODELS}",
    f"GET {MODELS}/{{id}}",
    "GET /healthz",
    "GET /readyz",
)


class Api:
    """Call it as ASGI."""

    def __init__(self, view: View, readiness: Callable[[], str]) -> None:
        self._view = view
        self._readiness = readiness
        """Why the gateway is not ready; empty when it is."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        reads = method in ("GET", "HEAD")
        if any(path == route.path for route in RELAYED):
            await _refuse_method(send, path, method, "POST")
        elif path in ("/healthz", "/readyz", MODELS) or path.startswith(MODELS + "/"):
            if not reads:
                await _refuse_method(send, path, method, "GET, HEAD")
            elif path == "/healthz":
                await _answer(send, 200, {"status": "ok"})
            elif path == "/readyz":
                await self._ready(send)
            else:
                # The raw path: an id may hold an encoded slash.
                await self._models(send, scope.get("raw_path", path.encode()).decode("latin-1"))
        else:
            text = f"there is no {method} {path}; there are: {', '.join(ROUTES)}"
            await _fail(send, Problem(status=404, message=text, code="unknown_url"))

    async def _ready(self, send: Send) -> None:
        reason = self._readiness()
        if reason:
            await _answer(send, 503, {"status": "not ready", "reason": reason})
        else:
            await _answer(send, 200, {"status": "ready"})

    async def _models(self, send: Send, raw_path: str) -> None:
        models = render_models(self._view.fleet, self._view.table)
        if raw_path == MODELS:
            await _answer(send, 200, {"object": "list", "data": models})
            return
        name = unquote(raw_path.removeprefix(MODELS + "/"))
        found = next((model for model in models if model["id"] == name), None)
        if found is None:
            text = unknown_model_message(name, self._view.table.known)
            await _fail(send, Problem(status=404, message=text, code="model_not_found", param="model"))
        else:
            await _answer(send, 200, found)


async def _refuse_method(send: Send, path: str, method: str, allowed: str) -> None:
    problem = Problem(status=405, message=f"{path} takes {allowed}, not {method}", code="method_not_allowed")
    await _fail(send, problem, [(b"allow", allowed.encode())])


async def _fail(send: Send, problem: Problem, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await _send(send, problem.status, render_problem(problem), headers or [])


async def _answer(send: Send, status: int, content: Any) -> None:
    await _send(send, status, msgspec.json.encode(content), [])


async def _send(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

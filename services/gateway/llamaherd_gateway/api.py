"""Every route that is not relayed, as a small ASGI application: lists of models, health, management, and refusals."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec

from llamaherd_gateway.access.cors import Preflight
from llamaherd_gateway.access.gate import Access
from llamaherd_gateway.access.guard import Guard
from llamaherd_gateway.access.keys import Key
from llamaherd_gateway.bodies import decode_body
from llamaherd_gateway.dialects.dialect import Dialect, Herd, Page, PageRequest, Reply
from llamaherd_gateway.dialects.llama import LOOKS
from llamaherd_gateway.handlers import GATEWAY, Handler, Streaming
from llamaherd_gateway.paths import Paths
from llamaherd_gateway.problems import BadRequest, Problem, headers_of, late_body, problem_of
from llamaherd_gateway.relay.heads import Header
from llamaherd_gateway.routes import HEALTH, PAGES, dialect_of, find_allowed
from llamaherd_gateway.routing.names import Names
from llamaherd_shared.errors import HerdError
from llamaherd_shared.tasks import end

R = TypeVar("R")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

BODY_BYTES: Final = 2**20
"""Of a request that is not relayed; uploads are read by their handler as they come."""


class ClientLeft(ConnectionError):
    """Before the end of its request: there is nobody to answer."""


class _Named(msgspec.Struct):
    """The model that a body is about; Ollama's older clients call it `name`."""

    model: Any = None
    name: Any = None


_NAMED: Final = msgspec.json.Decoder(_Named)


class Api:
    """Call it as ASGI."""

    def __init__(
        self,
        home: Dialect,
        herd: Callable[[], Herd],
        readiness: Callable[[], str],
        handlers: Sequence[Handler],
        guard: Guard,
        access: Access,
        names: Callable[[], Names],
        new_id: Callable[[], str],
        receive_timeout_s: float,
    ) -> None:
        """`receive_timeout_s`: between two pieces of a request's body."""
        self._receive_timeout_s = receive_timeout_s
        self._guard, self._access, self._names = guard, access, names
        self._home, self._herd, self._readiness, self._new_id = home, herd, readiness, new_id
        """`home`: the listener's dialect, for paths that are nobody's. `readiness`: why the gateway is not ready."""
        self._pages = Paths[Page](PAGES)
        self._handlers = Paths[Handler](handlers)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        cors = scope["extensions"]["llamaherd.cors"]["headers"]
        # The raw path: a model's name may hold an encoded slash.
        path, method = scope.get("raw_path", scope["path"].encode()).decode("latin-1"), scope["method"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if path in HEALTH and method in ("GET", "HEAD"):
            await _send(send, self._health(path), cors)
            return
        if method == "OPTIONS" and (preflight := self._preflight(headers)) is not None:
            await _send(send, Reply(body=b"", status=preflight.status), preflight.headers)
            return
        dialect = dialect_of(path, headers, self._home)
        request_id = self._new_id()
        cors = (*cors, (b"x-request-id", request_id.encode()))
        try:
            reply = await self._reply(method, path, scope, headers, receive, dialect)
        except HerdError as error:
            reply = _refusal(problem_of(error), dialect, request_id)
        except ClientLeft:
            return
        if isinstance(reply, Problem):
            reply = _refusal(reply, dialect, request_id)
        if isinstance(reply, Streaming):
            await _stream(reply, receive, send, dialect, request_id, cors)
        else:
            await _send(send, reply, cors)

    async def _reply(
        self, method: str, path: str, scope: Scope, headers: dict[str, str], receive: Receive, dialect: Dialect
    ) -> Reply | Streaming | Problem:
        pages, handlers = self._pages.find(path), self._handlers.find(path)
        reads = "GET" if method == "HEAD" else method
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))
        for handler, parameters in handlers:
            if handler.method in (method, reads):
                key = None if handler.public else self._identify(scope, handler.dialect)
                if handler.manages:
                    self._access.check_managing(key)
                key_id = "" if key is None else key.key
                request = PageRequest(method=method, parameters=parameters, query=query, headers=headers, key=key_id)
                if handler.takes_body:
                    request = msgspec.structs.replace(request, body=await self._read(receive))
                    self._check_model(key, request.body)
                if handler.outlasts_client:
                    return await handler.answer(request, self._chunks(receive))
                return await _unless_left(handler.answer(request, self._chunks(receive)), receive)
        fitting = [(page, parameters) for page, parameters in pages if page.method in (method, reads)]
        if fitting:
            # Two dialects may share a path: the one that this request speaks.
            page, parameters = min(fitting, key=lambda found: found[0].dialect is not dialect)
            key = self._identify(scope, page.dialect)
            body = await self._read(receive)
            request = PageRequest(method=method, parameters=parameters, query=query, headers=headers, body=body)
            herd = self._herd()
            return page.answer(request, msgspec.structs.replace(herd, cards=self._access.visible(key, herd.cards)))
        if method == "GET" and path in LOOKS:
            text = f"name the model: {path}?model=NAME"
            return Problem(status=400, message=text, code="missing_model", param="model")
        allowed = {page.method for page, _ in pages} | {handler.method for handler, _ in handlers} | find_allowed(path)
        if allowed:
            text = f"{path} takes {', '.join(sorted(allowed))}, not {method}"
            return Problem(status=405, message=text, code="method_not_allowed", extra={"allow": sorted(allowed)})
        text = f"there is no {method} {path}; docs/api.md lists what there is"
        return Problem(status=404, message=text, code="unknown_url")

    def _identify(self, scope: Scope, dialect: Dialect) -> Key | None:
        key = self._access.identify(scope["headers"])
        if dialect is not GATEWAY:
            self._access.check_dialect(key, dialect.name)
        return key

    def _check_model(self, key: Key | None, body: bytes) -> None:
        """Raises `NotAllowed` when the body is about a model that is not in the key's scope."""
        if key is None or not key.models or not body:
            return
        named, names = decode_body(_NAMED, body), self._names()
        for asked in (named.model, named.name):
            if isinstance(asked, str):
                self._access.check_model(key, names.resolve(asked) or asked, asked)

    def _health(self, path: str) -> Reply:
        reason = self._readiness() if path == "/readyz" else ""
        if reason:
            return _json({"status": "not ready", "reason": reason}, 503)
        return _json({"status": "ready" if path == "/readyz" else "ok"})

    def _preflight(self, headers: dict[str, str]) -> Preflight | None:
        def value(name: str) -> bytes | None:
            return headers[name].encode("latin-1") if name in headers else None

        asked = value("access-control-request-method"), value("access-control-request-headers")
        return self._guard.preflight(value("origin"), value("host"), *asked)

    async def _read(self, receive: Receive) -> bytes:
        parts, size = [], 0
        async for part in self._chunks(receive):
            size += len(part)
            if size > BODY_BYTES:
                raise BadRequest(f"the request's body is larger than {BODY_BYTES} bytes", status=413)
            parts.append(part)
        return b"".join(parts)

    async def _chunks(self, receive: Receive) -> AsyncIterator[bytes]:
        """The request's body as it comes. Raises `ClientLeft`, or `BadRequest` when nothing comes for too long."""
        timeout_s = self._receive_timeout_s
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    message = await receive()
            except TimeoutError:
                late = late_body(timeout_s)
                raise BadRequest(late.message, status=late.status, code=late.code) from None
            if message["type"] == "http.disconnect":
                raise ClientLeft("the client has left")
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return


def _json(content: Any, status: int = 200) -> Reply:
    return Reply(body=msgspec.json.encode(content), status=status)


def _refusal(problem: Problem, dialect: Dialect, request_id: str) -> Reply:
    allow = problem.extra.get("allow")
    if allow is not None:
        problem = msgspec.structs.replace(problem, extra={})
    headers = [*(dialect.headers(request_id) if dialect.headers is not None else ()), *headers_of(problem)]
    if allow is not None:
        headers.append((b"allow", ", ".join(allow).encode()))
    return Reply(
        body=dialect.render_problem(problem, request_id), status=dialect.status_of(problem), headers=tuple(headers)
    )


async def _send(send: Send, reply: Reply, cors: tuple[Header, ...]) -> None:
    headers = [*reply.headers, *cors]
    if reply.body:
        headers.append((b"content-type", reply.content_type.encode()))
    if reply.status != 204:
        headers.append((b"content-length", str(len(reply.body)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


async def _stream(
    reply: Streaming, receive: Receive, send: Send, dialect: Dialect, request_id: str, cors: tuple[Header, ...]
) -> None:
    """Records as they come; an error after the first becomes the last record."""
    started = False
    try:
        async with aclosing(_until_left(reply, receive)) as records:
            async for record in records:
                if not started:
                    started = True
                    headers = [(b"content-type", reply.content_type.encode()), (b"x-accel-buffering", b"no"), *cors]
                    if reply.length is not None:
                        headers.append((b"content-length", b"%d" % reply.length))
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": record, "more_body": True})
    except ClientLeft:
        return
    except HerdError as error:
        problem = problem_of(error)
        if not started:
            await _send(send, _refusal(problem, dialect, request_id), cors)
            return
        record = dialect.render_stream_error(problem, request_id)
        await send({"type": "http.response.body", "body": record, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _until_left(reply: Streaming, receive: Receive) -> AsyncGenerator[bytes, None]:
    """The records. Raises `ClientLeft` when there is nobody to read them and nothing else depends on them."""
    if reply.outlasts_client:
        async for record in reply.records:
            yield record
        return
    records = aiter(reply.records)
    while (next_ := await _unless_left(anext(records, None), receive)) is not None:
        yield next_


async def _unless_left(work: Awaitable[R], receive: Receive) -> R:
    """Ends the work and raises `ClientLeft` when the client leaves. Its whole request must have been read."""

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft("the client has left")
        return working.result()
    finally:
        await end(working, leaving)

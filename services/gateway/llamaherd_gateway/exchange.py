"""One request on a hot route, from its first byte to its event: receive, route, wait for a load, relay, record.

Rules: an exchange answers only when it is its turn on the connection. It writes what one upstream read brought in
one write. It ends exactly once, with exactly one `RequestFinished`. Nothing in it waits for the bus.
"""

import asyncio
import secrets
import time
from itertools import count
from random import getrandbits
from typing import TYPE_CHECKING, Final

from llamaherd_gateway.dialects.openai import read_model, render_problem, render_stream_error
from llamaherd_gateway.heads import (
    FORWARDED,
    Header,
    render_request_end,
    render_status_line,
)
from llamaherd_gateway.loading import StillThere
from llamaherd_gateway.problems import ERROR_BODY_BYTES, BadRequest, Problem, problem_of, read_error
from llamaherd_gateway.projection import Instance
from llamaherd_gateway.upstream import Connection, Head, Pool
from llamaherd_gateway.usage import Tail
from llamaherd_shared.errors import HerdError, Unavailable
from llamaherd_shared.events.request import RequestFinished
from llamaherd_shared.trace import trace_id_of, traceparent

if TYPE_CHECKING:
    from llamaherd_gateway.relay import RelayProtocol

CLIENT_CLOSED: Final = 499
"""nginx's status for a client that left before any answer."""
EVENT_BYTES: Final = 2**20
"""An event of a stream longer than this is passed on in pieces."""
NAME_TOLD: Final = 256
"""Characters of a model's name that an event keeps: clients may write anything there."""
ATTEMPTS: Final = 2
"""Fresh connections that may break before a first byte: the second is to the instance's next spawn."""

_BOOT: Final = secrets.token_hex(6)
_BOOT_BYTES: Final = _BOOT.encode()
_numbers: Final = count(1)


class _Nobody:
    """Stands where uvicorn keeps an `asyncio.Event`: nobody waits on an exchange."""

    def set(self) -> None:
        pass


class Exchange:
    """uvicorn sees it as a request/response cycle: it reads and writes the attributes of the first group."""

    # What most exchanges never change stands in the class: setting it for each would cost microseconds.
    response_complete = False
    disconnected = False
    message_event: Final = _Nobody()
    more_body = False

    complete = False
    """Whether the whole request has arrived."""
    status = 0
    """Sent; 0 before the head."""

    _turn = False
    _body = b""
    _bytes_in = 0
    _refusal: Problem | None = None
    _model = ""
    _known = False
    """Whether the model's name is one of ours: only those make subjects."""
    _streamed = False

    _task: asyncio.Task[None] | None = None
    _connection: Connection | None = None
    _pool: Pool | None = None
    """Of the connection; set as long as the request is in flight."""
    _instance: Instance | None = None
    _repeated = False
    _broken = 0

    _chunked = False
    _event_stream = False
    _held = b""
    _error_head: Head | None = None
    _error_body = b""
    _bytes_out = 0
    _end: tuple[str, int, str | None, float, int]

    _received_at = 0.0
    _first_at = 0.0
    _waited_s = 0.0

    def __init__(
        self,
        protocol: "RelayProtocol",
        *,
        path: bytes,
        target: bytes,
        headers: list[Header],
        keep_alive: bool,
        http_1_0: bool,
        began: float,
    ) -> None:
        self.keep_alive = keep_alive
        self._protocol, self._relay = protocol, protocol.relay
        self._path, self._target, self._http_1_0 = path, target, http_1_0
        self._number = next(_numbers)
        self._parts: list[bytes] = []
        self._tail = Tail()
        self._began = self.heard_at = began
        """When client (before `complete`) or llama-server (after it) last sent anything."""
        self._judge_head(headers)

    @property
    def request_id(self) -> str:
        return f"{_BOOT}{self._number:08x}"

    @property
    def traceparent(self) -> str:
        """What llama-server was sent: the client's trace, or one of our own."""
        return self._traceparent.decode()

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    # From the client.

    def _judge_head(self, headers: list[Header]) -> None:
        """Refuse what can be refused before the body arrives; find the trace and what goes upstream."""
        self._forwarded = b""
        self._expects_continue = False
        trace = None
        for name, value in headers:
            if name in FORWARDED:
                self._forwarded += b"%s: %s\r\n" % (name, value)
            elif name == b"content-length":
                if int(value) > self._relay.settings.max_body_bytes:
                    self._refusal = self._too_large()
            elif name == b"traceparent":
                trace = trace_id_of(value.decode("latin-1"))
            elif name == b"expect":
                self._expects_continue = value.lower() == b"100-continue"
            elif name == b"content-encoding" and value.lower() != b"identity":
                text = f"the request's body is encoded as {value.decode('latin-1')}: send it plain"
                self._refusal = Problem(status=415, message=text)
        # Not secret, so not from the kernel: that would cost as much as parsing the request.
        number = int(trace, 16) if trace is not None else getrandbits(128) or 1
        self._traceparent = b"00-%032x-%016x-01" % (number, getrandbits(64) or 1)

    def take_turn(self) -> None:
        """Every earlier request on this connection has been answered."""
        self._turn = True
        if self._refusal is not None:
            self.answer_problem(self._refusal)
        elif self.complete:
            self._begin()
        elif self._expects_continue:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def feed(self, body: bytes) -> None:
        """A piece of the request's body."""
        if self.response_complete or self._refusal is not None:
            return  # discarded while the connection lingers
        self._bytes_in += len(body)
        self.heard_at = time.monotonic()
        if self._bytes_in > self._relay.settings.max_body_bytes:
            self._parts = []
            self._refusal = self._too_large()
            if self._turn:
                self.answer_problem(self._refusal)
        else:
            self._parts.append(body)

    def end_of_request(self) -> None:
        self.complete = True
        self._received_at = self.heard_at = time.monotonic()
        if self._turn and not self.response_complete:
            self._begin()

    def client_gone(self) -> None:
        """The client has left: whatever is being done for it stops now."""
        if self.response_complete:
            return
        self.disconnected = True
        self._release()
        self._record("cancelled", self.status or CLIENT_CLOSED, None)

    def _too_large(self) -> Problem:
        limit = self._relay.settings.max_body_bytes
        return Problem(
            status=413, message=f"the request's body is larger than {limit} bytes (`gateway.max_body_bytes`)"
        )

    # Routing.

    def _begin(self) -> None:
        self._body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        try:
            asked = read_model(self._body)
        except BadRequest as error:
            self.answer_problem(problem_of(error))
            return
        self._model, self._streamed = asked.model, asked.stream
        instance = self._relay.ready_instance(asked.model)
        if instance is not None:
            self._known = True
            pool = self._relay.pool_of(instance)
            connection = pool.take()
            if connection is not None:
                self._send(connection, pool)
                return
        self._task = asyncio.create_task(self._pursue(instance, None))

    async def _pursue(self, instance: Instance | None, lost: Instance | None) -> None:
        """Get to a fresh connection: load the model if need be, replace an instance that broke."""
        traceparent.set(self.traceparent)
        try:
            while True:
                if instance is None:
                    instance = await self._wait_for_instance(lost)
                pool = self._relay.pool_of(instance)
                try:
                    connection = await pool.dial()
                except OSError as error:
                    self._broken += 1
                    if self._broken >= ATTEMPTS:
                        text = f"the llama-server {instance.name} cannot be reached: {str(error) or 'timed out'}"
                        raise StillThere(text) from error
                    lost, instance = instance, None
                else:
                    self._task = None
                    self._take(connection, pool)
                    return
        except StillThere as error:
            self._task = None
            self.answer_problem(Problem(status=502, message=error.message, code="upstream_lost"))
        except HerdError as error:
            self._task = None
            self.answer_problem(problem_of(error))
        except Exception:
            self._task = None
            self._relay.log.exception("a request failed unexpectedly", request=self.request_id)
            self.answer_problem(Problem(status=500, message="the gateway failed; its log has the details"))

    def _take(self, connection: Connection, pool: Pool) -> None:
        """A fresh connection, which may come too late."""
        if self.response_complete:
            connection.abandon()
        else:
            self._known = True
            self._send(connection, pool)

    async def _wait_for_instance(self, lost: Instance | None) -> Instance:
        since = time.monotonic()
        try:
            loader = self._relay.loader
            return await (loader.ready(self._model) if lost is None else loader.replacement(lost))
        finally:
            self._waited_s += time.monotonic() - since

    def _send(self, connection: Connection, pool: Pool) -> None:
        self._connection, self._instance = connection, pool.instance
        self.heard_at = time.monotonic()
        self._pool = pool
        pool.in_flight += 1
        end = render_request_end(self._forwarded, self._traceparent, len(self._body))
        connection.send(self, pool.request_start(self._target) + end, self._body)
        if self._protocol.flow.write_paused:
            connection.pause()

    # From llama-server (`upstream.Receiver`).

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        if self.response_complete:
            return
        self.heard_at = time.monotonic()
        out: list[bytes] = []
        if head is not None:
            if head.status >= 400:
                self._error_head = head
            else:
                self._render_head(head, out)
        if self._error_head is not None:
            self._take_error(self._error_head, body, end)
            return
        if body:
            self._take_body(body, out)
        if end:
            if self._held:
                self._render_body(self._held, out)
            if self._chunked:
                out.append(b"0\r\n\r\n")
            self._leave_instance()
            self._write(b"".join(out))
            self._finish("ok", None)
        elif out:
            self._write(b"".join(out))

    def upstream_lost(self, *, before_first_byte: bool, reused: bool) -> None:
        instance = self._instance
        self._leave_instance()
        if self.response_complete or instance is None:
            return
        if not before_first_byte or self.status:
            text = f"the llama-server {instance.name} ended in the middle of its answer"
            self.answer_problem(Problem(status=502, message=text, code="upstream_lost"))
        elif reused and not self._repeated:
            # It closed an idle connection just as we used it: nothing has happened, ask again.
            # Unless it is gone, that is: then somebody else is asked.
            self._repeated = True
            current = self._relay.ready_instance(self._model)
            self._task = asyncio.create_task(self._pursue(current, None if current else instance))
        else:
            self._broken += 1
            if self._broken >= ATTEMPTS:
                text = f"the llama-server {instance.name} closed the connection without an answer, twice"
                self.answer_problem(Problem(status=502, message=text, code="upstream_lost"))
            else:
                self._task = asyncio.create_task(self._pursue(None, instance))

    def pause(self) -> None:
        """The client does not keep up."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    # The answer.

    def _render_head(self, head: Head, out: list[bytes]) -> None:
        self.status = head.status
        self._event_stream = head.event_stream
        self._chunked = head.length is None and not self._http_1_0
        if head.length is None and self._http_1_0:
            self.keep_alive = False
        out.append(render_status_line(head.status))
        out.append(head.lines)
        if head.length is not None:
            out.append(b"content-length: %d\r\n" % head.length)
        elif self._chunked:
            out.append(b"transfer-encoding: chunked\r\n")
        if self._event_stream:
            out.append(b"x-accel-buffering: no\r\n")
        out.append(self._render_own_headers())

    def _render_own_headers(self) -> bytes:
        return b"%bx-request-id: %b%08x\r\ntraceparent: %b\r\n%b\r\n" % (
            self._relay.date_header,
            _BOOT_BYTES,
            self._number,
            self._traceparent,
            b"" if self.keep_alive else b"connection: close\r\n",
        )

    def _take_body(self, body: bytes, out: list[bytes]) -> None:
        if not self._first_at:
            self._first_at = self.heard_at
        self._tail.feed(body)
        if self._event_stream:
            # Only whole events go out, so that an error can follow at any moment.
            if self._held:
                body = self._held + body
                self._held = b""
            if not body.endswith(b"\n\n"):
                cut = body.rfind(b"\n\n") + 2
                if cut == 1:
                    cut = len(body) if len(body) > EVENT_BYTES else 0
                body, self._held = body[:cut], body[cut:]
        if body:
            self._render_body(body, out)

    def _render_body(self, body: bytes, out: list[bytes]) -> None:
        self._bytes_out += len(body)
        if self._chunked:
            out.append(b"%x\r\n" % len(body))
            out.append(body)
            out.append(b"\r\n")
        else:
            out.append(body)

    def _take_error(self, head: Head, body: bytes, end: bool) -> None:
        """llama-server refuses: read what it says, then say it in the client's dialect."""
        self._error_body += body
        if not end and len(self._error_body) < ERROR_BODY_BYTES:
            return
        if end:
            self._leave_instance()
        instance = self._instance.name if self._instance is not None else "llama-server"
        self.answer_problem(read_error(head.status, self._error_body, instance))

    def answer_problem(self, problem: Problem) -> None:
        """End the exchange with an error: as an answer, as a stream's last event, or by cutting the answer off."""
        if self.response_complete:
            return
        self._release()
        if not self.status:
            self._answer_whole(problem)
        elif self._event_stream:
            self.keep_alive = False
            event = render_stream_error(problem)
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event) if self._chunked else event)
            self._finish("error", problem.message)
        else:
            # A length was promised, or chunks: only a broken connection says that this is not all.
            self._protocol.transport.abort()
            self._record("error", self.status, problem.message)

    def _answer_whole(self, problem: Problem) -> None:
        self.status = problem.status
        if not self.complete:
            self.keep_alive = False
        body = render_problem(problem)
        retry = b""
        if problem.retry_after_s is not None:
            retry = b"retry-after: %d\r\n" % max(1, round(problem.retry_after_s))
        self._bytes_out += len(body)
        self._write(
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%b%b%b"
            % (render_status_line(problem.status), len(body), retry, self._render_own_headers(), body)
        )
        self._finish("error", problem.message)

    def _write(self, out: bytes) -> None:
        transport = self._protocol.transport
        if out and not transport.is_closing():
            transport.write(out)

    # The end.

    def _release(self) -> None:
        """Stop whatever is under way for this request."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._connection is not None:
            self._connection.abandon()
        self._leave_instance()

    def _leave_instance(self) -> None:
        if self._pool is not None:
            self._connection = None
            self._pool.in_flight -= 1
            self._pool = None

    def _finish(self, outcome: str, error: str | None) -> None:
        self._record(outcome, self.status, error)
        self._protocol.exchange_finished(self)

    def _record(self, outcome: str, status: int, error: str | None) -> None:
        """The one place where an exchange becomes complete."""
        self.response_complete = True
        self._parts, self._body = [], b""
        now = time.monotonic()
        self._end = (outcome, status, error, now, time.time_ns())
        self._relay.record(self)

    def event(self) -> RequestFinished:
        """The fact about this exchange, once it is complete."""
        outcome, status, error, now, at_ns = self._end
        usage = self._tail.usage()
        return RequestFinished(
            request_id=self.request_id,
            at_ns=at_ns,
            node=self._relay.node,
            model=self._model[:NAME_TOLD],
            instance=self._instance.name if self._instance is not None else "",
            route=self._path.decode("latin-1"),
            status=status,
            outcome=outcome,
            streamed=self._streamed,
            error=error,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            prompt_ms=usage.prompt_ms,
            completion_ms=usage.completion_ms,
            first_token_ms=(self._first_at - self._received_at) * 1e3 if self._first_at else None,
            waited_ms=self._waited_s * 1e3,
            total_ms=(now - self._began) * 1e3,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            trace_id=self.trace_id,
        )

    @property
    def subject_model(self) -> str:
        """The model in the event's subject. A name nobody knows makes none: clients could make up millions."""
        return self._model if self._known else ""

    # Time.

    def check(self, now: float) -> None:
        """Called about once a second: end what has been silent for too long."""
        settings = self._relay.settings
        silent_s = now - self.heard_at
        if not self.complete:
            if self._turn and silent_s > settings.receive_timeout_s:
                text = f"the rest of the request did not arrive within {settings.receive_timeout_s:g} s"
                self.answer_problem(Problem(status=408, message=text, code="request_timeout"))
        elif (
            self._connection is not None
            and silent_s > settings.answer_timeout_s
            and not self._protocol.flow.write_paused
        ):
            text = f"the llama-server was silent for {settings.answer_timeout_s:g} s (`gateway.answer_timeout_s`)"
            self.answer_problem(Problem(status=504, message=text, code="upstream_timeout"))

    def stop(self) -> None:
        """The gateway stops and has waited long enough."""
        error = Unavailable("the gateway is being stopped", retry_after_s=2)
        self.answer_problem(problem_of(error))

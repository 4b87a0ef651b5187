"""The hot path inside uvicorn: its httptools protocol, with an `Exchange` in the place of its own cycle on hot routes.

uvicorn keeps doing what it does well: keep-alive timers, flow control, every other route as ASGI. The seam is not a
documented interface of uvicorn; `tests/unit/gateway/test_uvicorn_seam.py` holds it still.
"""

import contextlib
import socket
import time
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llamaherd_gateway.access.guard import Unacceptable
from llamaherd_gateway.dialects.dialect import Dialect
from llamaherd_gateway.problems import Problem, late_body
from llamaherd_gateway.projection import Fleet, Instance
from llamaherd_gateway.relay.exchange import Exchange
from llamaherd_gateway.relay.heads import Header, render_status_line
from llamaherd_gateway.relay.judging import Judged, KnownHead, judge, judge_page, know_head
from llamaherd_gateway.relay.relay import Relay
from llamaherd_gateway.routes import find_route

PIPELINED: Final = 8
"""Requests that may wait behind the one being answered before the connection is no longer read."""
WATCH_S: Final = 0.1
"""How often a connection that is not read is looked at: has its client left?"""
OFFERS: Final = frozenset({b"upgrade", b"connection", b"http2-settings"})
"""Headers by which a client offers another protocol."""
TCP_CLOSE: Final = 7
TCP_CLOSE_WAIT: Final = 8
LINGER_S: Final = 2.0
"""How long the rest of a refused body is read and thrown away: closing at once would reset the answer away."""


class RelayProtocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(self, config: Config, relay: Relay, home: Dialect) -> None:
        super().__init__(config, relay.server_state, {})
        self.relay, self._home = relay, home
        self._max_head_bytes = relay.settings.max_head_bytes
        self._exchange: Exchange | None = None
        """Whose turn it is."""
        self._fed_bytes = 0
        """Since the message began, as far as its head is concerned."""
        self._began = self._head_began = time.monotonic()
        """The first stays; the second is 0 between the heads."""
        self._idle_since = 0.0
        """0 while there is something to answer."""
        self._heard_at = 0.0
        """When the last piece of a body came that is not an exchange's."""
        self._write_paused_at = 0.0
        self._length = self._trace = b""
        """`Content-Length` and `Traceparent`: no two requests have them in common."""
        self._judged: Judged | None = None
        """The last head on this connection, if the same one again would mean the same."""
        self._judged_from: tuple[bytes, bytes, str, list[Header]] | None = None
        """What that head was: method, target, version, headers."""
        self._judged_in: Fleet | None = None
        """The herd it was judged in."""
        self._recalled: Judged | None = None
        """The same, if the message being read has that very head."""
        self._known: KnownHead | None = None
        """The same head as bytes: a whole request that begins with it need not be parsed."""
        self._lingering = False
        self._declining = False
        """Between the head of a request that offers an upgrade and its second reading."""
        self._deaf = False
        """What comes in is no longer read as HTTP."""
        self._refused: Problem | None = None
        """What is to be said once everything that came before it has been answered."""
        self._watched = False
        self._answering: Any = None
        """uvicorn's cycle whose turn it was last."""

    # From the transport.

    def connection_lost(self, exc: Exception | None) -> None:
        waiting = [cycle for cycle, _ in self.pipeline]
        super().connection_lost(exc)
        if self._answering is not None and not self._answering.response_complete:
            # uvicorn tells only the request that came last.
            self._answering.disconnected = True
            self._answering.message_event.set()
        for cycle in (self._exchange, self.cycle, *waiting):
            if isinstance(cycle, Exchange):
                cycle.client_gone()
        self.pipeline.clear()
        self.relay.connection_closed.set()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        was_idle = self._idle_since > 0
        if was_idle and self._take_known(data):
            return
        self._fed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse_garbage(error)
        else:
            if not self._head_began:
                self._fed_bytes = 0
                if was_idle and self._recalled is not None and not self._trace:
                    self._known = know_head(data, self._recalled)
            elif self._fed_bytes > self._max_head_bytes:
                self._refuse(self._head_too_large())

    def _take_known(self, data: bytes) -> bool:
        """Take the one request that this is, if its head is known; `False`: it has to be parsed."""
        known = self._known
        if known is None or self.relay.fleet is not self._judged_in or (body := known.body_of(data)) is None:
            return False
        self._idle_since = 0.0
        self._began = time.monotonic()
        exchange = Exchange(self, known.judged, length=len(body), trace=b"", began=self._began)
        self.cycle = exchange  # type: ignore[assignment]
        self._exchange = exchange
        exchange.take_whole(body)
        return True

    def _decline_upgrade(self, rest: bytes) -> None:
        """Another protocol was offered (Java's HTTP client offers h2c to everybody) and llhttp stopped after the head.

        We speak HTTP/1.1 only: read the same head again without the offer, and what follows it.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        self._declining = False
        if method == b"CONNECT":
            self._refuse(
                Problem(status=405, message="this is no proxy: CONNECT is not served", code="method_not_allowed")
            )
            return
        if self._length:
            self.headers.append((b"content-length", self._length))
        if self._trace:
            self.headers.append((b"traceparent", self._trace))
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] not in OFFERS]
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self._fed_bytes = 0
        self.data_received(head + rest)

    def eof_received(self) -> None:
        """The client will send nothing more: it is taken to have left, as closing one half is how some leave.

        By default the transport would first deliver what is written, for which a client that no longer reads can be
        waited for in vain.
        """
        if self._exchange is not None and not self._exchange.response_complete:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_paused_at = time.monotonic()
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_paused_at = 0.0
        if self._exchange is not None:
            self._exchange.resume()

    # From the parser.

    def on_message_begin(self) -> None:
        # uvicorn makes its scope here; hot routes do without one.
        self.url = b""
        self.headers = []
        self._length = self._trace = b""
        self._recalled = None
        self._began = self._head_began = time.monotonic()
        self._idle_since = 0.0

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-length":
            self._length = value
        elif name == b"traceparent":
            self._trace = value
        else:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head_began = 0.0
        if self.parser.should_upgrade():
            self._declining = True
            return
        if self._fed_bytes > self._max_head_bytes and self._head_size() > self._max_head_bytes:
            raise Unacceptable(self._head_too_large())
        judged = self._judge()
        if judged is None:
            return
        exchange = Exchange(self, judged, length=int(self._length or 0), trace=self._trace, began=self._began)
        before: Any = self.cycle
        self.cycle = exchange  # type: ignore[assignment]
        if before is None or before.response_complete:
            self._take_turn(exchange)
        else:
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
            if len(self.pipeline) >= PIPELINED:
                self.flow.pause_reading()
                self._watch()

    def _judge(self) -> Judged | None:
        """What the head says; `None`: it is for an ordinary route, which has been started."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        came = (method, self.url, version, self.headers)
        if came == self._judged_from and self.relay.fleet is self._judged_in:
            self._recalled = self._judged
            return self._judged
        for name, value in self.headers:
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                text = f"the transfer coding {value.decode('latin-1')!r} is not supported: only `chunked` is"
                raise Unacceptable(Problem(status=501, message=text, code="unsupported_transfer_coding"))
        http_1_0 = version == "1.0"
        cors = judge_page(self.relay.guard, self.headers, http_1_0=http_1_0)
        target = self.url if self.url.startswith(b"/") else _origin_form(self.url)
        route = find_route(method, target, target.partition(b"?")[0], self.relay.known)
        if route is None:
            self._start_asgi(cors)
            return None
        # A copy: what follows a chunked body is added to this request's own headers.
        headers = list(self.headers)
        keep_alive = not http_1_0 and self.parser.should_keep_alive()
        judged = judge(self.relay.access, route, target, headers, cors, keep_alive=keep_alive, http_1_0=http_1_0)
        self._judged = self._known = None
        if judged.lasts:
            self._judged_from = (method, self.url, version, headers)
            self._judged, self._judged_in = judged, self.relay.fleet
        return judged

    def _watch(self) -> None:
        """A connection that is not read does not tell that its client has left."""
        if not self._watched and self.flow.read_paused:
            self._watched = True
            self.loop.call_later(WATCH_S, self._look)

    def _look(self) -> None:
        self._watched = False
        if self.transport.is_closing() or not self.flow.read_paused:
            return
        if has_left(self.transport.get_extra_info("socket")):
            self.transport.abort()
        else:
            self._watch()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _start_asgi(self, cors: tuple[Header, ...]) -> None:
        url, headers = self.url, self.headers
        if self._length:
            headers.append((b"content-length", self._length))
        if self._trace:
            headers.append((b"traceparent", self._trace))
        self._heard_at = time.monotonic()
        super().on_message_begin()
        self.url = url
        self.scope["extensions"] = {"llamaherd.cors": {"headers": cors}}
        self.expect_100_continue = (b"expect", b"100-continue") in headers
        self.headers.extend(headers)
        super().on_headers_complete()
        self._watch()

    def on_body(self, body: bytes) -> None:
        cycle: Any = self.cycle
        if type(cycle) is Exchange:
            cycle.feed(body)
        else:
            self._heard_at = time.monotonic()
            super().on_body(body)

    def on_message_complete(self) -> None:
        cycle: Any = self.cycle
        if self._declining:
            return
        if type(cycle) is not Exchange:
            super().on_message_complete()
        elif self._lingering:
            self.transport.close()
        else:
            cycle.end_of_request()

    # Turns.

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        # uvicorn calls this for the next request in the pipeline.
        if type(cycle) is Exchange:
            self._take_turn(cycle)
        else:
            self._exchange = None
            self._answering = cycle
            super()._start_asgi_task(cycle, app)

    def _take_turn(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.take_turn()

    def exchange_finished(self, exchange: Exchange) -> None:
        """An exchange has written its answer."""
        self._exchange = None
        if not exchange.complete:
            self._linger()
        elif not exchange.keep_alive:
            self.transport.close()
        elif self.pipeline:
            # Not at once: a pipeline full of refusals would go as deep into the stack as it is long.
            self.loop.call_soon(self.on_response_complete)
        else:
            self.on_response_complete()

    def on_response_complete(self) -> None:
        """Next in the pipeline, or idle. Replaces uvicorn's, whose timer for every answer costs more than a sweep."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            if len(self.pipeline) < PIPELINED:
                self.flow.resume_reading()
            self._start_asgi_task(cycle, app)
            return
        self.flow.resume_reading()
        if self._refused is not None:
            self._write_problem(self._refused)
        elif self._deaf:
            self.transport.close()
        elif not self._head_began:
            self._idle_since = time.monotonic()

    def _linger(self) -> None:
        """The client is still sending what was refused: read on for a moment, then close."""
        self._lingering = True
        self.flow.resume_reading()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _refuse_garbage(self, error: httptools.HttpParserError) -> None:
        """This is no HTTP, or HTTP that means different things to different readers."""
        if isinstance(error.__context__, Unacceptable):
            self._refuse(error.__context__.problem)
        else:
            self._refuse(Problem(status=400, message=f"not an HTTP request: {error}"))

    def _refuse(self, problem: Problem) -> None:
        """Answer, if no other answer is under way, and listen no more."""
        self._deaf = True
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            if isinstance(cycle, Exchange) and not cycle.complete:
                # The body itself is broken: chunk sizes that are none, for one.
                if cycle is self._exchange:
                    cycle.answer_problem(problem)
                else:
                    self.transport.abort()
            else:
                self._refused = problem
            return
        self._write_problem(problem)

    def _write_problem(self, problem: Problem) -> None:
        """Answer without an exchange, and close."""
        body = self._home.render_problem(problem, "")
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(render_status_line(problem.status) + head + body)
        self.loop.call_later(LINGER_S, self.transport.close)

    def _head_too_large(self) -> Problem:
        limit = self._max_head_bytes
        return Problem(status=431, message=f"the request's head is larger than {limit} bytes")

    # Time.

    def check(self, now: float) -> None:
        """Called about once a second (`Relay.sweep`)."""
        settings = self.relay.settings
        if self._head_began and now - self._head_began > settings.receive_timeout_s:
            self.transport.abort()
        elif self._write_paused_at and now - self._write_paused_at > settings.stalled_client_s:
            self.transport.abort()
        elif self._exchange is not None:
            self._exchange.check(now)
        elif self.flow.read_paused:
            self._heard_at = now  # that nothing comes is not the client's doing
        elif self._waits_for_body and now - self._heard_at > settings.receive_timeout_s:
            self._deaf = True
            self._write_problem(late_body(settings.receive_timeout_s))
        elif self._idle_since and now - self._idle_since > settings.keep_alive_s:
            self.transport.close()

    def giver_of(self, answer_id: str) -> Instance | None:
        """The instance that gives this answer, if it goes to this client."""
        return self._exchange.giver_of(answer_id) if self._exchange is not None else None

    @property
    def _waits_for_body(self) -> bool:
        """Whether a request that is not an exchange has not arrived in whole."""
        cycle: Any = self.cycle
        if cycle is None or isinstance(cycle, Exchange) or self.pipeline:
            return False
        return bool(cycle.more_body and not cycle.response_started and not self._deaf)

    def shutdown(self) -> None:
        """Take no more requests; answer the one in flight, then close."""
        super().shutdown()
        if self._exchange is not None:
            self._exchange.keep_alive = False

    def stop(self) -> None:
        """Waited long enough: end what is in flight with an error, and close."""
        if self._exchange is not None:
            self._exchange.stop()
        if not self.transport.is_closing():
            self.transport.close()


def has_left(sock: Any) -> bool:
    """Whether the other side has closed, as far as the kernel tells (Linux: `tcp_info.tcpi_state`)."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    with contextlib.suppress(OSError, ValueError):
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in (TCP_CLOSE, TCP_CLOSE_WAIT)
    return True


def _origin_form(url: bytes) -> bytes:
    """Path and query of an absolute URL (RFC 9112, section 3.2.2); anything else as it is."""
    if not url.startswith((b"http://", b"https://")):
        return url
    parsed = httptools.parse_url(url)
    path: bytes = parsed.path or b"/"
    return path + b"?" + parsed.query if parsed.query else path

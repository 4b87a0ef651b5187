"""Connections to llama-servers: pooled, kept alive only as far as llama-server really does.

llama-server (cpp-httplib) announces `Keep-Alive: timeout=5, max=100` and closes all the same: after every
streamed (chunked) answer, after every error, after the `max`-th answer, and when idle. So here a connection is

- closed after a chunked answer, and retired before `max` is reached;
- dropped when it turned readable, or has been idle for `IDLE_S`;
- never trusted: a request on a reused connection that closed before the first byte of an answer is repeated by
  its exchange, once, on a fresh one.
"""

import asyncio
import contextlib
import socket
from typing import Final, Protocol, cast

import httptools

from llamaherd_gateway.projection import Instance
from llamaherd_gateway.relay.heads import Head, read_head, render_request_start

IDLE_S: Final = 4.0
"""llama-server closes an idle connection after 5 s."""
MAX_REQUESTS: Final = 100
"""cpp-httplib's default, used until a server has announced its own."""
IDLE_CONNECTIONS: Final = 64
"""Kept per instance: each holds a thread of llama-server."""
SPARE_CONNECTIONS: Final = 2
"""Opened before they are needed, while an instance streams. Few: each holds one of llama-server's threads, of which
it may have no more than its slots and four."""
SPARE_S: Final = 0.001
"""From the end of a stream until a spare connection takes its place: the client may have its next request ready, which
does not wait for that."""
STARTS_REMEMBERED: Final = 64
HEADS_REMEMBERED: Final = 256
"""All streams have the same one, and short answers have few different lengths."""
GONE_GRACE_S: Final = 1.0
"""How long bytes of an instance that has exited may still be under way."""


class Receiver(Protocol):
    """Who sent the request (`exchange.py`). Neither method may block."""

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        """What one read brought: the head once, some body, whether the answer is complete."""

    def upstream_lost(self, *, before_first_byte: bool, reused: bool) -> None:
        """The connection ended before the answer did. Called at most once, and not after `end`."""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpResponseParser(self)
        self._receiver: Receiver | None = None
        self._requests = 0
        self._max_requests = MAX_REQUESTS
        self._head_bytes = b""
        """What has come of a head that is not complete."""
        self._head: Head | None = None
        """Of the answer that comes; `None` until it is complete."""
        self._told = False
        """Whether the receiver has been given the head."""
        self._parts: list[bytes] = []
        self._any_bytes = False
        self._complete = False
        self._paused = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._pool.gone:
            self.transport.abort()
            return
        self._pool.connections.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # A host that vanished sends no reset: notice within half a minute.
            with contextlib.suppress(OSError, AttributeError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def send(self, receiver: Receiver, head: bytes, body: bytes) -> None:
        """Send one request; the answer goes to `receiver`."""
        self._receiver = receiver
        self._requests += 1
        self._any_bytes = self._complete = self._told = False
        self._head, self._head_bytes = None, b""
        if len(body) < 65536:
            self.transport.write(b"%b%b" % (head, body))
        else:
            self.transport.writelines((head, body))

    def pause(self) -> None:
        """The client does not keep up: read no more."""
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def hand_over(self, receiver: Receiver) -> None:
        """From now on the answer goes to somebody else, as fast as it comes."""
        self._receiver = receiver
        self.resume()

    def abandon(self) -> None:
        """The client has left: closing the connection stops the generation."""
        self._receiver = None
        self.transport.abort()

    # What httptools reports: no header, as most heads are known as a whole.

    def on_headers_complete(self) -> None:
        end = self._head_bytes.index(b"\r\n\r\n") + 4
        head = self._pool.head_of(self._head_bytes[:end])
        if head.status >= 200:
            self._head, self._head_bytes = head, b""
        else:
            self._head_bytes = self._head_bytes[end:]  # of the answer that is still to come

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._head is not None

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None or self._complete:
            self.transport.abort()  # nothing was asked: this connection cannot be trusted
            return
        if not self._any_bytes and (head := self._recall(data)) is not None:
            receiver.received(head, data[-head.length :] if head.length else b"", True)
            self._finish()
            return
        self._any_bytes = True
        if self._head is None:
            self._head_bytes += data
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ValueError):
            self._receiver = None
            self.transport.abort()
            receiver.upstream_lost(before_first_byte=False, reused=False)
            return
        parts = self._parts
        if len(parts) == 1:
            body = parts[0]
            self._parts = []
        elif parts:
            body = b"".join(parts)
            self._parts = []
        else:
            body = b""
        head, self._told = None if self._told else self._head, self._head is not None
        if self._complete:
            self._finish()
        receiver.received(head, body, self._complete)

    def _recall(self, data: bytes) -> Head | None:
        """The head, when this is a whole answer whose head came before, byte for byte: nothing need be parsed."""
        end = data.find(b"\r\n\r\n") + 4
        head = self._pool.heads.get(data[:end])
        if head is None or not head.keeps or len(data) - end != head.length:
            return None
        self._head = head
        self._complete = self._any_bytes = True
        return head

    def _finish(self) -> None:
        """Back into the pool, if this connection can be used once more."""
        head, self._receiver = self._head, None
        self.resume()
        if self._requests == 1 and head is not None:
            self._max_requests = head.max_requests or MAX_REQUESTS
        reusable = (
            head is not None
            and head.keeps
            and self._requests < self._max_requests - 1
            and not self.transport.get_write_buffer_size()
        )
        if not (reusable and self._pool.give(self)):
            self.transport.close()
            self._pool.replenish()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.forget(self)
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if self._head is not None and self._head.ends_with_connection and error is None:
            receiver.received(None, b"", True)
        else:
            receiver.upstream_lost(before_first_byte=not self._any_bytes, reused=self._requests > 1)


class Pool:
    """All connections to one spawn of one instance."""

    def __init__(self, instance: Instance, key: str, *, loop: asyncio.AbstractEventLoop, connect_timeout_s: float):
        self.instance = instance
        self.in_flight = 0
        """Requests being answered."""
        self.connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._dialling: set[asyncio.Task[None]] = set()
        """Connections that nobody waits for yet."""
        self._replenishing: asyncio.TimerHandle | None = None
        self._ended = 0
        """Connections that llama-server has closed since it was last replenished."""
        self._key, self._loop, self._connect_timeout_s = key, loop, connect_timeout_s
        self._starts: dict[tuple[str, str], bytes] = {}
        self.heads: dict[bytes, Head] = {}
        """Of answers that came, as they came."""
        self._retired = False
        self.gone = False
        """The process has exited: a connection to its address is to nobody, or to somebody else."""

    def request_start(self, method: str, path: str) -> bytes:
        """First part of a request's head (`heads.render_request_start`)."""
        start = self._starts.get((method, path))
        if start is None:
            start = render_request_start(method, path, self.instance.host, self.instance.port, self._key)
            # A query string makes a path of its own, and so does what a client writes behind /upstream/.
            if len(self._starts) < STARTS_REMEMBERED and "?" not in path:
                self._starts[method, path] = start
        return start

    def head_of(self, data: bytes) -> Head:
        """What the head of an answer says. Raises `ValueError` when it makes no sense."""
        head = self.heads.get(data)
        if head is None:
            head = read_head(data)
            if len(self.heads) < HEADS_REMEMBERED:
                self.heads[data] = head
        return head

    def take(self) -> Connection | None:
        """An idle connection, the one used last; `None` when there is none to trust."""
        now = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.transport.is_closing():
                continue
            if now - connection.idle_since < IDLE_S:
                return connection
            # All others are older still.
            connection.transport.close()
            for older in self._idle:
                older.transport.close()
            self._idle.clear()
        return None

    async def dial(self) -> Connection:
        """A new connection. Raises `OSError` (`TimeoutError` is one)."""
        dialling = self._loop.create_connection(lambda: Connection(self), self.instance.host, self.instance.port)
        async with asyncio.timeout(self._connect_timeout_s):
            _, connection = await dialling
        return connection

    def replenish(self) -> None:
        """Open a connection for the next request: llama-server has closed one after a stream, as it always does."""
        self._ended += 1
        if not self._retired and self._replenishing is None:
            self._replenishing = self._loop.call_later(SPARE_S, self._dial_spares)

    def _dial_spares(self) -> None:
        self._replenishing = None
        missing = min(self._ended, SPARE_CONNECTIONS - len(self._idle) - len(self._dialling))
        self._ended = 0
        for _ in range(missing):
            task = self._loop.create_task(self._dial_spare())
            self._dialling.add(task)
            task.add_done_callback(self._dialling.discard)

    async def _dial_spare(self) -> None:
        with contextlib.suppress(OSError):
            connection = await self.dial()
            if not self.give(connection):
                connection.transport.close()

    def give(self, connection: Connection) -> bool:
        """Take a connection back; `False` when it is not wanted."""
        if self._retired or len(self._idle) >= IDLE_CONNECTIONS or connection.transport.is_closing():
            return False
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        return True

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def retire(self, *, gone: bool) -> None:
        """No new requests. With `gone`, the process has exited: what is still open ends after a moment."""
        self._retired = True
        self.gone = gone
        for connection in self._idle:
            connection.transport.close()
        self._idle.clear()
        for task in self._dialling:
            task.cancel()
        if self._replenishing is not None:
            self._replenishing.cancel()
        if gone:
            self._loop.call_later(GONE_GRACE_S, self.abort)

    def abort(self) -> None:
        """End every connection at once; exchanges learn that theirs was lost."""
        for connection in list(self.connections):
            connection.transport.abort()

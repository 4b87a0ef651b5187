"""The gateway's pool of connections against a server that limits them as llama-server does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from harness.deadline import until
from llamaherd_gateway.projection import Instance
from llamaherd_gateway.relay.heads import Head
from llamaherd_gateway.relay.upstream import REPLACED_AHEAD, Connection, Pool

MAX = 40
"""Answers that the server gives on one connection."""


class Server:
    """Answers whatever comes, and counts."""

    def __init__(self) -> None:
        self.accepted = 0
        self.closed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        for left in reversed(range(MAX)):
            try:
                await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            keep = b"Keep-Alive: timeout=5, max=%d\r\n" % MAX if left else b"Connection: close\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\n%bContent-Length: 2\r\n\r\nok" % keep)
        self.closed += 1
        writer.close()


class Asker:
    def __init__(self) -> None:
        self.answered = asyncio.Event()
        self.body = b""

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        self.body += body
        if end:
            self.answered.set()

    def upstream_lost(self, *, before_first_byte: bool, reused: bool) -> None:
        raise AssertionError("the server closed a connection that was in use")


async def ask(connection: Connection) -> bytes:
    asker = Asker()
    connection.send(asker, b"GET / HTTP/1.1\r\n\r\n", b"")
    await asker.answered.wait()
    return asker.body


@contextlib.asynccontextmanager
async def pooled() -> AsyncIterator[tuple[Server, Pool]]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    instance = Instance(node="n", model="m", state="ready", host="127.0.0.1", port=port, generation=1, slots=4)
    pool = Pool(instance, "key", loop=asyncio.get_running_loop(), connect_timeout_s=5)
    yield server, pool
    pool.retire(gone=False)
    pool.abort()
    await until(lambda: server.closed == server.accepted)
    listening.close()
    await listening.wait_closed()


def test_a_connection_is_replaced_before_it_is_worn_out() -> None:
    async def wear_out() -> None:
        async with pooled() as (server, pool):
            first = await pool.dial()
            for _ in range(MAX - REPLACED_AHEAD - 1):
                assert await ask(first) == b"ok"
                assert pool.take() is first
            assert server.accepted == 1

            await ask(first)

            await until(lambda: server.accepted == 2 and len(pool.connections) == 2, what="its replacement is open")
            second = pool.take()
            assert second is not None
            assert second is not first
            assert pool.take() is first
            while not first.transport.is_closing():
                await ask(first)
                pool.take()
            await until(lambda: server.closed == 1)
            assert await ask(second) == b"ok"
            assert server.accepted == 2, "what has been replaced is not replaced again"

    asyncio.run(wear_out())

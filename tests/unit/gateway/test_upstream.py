"""A connection to a llama-server on the bytes that llama-server sends, whole and cut."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from llamaherd_gateway.projection import Instance
from llamaherd_gateway.relay.upstream import Connection, Head, Pool

HEAD = b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Wire(asyncio.Transport):
    """Swallows what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0


class Asker:
    """Receives one answer (`upstream.Receiver`)."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.body = b""
        self.ended = self.lost = False

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        assert not self.ended
        self.heads += [head] if head is not None else []
        self.body += body
        self.ended = end

    def upstream_lost(self, *, before_first_byte: bool, reused: bool) -> None:
        self.lost = True


@pytest.fixture
def connection() -> Iterator[Connection]:
    loop = asyncio.new_event_loop()
    instance = Instance(node="n", model="m", state="ready", host="127.0.0.1", port=1, generation=1, slots=4)
    made = Connection(Pool(instance, "key", loop=loop, connect_timeout_s=1))
    made.connection_made(Wire())
    yield made
    loop.close()


def ask(connection: Connection, *reads: bytes) -> Asker:
    asker = Asker()
    connection.send(asker, b"", b"")
    for read in reads:
        connection.data_received(read)
    return asker


def answer(body: bytes) -> bytes:
    return HEAD % len(body) + body


def test_answers_whose_heads_are_alike_are_told_apart_by_their_bodies(connection: Connection) -> None:
    askers = [ask(connection, answer(body)) for body in (b"one", b"two", b"six", b"seven", b"")]

    assert [asker.body for asker in askers] == [b"one", b"two", b"six", b"seven", b""]
    assert all(asker.ended and len(asker.heads) == 1 for asker in askers)
    assert {asker.heads[0].lines for asker in askers} == {b"content-type: application/json\r\n"}
    assert [asker.heads[0].length for asker in askers] == [3, 3, 3, 5, 0]


def test_an_answer_that_comes_in_two_pieces_is_whole_although_its_head_is_known(connection: Connection) -> None:
    ask(connection, answer(b"one"))
    data = answer(b"two")
    for cut in range(1, len(data)):
        assert ask(connection, answer(b"one")).ended, "its head is known from here on"

        asker = ask(connection, data[:cut], data[cut:])

        assert (asker.body, asker.ended, len(asker.heads)) == (b"two", True, 1), cut
        connection._requests = 1  # it would be closed after a hundred


def test_more_than_was_announced_is_not_taken_for_an_answer(connection: Connection) -> None:
    ask(connection, answer(b"one"))
    ask(connection, answer(b"one"))

    asker = ask(connection, answer(b"two") + b"x")

    assert asker.lost
    assert connection.transport.is_closing()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", HEAD % 3])
def test_only_heads_of_answers_that_keep_the_connection_are_remembered(connection: Connection, head: bytes) -> None:
    closing = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    body = b"3\r\none\r\n0\r\n\r\n" if b"chunked" in head else b"one"

    pool = connection._pool
    pool.retire(gone=False)  # or it would dial a new connection

    asker = ask(connection, closing + body)

    assert (asker.body, asker.ended) == (b"one", True)
    assert connection.transport.is_closing()
    assert not pool.heads

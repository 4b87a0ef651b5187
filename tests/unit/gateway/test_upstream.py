"""A connection to a llama-server on the bytes that llama-server sends, whole and cut."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from llamaherd_gateway.projection import Instance
from llamaherd_gateway.relay.heads import Head
from llamaherd_gateway.relay.upstream import Connection, Pool

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
def pool() -> Iterator[Pool]:
    loop = asyncio.new_event_loop()
    instance = Instance(node="n", model="m", state="ready", host="127.0.0.1", port=1, generation=1, slots=4)
    yield Pool(instance, "key", loop=loop, connect_timeout_s=1)
    loop.close()


def connect(pool: Pool) -> Connection:
    made = Connection(pool)
    made.connection_made(Wire())
    return made


@pytest.fixture
def connection(pool: Pool) -> Connection:
    return connect(pool)


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
def test_a_head_that_closes_the_connection_does_so_whenever_it_comes(pool: Pool, head: bytes) -> None:
    closing = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    body = b"3\r\none\r\n0\r\n\r\n" if b"chunked" in head else b"one"
    for _ in range(2):
        connection = connect(pool)

        asker = ask(connection, closing + body)

        assert (asker.body, asker.ended) == (b"one", True)
        assert connection.transport.is_closing()


def test_a_stream_whose_head_is_known_is_read_however_it_is_cut(pool: Pool) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = head + b"3\r\none\r\n0\r\n\r\n"
    for cut in range(1, len(data)):
        made = connect(pool)
        asker = ask(made, data[:cut], data[cut:])

        assert (asker.body, asker.ended) == (b"one", True), cut
        assert [each.event_stream for each in asker.heads] == [True]
        assert made.transport.is_closing()
    assert list(pool.heads) == [head]


def test_an_interim_answer_is_passed_over_in_every_way_it_can_be_cut(pool: Pool) -> None:
    data = b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n" + answer(b"one")
    for cut in range(1, len(data)):
        asker = ask(connect(pool), data[:cut], data[cut:])

        assert (asker.body, asker.ended, [each.status for each in asker.heads]) == (b"one", True, [200]), cut


def test_as_many_are_asked_on_one_connection_as_llama_server_announces(pool: Pool) -> None:
    connection = connect(pool)
    data = answer(b"one").replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5, max=3\r\n\r\n")

    ask(connection, data)
    assert not connection.transport.is_closing()
    ask(connection, data)

    assert connection.transport.is_closing(), "the third answer would be its last"


def test_an_answer_without_a_length_ends_with_its_connection(pool: Pool) -> None:
    connection = connect(pool)
    asker = ask(connection, b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\n\r\none")
    assert not asker.ended

    connection.connection_lost(None)

    assert (asker.body, asker.ended, asker.lost) == (b"one", True, False)

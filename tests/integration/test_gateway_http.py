"""HTTP/1.1 as attackers, old clients and browsers write it: what is refused, what is served, and that nothing hangs."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from harness.gateway import GatewayProcess, open_herd
from harness.nats import NatsServer

pytestmark = pytest.mark.integration

MODEL = "served"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}]}).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
HOST = b"Host: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    nats = NatsServer(tmp_path_factory.mktemp("nats")).start()
    process = GatewayProcess(
        tmp_path_factory.mktemp("gateway"), nats.url, receive_timeout_s=2, cors_origins=["https://*.example.com"]
    ).start()
    # The herd lives in a loop of its own for as long as the module's tests run.
    with asyncio.Runner() as runner:
        opened = open_herd(nats.url, process)
        herd = runner.run(opened.__aenter__())
        runner.run(herd.add_ready_model(MODEL))
        yield process
        runner.run(opened.__aexit__(None, None, None))
    process.stop()
    nats.stop()


def answers_to(gateway: GatewayProcess, data: bytes, *, patience_s: float = 3.0) -> tuple[list[int], bytes]:
    """Statuses of what came back until the connection was closed or said nothing more after an answer."""

    async def main() -> tuple[list[int], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(data)
        got = b""
        try:
            while True:
                # An answer to all of it is here: nothing more will come on a connection that is kept.
                wait_s = 0.3 if got else patience_s
                part = await asyncio.wait_for(reader.read(65536), wait_s)
                if not part:
                    break
                got += part
        except (TimeoutError, ConnectionError):
            pass
        writer.close()
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", got)], got

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ("two lengths", POST + HOST + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY),
        ("the same length twice", POST + HOST + LENGTH + LENGTH + b"\r\n" + BODY),
        ("a list of lengths", POST + HOST + b"Content-Length: 5, 5\r\n\r\n" + BODY),
        ("a signed length", POST + HOST + b"Content-Length: +5\r\n\r\n" + BODY),
        ("a negative length", POST + HOST + b"Content-Length: -1\r\n\r\n" + BODY),
        ("a hexadecimal length", POST + HOST + b"Content-Length: 0x10\r\n\r\n" + BODY),
        ("a length beyond 64 bits", POST + HOST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY),
        ("length and chunks", POST + HOST + LENGTH + CHUNKED + b"\r\n" + IN_CHUNKS),
        ("chunked twice", POST + HOST + CHUNKED + CHUNKED + b"\r\n" + IN_CHUNKS),
        ("chunked under gzip", POST + HOST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + IN_CHUNKS),
        ("a space before the colon", POST + HOST + b"Transfer-Encoding : chunked\r\n\r\n" + IN_CHUNKS),
        ("a vertical tab before the value", POST + HOST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + IN_CHUNKS),
        ("a chunk size that is none", POST + HOST + CHUNKED + b"\r\nzz\r\n" + BODY),
        ("a chunk size with 0x", POST + HOST + CHUNKED + b"\r\n0x5\r\n" + BODY),
        ("a negative chunk size", POST + HOST + CHUNKED + b"\r\n-1\r\n" + BODY),
        ("a chunk size beyond 64 bits", POST + HOST + CHUNKED + b"\r\nfffffffffffffffff\r\n" + BODY),
        ("a chunk that does not end", POST + HOST + CHUNKED + b"\r\n%x\r\n%b0\r\n\r\n" % (len(BODY), BODY)),
        ("chunks with bare LF", POST + HOST + CHUNKED + b"\r\n%x\n%b\n0\n\n" % (len(BODY), BODY)),
        ("a head with bare LF", (POST + HOST + LENGTH + b"\r\n").replace(b"\r\n", b"\n") + BODY),
        ("one bare LF", POST + b"Host: localhost\n" + LENGTH + b"\r\n" + BODY),
        ("a bare CR", POST + b"Host: localhost\rX: y\r\n" + LENGTH + b"\r\n" + BODY),
        ("a folded header", POST + HOST + b"X-A: b\r\n c\r\n" + LENGTH + b"\r\n" + BODY),
        ("a folded transfer coding", POST + HOST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + IN_CHUNKS),
        ("a space in a header's name", POST + HOST + b"X A: b\r\n" + LENGTH + b"\r\n" + BODY),
        ("NUL in a header", POST + HOST + b"X-A: a\0b\r\n" + LENGTH + b"\r\n" + BODY),
        ("a header without a name", POST + HOST + b": b\r\n" + LENGTH + b"\r\n" + BODY),
        ("a space before the first header", POST + b" " + HOST + LENGTH + b"\r\n" + BODY),
        ("no Host", POST + LENGTH + b"\r\n" + BODY),
        ("two Hosts", POST + HOST + HOST + LENGTH + b"\r\n" + BODY),
        ("a method in lower case", POST.lower() + HOST + LENGTH + b"\r\n" + BODY),
        ("tabs in the request line", POST.replace(b" ", b"\t") + HOST + LENGTH + b"\r\n" + BODY),
        ("a length in the trailer", POST + HOST + CHUNKED + b"\r\n" + IN_CHUNKS[:-2] + LENGTH + b"\r\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_two_readers_could_read_differently_is_refused(gateway: GatewayProcess, shape: str, data: bytes) -> None:
    statuses, answer = answers_to(gateway, data + b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")

    assert statuses == [400], f"{shape}: {answer!r}"


@pytest.mark.parametrize("coding", [b"xchunked", b"identity, chunked", b"gzip, chunked"])
def test_other_transfer_codings_are_not_supported(gateway: GatewayProcess, coding: bytes) -> None:
    statuses, _ = answers_to(gateway, POST + HOST + b"Transfer-Encoding: %b\r\n\r\n" % coding + IN_CHUNKS)

    assert statuses == [501]


def test_chunk_extensions_and_pipelining_are_served(gateway: GatewayProcess) -> None:
    chunked = POST + HOST + CHUNKED + b"\r\n%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

    statuses, _ = answers_to(
        gateway, chunked + POST + HOST + LENGTH + b"\r\n" + BODY + b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    )

    assert statuses == [200, 200, 200]


def test_what_a_head_said_does_not_hold_for_the_next_one_on_its_connection(gateway: GatewayProcess) -> None:
    """A connection remembers what its last head meant, for as long as the same one comes again."""
    plain = POST + HOST + LENGTH + b"\r\n" + BODY
    allowed = POST + HOST + b"Origin: https://a.example.com\r\n" + LENGTH + b"\r\n" + BODY
    evil = POST + HOST + b"Origin: https://evil.example\r\n" + LENGTH + b"\r\n" + BODY

    statuses, got = answers_to(gateway, plain + plain + allowed + plain + allowed + plain + evil)

    assert statuses == [200] * 6 + [403]
    assert got.count(b"access-control-allow-origin: https://a.example.com\r\n") == 2


def test_a_connection_that_knows_its_clients_head_still_reads_what_comes(gateway: GatewayProcess) -> None:
    """From the third on, a whole request with the same head is not parsed: everything else is."""
    longer = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x" * 500}]}).encode()

    def post(body: bytes, headers: bytes = b"") -> bytes:
        return POST + HOST + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body

    steps = [
        (post(BODY), [200]),
        (post(BODY), [200]),
        (post(BODY), [200]),
        (post(longer), [200]),
        (post(b"{"), [400]),
        (post(BODY) + post(BODY), [200, 200]),
        (post(BODY, b"Origin: https://a.example.com\r\n"), [200]),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n", [200]),
        (post(BODY), [200]),
        (POST + HOST + CHUNKED + b"\r\n" + IN_CHUNKS, [200]),
        (post(BODY), [200]),
        (post(BODY), [200]),
        (post(b"{}").replace(b"Content-Length: 2", b"Content-Length: +2"), [400]),
    ]

    async def main() -> list[list[int]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        got = []
        for data, expected in steps:
            writer.write(data)
            got.append([await status_of(reader) for _ in expected])
        assert await asyncio.wait_for(reader.read(), 5) == b"", "closed after what is no HTTP"
        writer.close()
        return got

    assert asyncio.run(main()) == [expected for _, expected in steps]


async def status_of(reader: asyncio.StreamReader) -> int:
    """Read one answer with a length."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None, head
    await asyncio.wait_for(reader.readexactly(int(length[1])), 5)
    return int(head.split()[1])


def test_a_trailer_is_no_part_of_the_head_that_is_remembered(gateway: GatewayProcess) -> None:
    expects = b"Expect: 100-continue\r\n"
    with_trailer = POST + HOST + CHUNKED + b"\r\n" + IN_CHUNKS[:-2] + expects + b"\r\n"

    first, _ = answers_to(gateway, with_trailer + POST + HOST + CHUNKED + expects + b"\r\n", patience_s=1)

    assert first == [200, 100]


def test_a_body_that_is_too_long_is_refused_behind_one_that_was_not(gateway: GatewayProcess) -> None:
    long = POST + HOST + b"Content-Length: %d\r\n\r\n" % 2**40

    statuses, _ = answers_to(gateway, POST + HOST + LENGTH + b"\r\n" + BODY + long)

    assert statuses == [200, 413]


@pytest.mark.parametrize(
    "offer",
    [
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
        b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    ],
)
@pytest.mark.parametrize("cut", [0, 40])
def test_an_offer_of_another_protocol_is_passed_over(gateway: GatewayProcess, offer: bytes, cut: int) -> None:
    """Java's HTTP client offers h2c with every request."""
    data = POST + HOST + offer + LENGTH + b"\r\n" + BODY

    async def main() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        for part in (data[: len(data) - cut], data[len(data) - cut :]):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
        got = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return got

    assert re.findall(rb"HTTP/1\.1 (\d+)", asyncio.run(main())) == [b"200", b"200"]


def test_it_is_no_proxy(gateway: GatewayProcess) -> None:
    statuses, _ = answers_to(gateway, b"CONNECT example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n")

    assert statuses == [405]


def test_names_that_could_be_a_web_sites_are_refused_on_loopback(gateway: GatewayProcess) -> None:
    def status(host: str, path: str = "/v1/models") -> int:
        return httpx.get(f"{gateway.url}{path}", headers={"host": host}).status_code

    assert status("localhost:8080") == 200
    assert status("127.0.0.1") == 200
    assert status("evil.example") == 403
    hot = httpx.post(f"{gateway.url}/v1/chat/completions", content=BODY, headers={"host": "evil.example"})
    assert hot.status_code == 403
    assert "evil.example" in hot.json()["error"]["message"]


def test_browsers_are_told_once_which_pages_may_ask(gateway: GatewayProcess) -> None:
    asked: dict[str, Any] = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with httpx.Client(base_url=gateway.url) as client:
        before = client.options("/v1/chat/completions", headers={"origin": "https://a.example.com", **asked})
        told = client.post("/v1/chat/completions", content=BODY, headers={"origin": "https://a.example.com"})
        near = client.get("/v1/models", headers={"origin": "http://localhost:5173"})
        evil = client.post("/v1/chat/completions", content=BODY, headers={"origin": "https://evil.example"})

    assert before.status_code == 204
    assert before.headers["access-control-allow-headers"] == "authorization"
    for answer in (before, told):
        assert answer.headers.get_list("access-control-allow-origin") == ["https://a.example.com"]
    assert near.headers.get_list("access-control-allow-origin") == ["http://localhost:5173"]
    assert evil.status_code == 403


def test_a_head_that_never_ends_is_ended(gateway: GatewayProcess) -> None:
    statuses, got = answers_to(gateway, POST + HOST, patience_s=6)

    assert (statuses, got) == ([], b""), "closed within the two seconds that a head may take"

"""What crosses the hop and what does not."""

import pytest

from llamaherd_gateway.relay.heads import (
    FORWARDED,
    Head,
    keep_header,
    read_head,
    render_request_end,
    render_request_start,
    render_status_line,
)


@pytest.mark.parametrize(
    "name", [b"authorization", b"x-api-key", b"x-conversation-id", b"connection", b"accept-encoding", b"cookie"]
)
def test_credentials_and_hop_by_hop_headers_never_reach_llama_server(name: bytes) -> None:
    assert name not in FORWARDED


@pytest.mark.parametrize(
    "name", [b"connection", b"keep-alive", b"transfer-encoding", b"access-control-allow-origin", b"server"]
)
def test_what_is_ours_to_say_is_dropped_from_answers(name: bytes) -> None:
    assert not keep_header(name)


def test_other_headers_of_an_answer_are_kept() -> None:
    assert keep_header(b"content-type")
    assert keep_header(b"x-anything")


def test_a_request_head_is_whole() -> None:
    head = render_request_start("POST", "/v1/completions?x=1", "::1", 80, "k")
    head += render_request_end(b"accept: a\r\n", b"application/json", b"t", 5)
    assert head == (
        b"POST /v1/completions?x=1 HTTP/1.1\r\nhost: [::1]:80\r\nauthorization: Bearer k\r\n"
        b"accept: a\r\ncontent-type: application/json\r\ntraceparent: t\r\ncontent-length: 5\r\n\r\n"
    )


def test_status_lines() -> None:
    assert render_status_line(404) == b"HTTP/1.1 404 Not Found\r\n"
    assert render_status_line(599) == b"HTTP/1.1 599 Unknown\r\n"


def test_what_the_head_of_an_answer_says() -> None:
    data = (
        b"HTTP/1.1 404 Not Found\r\nServer: llama.cpp\r\nContent-Type:application/json \r\nX-One: a: b\r\n"
        b"CONTENT-LENGTH: 12\r\nKeep-Alive: timeout=5, max=7\r\nAccess-Control-Allow-Origin: *\r\n\r\n"
    )
    lines = b"content-type: application/json\r\nx-one: a: b\r\n"
    assert read_head(data) == Head(404, lines, 12, keeps=True, max_requests=7)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", Head(200)),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n", Head(200, length=0)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\nConnection: x\r\n\r\n", Head(200, length=0)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", Head(200, length=0)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n", Head(200, chunked=True)),
    ],
)
def test_how_an_answer_ends(head: bytes, expected: Head) -> None:
    assert read_head(head) == expected
    assert read_head(head).ends_with_connection == (head.count(b":") == 0)

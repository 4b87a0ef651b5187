"""A head that is known is passed by HTTP's parser: whatever is taken for it means to the parser the same."""

import httptools
from hypothesis import example, given
from hypothesis import strategies as st

from llamaherd_gateway.dialects.dialect import Header
from llamaherd_gateway.relay.judging import Judged, know_head
from llamaherd_gateway.routes import ROUTES

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %b\r\nAuthorization: Bearer x\r\n\r\n"
JUDGED = Judged(route=ROUTES[0], target="/", path="/", headers=(), keep_alive=True, http_1_0=False, cors=b"")


class Message:
    """What the parser makes of some bytes."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[Header] = []
        self.body = self.url = b""
        self.complete = 0
        httptools.HttpRequestParser(self).feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


def first_of(body: bytes) -> bytes:
    return HEAD % b"%d" % len(body) + body


LENGTHS = st.one_of(st.binary(max_size=25), st.from_regex(rb"[0-9+\-_ \t\r\n]{0,21}"))


@given(digits=LENGTHS, body=st.binary(max_size=120))
@example(digits=b"+3", body=b"abc")
@example(digits=b" 3", body=b"abc")
@example(digits=b"3\r\nContent-Length: 3", body=b"abc")
@example(digits=b"0003", body=b"abc")
@example(digits=b"\xb23", body=b"abc")
@example(digits=b"3", body=b"abcPOST / HTTP/1.1\r\n")
def test_what_is_taken_for_a_known_head_is_the_same_message_to_the_parser(digits: bytes, body: bytes) -> None:
    known = know_head(first_of(b"once"), JUDGED)
    assert known is not None
    data = HEAD % digits + body

    taken = known.body_of(data)

    if taken is not None:
        message, first = Message(data), Message(first_of(b"once"))
        assert (message.complete, message.body, message.url) == (1, taken, first.url)
        assert [name for name, _ in message.headers] == [name for name, _ in first.headers]
        assert [header for header in message.headers if header[0] != b"Content-Length"] == [
            header for header in first.headers if header[0] != b"Content-Length"
        ]


@given(st.binary(max_size=300))
def test_a_known_head_takes_every_body_that_is_all_there(body: bytes) -> None:
    known = know_head(first_of(b""), JUDGED)

    assert known is not None
    assert known.body_of(first_of(body)) == body
    assert known.body_of(first_of(body) + b"x") is None
    assert known.body_of(first_of(body)[:-1]) is None


@given(st.binary(max_size=80), st.integers(0, len(HEAD)))
def test_only_whole_requests_with_a_length_make_a_head_known(noise: bytes, at: int) -> None:
    data = first_of(b"body")
    mangled = data[:at] + noise + data[at:]

    known = know_head(mangled, JUDGED)

    assert known is None or known.body_of(mangled) is not None

"""What a client gets back, as bytes: heads, framing, translation, errors. Decides nothing and waits for nothing."""

from collections.abc import Callable
from typing import Final

from llamaherd_gateway.dialects.dialect import Dialect, Keeper, Translation
from llamaherd_gateway.problems import Problem, headers_of
from llamaherd_gateway.relay.heads import Head, render_status_line
from llamaherd_shared.events.turn import TurnKept

EVENT_BYTES: Final = 2**20
"""An event of a stream longer than this is passed on in pieces."""
EVENT_STREAM: Final = b"text/event-stream"


class Answer:
    """The answer to one request."""

    # What most answers never change stands in the class: setting it for each would cost microseconds.
    status = 0
    """Sent; 0 before the head."""
    streams = False
    """Whether the body is a stream of records, which an error may follow."""
    bytes_out = 0

    keeper: Keeper | None = None
    """Of an answer that is kept."""

    _translation: Translation | None = None
    _chunked = False
    _held = b""
    _whole: list[bytes] | None = None

    def __init__(self, dialect: Dialect, *, http_1_0: bool) -> None:
        self.dialect, self._http_1_0 = dialect, http_1_0

    def translate(self, translation: Translation, keeper: Keeper | None) -> None:
        """From now on llama-server's bytes are not passed on as they come."""
        self._translation, self.keeper = translation, keeper

    def turn(self, now_ns: int) -> TurnKept | None:
        """llama-server's answer is complete: what is to be kept of it. Raises `ValueError` as `take_end` does."""
        return None if self.keeper is None else self.keeper.turn(b"".join(self._whole or ()), now_ns)

    # Each of these appends to `out` what can be sent now.

    def open_stream(self, own_headers: bytes, out: list[bytes], content_type: bytes = EVENT_STREAM) -> None:
        """Begin a stream before llama-server has answered anything."""
        self._begin_stream(200, b"content-type: %b\r\n" % content_type, own_headers, out)

    def add_comment(self, text: str, out: list[bytes]) -> None:
        """A line that clients of an event stream skip."""
        self._add_body(b": %b\n\n" % text.encode(), out)

    def passes_on(self, head: Head) -> bool:
        """Whether this is the head of an answer with a length that needs no translation."""
        return head.length is not None and self._translation is None and not self.status

    def pass_on(self, head: Head, body: bytes, own_headers: bytes) -> bytes:
        """Such an answer, when all of it is here."""
        self.status = head.status
        self.bytes_out = len(body)
        return b"%b%bcontent-length: %d\r\n%b%b" % (
            render_status_line(head.status),
            head.lines,
            len(body),
            own_headers,
            body,
        )

    def take_head(self, head: Head, own_headers: Callable[[], bytes], out: list[bytes]) -> None:
        """llama-server's answer begins, and it is no error."""
        if self.status:
            return  # a stream was opened while the request waited
        translation = self._translation
        if translation is not None:
            if head.event_stream:
                self._begin_stream(head.status, b"content-type: %b\r\n" % translation.content_type, own_headers(), out)
            else:
                self._whole = []
        elif head.length is None:
            self._begin_stream(head.status, head.lines, own_headers(), out, event_stream=head.event_stream)
        else:
            self.status = head.status
            length = b"content-length: %d\r\n" % head.length
            out += (render_status_line(head.status), head.lines, length, own_headers())

    def take_body(self, body: bytes, now_ns: int, out: list[bytes]) -> None:
        """Some of llama-server's answer."""
        if self._translation is not None:
            if self._whole is not None:
                self._whole.append(body)
            else:
                self._add_body(self._translation.feed(body, now_ns), out)
            return
        if self.streams:
            # Only whole events go out, so that an error can follow at any moment.
            if self._held:
                body = self._held + body
                self._held = b""
            if not body.endswith(b"\n\n"):
                cut = body.rfind(b"\n\n") + 2
                if cut == 1:
                    cut = len(body) if len(body) > EVENT_BYTES else 0
                body, self._held = body[:cut], body[cut:]
        self._add_body(body, out)

    def take_end(self, own_headers: Callable[[], bytes], now_ns: int, out: list[bytes]) -> None:
        """llama-server's answer is complete. Raises `ValueError` when it cannot be translated."""
        if self._whole is not None and self._translation is not None:
            body = self._translation.whole(b"".join(self._whole), now_ns)
            self.add_whole(200, body, self._translation.content_type, own_headers(), out)
            return
        if self._translation is not None:
            self._add_body(self._translation.end(now_ns), out)
        if self._held:
            self._add_body(self._held, out)
        if self._chunked:
            out.append(b"0\r\n\r\n")

    def add_whole(self, status: int, body: bytes, content_type: bytes, more_headers: bytes, out: list[bytes]) -> None:
        """Head and body at once."""
        self.status = status
        self.bytes_out += len(body)
        head = b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type, len(body))
        out += (render_status_line(status), head, more_headers, body)

    def end_with(self, problem: Problem, request_id: str, now_ns: int, out: list[bytes]) -> None:
        """The stream that has begun ends with an error."""
        if self._translation is not None:
            self._add_body(self._translation.fail(problem, now_ns), out)
        else:
            self._add_body(self.dialect.render_stream_error(problem, request_id), out)
        if self._chunked:
            out.append(b"0\r\n\r\n")

    def add_problem(self, problem: Problem, request_id: str, own_headers: bytes, out: list[bytes]) -> None:
        """An error as the whole answer."""
        own_headers = b"".join(b"%b: %b\r\n" % header for header in headers_of(problem)) + own_headers
        status, body = self.dialect.status_of(problem), self.dialect.render_problem(problem, request_id)
        self.add_whole(status, body, b"application/json", own_headers, out)

    def _begin_stream(
        self, status: int, lines: bytes, own_headers: bytes, out: list[bytes], *, event_stream: bool = True
    ) -> None:
        self.status = status
        self.streams = event_stream
        # To HTTP/1.0 the connection's end tells where the body ends.
        self._chunked = not self._http_1_0
        out += (render_status_line(status), lines)
        if self._chunked:
            out.append(b"transfer-encoding: chunked\r\n")
        if event_stream:
            # nginx in front would else hold the stream back.
            out.append(b"x-accel-buffering: no\r\n")
        out.append(own_headers)

    def _add_body(self, body: bytes, out: list[bytes]) -> None:
        if not body:
            return
        self.bytes_out += len(body)
        if self._chunked:
            out += (b"%x\r\n" % len(body), body, b"\r\n")
        else:
            out.append(body)

"""Answers that are passed on as they are, but for the model's name: a client that used an alias is answered by it."""

from typing import Final

import msgspec

from llamaherd_gateway.dialects.dialect import Dialect
from llamaherd_gateway.dialects.openai.errors import OPENAI
from llamaherd_gateway.problems import Problem

EVENT_STREAM: Final = b"text/event-stream"
JSON: Final = b"application/json"


class Renamed:
    """A `Translation` that replaces `"model":"<own name>"`. Quotes in texts are escaped, so none of those match."""

    def __init__(self, own: str, asked: str, *, stream: bool, dialect: Dialect = OPENAI) -> None:
        self.content_type = EVENT_STREAM if stream else JSON
        self._dialect = dialect
        self._own, self._asked = (b'"model":' + msgspec.json.encode(name) for name in (own, asked))
        self._held = b""

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """What has come up to the end of the last whole event."""
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            end = 1 if self._held.endswith(b"\n") and data.startswith(b"\n") else 0
        if not end:
            self._held += data
            return b""
        whole, self._held = self._held + data[:end], data[end:]
        return whole.replace(self._own, self._asked)

    def end(self, now_ns: int) -> bytes:
        rest, self._held = self._held, b""
        return rest.replace(self._own, self._asked)

    def whole(self, body: bytes, now_ns: int) -> bytes:
        return body.replace(self._own, self._asked)

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        return self._dialect.render_stream_error(problem, "")

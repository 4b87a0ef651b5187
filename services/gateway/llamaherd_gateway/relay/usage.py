"""Tokens and timings of an answer, found in its last bytes (or first) without parsing what lies between.

llama-server writes `timings` last: in a stream they stand in the chunk before `[DONE]`, in a plain answer at the
end of the object. `/v1/embeddings` writes `usage` before its vectors, so the first bytes are kept too. Inside
JSON strings quotes are escaped, so text that talks about `"timings":{` can never be taken for the real thing.
"""

import re
from typing import Final, TypeVar

import msgspec

from llamaherd_gateway.problems import read_error

HEAD_BYTES: Final = 4096
TAIL_BYTES: Final = 16 * 1024
"""The chunk with the timings is under 1 KiB; native `/completion` repeats its settings, 3 KiB, before them."""

T = TypeVar("T")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """`None` where llama-server did not say."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_ms: float | None = None
    completion_ms: float | None = None


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    """This and the next two: the words of transcriptions, which have no timings either."""
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None


class _Timings(msgspec.Struct, frozen=True):
    cache_n: int | None = None
    prompt_n: int | None = None
    prompt_ms: float | None = None
    predicted_n: int | None = None
    predicted_ms: float | None = None


_NOTHING_SAID: Final = Usage()
_USAGE: Final = (b'"usage"', msgspec.json.Decoder(_Usage))
_TIMINGS: Final = (b'"timings"', msgspec.json.Decoder(_Timings))
_OPENS_OBJECT: Final = re.compile(rb"\s*:\s*\{")


class Tail:
    """The two ends of an answer's body: bounded memory, whatever the answer's length."""

    __slots__ = ("_head", "_parts", "_size")

    def __init__(self) -> None:
        self._head = b""
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        if len(self._head) < HEAD_BYTES:
            self._head += data[: HEAD_BYTES - len(self._head)]
        self._parts.append(data)
        self._size += len(data)
        if self._size > 4 * TAIL_BYTES:
            self._parts = [b"".join(self._parts)[-TAIL_BYTES:]]
            self._size = TAIL_BYTES

    def names(self, answer_id: str) -> bool:
        """Whether its beginning calls the answer so."""
        return b'"id":%b' % msgspec.json.encode(answer_id) in self._head

    def error(self) -> str | None:
        """What went wrong in a stream, by its last event; `None`: nothing. After an error llama-server says no more."""
        event = b"".join(self._parts)[-TAIL_BYTES:].rstrip().rpartition(b"\n\n")[2]
        if not event.startswith((b'data: {"error":', b"event: error\n")):
            return None
        return read_error(500, event.partition(b"data: ")[2], "llama-server").message

    def usage(self) -> Usage:
        # Only the last TAIL_BYTES count, so that the result does not depend on how the bytes were split.
        tail = b"".join(self._parts)[-TAIL_BYTES:]
        timings = _find(tail, *_TIMINGS)
        usage = _find(tail, *_USAGE) or (_find(self._head, *_USAGE) if self._size > len(self._head) else None)
        if timings is None and usage is None:
            return _NOTHING_SAID
        timings, usage = timings or _Timings(), usage or _Usage()
        details = usage.prompt_tokens_details or usage.input_tokens_details or _Details()
        computed = timings.prompt_n + (timings.cache_n or 0) if timings.prompt_n is not None else None
        return Usage(
            prompt_tokens=_first(usage.prompt_tokens, usage.input_tokens, computed),
            cached_tokens=_first(timings.cache_n, details.cached_tokens),
            completion_tokens=_first(usage.completion_tokens, usage.output_tokens, timings.predicted_n),
            prompt_ms=timings.prompt_ms,
            completion_ms=timings.predicted_ms,
        )


def _first(*counts: int | None) -> int | None:
    for count in counts:
        if count is not None:
            return count
    return None


def _find(data: bytes, key: bytes, decoder: "msgspec.json.Decoder[T]") -> T | None:
    """The last complete object under `key`."""
    at = data.rfind(key)
    while at >= 0:
        opens = _OPENS_OBJECT.match(data, at + len(key))
        if opens is not None:
            start = opens.end() - 1
            try:
                return decoder.decode(data[start : _end_of_object(data, start)])
            except msgspec.MsgspecError:
                pass  # cut off, or of another shape: an earlier one may be whole
        at = data.rfind(key, 0, at)
    return None


def _end_of_object(data: bytes, start: int) -> int:
    """Index behind the brace that closes the one at `start`; neither object holds a string with a brace."""
    depth, at = 0, start
    while True:
        closes, opens = data.find(b"}", at), data.find(b"{", at)
        if closes < 0:
            return len(data)
        if 0 <= opens < closes:
            depth, at = depth + 1, opens + 1
        else:
            depth, at = depth - 1, closes + 1
            if depth == 0:
                return at

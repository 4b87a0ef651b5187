"""One fact per request served. Written by: gateway. Read by: ui. Never holds a prompt or an answer."""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

MAX_REQUESTS: Final = 200
"""Requests in one pack, at most."""
MAX_BYTES: Final = 200 * 1024
"""Size of the requests of one pack; a single one that is larger goes alone. nats-server takes 1 MiB a message."""
PLACES: Final = 1024
"""A longer pack is no event: readers number its requests with 10 bits."""


class RequestFinished(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="request.finished.v1"):
    """A request has been answered, refused or given up by its client."""

    request_id: str
    at_ns: int
    """When it ended, Unix nanoseconds, from the gateway's clock."""
    node: str
    """The gateway's node."""
    model: str
    """The model that was asked for, as it was written; empty when the request named none."""
    instance: str = ""
    """`<node>/<model>/<index>` of the llama-server that served it; empty when none did."""
    route: str
    """The path, without the query."""
    status: int
    """HTTP status that was sent; 499 when the client left before any answer (nginx's convention)."""
    outcome: str
    """`ok`, `error` or `cancelled`."""
    streamed: bool = False
    error: str | None = None
    """One sentence, when the outcome is `error`."""
    prompt_tokens: int | None = None
    """`usage.prompt_tokens`, else `timings.prompt_n + cache_n`; `None` when llama-server did not say."""
    cached_tokens: int | None = None
    """`timings.cache_n`: prompt tokens that were in the slot's cache already."""
    completion_tokens: int | None = None
    prompt_ms: float | None = None
    """`timings.prompt_ms`."""
    completion_ms: float | None = None
    """`timings.predicted_ms`."""
    first_token_ms: float | None = None
    """From the request's last byte to the first byte of the answer's body."""
    waited_ms: float = 0.0
    """Part of `total_ms` spent waiting for the model to be loaded."""
    queued_ms: float = 0.0
    """Part of `total_ms` spent waiting for a free slot."""
    queue_position: int = 0
    """Place in the model's queue on arrival, 1 being next; 0: it did not have to wait."""
    total_ms: float = 0.0
    """From the request's first byte to the answer's last."""
    bytes_in: int = 0
    bytes_out: int = 0
    trace_id: str = ""
    """W3C trace id, 32 hex digits."""
    key_id: str = ""
    """Id of the API key it came with; empty when it came without one that is known."""


class RequestPack(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="request.pack.v1"):
    """Many requests of one subject, when there are more than the bus stores one by one."""

    requests: Annotated[list[RequestFinished], msgspec.Meta(max_length=PLACES)]
    """In the order in which they ended."""


RequestEvent = RequestFinished | RequestPack


_OPENED, _CLOSED = msgspec.json.encode(RequestPack(requests=[])).split(b"[]")


def requests_of(event: object) -> list[RequestFinished]:
    """The requests an event tells of: one, many, or none when it is about something else."""
    match event:
        case RequestFinished():
            return [event]
        case RequestPack():
            return event.requests
        case _:
            return []


def pack_encoded(encoded: Sequence[bytes]) -> bytes:
    """A `RequestPack` on the wire, of `RequestFinished` that are encoded already."""
    return b"%b[%b]%b" % (_OPENED, b",".join(encoded), _CLOSED)

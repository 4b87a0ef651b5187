"""One fact per request served. Written by: gateway. Read by: metrics, ui. Never holds a prompt or an answer."""

import msgspec


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
    total_ms: float = 0.0
    """From the request's first byte to the answer's last."""
    bytes_in: int = 0
    bytes_out: int = 0
    trace_id: str = ""
    """W3C trace id, 32 hex digits."""


RequestEvent = RequestFinished

"""The parts of uvicorn's inside that the relay stands on. When this fails, read relay.py against the new uvicorn."""

import inspect

import httptools
import pytest
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from llamaherd_gateway.relay.exchange import Exchange
from llamaherd_gateway.relay.protocol import RelayProtocol

SOURCE = inspect.getsource(HttpToolsProtocol)
OVERRIDDEN = (
    "connection_lost",
    "data_received",
    "pause_writing",
    "resume_writing",
    "on_message_begin",
    "on_header",
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
    "_start_asgi_task",
    "shutdown",
)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_is_overridden_exists_with_the_same_parameters(name: str) -> None:
    theirs, ours = getattr(HttpToolsProtocol, name), getattr(RelayProtocol, name)
    assert ours is not theirs
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


def test_the_attributes_that_are_used_are_set_by_uvicorn() -> None:
    used = ("cycle", "pipeline", "flow", "transport", "parser", "url", "headers", "expect_100_continue", "app", "loop")
    for name in used:
        assert f"self.{name}" in SOURCE, name
    assert "self.pipeline.appendleft((self.cycle, app))" in SOURCE
    assert "cycle, app = self.pipeline.pop()" in SOURCE
    state = ServerState()
    assert state.default_headers == []
    assert state.connections == set()


def test_uvicorn_touches_only_what_an_exchange_has() -> None:
    """Everything uvicorn's protocol reads from or writes to its cycle."""
    fields = {name for name in vars_of(SOURCE, "self.cycle.")}
    assert fields <= {"response_complete", "disconnected", "message_event", "body", "more_body", "keep_alive"}
    code = inspect.getsource(Exchange)
    for name in ("response_complete", "disconnected", "message_event", "keep_alive"):
        assert name in code


def vars_of(source: str, prefix: str) -> set[str]:
    names = set()
    for part in source.split(prefix)[1:]:
        name = ""
        for letter in part:
            if not (letter.isalnum() or letter == "_"):
                break
            name += letter
        names.add(name)
    return names


def test_uvicorns_cycle_still_has_what_ours_stands_in_for() -> None:
    parameters = inspect.signature(RequestResponseCycle.__init__).parameters
    assert {"scope", "transport", "flow", "message_event", "keep_alive", "on_response"} <= set(parameters)
    assert httptools_impl.HIGH_WATER_LIMIT > 0


def test_httptools_answers_keep_alive_only_inside_on_message_complete() -> None:
    """The trap of reference/performance.md, held still: outside the callback the answer is no."""

    class Seen:
        inside = False

        def on_message_complete(self) -> None:
            self.inside = parser.should_keep_alive()

    seen = Seen()
    parser = httptools.HttpResponseParser(seen)
    parser.feed_data(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert seen.inside


def test_an_exception_of_a_callback_reaches_us_as_the_context_of_the_parsers() -> None:
    """relay.py tells a head that is too large from garbage by it."""

    class Refuses:
        def on_headers_complete(self) -> None:
            raise LookupError

    with pytest.raises(httptools.HttpParserError) as caught:
        httptools.HttpRequestParser(Refuses()).feed_data(b"GET / HTTP/1.1\r\n\r\n")
    assert isinstance(caught.value.__context__, LookupError)

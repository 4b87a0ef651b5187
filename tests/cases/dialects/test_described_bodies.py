"""What a route's row says of its body, for /openapi.json, is what the route does with it."""

import json
from typing import Any

import pytest

from llamaherd_gateway.dialects.dialect import EVENTS, JSON, LINES, Facts, Route, Turn
from llamaherd_gateway.problems import BadRequest
from llamaherd_gateway.routes import ROUTES

EVERYTHING = frozenset({"completion", "embedding", "tools", "thinking", "insert", "vision", "audio"})
FACTS = Facts(model="m", capabilities=EVERYTHING)
OF_JSON = [route for route in ROUTES if route.takes == JSON]


def serve(route: Route, body: dict[str, Any]) -> None:
    """Raises `BadRequest`."""
    asked = route.read(json.dumps(body).encode(), ())
    if route.call is not None and asked.action == "call":
        route.call(asked, FACTS, Turn(request_id="0", received_ns=0))


@pytest.mark.parametrize("route", OF_JSON, ids=lambda route: route.path)
def test_without_what_it_needs_a_body_is_refused(route: Route) -> None:
    body = json.loads(route.example)
    serve(route, body)

    for field in route.needs:
        with pytest.raises(BadRequest):
            serve(route, {name: value for name, value in body.items() if name != field})


@pytest.mark.parametrize("route", OF_JSON, ids=lambda route: route.path)
def test_what_it_needs_is_enough(route: Route) -> None:
    body = json.loads(route.example)

    serve(route, {name: value for name, value in body.items() if name in route.needs})


def test_a_shape_has_every_field_that_its_route_needs() -> None:
    for route in OF_JSON:
        if route.shape is not None:
            assert set(route.needs) <= set(route.shape.__struct_encode_fields__), route.path


@pytest.mark.parametrize("route", OF_JSON, ids=lambda route: route.path)
def test_a_route_that_gives_streams_reads_that_one_is_wanted(route: Route) -> None:
    asked = route.read(json.dumps({**json.loads(route.example), "stream": True}).encode(), ())

    if {EVENTS, LINES} & set(route.gives):
        assert asked.stream
    elif route.shape is not None:
        assert not asked.stream

"""Every route by method and path: those relayed to a llama-server, and the gateway's own pages.

docs/api.md is generated from these tables.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from llamaherd_gateway.dialects.dialect import Dialect, Herd, Page, PageRequest, Reply, Route
from llamaherd_gateway.dialects.openai import OPENAI, read_model
from llamaherd_gateway.problems import BadRequest

OLLAMA: Final = OPENAI
LMSTUDIO: Final = OPENAI

ROUTES: Final[tuple[Route, ...]] = (
    Route(path="/v1/chat/completions", dialect=OPENAI, read=read_model),
    Route(path="/v1/completions", dialect=OPENAI, read=read_model),
    Route(path="/v1/embeddings", dialect=OPENAI, read=read_model),
    Route(path="/tokenize", dialect=OPENAI, read=read_model, generates=False),
    Route(path="/detokenize", dialect=OPENAI, read=read_model, generates=False),
    Route(path="/apply-template", dialect=OPENAI, read=read_model, generates=False),
)
"""Relayed, with a body that names the model."""


def _models(request: PageRequest, herd: Herd) -> Reply:
    data = [
        {"id": c.name, "object": "model", "created": c.modified_ns // 10**9, "owned_by": "llamaherd"}
        for c in herd.cards
    ]
    if not request.parameters:
        return Reply(body=msgspec.json.encode({"object": "list", "data": data}))
    for one in data:
        if one["id"] == request.parameters["id"]:
            return Reply(body=msgspec.json.encode(one))
    raise BadRequest("no", status=404)


PAGES: Final[tuple[Page, ...]] = (
    Page(method="GET", path="/v1/models", dialect=OPENAI, answer=_models),
    Page(method="GET", path="/v1/models/{id*}", dialect=OPENAI, answer=_models),
)
"""Answered by the gateway from what it knows."""

_BY_PATH: Final = {(route.method.encode(), route.path.encode()): route for route in ROUTES}


def find_route(method: bytes, path: bytes) -> Route | None:
    """The route of a request's head; `None`: the gateway answers by itself."""
    return _BY_PATH.get((method, path))


def find_allowed(path: str) -> set[str]:
    """Methods by which this path is relayed."""
    return {route.method for route in ROUTES if route.path == path}


def dialect_of(path: str, headers: Mapping[str, str], home: Dialect) -> Dialect:
    """In whose words to answer a request for this path; `home`: the listener's."""
    return home

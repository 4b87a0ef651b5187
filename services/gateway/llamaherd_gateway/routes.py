"""Every route that is relayed to a llama-server, by method and path. docs/api.md is generated from it."""

from typing import Final

from llamaherd_gateway.dialects.dialect import Route
from llamaherd_gateway.dialects.openai import OPENAI, read_model

ROUTES: Final[tuple[Route, ...]] = (
    Route(path="/v1/chat/completions", dialect=OPENAI, read=read_model),
    Route(path="/v1/completions", dialect=OPENAI, read=read_model),
    Route(path="/v1/embeddings", dialect=OPENAI, read=read_model),
    Route(path="/tokenize", dialect=OPENAI, read=read_model, generates=False),
    Route(path="/detokenize", dialect=OPENAI, read=read_model, generates=False),
    Route(path="/apply-template", dialect=OPENAI, read=read_model, generates=False),
)

_BY_PATH: Final = {route.path.encode(): route for route in ROUTES}


def find_route(method: bytes, path: bytes) -> Route | None:
    """The route of a request's head; `None`: the gateway answers by itself."""
    route = _BY_PATH.get(path)
    return route if route is not None and method == b"POST" else None

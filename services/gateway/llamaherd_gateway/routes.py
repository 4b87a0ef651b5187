"""Every route by method and path: those relayed to a llama-server, and the gateway's own pages.

docs/api.md and /openapi.json are generated from these tables.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from llamaherd_gateway.bodies import decode_body
from llamaherd_gateway.dialects import anthropic, llama, lmstudio, ollama, openai
from llamaherd_gateway.dialects.anthropic import ANTHROPIC
from llamaherd_gateway.dialects.dialect import Asked, Call, Dialect, Facts, Header, Page, Route, Turn
from llamaherd_gateway.dialects.llama import LLAMA
from llamaherd_gateway.dialects.lmstudio import LMSTUDIO, LMSTUDIO_V0
from llamaherd_gateway.dialects.ollama import OLLAMA
from llamaherd_gateway.dialects.openai import OPENAI

ROUTES: Final[tuple[Route, ...]] = (
    *openai.ROUTES,
    *anthropic.ROUTES,
    *ollama.ROUTES,
    *lmstudio.ROUTES,
    *llama.ROUTES,
)
"""Relayed, with a body that names the model."""

PAGES: Final[tuple[Page, ...]] = (*openai.PAGES, *anthropic.PAGES, *ollama.PAGES, *lmstudio.PAGES)
"""Answered by the gateway from what it knows."""

UPSTREAM_METHODS: Final = frozenset({"GET", "POST", "DELETE"})
"""That pass to a llama-server; an answer to HEAD would look like one whose body is missing."""

HEALTH: Final = {
    "/healthz": "Whether the gateway runs",
    "/readyz": "Whether it knows the herd",
    "/health": "The same as /healthz, where llama-server's clients ask",
}
"""Path -> what it is about."""

BARE_PATHS: Final = ("/v1/chat/completions", "/v1/responses", "/v1/audio/transcriptions")
"""That llama-server also serves without `/v1`, and its clients ask for so."""

_BY_PATH: Final = {(route.method.encode(), route.path.encode()): route for route in ROUTES}
_BY_PATH.update(
    ((route.method.encode(), route.path.removeprefix("/v1").encode()), route)
    for route in ROUTES
    if route.path in BARE_PATHS
)

_OWNERS: Final = (
    ("/v1/messages", ANTHROPIC),
    ("/api/v0", LMSTUDIO_V0),
    ("/api/v1", LMSTUDIO),
    ("/api", OLLAMA),
    ("/upstream", LLAMA),
    *((path, LLAMA) for path in (*llama.LOOKS, *[route.path for route in llama.ROUTES])),
)
"""Whose paths begin so; `/v1/...` is OpenAI's, or Anthropic's by a header (api-dialects, 1.1)."""


class _Streamed(msgspec.Struct):
    stream: bool | None = None


_STREAMED: Final = msgspec.json.Decoder(_Streamed)


def find_route(method: bytes, target: bytes, path: bytes, known: Collection[str]) -> Route | None:
    """The route of a request's head; `None`: the gateway answers by itself. `known`: names of models."""
    route = _BY_PATH.get((method, path))
    if route is not None or method.decode("latin-1") not in UPSTREAM_METHODS:
        return route
    if path.startswith(llama.UPSTREAM):
        split = llama.split_upstream(target, known)
        return None if split is None else _upstream_route(method.decode(), *split)
    if method == b"GET" and path.decode("latin-1") in llama.LOOKS:
        model, rest = llama.split_query(target)
        return None if model is None else _upstream_route("GET", model, rest)
    return None


def _upstream_route(method: str, model: str, rest: bytes) -> Route | None:
    """To one model's llama-server, as it stands; `None` for what never passes."""
    target = rest.decode("latin-1")
    path = target.partition("?")[0]
    if llama.is_forbidden(path):
        return None
    own = _BY_PATH.get((method.encode(), path.encode("latin-1")))

    def read(body: bytes, headers: Sequence[Header]) -> Asked:
        streamed, answer_id = False, ""
        if body.lstrip().startswith(b"{") and not _is_form(headers):
            llama.refuse_addresses(body)
            streamed = decode_body(_STREAMED, body).stream is True
            answer_id = llama.answer_id_of(body) if path == llama.CONTROL else ""
        return Asked(model=model, stream=streamed, body=body, answer_id=answer_id)

    def call(asked: Asked, facts: Facts, turn: Turn) -> Call:
        return Call(path=target, body=asked.body)

    return Route(
        path=f"/upstream/{model}{path}",
        method=method,
        dialect=LLAMA,
        read=read,
        call=call,
        generates=own is not None and own.generates,
        passive=llama.is_passive(method, path),
        administrative=llama.is_administrative(method, path),
    )


def _is_form(headers: Sequence[Header]) -> bool:
    return any(name == b"content-type" and value.startswith(b"multipart/") for name, value in headers)


def find_allowed(path: str) -> set[str]:
    """Methods by which this path is served beside the tables of pages and handlers."""
    if path in llama.LOOKS or path in HEALTH:
        return {"GET"}
    return {method.decode() for method, served in _BY_PATH if served == path.encode("latin-1")}


def dialect_of(path: str, headers: Mapping[str, str], home: Dialect) -> Dialect:
    """In whose words to answer a request for this path; `home`: the listener's, for paths that are nobody's."""
    for start, dialect in _OWNERS:
        if path == start or path.startswith(start + "/"):
            return dialect
    if path.startswith("/v1/"):
        return ANTHROPIC if "anthropic-version" in headers else OPENAI
    return home

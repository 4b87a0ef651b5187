"""Ollama's lists and other pages that need no model, and what can never be served (api-dialects, 5.1, 5.8)."""

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Card, Herd, Loaded, Page, PageRequest, Reply
from llamaherd_gateway.dialects.ollama.details import render_capabilities, render_details
from llamaherd_gateway.dialects.ollama.durations import LONGEST_NS, render_time
from llamaherd_gateway.dialects.ollama.error import OLLAMA, render_text
from llamaherd_gateway.dialects.ollama.names import split_name

OLLAMA_VERSION: Final = "0.33.0"
"""The Ollama whose behaviour was followed. Clients read numbers from it and ask for a least one: ours would not do."""
_JSON: Final = "application/json; charset=utf-8"
_IN_MEMORY: Final = frozenset(("loading", "ready", "draining"))

RUNNING: Final = Reply(body=b"Ollama is running", content_type="text/plain; charset=utf-8")
"""GET and HEAD /, by which clients see whether anybody is there."""


def render_version(request: PageRequest, herd: Herd) -> Reply:
    return _reply({"version": OLLAMA_VERSION})


def render_tags(request: PageRequest, herd: Herd) -> Reply:
    """Every model that can be asked for, the newest first."""
    cards = sorted(herd.cards, key=lambda card: (-card.modified_ns, card.name))
    return _reply({"models": [_render_tag(card) for card in cards]})


def render_ps(request: PageRequest, herd: Herd) -> Reply:
    """Models in memory, the one that stays longest first; each once, whatever its aliases and instances."""
    running = [(card, here) for card in _once(herd.cards) if (here := _in_memory(card))]
    until_ns = {card.name: _until_ns(here, herd.now_ns) for card, here in running}
    running.sort(key=lambda each: (-until_ns[each[0].name], each[0].name))
    return _reply({"models": [_render_running(card, here, until_ns[card.name]) for card, here in running]})


def render_status(request: PageRequest, herd: Herd) -> Reply:
    """Nothing here is ever sent to Ollama's cloud."""
    return _reply({"cloud": {"disabled": True, "source": "config"}})


def render_recommendations(request: PageRequest, herd: Herd) -> Reply:
    return _reply({"recommendations": []})


def _render_tag(card: Card) -> dict[str, Any]:
    name = split_name(card.name).display
    return {
        "name": name,
        "model": name,
        "modified_at": render_time(card.modified_ns),
        "size": card.size_bytes,
        "digest": card.digest,
        "details": render_details(card),
        "capabilities": render_capabilities(card),
    }


def _render_running(card: Card, here: tuple[Loaded, ...], until_ns: int) -> dict[str, Any]:
    name = split_name(card.name).display
    return {
        "name": name,
        "model": name,
        "size": card.size_bytes * len(here),
        # llama-server does not tell what lies on a GPU.
        "size_vram": 0,
        "digest": card.digest,
        "details": render_details(card),
        "expires_at": render_time(until_ns),
        "context_length": max(each.context_tokens for each in here),
    }


def _once(cards: Iterable[Card]) -> list[Card]:
    """One card for each model: its own, or else that of its first alias."""
    chosen: dict[str, Card] = {}
    for card in cards:
        if card.name == card.model or card.model not in chosen:
            chosen[card.model] = card
    return list(chosen.values())


def _in_memory(card: Card) -> tuple[Loaded, ...]:
    return tuple(each for each in card.loaded if each.state in _IN_MEMORY)


def _until_ns(here: tuple[Loaded, ...], now_ns: int) -> int:
    return max(now_ns + LONGEST_NS if each.expires_ns is None else each.expires_ns for each in here)


def _reply(content: Any) -> Reply:
    return Reply(body=msgspec.json.encode(content), content_type=_JSON)


def _refusing(status: int, text: str) -> Callable[[PageRequest, Herd], Reply]:
    refusal = Reply(body=render_text(text), status=status, content_type=_JSON)
    return lambda request, herd: refusal


def _pages(path: str, answer: Callable[[PageRequest, Herd], Reply], about: str, *methods: str) -> list[Page]:
    return [Page(method=method, path=path, dialect=OLLAMA, answer=answer, about=about) for method in methods]


def _refused(method: str, path: str, status: int, text: str, *, why: str, example: str = "") -> Page:
    return Page(
        method=method,
        path=path,
        dialect=OLLAMA,
        answer=_refusing(status, text),
        serves=False,
        about=f"Refused: {why}",
        example=example,
        example_status=status,
    )


_NO_ACCOUNTS: Final = "there are no accounts"
_CLOUD: Final = "needs Ollama's cloud"

PAGES: Final = (
    *_pages("/api/version", render_version, "The version of Ollama that is spoken", "GET", "HEAD"),
    *_pages("/api/tags", render_tags, "Models that can be asked for", "GET", "HEAD"),
    *_pages("/api/ps", render_ps, "Models in memory", "GET"),
    *_pages("/api/status", render_status, "Whether Ollama's cloud may be used: never", "GET"),
    *_pages("/api/experimental/model-recommendations", render_recommendations, "Always empty", "GET"),
    _refused(
        "POST",
        "/api/push",
        400,
        "push is not supported: this server keeps no registry",
        why="there is no registry here",
        example='{"model": "cria"}',
    ),
    _refused("POST", "/api/me", 401, "unauthorized", why=_NO_ACCOUNTS),
    _refused("POST", "/api/signout", 401, "unauthorized", why=_NO_ACCOUNTS),
    _refused("DELETE", "/api/user/keys/{key*}", 401, "unauthorized", why=_NO_ACCOUNTS, example="/api/user/keys/mine"),
    _refused(
        "POST",
        "/api/experimental/web_search",
        403,
        "ollama cloud is disabled: web search is unavailable",
        why=_CLOUD,
        example='{"query": "llamas"}',
    ),
    _refused(
        "POST",
        "/api/experimental/web_fetch",
        403,
        "ollama cloud is disabled: web fetch is unavailable",
        why=_CLOUD,
        example='{"url": "https://example.com"}',
    ),
)

"""Whatever a body is, a dialect either puts it to llama-server or says what is wrong with it."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings

from harness.mangled import bodies_for
from llamaherd_gateway.bodies import decode_body
from llamaherd_gateway.dialects.dialect import Facts, Turn
from llamaherd_gateway.problems import BadRequest, Problem, problem_of
from llamaherd_gateway.routes import ROUTES
from llamaherd_gateway.routing.rules import apply_rules
from llamaherd_shared.model_spec import Rules

TURN = Turn(request_id="0123456789abcdef0123", received_ns=10**18)
EVERYTHING = frozenset({"completion", "embedding", "tools", "thinking", "insert", "vision", "audio"})
RULES = Rules(set={"seed": 1}, clamp={"temperature": (0, 1), "n": (None, 2), "max_tokens": (1, 100)}, strip=("x",))
BY_PATH = {route.path: route for route in ROUTES}
PATHS = [path for path in BY_PATH if not path.endswith("/transcriptions")]


async def ask(path: str, content: Any) -> Any:
    """A llama-server that counts every text as longer than the context."""
    assert json.loads(msgspec.json.encode(content))
    return {"prompt": "p", "tokens": list(range(600)), "content": "c"}


@settings(max_examples=50)
@given(asked=bodies_for(PATHS))
@example(asked=("/v1/completions", b'{"model": "m", "prompt": 1e400}'))
@example(asked=("/v1/completions", b'{"model": "m", "prompt": "\xff"}'))
@example(asked=("/v1/chat/completions", b'{"model": "m", "messages": [{"content": "x", "\xed\xa0\xbd": 1}]}'))
@example(asked=("/api/v0/completions", b'{"ttl": 1, "\xff": 1, "prompt": "a", "model": "m"}'))
def test_a_body_is_served_or_refused_with_a_sentence(asked: tuple[str, bytes]) -> None:
    path, body = asked
    for capabilities in (EVERYTHING, frozenset({"completion"})):
        facts = Facts(model="m", context_tokens=512, batch_tokens=8, slots=2, capabilities=capabilities)
        try:
            asyncio.run(serve(path, body, facts))
        except BadRequest as refused:
            problem, dialect = problem_of(refused), BY_PATH[path].dialect
            assert 400 <= dialect.status_of(problem) < 600
            assert json.loads(dialect.render_problem(problem, "id"))


async def serve(path: str, body: bytes, facts: Facts) -> None:
    """All that happens to a request before llama-server is asked. Raises `BadRequest`."""
    route = BY_PATH[path]
    asked = route.read(body, ((b"content-type", b"application/json"),))
    assert isinstance(asked.model, str)
    if asked.action != "call":
        assert route.settle is not None
        assert json.loads(route.settle(asked, TURN))
        return
    if route.prepare is not None:
        asked = await route.prepare(asked, facts, ask)
    put = asked.body
    if route.call is not None:
        call = route.call(asked, facts, TURN)
        put = call.body
        if call.translation is not None:
            call.translation.fail(Problem(status=500, message="x"), 1)
    assert isinstance(msgspec.json.decode(put, type=dict[str, msgspec.Raw]), dict)
    apply_rules(RULES, put)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"a": "\xff"}', "is not UTF-8 (byte 7)"),
        (b'{"other": "\xed\xa0\x80"}', "is not UTF-8"),
        (b"1e400", "cannot be read: number out of range"),
        (b"[]", "must be a JSON object"),
    ],
)
def test_what_a_decoder_would_skip_is_looked_at_too(body: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said.replace("(", r"\(").replace(")", r"\)")):
        decode_body(msgspec.json.Decoder(dict[str, msgspec.Raw]), body)

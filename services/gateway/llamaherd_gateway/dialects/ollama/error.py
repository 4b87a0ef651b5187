"""Errors as Ollama says them: one sentence under `error`, whatever happened (reference: api-dialects, 1.5, 5.2)."""

import ast
import re
from collections.abc import Callable
from typing import Final

import msgspec

from llamaherd_gateway.dialects.dialect import Dialect
from llamaherd_gateway.dialects.ollama.names import quoted
from llamaherd_gateway.problems import Problem

BUSY: Final = "server busy, please try again.  maximum pending requests exceeded"
"""With two spaces, as clients look for it."""
TOO_LONG: Final = "the input length exceeds the context length"

_TOO_LARGE: Final = ("is too large to process", "is larger than the max context size")
"""llama-server's words for a text to embed that does not fit into its batch or context."""
_ASKED: Final = re.compile(r"the model ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\") does not exist")


def render_text(text: str) -> bytes:
    return msgspec.json.encode({"error": text})


def render_problem(problem: Problem, request_id: str) -> bytes:
    return render_text(_describe(problem, "model '{}' not found".format))


def render_stream_error(problem: Problem, request_id: str) -> bytes:
    """The line that ends a stream; the status was 200 long before."""
    return render_problem(problem, request_id) + b"\n"


def status_of(problem: Problem) -> int:
    """What a model cannot do is asking wrongly, to Ollama."""
    return 400 if problem.status == 501 else problem.status


def _render_for_embedding(problem: Problem, request_id: str) -> bytes:
    if problem.code == "context_length_exceeded":
        return render_text(TOO_LONG)
    return render_text(_describe(problem, lambda name: f"model {quoted(name)} not found, try pulling it first"))


def _describe(problem: Problem, unknown: Callable[[str], str]) -> str:
    if problem.code == "model_not_found" and (asked := _ASKED.search(problem.message)):
        return unknown(ast.literal_eval(asked[1]))
    if problem.code == "queue_full":
        return BUSY
    if any(sign in problem.message for sign in _TOO_LARGE):
        return TOO_LONG
    return problem.message


OLLAMA: Final = Dialect(
    name="ollama",
    render_problem=render_problem,
    render_stream_error=render_stream_error,
    streams_events=False,
    status_of=status_of,
)
OLLAMA_EMBEDDING: Final = msgspec.structs.replace(OLLAMA, render_problem=_render_for_embedding)
"""The routes for embeddings have another sentence for an unknown model."""

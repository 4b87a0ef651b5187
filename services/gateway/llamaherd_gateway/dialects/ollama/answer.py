"""llama-server's answers in Ollama's records (reference: api-dialects, 5.4, 5.6).

A stream is one JSON object to a line. The last line, and a plain answer, say why it ended and how long it took.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Turn
from llamaherd_gateway.dialects.ollama.durations import render_time
from llamaherd_gateway.dialects.ollama.error import render_problem, render_text
from llamaherd_gateway.dialects.ollama.memory import Said, render_context
from llamaherd_gateway.dialects.ollama.messages import text_of
from llamaherd_gateway.dialects.ollama.piece import Logprob, Piece, Timings, ToolCalls, read_chat_piece, read_text_piece
from llamaherd_gateway.dialects.ollama.request import Wanted
from llamaherd_gateway.dialects.sse import Events
from llamaherd_gateway.problems import Problem

NDJSON: Final = b"application/x-ndjson"
JSON: Final = b"application/json; charset=utf-8"


class _Message(msgspec.Struct, omit_defaults=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = []


class _Record(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Of a chat or a generation: `message` or `response`. What stays at its default is left out."""

    model: str
    created_at: str
    message: _Message | None = None
    response: str | None = None
    thinking: str = ""
    done: bool
    done_reason: str = ""
    context: list[int] = []
    total_duration: int | None = None
    """Nanoseconds, as are the others; whole numbers: clients refuse 1.5."""
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[Logprob] = []


def render_settled(wanted: Wanted, done_reason: str, now_ns: int) -> bytes:
    """The answer to a request without content: the model was loaded or unloaded."""
    record = _record(wanted, now_ns, "", "", done=True)
    record.done_reason = done_reason
    return msgspec.json.encode(record)


class Answer:
    """A `Translation` of an answer with text."""

    def __init__(
        self, wanted: Wanted, turn: Turn, *, text: bool = False, remembered: Sequence[dict[str, Any]] | None = None
    ) -> None:
        """`text`: llama-server answers in its own form, not OpenAI's. `remembered`: what `context` will repeat."""
        self.content_type = NDJSON if wanted.stream else JSON
        self._wanted, self._turn, self._remembered = wanted, turn, remembered
        self._read = read_text_piece if text else read_chat_piece
        self._events = Events()
        self._calls = ToolCalls()
        self._said: list[str] = []
        self._reason = ""
        self._timings: Timings | None = None
        self._over = False

    def feed(self, data: bytes, now_ns: int) -> bytes:
        return b"".join([self._take(event, now_ns) for _, event in self._events.feed(data)])

    def end(self, now_ns: int) -> bytes:
        return b"" if self._over else self._finish(now_ns)

    def whole(self, body: bytes, now_ns: int) -> bytes:
        piece = self._read(body)
        if piece.error:
            raise ValueError(piece.error)
        self._calls.add(piece.tool_calls)
        self._said.append(piece.content)
        self._reason, self._timings = piece.reason, piece.timings
        record = self._last(now_ns, piece.content, piece.thinking)
        if record.message is not None:
            record.message.tool_calls = self._calls.whole()
        record.logprobs = self._probabilities(piece)
        return msgspec.json.encode(record)

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        self._over = True
        return render_problem(problem, self._turn.request_id) + b"\n"

    def _take(self, event: bytes, now_ns: int) -> bytes:
        if self._over:
            return b""
        if event == b"[DONE]":
            return self._finish(now_ns)
        try:
            piece = self._read(event)
        except ValueError:
            return self._break("llama-server sent an event that makes no sense")
        if piece.error:
            return self._break(piece.error)
        self._calls.add(piece.tool_calls)
        self._reason = piece.reason or self._reason
        self._timings = piece.timings or self._timings
        line = b""
        if piece.content or piece.thinking or piece.logprobs:
            if self._remembered is not None:
                self._said.append(piece.content)
            record = _record(self._wanted, now_ns, piece.content, piece.thinking, done=False)
            record.logprobs = self._probabilities(piece)
            line = _line(record)
        return line + self._finish(now_ns) if piece.last else line

    def _finish(self, now_ns: int) -> bytes:
        """Tool calls on a line of their own: some clients do not look for them on the last."""
        self._over = True
        try:
            calls = self._calls.whole()
        except ValueError as error:
            return self._break(str(error))
        lines = b""
        if calls:
            record = _record(self._wanted, now_ns, "", "", done=False)
            if record.message is not None:
                record.message.tool_calls = calls
            lines = _line(record)
        return lines + _line(self._last(now_ns, "", ""))

    def _break(self, text: str) -> bytes:
        self._over = True
        return render_text(text) + b"\n"

    def _last(self, now_ns: int, content: str, thinking: str) -> _Record:
        record = _record(self._wanted, now_ns, content, thinking, done=True)
        record.done_reason = "length" if self._reason == "length" else "stop"
        record.total_duration = max(now_ns - self._turn.received_ns, 0)
        # Clients take zero for "unknown".
        record.load_duration = max(self._turn.load_ns, 1)
        if self._timings is not None:
            record.prompt_eval_count = self._timings.prompt_tokens
            record.prompt_eval_duration = self._timings.prompt_ns
            record.eval_count = self._timings.predicted_n
            record.eval_duration = self._timings.predicted_ns
        if self._remembered is not None:
            record.context = render_context(_turns(self._remembered, "".join(self._said)))
        return record

    def _probabilities(self, piece: Piece) -> list[Logprob]:
        if not self._wanted.logprobs:
            return []
        if not self._wanted.top_logprobs:
            for token in piece.logprobs:
                token.top_logprobs = []
        return piece.logprobs


class Prompt:
    """A `Translation` of a rendered chat template."""

    content_type = JSON

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted

    def feed(self, data: bytes, now_ns: int) -> bytes:
        return b""

    def end(self, now_ns: int) -> bytes:
        return b""

    def whole(self, body: bytes, now_ns: int) -> bytes:
        rendered = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if "prompt" not in rendered:
            raise ValueError("llama-server rendered no prompt")
        record = msgspec.to_builtins(_record(self._wanted, now_ns, "", "", done=False))
        return msgspec.json.encode({**record, "_debug_info": {"rendered_template": rendered["prompt"]}})

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        return render_problem(problem, "")


def _record(wanted: Wanted, now_ns: int, content: str, thinking: str, *, done: bool) -> _Record:
    record = _Record(model=wanted.model, created_at=render_time(now_ns), done=done)
    if wanted.chat:
        record.message = _Message(role="assistant", content=content, thinking=thinking)
    else:
        record.response, record.thinking = content, thinking
    return record


def _line(record: _Record) -> bytes:
    return msgspec.json.encode(record) + b"\n"


def _turns(messages: Sequence[dict[str, Any]], answer: str) -> list[Said]:
    """Images are not repeated: clients keep them, and would send every one twice."""
    turns = [Said(message["role"], text_of(message)) for message in messages]
    return [*turns, Said("assistant", answer)]

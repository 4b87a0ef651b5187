"""llama-server's chat completion -> a message, at once or as events (reference: api-dialects, 4.2 and 4.3)."""

from typing import Any, Final, Literal

import msgspec

from llamaherd_gateway.dialects.anthropic.completion import (
    COMPLETION,
    TOKEN_COUNT,
    Completion,
    Said,
    ToolCall,
    Usage,
)
from llamaherd_gateway.dialects.anthropic.conversation import TOOL_ID_PREFIX
from llamaherd_gateway.dialects.anthropic.problem import render_stream_error
from llamaherd_gateway.dialects.dialect import Turn
from llamaherd_gateway.dialects.sse import Events, render_event
from llamaherd_gateway.problems import Problem, read_error

PING_MS: Final = 15_000
"""While a long prompt is read, clients and proxies hear something this often, if llama-server does."""
PING_CHUNKS: Final = 64
"""The same while thoughts come that the client is not to see."""


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer has to know of the request."""

    model: str
    """As the client wrote it."""
    max_tokens: int = 0
    stop_sequences: frozenset[str] = frozenset()
    thoughts: Literal["shown", "omitted", "hidden"] = "hidden"
    """`omitted`: the client wants to know that there were some, not what they were."""
    spoken: str = ""
    """What the client had put into the model's mouth: llama-server's plain answer repeats it, Anthropic's does not."""
    thought: str = ""


class AnswerTranslation:
    """One answer."""

    def __init__(self, expected: Expected, turn: Turn, *, stream: bool, context_tokens: int = 0) -> None:
        self.content_type = b"text/event-stream" if stream else b"application/json"
        self._expected, self._context_tokens = expected, context_tokens
        self._request_id = turn.request_id
        self._events = Events()
        self._finish_reason: str | None = None
        self._stopping_word = ""
        self._usage = Usage()
        self._started = self._ended = False
        self._open: Literal["thinking", "text", "tool_use"] | None = None
        """The block that is being written; one at a time."""
        self._index = -1
        """Of that block, or of the last one."""
        self._call: int | None = None
        """llama-server's index of the call that is being written."""
        self._pings = self._hidden_chunks = 0

    # A plain answer.

    def whole(self, body: bytes, now_ns: int) -> bytes:
        """Raises `ValueError` when there is no choice, or no JSON."""
        completion = COMPLETION.decode(body)
        self._note(completion)
        if not completion.choices or completion.choices[0].message is None:
            raise ValueError("llama-server's answer holds no message")
        message = self._message(self._content(completion.choices[0].message))
        message["stop_reason"], message["stop_sequence"] = self._stop()
        return msgspec.json.encode(message)

    def _content(self, said: Said) -> list[dict[str, Any]]:
        thought = (said.reasoning_content or "").removeprefix(self._expected.thought)
        text = (said.content or "").removeprefix(self._expected.spoken)
        blocks: list[dict[str, Any]] = []
        if thought and self._expected.thoughts != "hidden":
            shown = thought if self._expected.thoughts == "shown" else ""
            blocks.append({"type": "thinking", "thinking": shown, "signature": ""})
        if text:
            blocks.append({"type": "text", "text": text})
        for index, call in enumerate(said.tool_calls or ()):
            blocks.append(self._tool_use(call, index, _read_arguments(call.function.arguments)))
        return blocks

    # A stream.

    def feed(self, data: bytes, now_ns: int) -> bytes:
        out: list[bytes] = []
        for _, event in self._events.feed(data):
            if self._ended:
                break
            if event == b"[DONE]":
                self._finish(out)
                continue
            try:
                completion = COMPLETION.decode(event)
            except ValueError:
                self._fail(Problem(status=502, message="llama-server's answer cannot be understood"), out)
                break
            if completion.error is not None:
                self._fail(read_error(_status_of(completion.error), event, "the instance"), out)
                break
            self._take(completion, out)
        return b"".join(out)

    def end(self, now_ns: int) -> bytes:
        out: list[bytes] = []
        self._finish(out)
        return b"".join(out)

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        out: list[bytes] = []
        self._fail(problem, out)
        return b"".join(out)

    def _take(self, completion: Completion, out: list[bytes]) -> None:
        self._note(completion)
        progress = completion.prompt_progress
        if progress is not None:
            # A stream that has not begun can still be answered by another instance: wait with the start.
            if progress.time_ms >= (self._pings + 1) * PING_MS:
                self._pings = progress.time_ms // PING_MS
                self._start(out)
                out.append(render_event({"type": "ping"}, "ping"))
            return
        self._start(out)
        for choice in completion.choices[:1]:
            if choice.delta is not None:
                self._take_delta(choice.delta, out)

    def _take_delta(self, delta: Said, out: list[bytes]) -> None:
        if delta.reasoning_content:
            self._take_thought(delta.reasoning_content, out)
        if delta.content:
            if self._open != "text":
                self._open_block("text", {"type": "text", "text": ""}, out)
            self._add({"type": "text_delta", "text": delta.content}, out)
        for call in delta.tool_calls or ():
            if self._open != "tool_use" or self._call != call.index:
                self._call = call.index
                self._open_block("tool_use", self._tool_use(call, call.index, {}), out)
            if call.function.arguments:
                self._add({"type": "input_json_delta", "partial_json": call.function.arguments}, out)

    def _take_thought(self, thought: str, out: list[bytes]) -> None:
        if self._expected.thoughts == "hidden":
            self._hidden_chunks += 1
            if self._hidden_chunks % PING_CHUNKS == 0:
                out.append(render_event({"type": "ping"}, "ping"))
            return
        if self._open != "thinking":
            self._open_block("thinking", {"type": "thinking", "thinking": "", "signature": ""}, out)
        if self._expected.thoughts == "shown":
            self._add({"type": "thinking_delta", "thinking": thought}, out)

    def _start(self, out: list[bytes]) -> None:
        if not self._started:
            self._started = True
            message = {**self._message([]), "stop_reason": None, "stop_sequence": None}
            out.append(render_event({"type": "message_start", "message": message}, "message_start"))

    def _open_block(
        self, kind: Literal["thinking", "text", "tool_use"], block: dict[str, Any], out: list[bytes]
    ) -> None:
        self._close_block(out)
        self._open = kind
        self._index += 1
        event = {"type": "content_block_start", "index": self._index, "content_block": block}
        out.append(render_event(event, "content_block_start"))

    def _close_block(self, out: list[bytes]) -> None:
        if self._open is None:
            return
        if self._open == "thinking":
            self._add({"type": "signature_delta", "signature": ""}, out)
        self._open = None
        out.append(render_event({"type": "content_block_stop", "index": self._index}, "content_block_stop"))

    def _add(self, delta: dict[str, str], out: list[bytes]) -> None:
        event = {"type": "content_block_delta", "index": self._index, "delta": delta}
        out.append(render_event(event, "content_block_delta"))

    def _finish(self, out: list[bytes]) -> None:
        if self._ended:
            return
        if self._finish_reason is None:
            self._fail(Problem(status=502, message="llama-server's answer broke off"), out)
            return
        self._ended = True
        self._start(out)
        self._close_block(out)
        reason, sequence = self._stop()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        event = {"type": "message_delta", "delta": delta, "usage": _render_usage(self._usage)}
        out.append(render_event(event, "message_delta"))
        out.append(render_event({"type": "message_stop"}, "message_stop"))

    def _fail(self, problem: Problem, out: list[bytes]) -> None:
        if not self._ended:
            self._ended = True
            out.append(render_stream_error(problem, self._request_id))

    # Both.

    def _note(self, completion: Completion) -> None:
        """What is said beside the text."""
        if completion.prompt_progress is not None:
            progress = completion.prompt_progress
            self._usage.prompt_tokens, self._usage.prompt_tokens_details.cached_tokens = progress.total, progress.cache
        if completion.usage is not None:
            self._usage = completion.usage
        if completion.verbose is not None:
            self._stopping_word = completion.verbose.stopping_word
        for choice in completion.choices[:1]:
            self._finish_reason = choice.finish_reason or self._finish_reason

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._expected.model,
            "content": content,
            "usage": _render_usage(self._usage),
        }

    def _tool_use(self, call: ToolCall, index: int, arguments: dict[str, Any]) -> dict[str, Any]:
        id_ = call.id or f"{self._request_id}{index}"
        return {
            "type": "tool_use",
            "id": TOOL_ID_PREFIX + id_,
            "name": call.function.name or "",
            "input": arguments,
        }

    def _stop(self) -> tuple[str, str | None]:
        """`stop_reason` and `stop_sequence`."""
        usage = self._usage
        if self._finish_reason == "tool_calls":
            return "tool_use", None
        if self._finish_reason == "length":
            used = usage.prompt_tokens + usage.completion_tokens
            full = 0 < self._context_tokens <= used + 1 and usage.completion_tokens < self._expected.max_tokens
            return ("model_context_window_exceeded" if full else "max_tokens"), None
        # The template's own stop words end the model's turn: only the client's count.
        if self._stopping_word in self._expected.stop_sequences:
            return "stop_sequence", self._stopping_word
        return "end_turn", None


class CountTranslation:
    """How many tokens a prompt has."""

    content_type = b"application/json"

    def whole(self, body: bytes, now_ns: int) -> bytes:
        return msgspec.json.encode({"input_tokens": TOKEN_COUNT.decode(body).input_tokens})

    def feed(self, data: bytes, now_ns: int) -> bytes:
        return b""  # never streamed

    def end(self, now_ns: int) -> bytes:
        return b""

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        return b""


def _render_usage(usage: Usage) -> dict[str, int]:
    cached = usage.prompt_tokens_details.cached_tokens
    return {
        "input_tokens": max(usage.prompt_tokens - cached, 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }


def _read_arguments(arguments: str | None) -> dict[str, Any]:
    """Empty when they were cut off, which `stop_reason` tells."""
    try:
        read = msgspec.json.decode(arguments or "{}")
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _status_of(error: dict[str, Any]) -> int:
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 500

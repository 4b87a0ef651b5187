"""llama-server's chat completion as LM Studio's v1 events, or as one result (api-dialects, 6.2 and 6.3).

A stream always begins with `chat.start` and ends with `chat.end`, whatever happens between.
"""

from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Turn
from llamaherd_gateway.dialects.lmstudio.errors import render_error_event
from llamaherd_gateway.dialects.openai.response_frame import usage_of
from llamaherd_gateway.dialects.openai.response_items import Message, Reasoning
from llamaherd_gateway.dialects.sse import Events, render_event
from llamaherd_gateway.problems import Problem, read_error
from llamaherd_shared.events.turn import TurnKept

_NANOSECONDS: Final = 1e9


class Timings(msgspec.Struct, frozen=True):
    """llama-server's, as far as they are told; milliseconds."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float | None = None
    predicted_n: int = 0
    predicted_ms: float | None = None
    predicted_per_second: float | None = None


class _Text(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Text = _Text()
    message: _Text | None = None
    finish_reason: str | None = None


class _Progress(msgspec.Struct, frozen=True):
    total: int = 0
    cache: int = 0
    processed: int = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Record(msgspec.Struct, frozen=True):
    """A chunk of a stream, or a plain answer."""

    choices: list[_Choice] = []
    prompt_progress: _Progress | None = None
    timings: Timings | None = None
    usage: _Usage | None = None
    error: Any = None


_DECODER: Final = msgspec.json.Decoder(_Record)


class ChatAnswer:
    """A `Translation` and a `Keeper`."""

    def __init__(self, model: str, turn: Turn, *, stream: bool, kept: TurnKept | None = None) -> None:
        """`kept`: the turn, as far as it is known before the answer, when that is to be kept."""
        self.content_type = b"text/event-stream" if stream else b"application/json"
        self._model, self._turn, self._stream, self._kept = model, turn, stream, kept
        self._events = Events()
        self._begun = False
        self._prompting = False
        self._open = ""
        """The kind of text that is being written: `reasoning`, `message`, or nothing yet."""
        self._output: list[tuple[str, list[str]]] = []
        self._timings = Timings()
        self._input_tokens = 0
        self._output_tokens = 0
        self._reasoning_tokens = 0
        self._first_token_ns = 0
        self._reason: str | None = None
        """`finish_reason`, once it is known."""
        self._failed = False

    def feed(self, data: bytes, now_ns: int) -> bytes:
        out = [] if self._begun else self._begin()
        for _, text in self._events.feed(data):
            if text != b"[DONE]":
                self._take(text, now_ns, out)
        return b"".join(out)

    def end(self, now_ns: int) -> bytes:
        out = [] if self._begun else self._begin()
        self._close(out)
        out.append(_event("chat.end", result=self._result(now_ns)))
        return b"".join(out)

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        out = [] if self._begun else self._begin()
        self._kept = None
        self._close(out)
        out += (render_error_event(problem), _event("chat.end", result=self._result(now_ns)))
        return b"".join(out)

    def whole(self, body: bytes, now_ns: int) -> bytes:
        if self._reason is None:
            self._read(body)
        return msgspec.json.encode(self._result(now_ns))

    def turn(self, body: bytes, now_ns: int) -> TurnKept | None:
        if not self._stream:
            self._read(body)
        elif self._failed or self._reason is None:
            self._kept = None
        if self._kept is None:
            return None
        usage = usage_of(
            self._input_tokens,
            self._output_tokens,
            cached_tokens=self._timings.cache_n,
            reasoning_tokens=self._reasoning_tokens,
        )
        cut = self._reason == "length"
        return msgspec.structs.replace(self._kept, at_ns=now_ns, output=self._items(cut=cut), cut=cut, usage=usage)

    def not_kept(self) -> None:
        self._kept = None

    def _read(self, body: bytes) -> None:
        """A plain answer. Raises `ValueError`."""
        try:
            record = _DECODER.decode(body)
            choice = record.choices[0]
        except (msgspec.MsgspecError, IndexError) as error:
            raise ValueError(f"llama-server's answer is no chat completion: {error}") from error
        message = choice.message
        if message is None:
            raise ValueError("llama-server's answer has no message")
        self._reason = choice.finish_reason or "stop"
        self._count(record)
        thought, said = message.reasoning_content or "", message.content or ""
        if thought:
            self._output.append(("reasoning", [thought]))
        if said:
            self._output.append(("message", [said]))
        # A plain answer does not say how many tokens the reasoning took: an estimate, by length.
        share = len(thought) / (len(thought) + len(said)) if thought else 0.0
        self._reasoning_tokens = round(self._output_tokens * share)

    def _items(self, *, cut: bool) -> list[dict[str, Any]]:
        """What was answered, as items of OpenAI's Responses API."""
        items = []
        for place, (kind, texts) in enumerate(self._said()):
            shape = Reasoning if kind == "reasoning" else Message
            item = shape(f"{shape.prefix}_{self._turn.request_id}{place}")
            item.take("".join(texts), [])
            items.append(item.render("completed"))
        if cut:
            items[-1]["status"] = "incomplete"
        return items

    def _begin(self) -> list[bytes]:
        self._begun = self._prompting = True
        out = [_event("chat.start", model_instance_id=self._model)]
        if self._turn.load_ns:
            load_s = self._turn.load_ns / _NANOSECONDS
            out.append(_event("model_load.start", model_instance_id=self._model))
            out.append(_event("model_load.end", model_instance_id=self._model, load_time_seconds=load_s))
        out.append(_event("prompt_processing.start"))
        return out

    def _take(self, text: bytes, now_ns: int, out: list[bytes]) -> None:
        try:
            record = _DECODER.decode(text)
        except msgspec.MsgspecError:
            return  # nothing a client of this dialect could use
        if record.error is not None:
            self._failed = True
            self._close(out)
            out.append(render_error_event(_problem(record.error, text)))
            return
        if record.prompt_progress is not None:
            self._input_tokens = record.prompt_progress.total
            if self._prompting:
                out.append(_event("prompt_processing.progress", progress=_ratio(record.prompt_progress)))
        elif self._prompting:
            self._close(out)
        tokens = self._count(record)
        for choice in record.choices:
            self._reason = choice.finish_reason or self._reason
            self._write("reasoning", choice.delta.reasoning_content, tokens, now_ns, out)
            self._write("message", choice.delta.content, tokens, now_ns, out)

    def _count(self, record: _Record) -> int:
        """How many tokens this chunk brings: by `timings` where they stand on every chunk, else one."""
        if record.usage is not None:
            self._input_tokens, self._output_tokens = record.usage.prompt_tokens, record.usage.completion_tokens
        if record.timings is None:
            tokens = int(any(choice.delta.content or choice.delta.reasoning_content for choice in record.choices))
            self._output_tokens += tokens
            return tokens
        self._timings = record.timings
        before, self._output_tokens = self._output_tokens, record.timings.predicted_n
        self._input_tokens = record.timings.cache_n + record.timings.prompt_n
        return max(0, self._output_tokens - before)

    def _write(self, kind: str, text: str | None, tokens: int, now_ns: int, out: list[bytes]) -> None:
        if not text:
            return
        self._first_token_ns = self._first_token_ns or now_ns
        if self._open != kind:
            self._close(out)
            self._open = kind
            self._output.append((kind, []))
            out.append(_event(f"{kind}.start"))
        if kind == "reasoning":
            self._reasoning_tokens += tokens
        self._output[-1][1].append(text)
        out.append(_event(f"{kind}.delta", content=text))

    def _close(self, out: list[bytes]) -> None:
        """End what is being done: reading the prompt, or writing a text."""
        if self._prompting:
            self._prompting = False
            out.append(_event("prompt_processing.end"))
        if self._open:
            out.append(_event(f"{self._open}.end"))
            self._open = ""

    def _result(self, now_ns: int) -> dict[str, Any]:
        timings = self._timings
        stats: dict[str, Any] = {
            "input_tokens": self._input_tokens,
            "total_output_tokens": self._output_tokens,
            "reasoning_output_tokens": self._reasoning_tokens,
            "tokens_per_second": timings.predicted_per_second or 0.0,
            "time_to_first_token_seconds": self._first_token_s(now_ns),
        }
        if self._turn.load_ns:
            stats["model_load_time_seconds"] = self._turn.load_ns / _NANOSECONDS
        parts = [{"type": kind, "content": "".join(texts)} for kind, texts in self._said()]
        kept = {} if self._kept is None else {"response_id": self._kept.response}
        return {"model_instance_id": self._model, "output": parts, "stats": stats, **kept}

    def _said(self) -> list[tuple[str, list[str]]]:
        """Clients take the first message without looking whether there is one."""
        return self._output or [("message", [])]

    def _first_token_s(self, now_ns: int) -> float:
        """Seconds between the request and the first token, without loading, which has a figure of its own."""
        asked_ns = self._turn.received_ns + self._turn.load_ns
        if self._first_token_ns:
            return round(max(0, self._first_token_ns - asked_ns) / _NANOSECONDS, 6)
        # A plain answer comes when everything is over: what was not spent on writing came before.
        waited_s = max(0, now_ns - asked_ns) / _NANOSECONDS - (self._timings.predicted_ms or 0.0) / 1e3
        return round(max(waited_s, (self._timings.prompt_ms or 0.0) / 1e3), 6)


def _event(name: str, **content: Any) -> bytes:
    return render_event({"type": name, **content}, name)


def _ratio(progress: _Progress) -> float:
    """0 to 1 of what had to be read: what the cache held does not count."""
    todo = progress.total - progress.cache
    return min(1.0, max(0.0, (progress.processed - progress.cache) / todo)) if todo > 0 else 1.0


def _problem(error: Any, text: bytes) -> Problem:
    code = error.get("code") if isinstance(error, dict) else None
    return read_error(code if isinstance(code, int) else 500, text, "llama-server")

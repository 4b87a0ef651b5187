"""The figures that LM Studio's v0 adds to OpenAI's answers: `stats`, `model_info` and `runtime` (api-dialects, 6.6)."""

from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Facts, Translation
from llamaherd_gateway.dialects.lmstudio.chat_answer import Timings
from llamaherd_gateway.dialects.openai import render_stream_error
from llamaherd_gateway.dialects.sse import Events, render_event
from llamaherd_gateway.problems import Problem, read_error

_STOPS: Final = {"eos": "eosFound", "word": "stopStringFound", "limit": "maxPredictedTokensReached"}
"""llama-server's `stop_type` -> LM Studio's `stop_reason`."""

_FINISHES: Final = {
    "stop": "eosFound",
    "length": "maxPredictedTokensReached",
    "tool_calls": "toolCalls",
    "function_call": "toolCalls",
}
"""OpenAI's `finish_reason`, for want of a `stop_type`."""

_SIGNS: Final = (b'"timings"', b'"__verbose"', b'"finish_reason":"', b'"stop_type"', b'"error"')
"""A record without any of them holds no figure. Inside JSON strings quotes are escaped: no text looks like one."""

_DONE: Final = b"[DONE]"


class _Choice(msgspec.Struct, frozen=True):
    finish_reason: str | None = None


class _Stop(msgspec.Struct, frozen=True):
    stop_type: str | None = None
    truncated: bool = False


class _Timings(Timings, frozen=True):
    draft_n: int | None = None
    draft_n_accepted: int = 0


class _Record(_Stop, frozen=True):
    """A chunk of a stream, or a plain answer; of OpenAI's routes or of llama-server's own."""

    choices: list[_Choice] = []
    timings: _Timings | None = None
    verbose: _Stop | None = msgspec.field(name="__verbose", default=None)
    system_fingerprint: str | None = None
    error: Any = None


_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RECORD: Final = msgspec.json.Decoder(_Record)
_ANSWER: Final = msgspec.json.Decoder(list[_Record] | _Record)


class FiguresAnswer:
    """A `Translation`: adds the figures to a plain answer, or to a stream's last chunk.

    `inner` makes OpenAI's answer of llama-server's where that is not one already.
    """

    def __init__(self, facts: Facts, *, stream: bool, inner: Translation | None = None) -> None:
        self.content_type = b"text/event-stream" if stream else b"application/json"
        self._facts, self._inner = facts, inner
        self._given, self._made = Events(), Events()
        self._held: dict[str, Any] | None = None
        """A chunk that may be the last."""
        self._finish = ""
        self._stop = _Stop()
        self._timings: _Timings | None = None
        self._version = ""

    def feed(self, data: bytes, now_ns: int) -> bytes:
        if self._inner is not None:
            for _, text in self._given.feed(data):
                if _may_tell(text):
                    self._note(text)
            data = self._inner.feed(data, now_ns)
        return self._pass_on(data)

    def end(self, now_ns: int) -> bytes:
        rest = self._pass_on(self._inner.end(now_ns)) if self._inner is not None else b""
        return rest + self._release(last=True)

    def whole(self, body: bytes, now_ns: int) -> bytes:
        try:
            answer = _ANSWER.decode(body)
            for record in answer if isinstance(answer, list) else [answer]:
                self._take(record)
            if self._inner is not None:
                body = self._inner.whole(body, now_ns)
                self._take(_RECORD.decode(body))
            fields = _FIELDS.decode(body)
        except msgspec.MsgspecError as error:
            raise ValueError(f"llama-server's answer is no completion: {error}") from error
        fields.pop("__verbose", None)
        return msgspec.json.encode({**fields, **self._figures()})

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        held = self._release(last=False)
        return held + (self._inner.fail(problem, now_ns) if self._inner is not None else render_stream_error(problem))

    def _pass_on(self, data: bytes) -> bytes:
        return b"".join([self._translate(text) for _, text in self._made.feed(data)])

    def _translate(self, text: bytes) -> bytes:
        if text == _DONE:
            return self._release(last=True) + b"data: [DONE]\n\n"
        # After the text has ended every chunk may be the last: that with the numbers of tokens tells nothing itself.
        record = self._note(text) if self._finish or _may_tell(text) else None
        if record is None:
            return self._release(last=False) + b"data: %b\n\n" % text
        if record.error is not None:
            code = record.error.get("code") if isinstance(record.error, dict) else None
            if isinstance(code, int):  # in llama-server's words still
                return self._release(last=False) + render_stream_error(read_error(code, text, "llama-server"))
            return self._release(last=False) + b"data: %b\n\n" % text
        fields = _FIELDS.decode(text)
        fields.pop("__verbose", None)
        before = self._release(last=False)
        if not self._finish:
            return before + render_event(fields)
        self._held = fields
        return before

    def _release(self, *, last: bool) -> bytes:
        """The chunk that was held back, with the figures when none comes after it."""
        held, self._held = self._held, None
        if held is None:
            return b""
        return render_event({**held, **self._figures()} if last else held)

    def _note(self, text: bytes) -> _Record | None:
        """What a record tells; `None` when it is of a shape not known here: the client may know it."""
        try:
            record = _RECORD.decode(text)
        except msgspec.MsgspecError:
            return None
        self._take(record)
        return record

    def _take(self, record: _Record) -> None:
        stop = record.verbose or record
        if stop.stop_type not in (None, "none"):
            self._stop = stop
        self._finish = next((choice.finish_reason for choice in record.choices if choice.finish_reason), self._finish)
        self._timings = record.timings or self._timings
        self._version = record.system_fingerprint or self._version

    def _figures(self) -> dict[str, Any]:
        return {
            "stats": self._stats(self._timings or _Timings()),
            "model_info": {
                "arch": self._facts.architecture,
                "quant": self._facts.quantization,
                "format": "gguf",
                "context_length": self._facts.context_tokens,
            },
            "runtime": {"name": "llama.cpp", "version": self._version, "supported_formats": ["gguf"]},
        }

    def _stats(self, timings: _Timings) -> dict[str, Any]:
        """Times in seconds."""
        stats: dict[str, Any] = {
            "tokens_per_second": timings.predicted_per_second or 0.0,
            "time_to_first_token": round((timings.prompt_ms or 0.0) / 1e3, 6),
            "generation_time": round((timings.predicted_ms or 0.0) / 1e3, 6),
            "stop_reason": self._stop_reason(),
        }
        if timings.draft_n is not None:
            stats["total_draft_tokens_count"] = timings.draft_n
            stats["accepted_draft_tokens_count"] = timings.draft_n_accepted
            stats["rejected_draft_tokens_count"] = timings.draft_n - timings.draft_n_accepted
        return stats

    def _stop_reason(self) -> str:
        if _FINISHES.get(self._finish) == "toolCalls":
            return "toolCalls"
        if self._stop.stop_type == "limit" and self._stop.truncated:
            return "contextLengthReached"
        return _STOPS.get(self._stop.stop_type or "") or _FINISHES.get(self._finish, "failed")


def _may_tell(text: bytes) -> bool:
    return any(sign in text for sign in _SIGNS)

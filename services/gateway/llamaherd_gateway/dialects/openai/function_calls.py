"""Answers for clients that still ask with `functions`: one `function_call` instead of `tool_calls`."""

from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.openai.errors import problem_in, render_stream_error
from llamaherd_gateway.dialects.openai.renaming import EVENT_STREAM, JSON
from llamaherd_gateway.dialects.sse import Events, render_event
from llamaherd_gateway.problems import Problem

_ANSWER: Final = msgspec.json.Decoder(dict[str, Any])


class FunctionCalls:
    """A `Translation` of chat completions."""

    def __init__(self, model: str, *, stream: bool) -> None:
        self.content_type = EVENT_STREAM if stream else JSON
        self._model = model
        self._events = Events()
        self._failed = False

    def feed(self, data: bytes, now_ns: int) -> bytes:
        return b"".join(self._event(event) for _, event in self._events.feed(data))

    def end(self, now_ns: int) -> bytes:
        return b""

    def whole(self, body: bytes, now_ns: int) -> bytes:
        return msgspec.json.encode(self._change(_ANSWER.decode(body), "message"))

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        return b"" if self._failed else render_stream_error(problem)

    def _event(self, event: bytes) -> bytes:
        if self._failed:
            return b""
        try:
            content = _ANSWER.decode(event)
        except msgspec.MsgspecError:
            return b"data: %b\n\n" % event  # [DONE]
        problem = problem_in(event, content)
        if problem is not None:
            self._failed = True
            return render_stream_error(problem)
        return render_event(self._change(content, "delta"))

    def _change(self, answer: dict[str, Any], part: str) -> dict[str, Any]:
        """Raises `ValueError`."""
        try:
            return self._changed(answer, part)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError("its choices are not what choices are") from error

    def _changed(self, answer: dict[str, Any], part: str) -> dict[str, Any]:
        answer["model"] = self._model
        for choice in answer.get("choices", ()):
            said = choice.get(part) or {}
            calls = said.pop("tool_calls", None)
            if calls and calls[0].get("index", 0) == 0:
                said["function_call"] = calls[0]["function"]
            if choice.get("finish_reason") == "tool_calls":
                choice["finish_reason"] = "function_call"
        return answer

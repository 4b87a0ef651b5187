"""llama-server's own answers (`/completion`, `/infill`) as OpenAI's text completions."""

from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Asked, Turn
from llamaherd_gateway.dialects.openai.errors import problem_in, render_stream_error
from llamaherd_gateway.dialects.openai.renaming import EVENT_STREAM, JSON
from llamaherd_gateway.dialects.sse import Events, render_event
from llamaherd_gateway.problems import Problem

Echo = tuple[str, ...]


class Wants(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for."""

    path: str
    """Of llama-server's: `/completion` or `/infill`."""
    prompts: int = 1
    choices: int = 1
    """For each prompt."""
    logprobs: int | None = None
    """How many alternatives to tell for each token; `None`: no probabilities at all."""
    echo: Echo | None = None
    """The prompts, which their answers begin with."""
    counted: bool = False
    """Whether a stream ends with the numbers of tokens."""


class _Alternative(msgspec.Struct):
    token: str
    logprob: float


class _Token(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list[_Alternative] = []


class _Timings(msgspec.Struct):
    cache_n: int = 0


class _Result(msgspec.Struct):
    """A whole answer, or one piece of a stream."""

    index: int = 0
    content: str = ""
    stop: bool = False
    stop_type: str = "none"
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    timings: _Timings | None = None
    completion_probabilities: list[_Token] = []
    error: Any = None


_ONE: Final = msgspec.json.Decoder(_Result | None)
_ALL: Final = msgspec.json.Decoder(list[_Result] | _Result)


class TextChoices:
    """A `Translation`."""

    def __init__(self, wants: Wants, asked: Asked, turn: Turn) -> None:
        self.content_type = EVENT_STREAM if asked.stream else JSON
        self._wants = wants
        self._head = {
            "id": f"cmpl-{turn.request_id}",
            "object": "text_completion",
            "created": turn.received_ns // 1_000_000_000,
            "model": asked.model,
        }
        self._events = Events()
        self._offsets: dict[int, int] = {}
        """Choice -> characters said, its prompt's included when that is repeated."""
        self._results: dict[int, _Result] = {}
        """The finished ones."""
        self._failed = False

    def feed(self, data: bytes, now_ns: int) -> bytes:
        return b"".join(self._event(event) for _, event in self._events.feed(data))

    def end(self, now_ns: int) -> bytes:
        if self._failed:
            return b""
        last = render_event({**self._head, "choices": [], "usage": self._usage()}) if self._wants.counted else b""
        return last + b"data: [DONE]\n\n"

    def whole(self, body: bytes, now_ns: int) -> bytes:
        answer = _ALL.decode(body)
        results = sorted(answer if isinstance(answer, list) else [answer], key=lambda result: result.index)
        choices = [self._choice(result) for result in results]
        self._results = {result.index: result for result in results}
        return msgspec.json.encode({**self._head, "choices": choices, "usage": self._usage()})

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        if self._failed:
            return b""
        self._failed = True
        return render_stream_error(problem)

    def _event(self, event: bytes) -> bytes:
        try:
            result = _ONE.decode(event)
        except msgspec.MsgspecError:
            return b""
        if result is None or self._failed:
            return b""  # llama-server says `null` between two prompts
        if result.error:
            problem = problem_in(event, {"error": result.error})
            return self.fail(problem, 0) if problem is not None else b""
        if result.stop:
            self._results[result.index] = result
        chunk = {**self._head, "choices": [self._choice(result)]}
        return render_event({**chunk, "usage": None} if self._wants.counted else chunk)

    def _choice(self, result: _Result) -> dict[str, Any]:
        text, echo = result.content, self._wants.echo
        if echo is not None and result.index not in self._offsets:
            prompt = echo[min(result.index // self._wants.choices, len(echo) - 1)]
            text = prompt + text
        reason = None
        if result.stop:
            reason = "length" if result.stop_type == "limit" else "stop"
        said = self._offsets.get(result.index, 0)
        self._offsets[result.index] = said + len(text)
        return {
            "text": text,
            "index": result.index,
            "logprobs": self._logprobs(result.completion_probabilities, said),
            "finish_reason": reason,
        }

    def _logprobs(self, tokens: list[_Token], offset: int) -> dict[str, Any] | None:
        wanted = self._wants.logprobs
        if wanted is None or not tokens:
            return None
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.token)
        tops = [{top.token: top.logprob for top in token.top_logprobs[:wanted]} for token in tokens]
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": tops if wanted else None,
            "text_offset": offsets,
        }

    def _usage(self) -> dict[str, Any]:
        """Of all prompts and all their answers; a prompt with several answers is read once."""
        first = [result for index, result in self._results.items() if index % self._wants.choices == 0]
        prompt = sum(result.tokens_evaluated for result in first)
        completion = sum(result.tokens_predicted for result in self._results.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": sum(result.timings.cache_n for result in first if result.timings is not None)
            },
        }

"""llama-server's chat completion as a response of the Responses API: a stream of events, or the whole at once.

A plain answer is taken like a stream of one chunk, so both always say the same. At any time at most one item
(thoughts, a message, a call) is open, the last one; what belongs to another kind closes it and opens the next.
"""

from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Asked, Turn
from llamaherd_gateway.dialects.openai.errors import problem_in
from llamaherd_gateway.dialects.openai.renaming import EVENT_STREAM, JSON
from llamaherd_gateway.dialects.openai.response_frame import render_frame, render_response, usage_of
from llamaherd_gateway.dialects.openai.response_items import Call, Item, Message, Reasoning
from llamaherd_gateway.dialects.sse import Events, render_event
from llamaherd_gateway.problems import Problem
from llamaherd_shared.events.turn import TurnKept


class Wanted(msgspec.Struct, frozen=True):
    """Of a request, what its answer has to know."""

    input: list[dict[str, Any]]
    """Items, as they came."""
    echoed: dict[str, Any]
    """What the answer repeats (`response_frame.echo`)."""
    previous: str
    """The response that it goes on from; empty: none."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Said(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] = []


class _Likely(msgspec.Struct):
    """A token, without llama-server's number for it."""

    token: Any = None
    logprob: Any = None
    bytes: Any = None


class _Logprob(_Likely):
    top_logprobs: list[_Likely] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Logprob] | None = None


class _Choice(msgspec.Struct):
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    """Of a stream, or a plain answer."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_DECODER: Final = msgspec.json.Decoder(_Chunk)


class Response:
    """A `Translation` and a `Keeper`."""

    def __init__(self, asked: Asked, turn: Turn) -> None:
        self.content_type = EVENT_STREAM if asked.stream else JSON
        self._id = turn.request_id
        wanted: Wanted = asked.content
        self._store = asked.keep
        self._kept = TurnKept(
            response=f"resp_{turn.request_id}",
            at_ns=0,
            asked_ns=turn.received_ns,
            model=asked.model,
            previous=wanted.previous,
            input=wanted.input,
            output=[],
            usage={},
            echoed=wanted.echoed,
        )
        """Still without what is answered."""
        self._events = Events()
        self._items: list[Item] = []
        self._open: Item | None = None
        self._reason: str | None = None
        """`finish_reason`, once it is known."""
        self._usage: _Usage | None = None
        self._number = 0
        """Events made so far."""
        self._untold: list[bytes] = []
        """Events that close the last item, while the answer is being kept."""
        self._ended = False

    def feed(self, data: bytes, now_ns: int) -> bytes:
        out: list[bytes] = []
        for _, event in self._events.feed(data):
            if self._ended:
                break
            try:
                chunk = _DECODER.decode(event)
            except msgspec.MsgspecError:
                continue  # [DONE]: `end` tells the rest
            if chunk.error:
                problem = problem_in(event, {"error": chunk.error})
                out.append(self.fail(problem, now_ns) if problem is not None else b"")
            else:
                self._take(chunk, out)
        return b"".join(out)

    def end(self, now_ns: int) -> bytes:
        if self._ended:
            return b""
        if self._reason is None:
            return self.fail(Problem(status=502, message="llama-server's answer ended too early"), now_ns)
        out = self._untold
        self._finish(out)
        response = self._response(now_ns)
        self._tell(out, f"response.{response['status']}", response=response)
        self._ended = True
        return b"".join(out)

    def whole(self, body: bytes, now_ns: int) -> bytes:
        if not self._number:
            self._read(body)
        return msgspec.json.encode(self._response(now_ns))

    def turn(self, body: bytes, now_ns: int) -> TurnKept | None:
        if self.content_type is JSON:
            self._read(body)
        elif self._ended or self._reason is None:
            return None
        self._finish(self._untold)
        return self._complete(now_ns)

    def not_kept(self) -> None:
        self._store = False

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        if self._ended:
            return b""
        out = self._untold
        self._begin(out)
        self._ended = True
        self._tell(out, "error", code=problem.code, message=problem.message, param=problem.param)
        error = {"code": "server_error", "message": problem.message}
        items = [item.render("incomplete" if item is self._open else "completed") for item in self._items]
        response = {**self._frame(), "status": "failed", "error": error, "incomplete_details": None, "output": items}
        self._tell(out, "response.failed", response={**response, "usage": None, "store": False})
        return b"".join(out)

    def _read(self, body: bytes) -> None:
        """A plain answer. Raises `ValueError`."""
        answer = _DECODER.decode(body)
        if not answer.choices or answer.choices[0].message is None:
            raise ValueError("it has no message")
        for number, call in enumerate(answer.choices[0].message.tool_calls):
            call.index = number  # told only in streams
        out: list[bytes] = []
        self._take(answer, out)
        self._finish(out)

    def _take(self, chunk: _Chunk, out: list[bytes]) -> None:
        self._begin(out)
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices[:1]:
            said = choice.delta or choice.message or _Said()
            if said.reasoning_content:
                self._say(Reasoning, said.reasoning_content, out)
            if said.content:
                logprobs = choice.logprobs.content if choice.logprobs is not None else None
                self._say(Message, said.content, out, [self._logprob(token) for token in logprobs or ()])
            for call in said.tool_calls:
                self._call(call, out)
            self._reason = choice.finish_reason or self._reason

    def _begin(self, out: list[bytes]) -> None:
        if not self._number:
            response = {**self._frame(), "status": "in_progress", "error": None, "incomplete_details": None}
            response |= {"output": [], "usage": None}
            self._tell(out, "response.created", response=response)
            self._tell(out, "response.in_progress", response=response)

    def _say(
        self, kind: type[Reasoning] | type[Message], text: str, out: list[bytes], logprobs: list[Any] | None = None
    ) -> None:
        item = self._open
        if not isinstance(item, kind):
            item = self._add(kind(f"{kind.prefix}_{self._id}{len(self._items)}"), out)
        for name, fields in item.take(text, logprobs or []):
            self._tell(out, name, **self._place(item), **fields)

    def _call(self, call: _ToolCall, out: list[bytes]) -> None:
        item = self._open
        if not isinstance(item, Call) or item.index != call.index:
            number = f"{self._id}{len(self._items)}"
            call_id = call.id or number
            item = Call(f"fc_{number}", call.index, call_id, call.function.name or "")
            self._add(item, out)
        if call.function.arguments:
            for name, fields in item.take(call.function.arguments, []):
                self._tell(out, name, **self._place(item), **fields)

    def _add(self, item: Item, out: list[bytes]) -> Any:
        self._close("completed", out)
        self._open = item
        self._items.append(item)
        place = {"output_index": len(self._items) - 1}
        self._tell(out, "response.output_item.added", **place, item=item.render("in_progress"))
        for name, fields in item.begin():
            self._tell(out, name, **self._place(item), **fields)
        return item

    def _close(self, status: str, out: list[bytes]) -> None:
        item, self._open = self._open, None
        if item is not None:
            for name, fields in item.finish():
                self._tell(out, name, **self._place(item), **fields)
            place = {"output_index": len(self._items) - 1}
            item.status = status
            self._tell(out, "response.output_item.done", **place, item=item.render(status))

    def _finish(self, out: list[bytes]) -> None:
        if not self._items:
            # Clients look for a text, though it is empty.
            self._add(Message(f"msg_{self._id}0"), out)
        self._close("incomplete" if self._reason == "length" else "completed", out)

    def _frame(self) -> dict[str, Any]:
        return render_frame(self._kept, store=self._store)

    def _response(self, now_ns: int) -> dict[str, Any]:
        return render_response(self._complete(now_ns), store=self._store)

    def _complete(self, now_ns: int) -> TurnKept:
        """Once every item is closed."""
        usage = self._usage or _Usage()
        details = usage.prompt_tokens_details or _Details()
        return msgspec.structs.replace(
            self._kept,
            at_ns=now_ns,
            output=[item.render(item.status) for item in self._items],
            cut=self._reason == "length",
            usage=usage_of(usage.prompt_tokens, usage.completion_tokens, cached_tokens=details.cached_tokens),
        )

    def _logprob(self, token: _Logprob) -> dict[str, Any]:
        tops = (token.top_logprobs or [])[: self._kept.echoed["top_logprobs"]]
        return {**_told(token), "top_logprobs": [_told(top) for top in tops]}

    def _place(self, item: Item) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": len(self._items) - 1}

    def _tell(self, out: list[bytes], event: str, /, **fields: Any) -> None:
        out.append(render_event({"type": event, "sequence_number": self._number, **fields}, event))
        self._number += 1


def _told(token: _Likely) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes}

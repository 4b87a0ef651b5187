"""`POST /api/v1/chat`: what LM Studio's clients ask, as llama-server's chat completion (api-dialects, 6.2)."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from llamaherd_gateway.bodies import decode_body, model_of
from llamaherd_gateway.dialects.dialect import Asked, Call, Facts, Header, Memory, Turn
from llamaherd_gateway.dialects.lmstudio.chat_answer import ChatAnswer
from llamaherd_gateway.dialects.lmstudio.fields import refuse_unknown_fields
from llamaherd_gateway.dialects.openai.kept_responses import SETTING, items_of, previous_missing
from llamaherd_gateway.dialects.openai.response_input import messages_of
from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.events.turn import TurnKept
from llamaherd_shared.model_options import LoadOptions

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Effort = Literal["off", "low", "medium", "high", "on"]

EFFORT_ARCHITECTURES: Final = frozenset({"gpt-oss"})
"""Their templates know how much to think, and always do think."""

_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty")
"""llama-server has the same names."""


class Item(msgspec.Struct, frozen=True):
    """One part of `input`. The reference says `message`, its own example `text`: both mean text."""

    type: Literal["message", "text", "image"]
    content: str | None = None
    data_url: str | None = None


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body; `null` is the same as nothing."""

    model: Any = None
    input: str | list[Item] | None = None
    system_prompt: str | None = None
    integrations: list[Any] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    max_output_tokens: AtLeastOne | None = None
    reasoning: Effort | None = None
    context_length: AtLeastOne | None = None
    """That the model is loaded with, at least."""
    store: bool | None = None
    previous_response_id: str | None = None


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What the model is asked."""

    request: ChatRequest
    said: dict[str, Any]
    """An item of OpenAI's Responses API."""
    messages: list[dict[str, Any]]
    """The whole conversation."""


_DECODER: Final = msgspec.json.Decoder(ChatRequest)


def read_chat(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """Raises `BadRequest`."""
    refuse_unknown_fields(body, ChatRequest)
    request = decode_body(_DECODER, body)
    model = model_of(request.model)
    if request.integrations:
        text = "`integrations` are not implemented: this server calls no tools; leave the field out"
        raise BadRequest(text, status=501, code="not_implemented", param="integrations")
    said = {"type": "message", "role": "user", "content": _content(request.input)}
    asked = Asked(
        model=model,
        stream=request.stream is True,
        load=None if request.context_length is None else LoadOptions(context_tokens=request.context_length),
        keep=request.store is not False,
        previous=request.previous_response_id or "",
        content=Question(request=request, said=said, messages=[]),
    )
    return resume(asked, ())


def resume(asked: Asked, turns: Sequence[TurnKept]) -> Asked:
    """The last system prompt that was given counts, and stands at the beginning: templates take one, and only there."""
    question: Question = asked.content
    system = question.request.system_prompt or next((turn.system for turn in reversed(turns) if turn.system), None)
    messages = messages_of([*items_of(turns), question.said], system)
    content = msgspec.structs.replace(question, messages=messages)
    return msgspec.structs.replace(asked, content=content, text=msgspec.json.encode(messages))


def off() -> BadRequest:
    text = f"`previous_response_id` is not implemented: this server keeps no transcripts ({SETTING}); "
    text += "send the whole conversation to /v1/chat/completions instead"
    return BadRequest(text, status=501, code="not_implemented", param="previous_response_id")


MEMORY: Final = Memory(resume=resume, missing=previous_missing, off=off)


def call_chat(asked: Asked, facts: Facts, turn: Turn) -> Call:
    """Raises `BadRequest` for a reasoning setting that the model does not have."""
    question: Question = asked.content
    request = question.request
    body: dict[str, Any] = {
        "model": facts.model,
        "messages": question.messages,
        "stream": asked.stream,
        **{name: value for name in _SAMPLING if (value := getattr(request, name)) is not None},
        **_reasoning(request.reasoning, facts),
    }
    if request.max_output_tokens is not None:
        body["max_tokens"] = request.max_output_tokens
    if asked.stream:
        body["return_progress"] = True
        # Says with every token how many there are: the only way to know how many went into reasoning.
        body["timings_per_token"] = "thinking" in facts.capabilities
    answer = ChatAnswer(facts.model, turn, stream=asked.stream, kept=_kept(asked, turn))
    return Call(
        path="/v1/chat/completions",
        body=msgspec.json.encode(body),
        translation=answer,
        keeper=answer if asked.keep else None,
    )


def _kept(asked: Asked, turn: Turn) -> TurnKept | None:
    """This turn, still without what is answered; `None`: it is not to be kept."""
    question: Question = asked.content
    if not asked.keep:
        return None
    return TurnKept(
        response=f"resp_{turn.request_id}",
        at_ns=0,
        asked_ns=turn.received_ns,
        model=asked.model,
        previous=question.request.previous_response_id or "",
        input=[question.said],
        output=[],
        system=question.request.system_prompt or "",
        usage={},
    )


def reasoning_options(architecture: str, capabilities: frozenset[str]) -> tuple[str, ...]:
    """Settings of `reasoning` that change something; none for a model that does not think."""
    if "thinking" not in capabilities:
        return ()
    return ("low", "medium", "high") if architecture in EFFORT_ARCHITECTURES else ("off", "on")


def _reasoning(effort: Effort | None, facts: Facts) -> dict[str, Any]:
    """llama-server's fields. Refused is what would silently do the opposite of what was asked.

    A level is passed to every model that thinks: which templates know levels is not known.
    """
    if effort is None:
        return {}
    options = reasoning_options(facts.architecture, facts.capabilities)
    if not options and effort != "off":
        text = f"the model {facts.model} does not reason: leave `reasoning` out"
        raise BadRequest(text, code="unsupported_reasoning", param="reasoning")
    if effort == "off" and facts.architecture in EFFORT_ARCHITECTURES:
        text = f"the model {facts.model} cannot reason less than `low`: `reasoning` may be {', '.join(options)}"
        raise BadRequest(text, code="unsupported_reasoning", param="reasoning")
    fields: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": effort != "off"}}
    if effort not in ("off", "on"):
        fields["reasoning_effort"] = effort
    return fields


def _content(given: str | list[Item] | None) -> str | list[dict[str, Any]]:
    """`content` of the user's message, in OpenAI's parts. Raises `BadRequest`."""
    if given is None:
        raise BadRequest("`input` is required", code="missing_required_parameter", param="input")
    if isinstance(given, str):
        return given
    if not given:
        raise BadRequest("`input` is an empty list", code="invalid_input", param="input")
    return [_part(place, item) for place, item in enumerate(given)]


def _part(place: int, item: Item) -> dict[str, Any]:
    if item.type != "image":
        if item.content is None:
            raise _missing(place, "content")
        return {"type": "input_text", "text": item.content}
    if item.data_url is None:
        raise _missing(place, "data_url")
    # llama-server would fetch any other address itself, from wherever it stands.
    if not item.data_url.startswith("data:"):
        text = f"`input[{place}].data_url` must be a data URL with base64: data:image/png;base64,..."
        raise BadRequest(text, code="invalid_input", param="input")
    return {"type": "input_image", "image_url": item.data_url}


def _missing(place: int, field: str) -> BadRequest:
    return BadRequest(f"`input[{place}].{field}` is required", code="missing_required_parameter", param="input")

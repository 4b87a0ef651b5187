"""Reading /api/chat and /api/generate (reference: api-dialects, 5.2, 5.3, 5.6)."""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from llamaherd_gateway.bodies import decode_body
from llamaherd_gateway.dialects.dialect import Asked, Header
from llamaherd_gateway.dialects.ollama.durations import read_keep_alive
from llamaherd_gateway.dialects.ollama.media import check_base64
from llamaherd_gateway.dialects.ollama.memory import Said, read_context
from llamaherd_gateway.dialects.ollama.messages import Message, render_messages
from llamaherd_gateway.dialects.ollama.names import quoted, read_name
from llamaherd_gateway.dialects.ollama.options import Options, load_options, read_options
from llamaherd_gateway.problems import BadRequest

TOP_LOGPROBS_MAX: Final = 20
LEVELS: Final = ("high", "medium", "low", "max")
"""Of `think`."""
_NOTHING: Final = msgspec.Raw(b"null")

T = TypeVar("T")


class _Body(msgspec.Struct):
    """What chat and generate have in common."""

    model: str | None = None
    stream: bool | None = None
    format: msgspec.Raw = msgspec.field(default_factory=lambda: _NOTHING)
    options: dict[str, Any] | None = None
    keep_alive: Any = None
    think: Any = None
    truncate: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    debug_render_only: bool | None = msgspec.field(default=None, name="_debug_render_only")


class ChatBody(_Body):
    messages: list[Message] | None = None
    tools: list[msgspec.Raw] | None = None


class GenerateBody(_Body):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None


_CHAT: Final = msgspec.json.Decoder(ChatBody)
_GENERATE: Final = msgspec.json.Decoder(GenerateBody)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What every kind of answer depends on."""

    model: str
    """As the client typed it: the answer repeats it."""
    chat: bool
    """Whether /api/chat was asked, or else /api/generate."""
    stream: bool
    options: Options
    schema: msgspec.Raw | None = None
    """JSON schema that the answer must follow; an empty one: any JSON object."""
    think: bool | str | None = None
    """Or one of `LEVELS`; `None`: nothing was said."""
    logprobs: bool = False
    top_logprobs: int = 0


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """Messages to be answered, whichever route they came by."""

    wanted: Wanted
    messages: tuple[dict[str, Any], ...]
    """As llama-server's chat route wants them."""
    tools: tuple[msgspec.Raw, ...] = ()
    truncate: bool = True
    """Whether old messages may be left out when the context is too short."""
    render_only: bool = False
    """Only the prompt is asked for."""


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A text to be continued as it is, or with a suffix: to be filled."""

    wanted: Wanted
    prompt: str
    suffix: str = ""
    images: tuple[str, ...] = ()
    marker: str = ""
    """What stands for an image in the prompt; llama-server makes up another one at every start."""


def read_chat(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """POST /api/chat. Raises `BadRequest`."""
    read = read_body(_CHAT, body)
    _check_top_logprobs(read)
    if not read.model:
        raise BadRequest("model is required", param="model", code="missing_model")
    wanted = _read_wanted(read, chat=True)
    conversation = Conversation(
        wanted=wanted,
        messages=tuple(render_messages(read.messages or ())),
        tools=tuple(read.tools or ()),
        truncate=read.truncate is not False,
        render_only=read.debug_render_only is True,
    )
    return _asked(read, conversation, empty=not read.messages)


def read_generate(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """POST /api/generate. Raises `BadRequest`."""
    read = read_body(_GENERATE, body)
    _check_top_logprobs(read)
    if not read.model:
        raise no_model("")
    if read.raw and (read.template or read.system or read.context):
        raise BadRequest("raw mode does not support template, system, or context")
    if read.template:
        text = "`template` is not supported: a model's own chat template is used; send the prompt with `raw` instead"
        raise BadRequest(text, param="template", code="unsupported")
    if read.width or read.height or read.steps:
        raise BadRequest("image generation models are not currently supported", code="unsupported")
    wanted = _read_wanted(read, chat=False)
    content: Conversation | Text
    if read.raw or read.suffix:
        images = tuple(check_base64(image) for image in read.images or ())
        content = Text(wanted=wanted, prompt=read.prompt or "", suffix=read.suffix or "", images=images)
    else:
        content = Conversation(
            wanted=wanted,
            messages=tuple(render_messages(_messages_of(read))),
            truncate=read.truncate is not False,
            render_only=read.debug_render_only is True,
        )
    return _asked(read, content, empty=not read.prompt)


def read_body(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """Raises `BadRequest`."""
    if not body.strip():
        raise BadRequest("missing request body", code="invalid_json")
    return decode_body(decoder, body)


def no_model(name: str) -> BadRequest:
    """What /api/generate and /api/embed say to an empty name; other routes say that one is required."""
    return BadRequest(f"model '{name}' not found", status=404, param="model", code="model_not_found")


def _asked(read: _Body, content: Conversation | Text, *, empty: bool) -> Asked:
    keep_alive_s = read_keep_alive(read.keep_alive)
    return Asked(
        model=read_name(read.model or ""),
        stream=content.wanted.stream,
        action="call" if not empty else "unload" if keep_alive_s == 0 else "load",
        keep_alive_s=keep_alive_s,
        load=load_options(read.options),
        content=content,
    )


def _messages_of(read: GenerateBody) -> list[Message]:
    before = read_context(read.context or ())
    if read.system:
        # Templates want the system message first, and once.
        before = [Said("system", read.system), *(turn for turn in before if turn.role != "system")]
    messages = [Message(role=turn.role, content=turn.content) for turn in before]
    return [*messages, Message(role="user", content=read.prompt, images=read.images)]


def _read_wanted(read: _Body, *, chat: bool) -> Wanted:
    return Wanted(
        model=read.model or "",
        chat=chat,
        stream=read.stream is not False and not read.debug_render_only,
        options=read_options(read.options),
        schema=_read_format(read.format),
        think=_read_think(read.think),
        logprobs=read.logprobs is True,
        top_logprobs=read.top_logprobs or 0,
    )


def _read_format(value: msgspec.Raw) -> msgspec.Raw | None:
    text = bytes(value).strip()
    if text in (b"null", b'""'):
        return None
    if text == b'"json"':
        return msgspec.Raw(b"{}")
    if not text.startswith(b"{"):
        said = f'invalid format: {quoted(text.decode())}; expected "json" or a valid JSON Schema object'
        raise BadRequest(said, param="format", code="invalid_format")
    return value


def _read_think(value: Any) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value
    among = '"high", "medium", "low", "max", true, or false'
    if not isinstance(value, str):
        raise BadRequest(f"think must be a boolean or string ({among})", param="think", code="invalid_think")
    if value not in LEVELS:
        said = f"invalid think value: {quoted(value)} (must be {among})"
        raise BadRequest(said, param="think", code="invalid_think")
    return value


def _check_top_logprobs(read: _Body) -> None:
    if not 0 <= (read.top_logprobs or 0) <= TOP_LOGPROBS_MAX:
        raise BadRequest(f"top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}", param="top_logprobs")

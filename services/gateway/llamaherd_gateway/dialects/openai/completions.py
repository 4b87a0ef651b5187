"""`POST /v1/completions`: one plain prompt is passed through, the rest is asked of llama-server's own routes.

Its `/v1/completions` ignores `suffix` and `echo`, counts tokens of the first prompt only, and puts `logprobs` as chat
does; `/infill` and `/completion` say all that is needed to answer as OpenAI did.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llamaherd_gateway.bodies import decode_body, model_of
from llamaherd_gateway.dialects.dialect import EVENTS, JSON, Asked, Call, Facts, Header, Route, Translation, Turn
from llamaherd_gateway.dialects.openai.errors import OPENAI
from llamaherd_gateway.dialects.openai.fields import (
    change_fields,
    check_choices,
    clean_stop,
    holds_empty_stop,
    is_whole_number,
)
from llamaherd_gateway.dialects.openai.renaming import Renamed
from llamaherd_gateway.dialects.openai.text_choices import Echo, TextChoices, Wants
from llamaherd_gateway.problems import BadRequest

PATH: Final = "/v1/completions"


class CompletionBody(msgspec.Struct):
    model: Any = None
    prompt: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    stream: Any = None
    stream_options: Any = None
    stop: Any = None
    n: Any = None
    best_of: Any = None
    logprobs: Any = None
    echo: Any = None
    suffix: Any = None


_DECODER: Final = msgspec.json.Decoder(CompletionBody)
_ANYTHING: Final = msgspec.json.Decoder(Any)


def read_completion(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """Raises `BadRequest`."""
    read = decode_body(_DECODER, body)
    model = model_of(read.model)
    prompts = _prompts_of(read.prompt)
    _check(read)
    changes: dict[str, Any] = {}
    if holds_empty_stop(read.stop):
        changes["stop"] = clean_stop(read.stop)
    wants = None
    if read.suffix or read.echo or read.logprobs is not None or read.n not in (None, 1) or len(prompts) > 1:
        wants = Wants(
            path="/infill" if read.suffix else "/completion",
            prompts=len(prompts),
            choices=read.n or 1,
            logprobs=read.logprobs,
            echo=_echo(prompts) if read.echo else None,
            counted=isinstance(read.stream_options, dict) and read.stream_options.get("include_usage") is True,
        )
        changes |= _native(read, prompts)
    body = change_fields(body, changes) if changes else body
    return Asked(model=model, stream=read.stream is True, body=body, content=wants)


def call_completion(asked: Asked, facts: Facts, turn: Turn) -> Call:
    """Raises `BadRequest` when the model cannot insert, or has fewer slots than choices."""
    wants: Wants | None = asked.content
    translation: Translation | None = None
    if wants is None:
        if asked.model != facts.model:
            translation = Renamed(facts.model, asked.model, stream=asked.stream)
        return Call(path=PATH, body=asked.body, translation=translation)
    check_choices(wants.choices, facts)
    if wants.path == "/infill" and "insert" not in facts.capabilities:
        text = f"{facts.model} cannot insert text before a `suffix`: it was not trained to (no FIM tokens)"
        raise BadRequest(text, param="suffix", code="unsupported_parameter")
    return Call(path=wants.path, body=asked.body, translation=TextChoices(wants, asked, turn))


def _prompts_of(raw: msgspec.Raw) -> list[Any]:
    """What each answer goes on from. Raises `BadRequest` when there is nothing."""
    first = bytes(memoryview(raw)[:1])
    if first == b'"':
        return [raw]
    prompt = decode_body(_ANYTHING, bytes(raw)) if first else None
    if not prompt:
        raise BadRequest("`prompt` must be a text, tokens, or a list of those, and not empty", param="prompt")
    if isinstance(prompt, list) and not any(isinstance(part, int) for part in prompt):
        return prompt
    return [prompt]


def _check(read: CompletionBody) -> None:
    if read.echo and read.logprobs is not None:
        text = "`echo` together with `logprobs` is not supported: llama-server does not tell a prompt's probabilities"
        raise BadRequest(text, param="echo", code="unsupported_parameter")
    if read.echo and read.suffix:
        raise BadRequest("`echo` together with `suffix` is not supported", param="echo", code="unsupported_parameter")
    if read.best_of is not None and read.best_of != (read.n or 1):
        text = "`best_of` other than `n` is not supported: every answer that is generated is returned"
        raise BadRequest(text, param="best_of", code="unsupported_parameter")
    if read.suffix is not None and not isinstance(read.suffix, str):
        raise BadRequest("`suffix` must be a text", param="suffix", code="invalid_type")
    if read.n is not None and not (is_whole_number(read.n) and read.n >= 1):
        raise BadRequest("`n` must be a whole number from 1", param="n", code="invalid_value")
    if read.logprobs is not None and not (is_whole_number(read.logprobs) and read.logprobs >= 0):
        raise BadRequest("`logprobs` must be a whole number from 0", param="logprobs", code="invalid_value")


def _native(read: CompletionBody, prompts: list[Any]) -> dict[str, Any]:
    """What `/completion` and `/infill` call it."""
    changes: dict[str, Any] = {"suffix": None, "echo": None, "best_of": None, "logprobs": None, "stream_options": None}
    if read.logprobs is not None:
        changes["n_probs"] = max(read.logprobs, 1)
    if read.suffix:
        text = _text(prompts[0])
        if len(prompts) > 1 or text is None:
            raise BadRequest("`suffix` needs one `prompt`, as text", param="suffix", code="invalid_value")
        changes |= {"prompt": None, "input_prefix": text, "input_suffix": read.suffix}
    return changes


def _echo(prompts: list[Any]) -> Echo:
    texts = [_text(prompt) for prompt in prompts]
    known = [text for text in texts if text is not None]
    if len(known) < len(texts):
        raise BadRequest("`echo` needs its `prompt` as text, not as tokens", param="echo", code="invalid_value")
    return tuple(known)


def _text(prompt: Any) -> str | None:
    value = decode_body(_ANYTHING, bytes(prompt)) if isinstance(prompt, msgspec.Raw) else prompt
    return value if isinstance(value, str) else None


ROUTES: Final = (
    Route(
        path=PATH,
        dialect=OPENAI,
        read=read_completion,
        call=call_completion,
        shape=CompletionBody,
        needs=("model", "prompt"),
        gives=(JSON, EVENTS),
        about="A text goes on; with `suffix`, the text before it",
        example='{"model": "cria", "prompt": "Once upon a time", "max_tokens": 16}',
    ),
)

"""/api/embed and /api/embeddings (reference: api-dialects, 5.7)."""

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Ask, Asked, Call, Facts, Header, Turn
from llamaherd_gateway.dialects.ollama.answer import JSON
from llamaherd_gateway.dialects.ollama.durations import read_keep_alive
from llamaherd_gateway.dialects.ollama.error import TOO_LONG, render_problem
from llamaherd_gateway.dialects.ollama.names import read_name
from llamaherd_gateway.dialects.ollama.options import load_options, read_options
from llamaherd_gateway.dialects.ollama.request import no_model, read_body
from llamaherd_gateway.problems import BadRequest, Problem

_SPECIAL_TOKENS: Final = 8
"""More than any tokenizer puts around a text."""
_CUTS: Final = 3
"""How often a text is cut: what is left may become more tokens than it was, by a few."""
_NEVER_NORMALIZED: Final = frozenset(("nomic-bert", "nomic-bert-moe"))
"""Architectures whose vectors /api/embeddings gives as the model made them; /api/embed normalises all."""


class _Body(msgspec.Struct):
    model: str | None = None
    keep_alive: Any = None
    options: dict[str, Any] | None = None


class EmbedBody(_Body):
    input: Any = None
    truncate: bool | None = None
    dimensions: int | None = None


class EmbeddingsBody(_Body):
    prompt: str | None = None


_EMBED: Final = msgspec.json.Decoder(EmbedBody)
_EMBEDDINGS: Final = msgspec.json.Decoder(EmbeddingsBody)


class Texts(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be embedded."""

    model: str
    """As the client typed it."""
    texts: tuple[str, ...]
    many: bool
    """Whether /api/embed was asked, or else /api/embeddings, which has one text and a shorter answer."""
    truncate: bool = True
    dimensions: int = 0
    """0: as many as the model has."""


def read_embed(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """POST /api/embed. Raises `BadRequest`."""
    read = read_body(_EMBED, body)
    if not read.model:
        raise no_model("")
    texts = Texts(
        model=read.model,
        texts=_read_input(read.input),
        many=True,
        truncate=read.truncate is not False,
        dimensions=max(read.dimensions or 0, 0),
    )
    return _asked(read, texts)


def read_embeddings(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """POST /api/embeddings. Raises `BadRequest`."""
    read = read_body(_EMBEDDINGS, body)
    if not read.model:
        raise BadRequest("model is required", param="model", code="missing_model")
    return _asked(read, Texts(model=read.model, texts=(read.prompt,) if read.prompt else (), many=False))


async def prepare(asked: Asked, facts: Facts, ask: Ask) -> Asked:
    """Cuts texts that are too long, or refuses them when that was not wanted. Asks nothing about short ones."""
    content: Texts = asked.content
    # Models that take a text in pieces need one token of the context for themselves.
    limits = [limit for limit in (facts.context_tokens - 1, facts.batch_tokens) if limit > 0]
    if not limits:
        return asked
    texts = tuple([await _fit(text, min(limits), ask, truncate=content.truncate) for text in content.texts])
    return msgspec.structs.replace(asked, content=msgspec.structs.replace(content, texts=texts))


def call(asked: Asked, facts: Facts, turn: Turn) -> Call:
    content: Texts = asked.content
    body: dict[str, Any] = {"model": facts.model, "input": content.texts}
    if not content.many and facts.architecture in _NEVER_NORMALIZED:
        body["embd_normalize"] = -1
    return Call(path="/v1/embeddings", body=msgspec.json.encode(body), translation=Vectors(content, turn))


def settle(asked: Asked, turn: Turn) -> bytes:
    """Without a text the model was only loaded or unloaded."""
    content: Texts = asked.content
    return msgspec.json.encode({"model": content.model, "embeddings": []} if content.many else {"embedding": []})


class _Vector(msgspec.Struct):
    embedding: msgspec.Raw
    index: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage = msgspec.field(default_factory=_Usage)


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_NUMBERS: Final = msgspec.json.Decoder(list[float])


class Vectors:
    """A `Translation` of embeddings; they are never streamed."""

    content_type = JSON

    def __init__(self, wanted: Texts, turn: Turn) -> None:
        self._wanted, self._turn = wanted, turn

    def feed(self, data: bytes, now_ns: int) -> bytes:
        return b""

    def end(self, now_ns: int) -> bytes:
        return b""

    def whole(self, body: bytes, now_ns: int) -> bytes:
        answer = _ANSWER.decode(body)
        vectors = [_shape(vector.embedding, self._wanted.dimensions) for vector in _in_order(answer.data)]
        if not self._wanted.many:
            if len(vectors) != 1:
                raise ValueError(f"llama-server gave {len(vectors)} vectors for one text")
            return msgspec.json.encode({"embedding": vectors[0]})
        return msgspec.json.encode(
            {
                "model": self._wanted.model,
                "embeddings": vectors,
                "total_duration": max(now_ns - self._turn.received_ns, 0),
                "load_duration": max(self._turn.load_ns, 1),
                "prompt_eval_count": answer.usage.prompt_tokens,
            }
        )

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        return render_problem(problem, self._turn.request_id)


def _asked(read: _Body, texts: Texts) -> Asked:
    read_options(read.options)
    keep_alive_s = read_keep_alive(read.keep_alive)
    return Asked(
        model=read_name(texts.model),
        action="call" if texts.texts else "unload" if keep_alive_s == 0 else "load",
        keep_alive_s=keep_alive_s,
        load=load_options(read.options),
        content=texts,
    )


def _read_input(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,) if value else ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadRequest("invalid input type", param="input", code="invalid_type")
    return tuple(value)


async def _fit(text: str, limit: int, ask: Ask, *, truncate: bool) -> str:
    """The text, or as much of its beginning as fits into `limit` tokens."""
    if len(text.encode()) + _SPECIAL_TOKENS <= limit:  # no token is shorter than a byte
        return text
    for _ in range(_CUTS):
        excess = len(await _tokenize(text, ask, special=True)) - limit
        if excess <= 0:
            break
        if not truncate:
            raise BadRequest(TOO_LONG, param="input", code="context_length_exceeded")
        tokens = await _tokenize(text, ask, special=False)
        text = str((await ask("/detokenize", {"tokens": tokens[: max(len(tokens) - excess, 0)]}))["content"])
    return text


async def _tokenize(text: str, ask: Ask, *, special: bool) -> list[int]:
    tokens: list[int] = (await ask("/tokenize", {"content": text, "add_special": special}))["tokens"]
    return tokens


def _in_order(vectors: list[_Vector]) -> list[_Vector]:
    return sorted(vectors, key=lambda vector: vector.index)


def _shape(vector: msgspec.Raw, dimensions: int) -> Any:
    """The first `dimensions` numbers, of length 1 again; llama-server knows nothing of dimensions."""
    if not dimensions:
        return vector  # numbers are not read only to be written again
    numbers = _NUMBERS.decode(vector)
    if dimensions >= len(numbers):
        return vector
    numbers = numbers[:dimensions]
    length = max(math.sqrt(sum(number * number for number in numbers)), 1e-12)
    return [number / length for number in numbers]

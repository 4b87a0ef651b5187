"""Bodies of /api/pull, create, copy and delete, and the records they answer with (reference: api-dialects, 5.9).

What is done with them is not decided here.
"""

from typing import Any, Final, Literal

import msgspec

from llamaherd_gateway.dialects.ollama.names import INVALID, quoted, read_name
from llamaherd_gateway.dialects.ollama.options import read_options
from llamaherd_gateway.dialects.ollama.request import read_body
from llamaherd_gateway.problems import BadRequest

PULLING_MANIFEST: Final = "pulling manifest"
VERIFYING: Final = "verifying sha256 digest"
WRITING_MANIFEST: Final = "writing manifest"
REMOVING_UNUSED: Final = "removing unused layers"
PARSING: Final = "parsing GGUF"
SUCCESS: Final = "success"
"""The last record of a stream that went well. Statuses of a pull in their order, and `PARSING` of a creation."""

_SHOWN_DIGITS: Final = 12


class Pull(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    stream: bool = True


class Create(msgspec.Struct, frozen=True, kw_only=True):
    """A model made of another, or of files that were sent before."""

    model: str
    source: str = ""
    """`from`: the name of another model."""
    files: dict[str, str] = {}
    """File name -> digest of a blob (`sha256:...`)."""
    adapters: dict[str, str] = {}
    """The same for LoRA adapters."""
    system: str = ""
    template: str = ""
    license: list[str] = []
    parameters: dict[str, Any] = {}
    """Options by their names in Ollama."""
    messages: list[dict[str, str]] = []
    """`role` and `content`"""
    quantize: str = ""
    stream: bool = True


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    destination: str


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    model: str


class PullBody(msgspec.Struct):
    model: str | None = None
    name: str | None = None
    stream: bool | None = None


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class CreateBody(PullBody):
    source: str | None = msgspec.field(default=None, name="from")
    remote_host: str | None = None
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    system: str | None = None
    template: str | None = None
    license: str | list[str] | None = None
    parameters: dict[str, Any] | None = None
    messages: list[_Message] | None = None
    quantize: str | None = None
    quantization: str | None = None


class CopyBody(msgspec.Struct):
    source: str | None = None
    destination: str | None = None


class DeleteBody(msgspec.Struct):
    model: str | None = None
    name: str | None = None


_PULL: Final = msgspec.json.Decoder(PullBody)
_CREATE: Final = msgspec.json.Decoder(CreateBody)
_COPY: Final = msgspec.json.Decoder(CopyBody)
_DELETE: Final = msgspec.json.Decoder(DeleteBody)


def read_pull(body: bytes) -> Pull:
    """POST /api/pull. Raises `BadRequest`, as do the others."""
    read = read_body(_PULL, body)
    return Pull(model=read_name(read.model or read.name or ""), stream=read.stream is not False)


def read_create(body: bytes) -> Create:
    """POST /api/create."""
    read = read_body(_CREATE, body)
    model = read_name(read.model or read.name or "")
    if not read.source and not read.files:
        raise BadRequest("neither 'from' or 'files' was specified", code="missing_source")
    license_ = read.license or []
    return Create(
        model=model,
        source=read_name(read.source) if read.source else "",
        files=read.files or {},
        adapters=read.adapters or {},
        system=read.system or "",
        template=read.template or "",
        license=[license_] if isinstance(license_, str) else license_,
        parameters=_read_parameters(read.parameters or {}),
        messages=[{"role": message.role, "content": message.content} for message in read.messages or ()],
        quantize=read.quantize or read.quantization or "",
        stream=read.stream is not False,
    )


def read_copy(body: bytes) -> Copy:
    """POST /api/copy."""
    read = read_body(_COPY, body)
    return Copy(
        source=_read_side("source", read.source or ""), destination=_read_side("destination", read.destination or "")
    )


def read_delete(body: bytes) -> Delete:
    """DELETE /api/delete, which has a body."""
    read = read_body(_DELETE, body)
    asked = read.model or read.name or ""
    if not asked:
        raise BadRequest("model is required", param="model", code="missing_model")
    return Delete(model=_read_side("name", asked))


def no_source(name: str) -> BadRequest:
    """To be raised when what is to be copied is not there."""
    return BadRequest(f"model {quoted(name)} not found", status=404, param="source", code="source_not_found")


def render_progress(status: str, *, digest: str = "", total: int = 0, completed: int = 0) -> bytes:
    """One line of a stream; sizes in bytes, left out when 0."""
    record = {"status": status, "digest": digest, "total": total, "completed": completed}
    return msgspec.json.encode({key: value for key, value in record.items() if value}) + b"\n"


def pulling(digest: str) -> str:
    """The status while a file comes."""
    return f"pulling {digest.removeprefix('sha256:')[:_SHOWN_DIGITS]}"


def using(digest: str) -> str:
    """The status when the content is here already."""
    return f"using existing layer sha256:{digest}"


def creating(digest: str) -> str:
    """The status while a file that was sent is put in its place."""
    return f"creating new layer sha256:{digest}"


def _read_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """As they were given, once they were found good. Raises `BadRequest`."""
    parameters = {name: value for name, value in given.items() if value is not None}
    if isinstance(stop := parameters.get("stop"), str):
        parameters["stop"] = [stop]
    read_options(parameters)
    return parameters


def _read_side(side: str, name: str) -> str:
    try:
        return read_name(name)
    except BadRequest as error:
        if error.message != INVALID:
            raise
        raise BadRequest(f"{side} {quoted(name)} is invalid", param=side, code="invalid_model") from error

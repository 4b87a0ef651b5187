"""Everything a GGUF file says about itself, cut to what fits into one message on the bus."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final

import msgspec

from llamaherd_shared.commands import TensorDescription
from llamaherd_supervisor.gguf_file import Tensor, read_tables

CHAT_TEMPLATE: Final = "tokenizer.chat_template"
SHORT_ITEMS: Final = 5
"""Arrays up to this long are always told, as Ollama does."""
ROOM_BYTES: Final = 640 * 1024
"""Of JSON; a message on the bus may have a mebibyte (nats-server's `max_payload`)."""
_LONG_TEXT_BYTES: Final = 64 * 1024
_MOST_ITEMS: Final = ROOM_BYTES // 2
"""An array with more items cannot fit: each takes a digit and a comma."""

TENSOR_TYPES: Final[Mapping[int, str]] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Names of `enum ggml_type`. A type that is not here is told as its number."""


class GgufDescription(msgspec.Struct, frozen=True, kw_only=True):
    """The fields are those of `ModelDescription`."""

    metadata: dict[str, Any]
    emptied: list[str]
    chat_template: str
    tensors: list[TensorDescription]


def read_description(file: BinaryIO, *, size_bytes: int, verbose: bool = False) -> GgufDescription:
    """Describe one file. With `verbose`, long arrays too, in the file's order, as far as there is room.

    Raises `UnreadableGguf`.
    """
    pairs, tensors = read_tables(file, size_bytes=size_bytes, max_items=_MOST_ITEMS if verbose else SHORT_ITEMS)
    template = pairs.pop(CHAT_TEMPLATE, "")
    return _fit(pairs, template if isinstance(template, str) else "", [_describe(tensor) for tensor in tensors])


def read_tensors(file: BinaryIO, *, size_bytes: int) -> list[TensorDescription]:
    """Only the tensors: of the later files of a split model. Raises `UnreadableGguf`."""
    return [_describe(tensor) for tensor in read_tables(file, size_bytes=size_bytes)[1]]


def join_tensors(description: GgufDescription, more: Sequence[TensorDescription]) -> GgufDescription:
    """The description with the tensors of a split model's other files, as far as there is room."""
    return _fit(description.metadata, description.chat_template, [*description.tensors, *more], description.emptied)


def _fit(
    pairs: Mapping[str, Any], template: str, tensors: list[TensorDescription], emptied: Sequence[str] = ()
) -> GgufDescription:
    room = _Room(ROOM_BYTES)
    left_out = list(emptied)
    if not room.take(template):
        template = ""
        left_out.append(CHAT_TEMPLATE)
    # What is short comes first: it is what everybody asks for.
    short = {key: _as_json(value) for key, value in pairs.items() if not _is_long(value)}
    metadata = {key: value for key, value in short.items() if room.take(key) and room.take(value)}
    shown = [tensor for tensor in tensors if room.take(tensor)]
    if len(shown) < len(tensors):
        left_out.append("tensors")
    for key, value in pairs.items():
        if key in metadata:
            continue
        metadata[key] = _as_json(value) if value is not None and room.take(value) else _empty(value)
        if not metadata[key] and key not in left_out:
            left_out.append(key)
    in_order = {key: metadata[key] for key in pairs}
    return GgufDescription(metadata=in_order, emptied=left_out, chat_template=template, tensors=shown)


class _Room:
    """Counts bytes of JSON."""

    def __init__(self, left_bytes: int) -> None:
        self._left_bytes = left_bytes

    def take(self, value: Any) -> bool:
        """Whether there is room for it; then there is that much less."""
        size = len(msgspec.json.encode(value)) + 2
        if size > self._left_bytes:
            return False
        self._left_bytes -= size
        return True


def _is_long(value: Any) -> bool:
    """`None` is an array that was skipped."""
    if isinstance(value, str):
        return len(value) > _LONG_TEXT_BYTES
    return value is None or (isinstance(value, list) and len(value) > SHORT_ITEMS)


def _empty(value: Any) -> Any:
    return "" if isinstance(value, str) else []


def _as_json(value: Any) -> Any:
    """JSON has no infinite numbers; they are `null`, as is what is not a number."""
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _describe(tensor: Tensor) -> TensorDescription:
    return TensorDescription(tensor.name, TENSOR_TYPES.get(tensor.kind, str(tensor.kind)), list(tensor.shape))

"""What a GGUF file says about itself, read from its head without touching the weights.

A parser of our own: importing the `gguf` package costs 0.6 s and 28 MB (numpy), and its reader maps the file, which
ends the process with SIGBUS when somebody truncates the file meanwhile. This one reads the key-values and the table of
tensors through a file object, skips long arrays by seeking, and believes no length that the file cannot hold.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. A test compares the tables below
with the `gguf` package's.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final

import msgspec

from llamaherd_supervisor.capabilities import POOLED, find_capabilities, find_senses

MAGIC: Final = b"GGUF"
_KEPT_STRING_BYTES: Final = 4 * 2**20
"""Longer strings are skipped: no name or chat template is that long."""
_ENCODERS: Final = ("v.", "a.")
"""Beginnings of the names of a projector's tensors that do not lead into the model."""
_DEFAULT_ALIGNMENT: Final = 32
_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final[Mapping[int, struct.Struct]] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
"""Value types by number (`enum gguf_type`); 8 is a string, 9 an array."""
_U32: Final = _SCALARS[4]
_U64: Final = _SCALARS[10]

TENSOR_SIZES: Final[Mapping[int, tuple[int, int]]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66),
    17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54),
    35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip
"""(weights per block, bytes per block) by tensor type (`enum ggml_type`). A type that is not here is not measured."""

FILE_TYPES: Final[Mapping[int, str]] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0",
}  # fmt: skip
"""Quantization by `general.file_type` (`enum llama_ftype`), as people write it."""


class UnreadableGguf(Exception):
    """The file cannot be served. `str()` is one sentence for a person."""

    def __init__(self, sentence: str, *, truncated: bool = False, closed: bool = False) -> None:
        super().__init__(sentence)
        self.truncated = truncated
        """Its end is missing: it may still be on its way."""
        self.closed = closed
        """Nothing is known of its content: the next look may find it open, though it is the same."""


class GgufHead(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's page and the choice of an instance need."""

    architecture: str
    title: str = ""
    parameters: int = 0
    """Weights, summed over the table of tensors."""
    context_tokens: int = 0
    """Training context; 0 when the file does not say."""
    embedding_length: int = 0
    """Numbers a token has inside the model; 0 when the file does not say."""
    quantization: str = ""
    chat: bool = False
    """Whether it carries a chat template."""
    embedding: bool = False
    """Whether it names a pooling of its tokens (`<arch>.pooling_type`): embedding and reranking models do."""
    capabilities: list[str] = []
    """What it can be asked for (`capabilities.py`)."""
    parts: int = 1
    """Files the model is split into (`split.count`)."""


class ProjectorHead(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice of a projector needs: a part for a model, which turns images or sounds into what it reads."""

    senses: list[str] = []
    """What it adds to the model: of `vision`, `audio`."""
    embedding_lengths: frozenset[int] = frozenset()
    """One of them is that of the models it is for; none when the file does not say."""
    quantization: str = ""


def parse_gguf(file: BinaryIO, *, size_bytes: int) -> GgufHead | ProjectorHead:
    """Read the head of a GGUF file of this size. Raises `UnreadableGguf`."""
    pairs, tensors = read_tables(file, size_bytes=size_bytes)
    architecture = pairs.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise UnreadableGguf("it does not say its architecture (`general.architecture`): it is not a model")
    if pairs.get("general.type") == "mmproj" or architecture == "clip":
        return _projector_head(pairs, tensors)
    if (kind := pairs.get("general.type")) in {"adapter", "imatrix"}:
        raise UnreadableGguf(f"it is not a model but a part for one ({kind})")
    return _head(pairs, architecture, sum(tensor.weights for tensor in tensors))


def check_parts(head: GgufHead, count: int) -> None:
    """Raises `UnreadableGguf` when the model is split into another number of files than its name says."""
    if head.parts not in (1, count):
        named = f"as of {count} files" if count > 1 else "otherwise"
        raise UnreadableGguf(
            f"it is the first of {head.parts} files and named {named}: llama-server finds the others when it is called"
            f" NAME-00001-of-{head.parts:05}.gguf"
        )


def read_later_part(file: BinaryIO, number: int, count: int, *, size_bytes: int) -> int:
    """How many weights are in this one of so many files of a model; `number` counts from 1. Raises `UnreadableGguf`."""
    pairs, tensors = read_tables(file, size_bytes=size_bytes)
    said = pairs.get("split.no"), pairs.get("split.count")
    if said != (number - 1, count):
        raise UnreadableGguf(f"it is not file {number} of {count} (`split.no` is {said[0]}, `split.count` {said[1]})")
    return sum(tensor.weights for tensor in tensors)


def read_tables(file: BinaryIO, *, size_bytes: int, max_items: int = -1) -> tuple[dict[str, Any], list["Tensor"]]:
    """The key-values and the table of tensors, checked against the file's size. Raises `UnreadableGguf`.

    An array of more than `max_items` items reads as `None`.
    """
    reader = _Reader(file, size_bytes, max_items)
    tensor_count, pair_count = _read_counts(reader)
    pairs = dict(_read_pair(reader) for _ in range(pair_count))
    alignment = pairs.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise UnreadableGguf(f"its alignment is {alignment!r}: the file is damaged")
    tensors = [_read_tensor(reader) for _ in range(tensor_count)]
    _check_end(reader, tensors, alignment)
    return pairs, tensors


class Tensor(msgspec.Struct, frozen=True):
    """A row of the table of tensors."""

    name: str
    shape: tuple[int, ...]
    """The first dimension is the innermost."""
    kind: int
    """`enum ggml_type`."""
    offset: int
    """From the beginning of the weights, in bytes."""

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """0 when the type is not known here."""
        block, block_bytes = TENSOR_SIZES.get(self.kind, (1, 0))
        return self.weights // block * block_bytes


class _Reader:
    """Reads little-endian values and refuses to go past the end of the file."""

    def __init__(self, file: BinaryIO, size_bytes: int, max_items: int) -> None:
        self.file, self.size_bytes, self.position = file, size_bytes, 0
        self._max_items = max_items

    def take(self, count: int) -> bytes:
        data = self.file.read(count) if self.position + count <= self.size_bytes else b""
        if len(data) != count:
            raise UnreadableGguf(
                f"the file ends within its header ({self.size_bytes:,} bytes are there): the download or copy was cut"
                " short, or the file is damaged",
                truncated=True,
            )
        self.position += count
        return data

    def skip(self, count: int) -> None:
        if self.position + count > self.size_bytes:
            self.take(count)
        self.file.seek(count, 1)
        self.position += count

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def text(self) -> str:
        """A string; one that is too long to be of use is skipped and reads as empty."""
        length = self.u64()
        if length > _KEPT_STRING_BYTES:
            self.skip(length)
            return ""
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A scalar or string, or the list of a short array; a longer one is skipped and reads as `None`."""
        if (scalar := _SCALARS.get(kind)) is not None:
            return scalar.unpack(self.take(scalar.size))[0]
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        raise UnreadableGguf(f"it has a value of the unknown type {kind}: the file is damaged")

    def array(self) -> list[Any] | None:
        kind, count = self.u32(), self.u64()
        if count <= self._max_items and (kind == _STRING or kind in _SCALARS):
            return [self.value(kind) for _ in range(count)]
        self._skip_array(kind, count)
        return None

    def _skip_array(self, kind: int, count: int) -> None:
        if (scalar := _SCALARS.get(kind)) is not None:
            self.skip(scalar.size * count)
        elif kind == _STRING:
            for _ in range(count):
                self.skip(self.u64())
        elif kind == _ARRAY:
            raise UnreadableGguf("it has an array of arrays, which no llama-server reads: the file is damaged")
        else:
            raise UnreadableGguf(f"it has an array of the unknown type {kind}: the file is damaged")


def _read_counts(reader: _Reader) -> tuple[int, int]:
    """(tensors, key-value pairs), after the magic and the version were found right."""
    if reader.size_bytes == 0:
        raise UnreadableGguf("the file is empty", truncated=True)
    magic = reader.take(min(4, reader.size_bytes))
    if magic != MAGIC[: len(magic)]:
        raise UnreadableGguf(f"it is not a GGUF file: it begins with {magic!r} instead of {MAGIC!r}")
    version = reader.u32()
    if version in {0x02000000, 0x03000000}:
        raise UnreadableGguf("it is a big-endian GGUF file: convert it with gguf-convert-endian")
    if version not in {2, 3}:
        raise UnreadableGguf(f"its GGUF version is {version}; versions 2 and 3 can be read")
    tensors, pairs = reader.u64(), reader.u64()
    # A pair takes at least 13 bytes and a tensor 24: more than fit means these are no counts.
    if pairs * 13 + tensors * 24 > max(reader.size_bytes, 2**20) * 64:
        raise UnreadableGguf(f"its header counts {pairs:,} values and {tensors:,} tensors: the file is damaged")
    return tensors, pairs


def _read_pair(reader: _Reader) -> tuple[str, Any]:
    key = reader.text()
    return key, reader.value(reader.u32())


def _read_tensor(reader: _Reader) -> Tensor:
    name = reader.text()
    dimensions = reader.u32()
    if dimensions > 4:
        raise UnreadableGguf(f"tensor {name!r} has {dimensions} dimensions: the file is damaged")
    shape = tuple(reader.u64() for _ in range(dimensions))
    return Tensor(name, shape, kind=reader.u32(), offset=reader.u64())


def _check_end(reader: _Reader, tensors: list[Tensor], alignment: int) -> None:
    """The weights the table speaks of must be within the file."""
    begin = -(-reader.position // alignment) * alignment
    for tensor in tensors:
        end = begin + tensor.offset + tensor.size_bytes
        if end > reader.size_bytes:
            raise UnreadableGguf(
                f"the file ends before its weights do (tensor {tensor.name!r} needs {end:,} bytes,"
                f" {reader.size_bytes:,} are there): the download or copy was cut short",
                truncated=True,
            )


def _head(pairs: Mapping[str, Any], architecture: str, parameters: int) -> GgufHead:
    return GgufHead(
        architecture=architecture,
        title=str(pairs.get("general.name") or ""),
        parameters=parameters,
        context_tokens=_whole(pairs.get(f"{architecture}.context_length")),
        embedding_length=_whole(pairs.get(f"{architecture}.embedding_length")),
        quantization=_quantization(pairs),
        chat=bool(pairs.get("tokenizer.chat_template")),
        embedding=_whole(pairs.get(f"{architecture}.pooling_type")) in POOLED,
        capabilities=find_capabilities(pairs, architecture),
        parts=max(1, _whole(pairs.get("split.count"))),
    )


def _projector_head(pairs: Mapping[str, Any], tensors: Sequence[Tensor]) -> ProjectorHead:
    senses = find_senses(pairs)
    if not senses:
        raise UnreadableGguf("it is a projector, a part for a model, for neither images nor sounds")
    lengths = {size for tensor in tensors if not tensor.name.startswith(_ENCODERS) for size in tensor.shape}
    # Old files have CLIP's own `projection_dim`: it is the model's only where a matrix leads to it.
    said = lengths & {_whole(pairs.get(f"clip.{kind}.projection_dim")) for kind in ("vision", "audio")}
    return ProjectorHead(senses=senses, embedding_lengths=frozenset(said or lengths), quantization=_quantization(pairs))


def _quantization(pairs: Mapping[str, Any]) -> str:
    file_type = pairs.get("general.file_type")
    return FILE_TYPES.get(file_type, "") if isinstance(file_type, int) else ""


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0

"""What decides how much memory a model takes, read from the tables of its GGUF files.

The keys are llama.cpp's (`gguf-py/gguf/constants.py`); what it knows of architectures and no file says is `SLIDING`.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llamaherd_supervisor.gguf_file import Tensor

SLIDING: Final[Mapping[str, int]] = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4, "exaone4": 4, "plamo3": 8,
}  # fmt: skip
"""Architecture -> of so many layers the last one looks at the whole context, where the file does not say
(llama.cpp's `set_swa_pattern`). Of others with a window all layers are taken to: some ignore theirs."""
SHORT_ITEMS: Final = 1024
"""Longer arrays are not read: no model has so many layers."""

_LAYER: Final = re.compile(r"blk\.(\d+)\.")
_INPUT: Final = ("token_embd", "per_layer_token_embd")
"""Beginnings of the names of tensors that stay in RAM whatever is offloaded."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """One model's dimensions. What its file does not say is 0."""

    file_bytes: int
    """Of all its files."""
    layer_bytes: tuple[int, ...] = ()
    """Weights of each layer."""
    input_bytes: int = 0
    """The table of embeddings."""
    output_bytes: int = 0
    """What comes behind the last layer."""
    tied: bool = False
    """Whether the table of embeddings stands there too: a GPU gets a copy of it."""
    context_tokens: int = 0
    """Training context."""
    embedding_length: int = 0
    feed_forward_length: int = 0
    """Of the widest layer; with experts, of those that work on a token together."""
    vocabulary: int = 0
    heads: int = 0
    kv_heads: tuple[int, ...] = ()
    """Of each layer; 0 in one without a KV cache."""
    key_length: int = 0
    value_length: int = 0
    window: int = 0
    """Tokens that a sliding layer looks back at."""
    sliding: tuple[bool, ...] = ()
    """Whether each layer has that window."""
    state_bytes: int = 0
    """What all recurrent layers together keep of one sequence (Mamba, RWKV)."""

    @property
    def layers(self) -> int:
        return len(self.layer_bytes)


Tables = tuple[Mapping[str, Any], Sequence[Tensor]]
"""Key-values and tensors of one file (`read_tables`)."""


def shape_of(files: Sequence[Tables], *, file_bytes: int) -> Shape:
    """The shape of a model with these files; the first one has the key-values."""
    pairs = files[0][0]
    reader = _Pairs(pairs)
    layers = reader.number("block_count")
    heads = reader.most("attention.head_count")
    embedding_length = reader.number("embedding_length")
    head_length = embedding_length // heads if heads else 0
    layer_bytes, input_bytes, output_bytes, tied = _weigh(files, layers)
    window = reader.number("attention.sliding_window")
    return Shape(
        file_bytes=file_bytes,
        layer_bytes=layer_bytes,
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        tied=tied,
        context_tokens=reader.number("context_length"),
        embedding_length=embedding_length,
        feed_forward_length=max(
            reader.most("feed_forward_length"),
            reader.number("expert_feed_forward_length") * max(1, reader.number("expert_used_count")),
        ),
        vocabulary=reader.number("vocab_size") or _vocabulary(files),
        heads=heads,
        kv_heads=_kv_heads(reader, layers, heads),
        key_length=reader.number("attention.key_length") or head_length,
        value_length=reader.number("attention.value_length") or head_length,
        window=window,
        sliding=_sliding(reader, layers) if window else (False,) * layers,
        state_bytes=_state_bytes(reader, layers),
    )


class _Pairs:
    """Key-values of one architecture."""

    def __init__(self, pairs: Mapping[str, Any]) -> None:
        self._pairs = pairs
        self.architecture = str(pairs.get("general.architecture") or "")

    def value(self, key: str) -> Any:
        return self._pairs.get(f"{self.architecture}.{key}")

    def number(self, key: str) -> int:
        value = self.value(key)
        return value if isinstance(value, int) and value > 0 else 0

    def most(self, key: str) -> int:
        """Of one number for each layer the greatest."""
        value = self.value(key)
        if isinstance(value, list):
            return max((each for each in value if isinstance(each, int)), default=0)
        return self.number(key)

    def each(self, key: str, layers: int) -> tuple[int, ...] | None:
        """One number for each layer; `None`: the file says none."""
        value = self.value(key)
        if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
            return tuple(max(0, int(value[layer % len(value)])) for layer in range(layers))
        return (value,) * layers if isinstance(value, int) and value >= 0 else None


def _kv_heads(reader: _Pairs, layers: int, heads: int) -> tuple[int, ...]:
    if reader.value("attention.causal") is False:
        return (0,) * layers
    kv_heads = reader.each("attention.head_count_kv", layers)
    if kv_heads is None:
        kv_heads = (heads,) * layers
    interval = reader.number("full_attention_interval")
    if interval:
        return tuple(count if (layer + 1) % interval == 0 else 0 for layer, count in enumerate(kv_heads))
    return kv_heads


def _sliding(reader: _Pairs, layers: int) -> tuple[bool, ...]:
    pattern = reader.each("attention.sliding_window_pattern", layers)
    if pattern is not None and isinstance(reader.value("attention.sliding_window_pattern"), list):
        return tuple(bool(each) for each in pattern)
    every = reader.number("attention.sliding_window_pattern") or SLIDING.get(reader.architecture, 1)
    return tuple(layer % every < every - 1 for layer in range(layers))


def _state_bytes(reader: _Pairs, layers: int) -> int:
    """In 32-bit floats, as llama.cpp keeps them."""
    inner = reader.number("ssm.inner_size")
    if inner:
        states, groups = reader.number("ssm.state_size"), max(1, reader.number("ssm.group_count"))
        taps = max(0, reader.number("ssm.conv_kernel") - 1)
        return 4 * layers * (inner * states + taps * (inner + 2 * groups * states))
    head_size = reader.number("wkv.head_size")
    return 4 * layers * reader.number("embedding_length") * (head_size + 2) if head_size else 0


def _weigh(files: Sequence[Tables], layers: int) -> tuple[tuple[int, ...], int, int, bool]:
    """(bytes of each layer, of the input, of the output, whether the output has no matrix of its own)"""
    layer_bytes, input_bytes, output_bytes, tied = [0] * layers, 0, 0, True
    for _, tensors in files:
        for tensor, size_bytes in zip(tensors, _sizes(tensors), strict=True):
            layer = _LAYER.match(tensor.name)
            if layer is not None and int(layer[1]) < layers:
                layer_bytes[int(layer[1])] += size_bytes
            elif tensor.name.startswith(_INPUT):
                input_bytes += size_bytes
            else:
                output_bytes += size_bytes
                tied = tied and tensor.name != "output.weight"
    return tuple(layer_bytes), input_bytes, output_bytes, tied


def _sizes(tensors: Sequence[Tensor]) -> list[int]:
    """Bytes of each tensor; one of an unknown type reaches to the next one."""
    offsets = sorted(tensor.offset for tensor in tensors)
    following = dict(itertools.pairwise(offsets))
    return [
        tensor.size_bytes or max(0, following.get(tensor.offset, tensor.offset) - tensor.offset) for tensor in tensors
    ]


def _vocabulary(files: Sequence[Tables]) -> int:
    """The table of embeddings has a row for each token."""
    return next(
        (
            tensor.shape[1]
            for _, tensors in files
            for tensor in tensors
            if tensor.name == "token_embd.weight" and len(tensor.shape) > 1
        ),
        0,
    )

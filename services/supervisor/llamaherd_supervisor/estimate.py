"""What a load will need, on each device, before it starts: arithmetic on the model's shape and its options.

The formulas are those of llama.cpp's allocations as llama-server 11434.0.0 logs them with `-lv 4` (`model buffer
size`, `KV buffer size`, `compute buffer size`); the constants were measured there. What has been loaded before with
the same options is known better: what it was measured to use is its estimate (`measured`).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import msgspec

from llamaherd_shared.model_options import ModelOptions
from llamaherd_supervisor.budget import PLACES, RAM, Bytes, add, lacking, render_amount, render_device
from llamaherd_supervisor.shape import Shape

LEAST_CONTEXT_TOKENS: Final = 4096
"""As few as llama-server itself makes of a context that nobody asked for, where memory is short (`--fit-ctx`)."""
UNKNOWN_CONTEXT_TOKENS: Final = 4096
_AUTO_SLOTS: Final = 4
"""That share one context, where nobody said how many."""
_UBATCH_TOKENS: Final = 512
_PADDING: Final = 256
"""KV caches have a multiple of so many cells."""
_F32: Final = 4
_F16: Final = 2
CACHE_BYTES: Final[Mapping[str, float]] = {
    "f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32, "q4_1": 20 / 32, "iq4_nl": 18 / 32,
    "q5_0": 22 / 32, "q5_1": 24 / 32,
}  # fmt: skip
"""Bytes of one number in the KV cache, by its type."""

_PROCESS_BYTES: Final = 24 * 2**20
"""llama-server itself: its code and what it keeps beside the model."""
_TOKEN_BYTES: Final = 200
"""What it keeps of each token of the vocabulary."""
_GPU_PROCESS_BYTES: Final = 300 * 2**20
"""RAM of a process that uses GPUs, as the driver maps it."""
_GPU_CONTEXT_BYTES: Final = 400 * 2**20
"""VRAM of a process before it has allocated anything (CUDA context and kernels)."""
_COMMAND_BYTES: Final = 256 * 2**20
"""A server that is not llama-server, beside its file."""
DIGEST_CHARACTERS: Final = 16


class Part(msgspec.Struct, frozen=True):
    """One term of the sum."""

    what: str
    takes: Bytes
    detail: str = ""


class Estimate(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What a load needs, and why."""

    parts: tuple[Part, ...]
    context_tokens: int | None = None
    """The context of each slot that was chosen because no more fits; `None`: as asked for."""

    @cached_property
    def needs(self) -> Bytes:
        """On each device. Asked for each time that anything is decided, for all that is loaded."""
        return add(*(part.takes for part in self.parts))

    def render(self, device: str) -> str:
        """The sum in words: `model 4.1 GiB + KV 512 MiB (4 x 8192 tokens, f16) + compute 300 MiB`."""
        terms = [
            f"{part.what} {render_amount(part.takes[device], device)}" + (f" ({part.detail})" if part.detail else "")
            for part in self.parts
            if part.takes.get(device)
        ]
        return " + ".join(terms)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a load may go."""

    room: Bytes
    """What there may be at most on each device, if everything that can be unloaded is."""
    gpus: tuple[str, ...] = ()
    """Names of the GPUs it sees, in its order."""


class Extra(msgspec.Struct, frozen=True, kw_only=True):
    """What is loaded beside the model's own files."""

    projector_bytes: int = 0
    adapter_bytes: int = 0
    draft: Shape | None = None


_NOTHING: Final = Extra()


IN_ROUTER: Final = Part("itself", {PLACES: 1})
"""What a model of the router needs besides memory."""


def measured(uses: Bytes) -> Estimate:
    """Of what has been loaded before."""
    return Estimate(parts=(Part("as measured before", uses),))


def of_command(file_bytes: int) -> Estimate:
    """Of a server that is not llama-server: its file, and a guess."""
    return Estimate(parts=(Part("model", {RAM: file_bytes}), Part("its server", {RAM: _COMMAND_BYTES})))


def estimate(shape: Shape, options: ModelOptions, place: Place, extra: Extra = _NOTHING) -> Estimate:
    """What this load takes.

    Where nobody said how many layers go to GPUs, or how long the context is, llama-server takes what fits; so does
    this, in its order: a shorter context (down to `LEAST_CONTEXT_TOKENS`) before layers in RAM. What does not fit at
    all is told as it was asked for.
    """
    flexible_layers = bool(place.gpus) and options.gpu_layers in (None, "auto")
    layers = _asked_layers(shape, options, place)
    whole = _sum(shape, options, place, extra, layers=layers)
    if not lacking(whole.needs, place.room):
        return whole
    shrunk = _shrink_context(shape, options, place, extra, layers=layers)
    if shrunk is not None:
        return shrunk
    if flexible_layers:
        fewer = _fewest_fitting(shape, options, place, extra)
        if fewer is not None:
            return fewer
    return whole


def learn(first: Bytes, peak: Bytes, formula: Bytes) -> dict[str, int]:
    """What a model needs, from what it used when it was ready and at most since then.

    It grows by what its first long prompts touch, which is part of the need, and then by llama-server's cache of
    prompts (`--cache-ram`), which is not: that is why nothing above the formula counts, unless it was there at once.
    """
    return {
        device: max(first.get(device, 0), min(peak.get(device, 0), formula.get(device, 0)))
        for device in {*first, *peak}
    }


def plan_digest(*parts: Any) -> str:
    """Names everything that a measurement is true for. Parts are what JSON can hold."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:DIGEST_CHARACTERS]


def render_need(model: str, found: Estimate, free: Bytes) -> str:
    """`m needs 5.0 GiB of RAM (model 4.1 GiB + ...), and 3.0 GiB are free`, for each device that has too little."""
    missing = lacking(found.needs, free) or found.needs
    sentences = [
        f"{render_amount(found.needs[device], device)} of {render_device(device)} ({found.render(device)}),"
        f" and {render_amount(max(0, free.get(device, 0)), device)} are free"
        for device in missing
    ]
    return f"{model} needs " + "; ".join(sentences)


def _asked_layers(shape: Shape, options: ModelOptions, place: Place) -> int:
    """Layers on GPUs, the output being one more, if all goes as it was asked for."""
    if not place.gpus:
        return 0
    every = shape.layers + 1
    return min(options.gpu_layers, every) if isinstance(options.gpu_layers, int) else every


def _shrink_context(shape: Shape, options: ModelOptions, place: Place, extra: Extra, *, layers: int) -> Estimate | None:
    """With the longest context that fits; `None` when it was asked for, or when none does."""
    if options.context_tokens is not None:
        return None
    steps = range(_least_context(shape, options), _context_tokens(shape, options), _PADDING)
    fitting = None
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        tried = _sum(shape, options, place, extra, layers=layers, context_tokens=steps[middle])
        if lacking(tried.needs, place.room):
            high = middle
        else:
            fitting, low = tried, middle + 1
    return fitting


def _fewest_fitting(shape: Shape, options: ModelOptions, place: Place, extra: Extra) -> Estimate | None:
    """With as many layers on GPUs as fit, at the least context where none was asked for."""
    context = _least_context(shape, options) if options.context_tokens is None else None
    for layers in range(shape.layers, -1, -1):
        tried = _sum(shape, options, place, extra, layers=layers, context_tokens=context)
        if not lacking(tried.needs, place.room):
            return tried
    return None


def _least_context(shape: Shape, options: ModelOptions) -> int:
    return min(LEAST_CONTEXT_TOKENS, _context_tokens(shape, options))


def _context_tokens(shape: Shape, options: ModelOptions) -> int:
    """Of each slot."""
    if options.context_tokens is not None:
        return options.context_tokens
    return max(1, (shape.context_tokens or UNKNOWN_CONTEXT_TOKENS) // (options.slots or 1))


def _sum(
    shape: Shape, options: ModelOptions, place: Place, extra: Extra, *, layers: int, context_tokens: int | None = None
) -> Estimate:
    context = context_tokens or _context_tokens(shape, options)
    on_gpus = _split(place, options) if layers else {}
    spread = _Spread(on_gpus, first=max(0, shape.layers - min(layers, shape.layers)), output=layers > shape.layers)
    compute = _compute_bytes(shape, options, context)
    first_gpu = next(iter(on_gpus), RAM)
    parts = [
        Part("model", spread.weights(shape)),
        Part("projector", {first_gpu: extra.projector_bytes}),
        Part("adapters", {first_gpu: extra.adapter_bytes}),
        Part("KV", spread.layers(_kv_bytes(shape, options, context)), _render_kv(options, context))
        if options.kv_offload is not False
        else Part("KV", {RAM: sum(_kv_bytes(shape, options, context))}, _render_kv(options, context)),
        Part("state", {first_gpu: shape.state_bytes * (options.slots or _AUTO_SLOTS)}),
        Part("compute", {**dict.fromkeys(on_gpus, compute), RAM: compute // 4 if on_gpus else compute}),
        *_draft(extra.draft, options, place, context),
        Part(
            "llama-server",
            {
                RAM: _PROCESS_BYTES + _TOKEN_BYTES * shape.vocabulary + (_GPU_PROCESS_BYTES if on_gpus else 0),
                **dict.fromkeys(on_gpus, _GPU_CONTEXT_BYTES),
            },
        ),
    ]
    return Estimate(parts=tuple(part for part in parts if any(part.takes.values())), context_tokens=context_tokens)


def _draft(draft: Shape | None, options: ModelOptions, place: Place, context: int) -> list[Part]:
    """The small model that guesses ahead: weights and a KV cache of its own, for the same context."""
    if draft is None:
        return []
    wanted = ModelOptions(slots=options.slots, gpu_layers=options.draft_gpu_layers)
    layers = _asked_layers(draft, wanted, place)
    on_gpus = _split(place, options) if layers else {}
    spread = _Spread(on_gpus, first=max(0, draft.layers - min(layers, draft.layers)), output=layers > draft.layers)
    kv = spread.layers(_kv_bytes(draft, wanted, context))
    compute = _compute_bytes(draft, wanted, context)
    return [Part("draft model", add(spread.weights(draft), kv, {next(iter(on_gpus), RAM): compute}))]


class _Spread:
    """Which share of what goes where: the last layers are on GPUs."""

    def __init__(self, on_gpus: Mapping[str, float], *, first: int, output: bool) -> None:
        """`first`: the first layer on GPUs; `output`: whether what comes behind the last one is there too."""
        self._on_gpus, self._first, self._output = on_gpus, first, output

    def weights(self, shape: Shape) -> dict[str, int]:
        offloaded = sum(shape.layer_bytes[self._first :]) if self._on_gpus else 0
        output = shape.output_bytes if self._output else 0
        copied = shape.input_bytes if self._output and shape.tied else 0
        return self._share(offloaded + output + copied) | {RAM: max(0, shape.file_bytes - offloaded - output)}

    def layers(self, each: Sequence[int]) -> dict[str, int]:
        offloaded = sum(each[self._first :]) if self._on_gpus else 0
        return self._share(offloaded) | {RAM: sum(each) - offloaded}

    def _share(self, count: int) -> dict[str, int]:
        return {name: math.ceil(count * share) for name, share in self._on_gpus.items()}


def _split(place: Place, options: ModelOptions) -> dict[str, float]:
    """Each GPU's share of what is offloaded; the shares sum up to 1."""
    if options.split_mode == "none":
        return {place.gpus[min(options.main_gpu or 0, len(place.gpus) - 1)]: 1.0}
    weights = list(options.tensor_split or ())[: len(place.gpus)]
    if not any(weights):
        weights = [max(1, place.room.get(name, 0)) for name in place.gpus]
    total = sum(weights)
    return {name: weight / total for name, weight in zip(place.gpus, weights, strict=False) if weight}


def _kv_bytes(shape: Shape, options: ModelOptions, context: int) -> list[int]:
    """Of each layer."""
    key_bytes = shape.key_length * CACHE_BYTES[options.cache_type_k or "f16"]
    value_bytes = shape.value_length * CACHE_BYTES[options.cache_type_v or "f16"]
    # Slots whose number was not asked for share one cache; otherwise each has its own.
    caches, sharing = (options.slots, 1) if options.slots else (1, _AUTO_SLOTS)
    cells = _pad(context)
    ubatch = min(options.ubatch_tokens or _UBATCH_TOKENS, context)
    window = _pad(min(cells, shape.window * sharing + ubatch))
    return [
        math.ceil(caches * (window if sliding else cells) * kv_heads * (key_bytes + value_bytes))
        for kv_heads, sliding in zip(shape.kv_heads, shape.sliding, strict=True)
    ]


def _compute_bytes(shape: Shape, options: ModelOptions, context: int) -> int:
    """What computing one batch takes: the widest moment of a layer, and the mask of attention.

    Without Flash Attention every head's scores of all tokens against the context exist at once.
    """
    ubatch = min(options.ubatch_tokens or _UBATCH_TOKENS, context)
    numbers = max(5 * shape.embedding_length + 3 * shape.feed_forward_length, 8 * shape.embedding_length)
    layer, cells = _F32 * ubatch * numbers, ubatch * _pad(context)
    logits = _F32 * shape.vocabulary * (options.slots or _AUTO_SLOTS)
    if options.flash_attention is False:
        return layer + logits + cells * _F32 * (shape.heads + 1)
    return layer + logits + cells * _F16


def _render_kv(options: ModelOptions, context: int) -> str:
    keys, values = options.cache_type_k or "f16", options.cache_type_v or "f16"
    types = keys if keys == values else f"{keys} and {values}"
    return f"{options.slots} x {context} tokens, {types}" if options.slots else f"{context} tokens, {types}"


def _pad(cells: int) -> int:
    return -(-cells // _PADDING) * _PADDING

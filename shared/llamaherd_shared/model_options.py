"""Options of llama-server that have a name here, and their words on its command line.

Whoever configures a model or asks for a load uses these names; `FLAGS` is the only place that knows llama-server's.
`None` always means: nothing was said, llama-server decides.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

Options = TypeVar("Options", bound="LoadOptions")

Some = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Layers = NotNegative | Literal["auto", "all"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a single load may ask for: sizes and places, nothing that leads to another file."""

    context_tokens: Some | None = None
    """Context of each slot. llama-server's `--ctx-size` is that of all slots together."""
    slots: Some | None = None
    """Requests worked on at once. Unset: 4 that share one context, so that each may use all of it."""
    gpu_layers: Layers | None = None
    """Layers kept in VRAM: a number, `all`, or `auto`: as many as fit."""
    threads: Some | None = None
    """CPU threads."""
    batch_tokens: Some | None = None
    """Tokens of a prompt that are handed over at once."""
    ubatch_tokens: Some | None = None
    """Tokens that are computed at once; the longest text of one embedding."""
    cache_type_k: CacheType | None = None
    """Data type of the K half of the KV cache."""
    cache_type_v: CacheType | None = None
    """Data type of the V half; other ones than `f16` and `f32` need `flash_attention`."""
    flash_attention: bool | Literal["auto"] | None = None
    """Whether to use Flash Attention; `auto`: where it works."""
    kv_offload: bool | None = None
    """Whether the KV cache is in VRAM."""
    main_gpu: NotNegative | None = None
    """Index of the GPU that is used alone (`split_mode: none`) or for what is not split."""
    load_mode: Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"] | None = None
    """How weights come into memory: mapped (`mmap`), kept from being swapped (`mlock`), past the cache (`dio`)."""
    experts: Some | None = None
    """Active experts per token, of a model that has some; unset: as the file says."""
    draft_max_tokens: NotNegative | None = None
    """Longest guess of the draft model."""

    @property
    def said(self) -> dict[str, Any]:
        """Those that say something, by name, as JSON has them."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


class Adapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter."""

    path: str
    scale: float = 1.0


class ModelOptions(LoadOptions, frozen=True, kw_only=True):
    """Everything that has a name. Files are absolute, begin with `~`, or are in the models folder."""

    rope_scaling: Literal["none", "linear", "yarn"] | None = None
    """How positions beyond the training context are scaled."""
    rope_scale: float | None = None
    """Factor by which the context is extended."""
    rope_freq_base: float | None = None
    """Base frequency of RoPE."""
    rope_freq_scale: float | None = None
    """Factor of RoPE's frequencies: the context is extended by its inverse."""
    mmproj: str | None = None
    """File of the projector for images and sound; `none`: without the one that lies beside the model."""
    lora: tuple[str | Adapter, ...] | None = None
    """Files of LoRA adapters; `{path: FILE, scale: 0.5}` for one that is not applied in full."""
    draft_model: str | None = None
    """File of a small model that guesses ahead (speculative decoding)."""
    draft_gpu_layers: Layers | None = None
    """Layers of the draft model kept in VRAM."""
    draft_min_tokens: NotNegative | None = None
    """Shortest guess that is checked."""
    draft_min_probability: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """A guess ends where the draft model is less sure than this, 0 to 1."""
    chat_template: str | None = None
    """Name of one of llama-server's own, or a file: what contains `/` or ends in `.jinja`. Unset: the model's."""
    jinja: bool | None = None
    """Whether chat templates are run as Jinja."""
    reasoning_format: Literal["none", "deepseek", "deepseek-legacy", "auto"] | None = None
    """Where thoughts stand in answers: in `content` (`none`) or in `reasoning_content`."""
    reasoning_budget_tokens: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    """Longest thought; 0: none, -1: no limit."""
    split_mode: Literal["none", "layer", "row", "tensor"] | None = None
    """How the model is split over several GPUs."""
    tensor_split: tuple[Annotated[float, msgspec.Meta(ge=0)], ...] | None = None
    """Each GPU's share of the model, e.g. `[3, 1]`."""
    embeddings: bool | None = None
    """Whether it serves embeddings, and nothing else. Unset: when the file was made for that."""
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = None
    """How one vector is made of those of all tokens."""
    reranking: bool | None = None
    """Whether it serves ranking. Unset: when the file was made for that."""
    override_kv: tuple[str, ...] | None = None
    """Other values of the file's metadata, e.g. `[tokenizer.ggml.add_bos_token=bool:false]`."""


class Flag(msgspec.Struct, frozen=True):
    """Words of llama-server that mean an option; the first one is written."""

    on: tuple[str, ...]
    off: tuple[str, ...] = ()
    """Of one that is on or off by itself: words that switch it off."""
    bare: bool = False
    """No value follows."""


def _flag(*words: str) -> Flag:
    return Flag(words)


FLAGS: Final[Mapping[str, Flag]] = {
    "context_tokens": _flag("--ctx-size", "-c"),
    "slots": _flag("--parallel", "-np"),
    "gpu_layers": _flag("--n-gpu-layers", "--gpu-layers", "-ngl"),
    "threads": _flag("--threads", "-t"),
    "batch_tokens": _flag("--batch-size", "-b"),
    "ubatch_tokens": _flag("--ubatch-size", "-ub"),
    "cache_type_k": _flag("--cache-type-k", "-ctk"),
    "cache_type_v": _flag("--cache-type-v", "-ctv"),
    "flash_attention": _flag("--flash-attn", "-fa"),
    "kv_offload": Flag(("--kv-offload", "-kvo"), ("--no-kv-offload", "-nkvo"), bare=True),
    "main_gpu": _flag("--main-gpu", "-mg"),
    "load_mode": _flag("--load-mode", "-lm"),
    "experts": Flag(()),
    "draft_max_tokens": _flag("--spec-draft-n-max"),
    "rope_scaling": _flag("--rope-scaling"),
    "rope_scale": _flag("--rope-scale"),
    "rope_freq_base": _flag("--rope-freq-base"),
    "rope_freq_scale": _flag("--rope-freq-scale"),
    "mmproj": Flag(("--mmproj", "-mm"), ("--no-mmproj", "--mmproj-auto", "--no-mmproj-auto")),
    "lora": _flag("--lora-scaled", "--lora"),
    "draft_model": _flag("--model-draft", "--spec-draft-model", "-md"),
    "draft_gpu_layers": _flag("--n-gpu-layers-draft", "--gpu-layers-draft", "--spec-draft-ngl", "-ngld"),
    "draft_min_tokens": _flag("--spec-draft-n-min"),
    "draft_min_probability": _flag("--draft-p-min", "--spec-draft-p-min"),
    "chat_template": _flag("--chat-template", "--chat-template-file"),
    "jinja": Flag(("--jinja",), ("--no-jinja",), bare=True),
    "reasoning_format": _flag("--reasoning-format"),
    "reasoning_budget_tokens": _flag("--reasoning-budget"),
    "split_mode": _flag("--split-mode", "-sm"),
    "tensor_split": _flag("--tensor-split", "-ts"),
    "embeddings": Flag(("--embedding", "--embeddings"), bare=True),
    "pooling": _flag("--pooling"),
    "reranking": Flag(("--reranking", "--rerank"), bare=True),
    "override_kv": _flag("--override-kv"),
}
"""By the option's name. `experts` is written as one of `--override-kv`."""

OWNED: Final = frozenset({
    "--model", "-m", "--alias", "-a", "--host", "--port", "--reuse-port", "--api-prefix", "--api-key", "--api-key-file",
    "--ssl-key-file", "--ssl-cert-file", "--metrics", "--slots", "--no-slots", "--ui", "--webui", "--no-ui",
    "--no-webui", "--log-file", "--log-disable", "--log-jsonl", "--log-colors", "--log-prefix", "--no-log-prefix",
    "--log-timestamps", "--no-log-timestamps", "--models-dir", "--models-preset", "--models-max",
    "--models-autoload", "--no-models-autoload", "--hf-repo", "-hf", "-hfr", "--hf-file", "-hff",
    "--model-url", "-mu", "--docker-repo", "-dr",
})  # fmt: skip
"""Words that the supervisor says itself, or that would take from it what it supervises."""

_OPTION_OF: Final = {word: name for name, flag in FLAGS.items() for word in (*flag.on, *flag.off)}


def find_conflict(word: str) -> tuple[str, str | None] | None:
    """The flag that a word of `args` is, if it must not stand there, and the option to be used instead, if one is."""
    if not word.startswith("-"):
        return None
    flag = word.partition("=")[0]
    if flag.startswith("--"):
        flag = flag.replace("_", "-")  # llama-server does the same
    if flag in _OPTION_OF:
        return flag, _OPTION_OF[flag]
    return (flag, None) if flag in OWNED else None


def overlay(below: Options, above: LoadOptions) -> Options:
    """`below`, where `above` says nothing else."""
    said = {name: value for name in above.__struct_fields__ if (value := getattr(above, name)) is not None}
    return msgspec.structs.replace(below, **said)


def satisfies(asked: LoadOptions, running: Mapping[str, Any], *, context_tokens: int, slots: int) -> bool:
    """Whether a process has what is asked for. `running`: what it was told; both numbers: what it has, 0 if not known.

    As much context and as many slots or more are enough; everything else must be as asked for.
    """
    has = {"context_tokens": context_tokens, "slots": slots}
    return all(
        max(running.get(name) or 0, has[name]) >= value if name in has else running.get(name) == value
        for name, value in asked.said.items()
    )


def render_words(options: ModelOptions, *, architecture: str = "") -> list[str]:
    """The options on llama-server's command line, in the order of `FLAGS`. Files must be absolute already."""
    return [word for name in FLAGS for word in _render(name, options, architecture)]


def _render(name: str, options: ModelOptions, architecture: str) -> Iterator[str]:
    value, flag = getattr(options, name), FLAGS[name]
    if name == "override_kv":
        # Given twice, only the last one would count.
        pairs = [*(value or ()), *_render_experts(options.experts, architecture)]
        if pairs:
            yield from (flag.on[0], ",".join(pairs))
    elif value is None or not flag.on:
        return
    elif flag.bare:
        yield from flag.on[:1] if value else flag.off[:1]
    elif name == "context_tokens":
        # What llama-server divides by the number of slots, unless it chose that number itself.
        yield from (flag.on[0], str(value * (options.slots or 1)))
    elif name == "mmproj" and value == "none":
        return
    elif name == "chat_template":
        yield from ("--chat-template-file" if is_template_file(value) else "--chat-template", value)
    elif name == "lora":
        if value:
            yield from (flag.on[0], ",".join(_render_adapter(adapter) for adapter in value))
    else:
        yield from (flag.on[0], _render_value(value))


def is_template_file(template: str) -> bool:
    return "/" in template or template.endswith(".jinja")


def _render_experts(experts: int | None, architecture: str) -> Sequence[str]:
    return (f"{architecture}.expert_used_count=int:{experts}",) if experts is not None and architecture else ()


def _render_adapter(adapter: str | Adapter) -> str:
    return f"{adapter}:1" if isinstance(adapter, str) else f"{adapter.path}:{adapter.scale:g}"


def _render_value(value: Any) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case tuple():
            return ",".join(_render_value(each) for each in value)
        case float():
            return f"{value:.10g}"
        case _:
            return str(value)

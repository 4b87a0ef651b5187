"""`options` of a request, and what they are to llama-server (reference: api-dialects, 5.5).

Ollama's defaults differ from llama-server's, so all of them are sent. Options that only matter when a model is loaded
are told apart (`load_options`); what Ollama does not know is ignored.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Facts
from llamaherd_gateway.dialects.ollama.names import quoted
from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.model_options import LoadOptions

OPEN_ENDED_CONTEXTS: Final = 10
"""An answer without a limit ends after this many contexts."""

_INT32_MAX: Final = 2**31 - 1
_FLOAT32_MAX: Final = 3.4e38
_SEED_MAX: Final = 2**53 - 1
_UNKNOWN_CONTEXT_TOKENS: Final = 4096
"""What "the whole context" means while nobody knows how long that is."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the model samples by, with Ollama's defaults."""

    said: frozenset[str] = frozenset()
    """Names of those that were given: an alias's do not replace them."""

    num_keep: int = 4
    seed: int = -1
    num_predict: int = -1
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    temperature: float = 0.8
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None


_KNOWN: Final = frozenset(Options.__struct_fields__) - {"said"}
_INTEGERS: Final = frozenset(("num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "mirostat"))
_NUMBERS: Final = _KNOWN - _INTEGERS - {"stop"}
_LOAD_INTEGERS: Final = {
    "num_ctx": ("context_tokens", 1),
    "num_batch": ("batch_tokens", 1),
    "num_gpu": ("gpu_layers", 0),
    "main_gpu": ("main_gpu", 0),
    "num_thread": ("threads", 1),
    "draft_num_predict": ("draft_max_tokens", 0),
}
"""Ollama's name -> ours, and the least value that says anything: below it Ollama decides by itself."""


def read_options(given: dict[str, Any] | None) -> Options:
    """Raises `BadRequest` for a value of the wrong type; null is as good as nothing."""
    read: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if value is None:
            continue
        if name in _INTEGERS or name in _LOAD_INTEGERS:
            value = _read_integer(name, value)
        elif name in _NUMBERS:
            value = _read_number(name, value)
        elif name == "stop":
            value = _read_stop(value)
        elif name == "use_mmap" and not isinstance(value, bool):
            raise _refusal(name, "of type boolean")
        if name in _KNOWN:
            read[name] = value
    return Options(said=frozenset(read), **read)


def load_options(given: Mapping[str, Any] | None) -> LoadOptions | None:
    """What of it is decided when a model is loaded, once `read_options` has accepted it; `None`: nothing was said."""
    found: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if name in _LOAD_INTEGERS and isinstance(value, int | float):
            option, least = _LOAD_INTEGERS[name]
            if value >= least:
                found[option] = min(int(value), _INT32_MAX)
        elif name == "use_mmap" and isinstance(value, bool):
            found["load_mode"] = "mmap" if value else "none"
    return LoadOptions(**found) if found else None


def render_sampling(options: Options, facts: Facts) -> dict[str, Any]:
    """Fields of a llama-server request."""
    if facts.preset is not None and facts.preset.options:
        given = read_options(facts.preset.options)
        options = msgspec.structs.replace(options, **{name: getattr(given, name) for name in given.said - options.said})
    context_tokens = facts.context_tokens
    sampling: dict[str, Any] = {
        "n_predict": _limit_tokens(options.num_predict, context_tokens),
        "n_keep": _clamp(options.num_keep, -1, _INT32_MAX),
        "temperature": options.temperature,
        "top_k": _clamp(options.top_k, -1, _INT32_MAX),
        "top_p": options.top_p,
        "min_p": options.min_p,
        "typical_p": options.typical_p,
        "repeat_last_n": _look_back(options.repeat_last_n, context_tokens),
        "repeat_penalty": options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "seed": _clamp(options.seed, -1, _SEED_MAX),
        # An empty string would end the answer at once.
        "stop": [text for text in options.stop if text],
    }
    if options.mirostat is not None:
        sampling["mirostat"] = _clamp(options.mirostat, 0, 2)
    for name in ("mirostat_tau", "mirostat_eta"):
        if (value := getattr(options, name)) is not None:
            sampling[name] = value
    return sampling


def _limit_tokens(num_predict: int, context_tokens: int) -> int:
    """Any negative number is "no limit"; llama-server refuses those below -1."""
    limit = OPEN_ENDED_CONTEXTS * context_tokens if context_tokens else _INT32_MAX
    if 0 <= num_predict <= limit:
        return num_predict
    return min(limit, _INT32_MAX) if context_tokens or num_predict >= 0 else -1


def _look_back(repeat_last_n: int, context_tokens: int) -> int:
    """-1 is the whole context, which llama-server wants as a number; it reserves memory for what it is told."""
    longest = context_tokens or _UNKNOWN_CONTEXT_TOKENS
    return longest if repeat_last_n < 0 else min(repeat_last_n, longest)


def _clamp(value: int, least: int, most: int) -> int:
    return min(max(value, least), most)


def _read_integer(name: str, value: Any) -> int:
    # Ollama cuts fractions off.
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise _refusal(name, "of type integer")
    return int(value)


def _read_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal(name, "of type float32")
    return max(min(value, _FLOAT32_MAX), -_FLOAT32_MAX)


def _read_stop(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _refusal("stop", "of type array")
    if not all(isinstance(item, str) for item in value):
        raise _refusal("stop", "of an array of strings")
    return tuple(value)


def _refusal(name: str, wanted: str) -> BadRequest:
    # Ollama answers 500 to these; it is the client's mistake all the same, and clients try again after a 500.
    return BadRequest(f"option {quoted(name)} must be {wanted}", param=f"options.{name}", code="invalid_option")

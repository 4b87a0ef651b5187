"""Why a llama-server ended, in plain words: read from its last lines, or from the signal that ended it.

The lines are those of llama-server 11434.0.0 (`tests/golden/llama_server/faults/` holds what it printed); those of GPUs
are from its source. Rules are tried in order and the first that fits counts: what says more stands before what says
less, and memory before all, since what follows a failed allocation reads like many another error.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from llamaherd_shared.model_options import find_conflict

_BUILD: Final = "`llamaherd install llama-server` builds one for this machine"
_LINE_CHARACTERS: Final = 500
"""Looked at of each line."""
_NO_ERROR: Final = re.compile(r"(?:[\d.]+ )?[DIW] ")
"""Begins a line that llama-server itself does not call an error."""


class Fault(msgspec.Struct, frozen=True):
    kind: str
    """One of `KINDS`; docs/faults.md describes them."""
    reason: str
    """One sentence a person can act on."""
    final: bool = False
    """Whether another try with the same files and arguments is bound to end in the same way."""


class Rule(msgspec.Struct, frozen=True):
    kind: str
    lines: re.Pattern[str]
    reason: str
    """With the pattern's groups; `{size}` is what a failed allocation asked for."""
    final: bool = False


def _rule(kind: str, pattern: str, reason: str, *, final: bool = False) -> Rule:
    return Rule(kind, re.compile(pattern, re.MULTILINE), reason, final)


_ANYTIME: Final = (
    _rule(
        "context_too_large",
        r"failed to allocate (?:buffer for (?:kv|rs) cache|compute \w+ buffers)",
        "its context does not fit into memory{size}: lower `context_tokens` or `slots`, or shrink it by `cache_type_k`",
    ),
    _rule(
        "out_of_gpu_memory",
        r"Malloc failed: out of memory|\b(?:CUDA|ROCm|MUSA|SYCL) error: out of memory|OutOfDeviceMemory"
        r"|\(out of memory\)|to allocate (?:CUDA|ROCm|MUSA|Vulkan|SYCL|CANN|MTL|Metal)\w* buffer",
        "the GPU's memory is full{size}: unload another model, lower `gpu_layers`, or use a smaller quantization",
    ),
    _rule(
        "out_of_memory",
        r"insufficient memory \(|std::bad_alloc|Cannot allocate memory|memalign failed"
        r"|(?:failed|unable) to allocate (?!.*pinned)",
        "memory is full{size}: unload another model, or use a smaller quantization",
    ),
    _rule(
        "out_of_threads",
        r"Resource temporarily unavailable",
        "the system gives it no more threads: raise the limit of processes (`ulimit -u`, or that of the container)",
    ),
    _rule(
        "gpu_failed",
        r"(?:CUDA|ROCm|MUSA|SYCL) error: (?P<why>.+)|(?P<lost>DeviceLost)",
        "the GPU or its driver failed ({why}): the kernel's log (`dmesg`) may tell more",
    ),
)
"""Of any moment of its life."""

_LOADING: Final = (
    _rule(
        "missing_library",
        r"(?P<what>libcuda\.so[.\d]*): cannot open shared object file",
        "NVIDIA's driver is not on this machine ({what} is missing): install it, or use a llama-server without CUDA",
        final=True,
    ),
    _rule(
        "missing_library",
        r"error while loading shared libraries: (?P<what>[^:\s]+)|Library not loaded: (?P<dylib>\S+)",
        f"the library {{what}} is not on this machine: install it; or {_BUILD}",
        final=True,
    ),
    _rule(
        "missing_library",
        r"version `(?P<what>\w+_[\d.]+)' not found",
        f"the llama-server was built for a newer system (it needs {{what}}); {_BUILD}",
        final=True,
    ),
    _rule(
        "bad_argument",
        r'error while handling argument "(?P<flag>[^"]+)": (?:error: )?(?P<why>.+)',
        "llama-server refuses {flag}: {why}",
        final=True,
    ),
    _rule(
        "bad_argument",
        r'error while handling environment variable "(?P<what>[^"]+)": (?:error: )?(?P<why>.+)',
        "llama-server refuses the variable {what}: {why}",
        final=True,
    ),
    _rule(
        "bad_argument",
        r"error: invalid argument: (?P<flag>\S+)",
        "this llama-server has no argument {flag}: `llamaherd parameters` lists those it has",
        final=True,
    ),
    _rule(
        "bad_chat_template",
        r"common_chat_templates_init: error: (?P<why>.+)|chat template parsing error: (?P<less>.+)"
        r"|the supplied chat template is (?P<least>not supported.*)",
        "llama-server cannot use its chat template ({why}): set another `chat_template`, or `jinja: false`",
        final=True,
    ),
    _rule("bad_argument", r"^error: (?P<why>.+)", "llama-server refuses its command line: {why}", final=True),
    _rule(
        "port_in_use",
        r"couldn't bind HTTP server socket, hostname: (?P<host>[^\s,]+), port: (?P<port>\d+)",
        "something else listens on port {port} of {host}; the next start takes another one",
    ),
    _rule(
        "bad_adapter",
        r"llama_adapter_lora_init\w*: (?:failed to apply lora adapter: )?(?P<why>.+)"
        r"\n.*failed to load lora adapter '(?P<path>[^']+)'",
        "its LoRA adapter {path} cannot be used: {why}",
        final=True,
    ),
    _rule(
        "bad_draft_model",
        r"(?:error loading model|gguf_init_\w+): (?P<why>(?!llama_model_loader).+)"
        r"(?:\n.*){1,5}failed to load draft model, '(?P<path>[^']+)'",
        "its draft model {path} cannot be loaded: {why}",
        final=True,
    ),
    _rule(
        "bad_projector",
        r"mismatch between text model \(n_embd = (?P<model>\d+)\) and mmproj \(n_embd = (?P<projector>\d+)\)",
        "its projector is of another model: embeddings of {projector} numbers, where the model's have {model}",
        final=True,
    ),
    _rule(
        "bad_projector",
        r"clip_init: failed to load model '(?P<path>[^']+)': (?:clip_model_loader: )?(?P<why>.+)",
        "its projector {path} cannot be loaded: {why}",
        final=True,
    ),
    _rule(
        "bad_projector",
        r"Failed to load CLIP model from (?P<path>\S+)",
        "its projector {path} cannot be loaded: it is none, or broken",
        final=True,
    ),
    _rule(
        "bad_projector",
        r"CLIP cannot be used as main model",
        "the file is a projector: it goes with a model, and is none",
        final=True,
    ),
    _rule(
        "unknown_architecture",
        r"un(?:known|supported) model architecture: '(?P<what>[^']+)'",
        "this llama-server does not know the architecture {what}: a newer one may",
        final=True,
    ),
    _rule(
        "unknown_tokenizer",
        r"unknown (?:pre-)?tokenizer(?: type)?: '(?P<what>[^']+)'",
        "this llama-server does not know the tokenizer {what}: a newer one may",
        final=True,
    ),
    _rule(
        "unsupported_quantization",
        r"tensor '(?P<what>[^']+)' (?:has invalid ggml type (?P<number>\d+)|of type \d+ \(DEPRECATED\))",
        "this llama-server does not know the quantization of {what}: a newer one may, or take another quantization",
        final=True,
    ),
    _rule(
        "unsupported_format",
        r"GGUF file(?: is)? version (?P<what>\d+) |(?P<old>GGUFv1) is no longer supported",
        "this llama-server does not read version {what} of GGUF: get a file that fits it",
        final=True,
    ),
    _rule(
        "missing_file",
        r"failed to open (?:GGUF file )?'?(?P<path>[^'\n]+?)'?(?: \(|: )(?P<why>[A-Z][\w ]+)",
        "{path} cannot be opened: {why}",
        final=True,
    ),
    _rule(
        "broken_file",
        r"gguf_init_\w+: (?P<why>.+)|(?P<data>tensor '[^']+' (?:data is not within the file|has invalid data).*)"
        r"|unexpectedly (?P<end>reached end of file)|(?P<count>corrupted model: .*)",
        "the model file is broken or incomplete ({why}): get it again",
        final=True,
    ),
    _rule(
        "unfit_file",
        r"error loading model(?: \w+)?: (?:error loading model \w+: )?(?P<why>.+)",
        "llama-server cannot load the file: {why}",
        final=True,
    ),
    _rule(
        "bad_argument",
        r"llama_init_from_model: (?:failed to initialize the context: )?(?P<why>.+)",
        "llama-server cannot make a context of what is configured: {why}",
        final=True,
    ),
    # What a shell says to a program of another machine, which it is given when the kernel does not know it; and to a
    # script that starts what is not there.
    _rule(
        "cannot_start",
        r"^\S+: (?:line )?\d+: (?:Syntax error: |.*\bELF\b|.*cannot execute binary file)",
        f"the program is none for this machine; {_BUILD}",
        final=True,
    ),
    _rule(
        "cannot_start",
        r"^\S+: (?:line )?\d+: (?:exec: )?(?P<what>[^\s:]+): (?:command )?(?:not found|Permission denied)$",
        "the script that starts it cannot run {what}",
        final=True,
    ),
    _rule(
        "no_gpu",
        r"failed to initialize (?P<api>CUDA|ROCm|MUSA): (?P<why>.+)",
        "the GPU cannot be used by {api} ({why}): see what `nvidia-smi` says",
    ),
)
"""Before it is ready."""

_INTERNAL: Final = (
    _rule(
        "internal_error",
        r"^(?:.*/)?(?P<where>[^/\s]+:\d+): (?:GGML_ASSERT\((?P<why>.+)\) failed|(?P<abort>.+))$",
        "a check inside llama-server failed at {where} ({why}): a bug of it, or options that do not go together",
    ),
    _rule(
        "internal_error",
        r"terminate called after throwing an instance of '(?P<type>[^']+)'(?:\n *what\(\): +(?P<why>.+))?",
        "llama-server ended by an error it did not expect ({why})",
    ),
)

OUT_OF_MEMORY: Final = Fault(
    "out_of_memory",
    "the kernel killed it because memory was full: unload another model, or use a smaller quantization or context",
)
_KILLED: Final = Fault(
    "killed", "it was killed from outside (SIGKILL): by somebody, or by something that watches over memory"
)
_BY_SIGNAL: Final = {
    "SIGILL": Fault(
        "illegal_instruction",
        f"the llama-server was built for another processor (SIGILL); {_BUILD}",
        final=True,
    ),
    "SIGBUS": Fault(
        "file_changed",
        "a file it had mapped became shorter or unreadable (SIGBUS): replace files of loaded models by renaming,"
        " and check the disk",
    ),
    **{
        name: Fault("internal_error", f"llama-server crashed ({name}): most likely a bug of it")
        for name in ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGTRAP")
    },
}
_OUTSIDE: Final = frozenset({"SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"})

KINDS: Final = frozenset(
    {rule.kind for rule in (*_ANYTIME, *_LOADING, *_INTERNAL)}
    | {fault.kind for fault in (*_BY_SIGNAL.values(), _KILLED)}
    | {"stuck", "unresponsive", "no_memory"}
)
"""Every kind there is; those of the last line are the supervisor's own (`lifecycle.py`)."""

_SIZE: Final = re.compile(r"(?:attempted to allocate|allocating) +(?P<size>[\d.]+ Mi?B)")
_MAY_HEAL: Final = re.compile(r"memory|alloc|buffer|cuda|device|resource", re.IGNORECASE)
"""In what a final rule has found: a GPU that is busy or on its way now may be there at the next try."""


def find_fault(
    lines: Sequence[str], *, signal: str | None, loading: bool, llama_server: bool = True, oom_killed: bool = False
) -> Fault | None:
    """What ended it; `None` when nothing tells.

    `lines`: the newest of its log. `llama_server`: whether it was one. `oom_killed`: whether the kernel killed some
    process for want of memory at about that time.
    """
    if signal == "SIGKILL":
        return OUT_OF_MEMORY if oom_killed else _KILLED
    if signal in _OUTSIDE:
        return Fault("killed", f"somebody else ended it ({signal})")
    if signal == "SIGILL":
        return _BY_SIGNAL[signal]
    text = "\n".join(line[:_LINE_CHARACTERS] for line in lines if not _NO_ERROR.match(line))
    rules = (*_ANYTIME, *_LOADING, *_INTERNAL) if loading and llama_server else (*_ANYTIME, *_INTERNAL)
    return _apply(rules, text) or _BY_SIGNAL.get(signal or "")


def _apply(rules: Iterable[Rule], text: str) -> Fault | None:
    for rule in rules:
        found = rule.lines.search(text)
        if found is not None:
            final = rule.final and not _MAY_HEAL.search(found[0])
            return Fault(rule.kind, rule.reason.format(**_words(found, text)), final)
    return None


def _words(found: re.Match[str], text: str) -> dict[str, str]:
    """What stands in a rule's sentence. Of alternatives, the one that was found is its `why` and `what`."""
    words = {name: value.strip() for name, value in found.groupdict().items() if value is not None}
    told = next(iter(words.values()), "")
    size = _SIZE.search(text)
    return {
        "why": told,
        "what": told,
        **words,
        **({"why": _in_words(words["why"])} if "why" in words else {}),
        **({"flag": _name_flag(words["flag"])} if "flag" in words else {}),
        "size": f" ({size['size']} were asked for)" if size else "",
    }


def _in_words(why: str) -> str:
    """`stoi` and its like are what the C++ library says of a text that is no number."""
    return "its value is no number" if re.fullmatch(r"sto[a-z]+", why) else why.rstrip(".: ")


def _name_flag(flag: str) -> str:
    """A flag, and the option that stands for it in `models`."""
    conflict = find_conflict(flag)
    return f"{flag} (`{conflict[1]}`)" if conflict is not None and conflict[1] is not None else flag

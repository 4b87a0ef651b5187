"""The command line and environment of a llama-server."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

INSTANCE_VARIABLE: Final = "LLAMAHERD_INSTANCE"
"""`<data folder>|<node>/<model>/<index>/<generation>`: by it the next supervisor knows a process for ours, even
one whose start never reached the log."""
API_KEY_VARIABLE: Final = "LLAMA_API_KEY"


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One llama-server to be started."""

    program: str
    model: str
    path: str
    projector: str = ""
    """Path of the file that lets the model see or hear; empty without one."""
    host: str
    port: int
    slots: int = 0
    """0: llama-server's own choice (4, sharing one context)."""
    context_tokens: int = 0
    """Of each slot; 0: the model's own training context, less where memory is short (`--fit`)."""
    embedding: bool = False
    """Serve embeddings: llama-server then serves nothing else."""
    batch_tokens: int = 0
    """Longest text of one embedding or ranking: all of it goes through the model at once. 0: llama-server's 512."""
    reranking: bool = False
    """Serve `/v1/rerank`, with a model made for it."""
    extra_args: Sequence[str] = ()


def render_arguments(launch: Launch) -> list[str]:
    """The words after the program's name. The API key is not among them: `ps` shows these to every user."""
    words = ["--model", launch.path, "--alias", launch.model, "--host", launch.host, "--port", str(launch.port)]
    if launch.projector:
        words += ["--mmproj", launch.projector]
    if launch.slots:
        words += ["--parallel", str(launch.slots)]
    if launch.context_tokens:
        # llama-server divides `--ctx-size` by the number of slots, unless it chose that number itself.
        words += ["--ctx-size", str(launch.context_tokens * max(1, launch.slots))]
    if launch.embedding:
        words += ["--embedding"]
    if launch.reranking:
        words += ["--reranking"]
    if launch.batch_tokens and (launch.embedding or launch.reranking):
        words += ["--batch-size", str(launch.batch_tokens), "--ubatch-size", str(launch.batch_tokens)]
    return [*words, "--metrics", "--slots", "--no-webui", *launch.extra_args]


def render_environment(inherited: Mapping[str, str], *, api_key: str, mark: str) -> dict[str, str]:
    """What the process inherits, without our own settings and without what would make it a router's child."""
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(("LLAMAHERD_", "LLAMA_SERVER_ROUTER")) and name != "LLAMA_ARG_MODELS_DIR"
    }
    return kept | {API_KEY_VARIABLE: api_key, INSTANCE_VARIABLE: mark}


def render_mark(data_dir: str, *, node: str, model: str, index: int, generation: int) -> str:
    return f"{data_dir}|{node}/{model}/{index}/{generation}"


def is_marked(mark: str, data_dir: str, *, node: str) -> bool:
    """Whether a process with this mark was started by a supervisor of this node and data folder."""
    return mark.startswith(f"{data_dir}|{node}/")


def matches(command_line: Sequence[str], *, path: str, port: int) -> bool:
    """Whether these are the words of a llama-server we started for this file on this port."""
    words = list(command_line)
    pairs = set(itertools.pairwise(words))
    return ("--model", path) in pairs and ("--port", str(port)) in pairs

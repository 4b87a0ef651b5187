"""The command line and environment of a llama-server, or of another server in its place."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from llamaherd_shared.model_options import render_words
from llamaherd_supervisor.launching import Plan, fill_macros

INSTANCE_VARIABLE: Final = "LLAMAHERD_INSTANCE"
"""`<data folder>|<node>/<model>/<index>/<generation>`: by it the next supervisor knows a process for ours, even
one whose start never reached the log."""
API_KEY_VARIABLE: Final = "LLAMA_API_KEY"


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One process to be started."""

    program: str
    """llama-server; of no use to a plan with a `command`."""
    model: str
    plan: Plan
    host: str
    port: int

    @property
    def macros(self) -> dict[str, str]:
        """What the words of a `command` may stand for."""
        return {"PORT": str(self.port), "HOST": self.host, "MODEL": self.model, "MODEL_PATH": self.plan.path}


def render_command(launch: Launch) -> list[str]:
    """The program and its words. The API key is not among them: `ps` shows these to every user."""
    plan = launch.plan
    if plan.command:
        return [fill_macros(launch.macros, word) for word in plan.command]
    words = ["--model", plan.path, "--alias", launch.model, "--host", launch.host, "--port", str(launch.port)]
    words += render_words(plan.options, architecture=plan.architecture)
    return [launch.program, *words, "--metrics", "--slots", "--no-webui", *plan.args]


def render_environment(
    inherited: Mapping[str, str], configured: Mapping[str, str] = {}, *, api_key: str, mark: str
) -> dict[str, str]:
    """What the process inherits, without our own settings and without what would make it a router's child.

    `configured`: variables of its entry, looked up already; `${API_KEY}` in them is filled in.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(("LLAMAHERD_", "LLAMA_SERVER_ROUTER")) and name != "LLAMA_ARG_MODELS_DIR"
    }
    own = {name: fill_macros({"API_KEY": api_key}, value) for name, value in configured.items()}
    return kept | own | {API_KEY_VARIABLE: api_key, INSTANCE_VARIABLE: mark}


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

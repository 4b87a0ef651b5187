"""Every subject on the bus: its shape, its one writer, its readers. Read this file first.

After the prefix the first token is the kind, because the kind decides retention (`streams.py`).
One subject per entity: the type of a fact is its tag, not a token.
"""

import re
from functools import lru_cache
from typing import Final

import msgspec

_ILLEGAL: Final = re.compile(r"[^A-Za-z0-9_-]")
_ESCAPED: Final = re.compile(rb"=([0-9A-F]{2})")
_EMPTY: Final = "="
"""No text gives a lone `=`, so it can stand for the empty one."""


@lru_cache(maxsize=1024)
def encode_token(text: str) -> str:
    """Make any text one legal subject token (NATS ADR-6): other bytes become `=XX`; reversible."""
    return _ILLEGAL.sub(lambda found: "".join(f"={byte:02X}" for byte in found[0].encode()), text) or _EMPTY


def decode_token(token: str) -> str:
    """Undo `encode_token`."""
    if token == _EMPTY:
        return ""
    raw = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), token.encode())
    return raw.decode("utf-8", "replace")


class Subject(msgspec.Struct, frozen=True):
    """One row of the table of subjects."""

    shape: str
    writer: str
    readers: str
    meaning: str


TABLE: Final[tuple[Subject, ...]] = (
    Subject("ev.instance.<node>.<model>.<index>", "supervisor", "gateway, metrics, ui", "facts about one llama-server"),
    Subject("ev.model.<node>.<model>", "supervisor", "gateway, ui", "facts about one model file"),
    Subject("ev.pull.<node>.<pull>", "supervisor", "gateway, ui", "facts about one download of a model"),
    Subject("ev.node.<node>", "supervisor", "gateway, ui", "facts about one host"),
    Subject("ev.access.<key>", "ui", "gateway, ui", "facts about one API key; never the key itself"),
    Subject("ev.alias.<alias>", "gateway", "gateway, ui", "facts about another name for a model"),
    Subject("ev.placement.<model>", "gateway", "gateway", "which node was chosen to load a model that several have"),
    Subject("req.<node>.<model>.<outcome>", "gateway", "ui", "one fact per request served; never prompts"),
    Subject("met.<node>.<source>", "metrics", "metrics, ui", "samples, one message per scrape"),
    Subject("log.<node>.<service>.<unit>", "every service", "logs, ui", "log lines, packed"),
    Subject(
        "presence.<node>.<service>",
        "every service",
        "gateway, supervisor, metrics, ui",
        "who is alive; expires by itself",
    ),
    Subject("conv.<key>.<response>", "gateway", "gateway", "one answer that can be gone on from, with what was asked"),
    Subject("usage.<gateway>", "gateway", "gateway", "use of API keys and models, for shared limits; kept nowhere"),
    Subject(
        "cmd.supervisor.<node>.<verb>",
        "gateway, supervisor, ui",
        "supervisor",
        "load, offer, grow, unload, reset, reload, drain, whois: answered at once;"
        " describe, parameters, pull, pull-cancel, delete",
    ),
    Subject("cmd.metrics.<verb>", "ui", "metrics", "history"),
    Subject("cmd.logs.<verb>", "ui", "logs", "query"),
    Subject("live.<subject>", "nats-server", "ui, your subscriber", "every fact and line again, with its sequence"),
)
"""All subjects, without the prefix. docs/architecture.md is generated from it."""


class Subjects(msgspec.Struct, frozen=True):
    """Builds subjects. The only place where tokens are joined."""

    prefix: str = "herd"

    def instance(self, node: str, model: str, index: int) -> str:
        return f"{self.prefix}.ev.instance.{encode_token(node)}.{encode_token(model)}.{index}"

    def model(self, node: str, model: str) -> str:
        return f"{self.prefix}.ev.model.{encode_token(node)}.{encode_token(model)}"

    def pull(self, node: str, pull: str) -> str:
        return f"{self.prefix}.ev.pull.{encode_token(node)}.{encode_token(pull)}"

    def node(self, node: str) -> str:
        return f"{self.prefix}.ev.node.{encode_token(node)}"

    def access(self, key: str) -> str:
        return f"{self.prefix}.ev.access.{encode_token(key)}"

    def alias(self, alias: str) -> str:
        return f"{self.prefix}.ev.alias.{encode_token(alias)}"

    def placement(self, model: str) -> str:
        return f"{self.prefix}.ev.placement.{encode_token(model)}"

    def request(self, node: str, model: str, outcome: str) -> str:
        return f"{self.prefix}.req.{encode_token(node)}.{encode_token(model)}.{outcome}"

    def sample(self, node: str, source: str) -> str:
        return f"{self.prefix}.met.{encode_token(node)}.{encode_token(source)}"

    def log(self, node: str, service: str, unit: str) -> str:
        return f"{self.prefix}.log.{encode_token(node)}.{encode_token(service)}.{encode_token(unit)}"

    def presence(self, node: str, service: str) -> str:
        return f"{self.prefix}.presence.{encode_token(node)}.{encode_token(service)}"

    def conversation(self, key: str, response: str) -> str:
        """An answer that was given to an API key; `key` is empty where none is asked for."""
        return f"{self.prefix}.conv.{encode_token(key)}.{encode_token(response)}"

    def usage(self, gateway: str) -> str:
        return f"{self.prefix}.usage.{encode_token(gateway)}"

    def usage_of_all(self) -> str:
        return f"{self.prefix}.usage.*"

    def command(self, service: str, verb: str, *, node: str | None = None) -> str:
        """A command's subject; with `node`, the service on that host, else any one of them."""
        where = f".{encode_token(node)}" if node is not None else ""
        return f"{self.prefix}.cmd.{service}{where}.{verb}"

    def live(self, subject: str) -> str:
        """Where nats-server repeats what was stored under `subject` (which may end in `>`)."""
        return f"{self.prefix}.live.{subject.removeprefix(self.prefix + '.')}"

    def all(self, kind: str) -> str:
        """Every subject of a kind, e.g. `met` -> `herd.met.>`."""
        return f"{self.prefix}.{kind}.>"

"""A model that somebody wants to have: what may be asked for, and which node gets it."""

import msgspec

from llamaherd_shared.commands import PullModel
from llamaherd_shared.errors import NotFound, Rejected, Unavailable
from llamaherd_ui.projection import Entities, Node, select


class NewPull(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model to be pulled from the hub."""

    repository: str
    """`owner/name`, with or without `:quantization`."""
    quantization: str = ""
    """E.g. `Q8_0`, or the name of a file. Empty: `Q4_K_M`, else `Q8_0`, else the only one there is."""
    revision: str = "main"
    """Branch, tag or commit."""
    name: str = ""
    """What it will be called; empty: as its file is."""
    node: str | None = None
    """The node that gets it; needed when there are several."""


def render_command(asked: NewPull) -> PullModel:
    return PullModel(
        repository=asked.repository, quantization=asked.quantization, revision=asked.revision, name=asked.name
    )


def nodes_alive(entities: Entities) -> list[str]:
    """Nodes with a supervisor. Raises `Unavailable` when there is none."""
    alive = [host.node for host in select(entities, Node) if host.left_ns is None]
    if not alive:
        raise Unavailable("no supervisor is running: start one with `llamaherd up`", retry_after_s=2)
    return alive


def pick_puller(entities: Entities, node: str | None) -> str:
    """The node that pulls. Raises why there is none, with the names that would have worked."""
    known = [host.node for host in select(entities, Node) if host.left_ns is None]
    if node is not None and node not in known:
        raise NotFound(f"there is no node {node}; there are: {', '.join(known) or 'none'}")
    alive = nodes_alive(entities)
    if node is None and len(alive) > 1:
        raise Rejected(f"name the node that gets the model (`node`): {', '.join(alive)}")
    return node or alive[0]

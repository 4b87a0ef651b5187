"""Facts about one host. Written by: supervisor. Read by: gateway, ui."""

import msgspec


class NodeBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Fields every node event carries."""

    node: str
    at_ns: int
    """Unix nanoseconds, from the writer's clock."""


class NodeJoined(NodeBase, frozen=True, kw_only=True, tag="node.joined.v1"):
    """A supervisor runs on this host."""

    version: str
    """llamaherd's version."""
    cpus: int
    memory_bytes: int
    models_dir: str
    llama_server: str
    """Path of the llama-server it uses; empty when there is none."""
    drained: bool = False
    """Whether it is still drained for maintenance (`NodeDrained`)."""


class NodeDrained(NodeBase, frozen=True, kw_only=True, tag="node.drained.v1"):
    """For maintenance it takes no loads any more; what runs finishes its answers and is unloaded."""


class NodeResumed(NodeBase, frozen=True, kw_only=True, tag="node.resumed.v1"):
    """It takes loads again."""


class NodeLeft(NodeBase, frozen=True, kw_only=True, tag="node.left.v1"):
    """The supervisor stopped."""

    cause: str
    """`shutdown`, or `expired` when its presence ran out."""


NodeEvent = NodeJoined | NodeDrained | NodeResumed | NodeLeft

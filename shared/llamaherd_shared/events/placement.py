"""Where models are to be loaded, when several nodes have them. Written by: gateway. Read by: gateway."""

import msgspec


class PlacementDecided(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="placement.decided.v1"):
    """This node made the best offer. Who asks for the same model within the next seconds asks the same node."""

    model: str
    node: str
    at_ns: int
    """Unix nanoseconds, from the writer's clock."""
    gateway: str = ""
    """Who decided it."""

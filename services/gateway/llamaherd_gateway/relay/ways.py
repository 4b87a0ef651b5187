"""Where a name leads, and what is done to the requests that go there: found once, good until the herd changes."""

import msgspec

from llamaherd_gateway.dialects.dialect import Facts
from llamaherd_gateway.projection import Instance
from llamaherd_gateway.relay.upstream import Pool
from llamaherd_shared.model_spec import Rules


class Target(msgspec.Struct, frozen=True):
    """An instance, as a request finds it that asked for its model by some name."""

    instance: Instance
    pool: Pool
    facts: Facts
    """With what the name brings (`Facts.preset`)."""
    rules: Rules


class Way(msgspec.Struct, frozen=True):
    """What a name means when one instance answers to it, whatever the request."""

    model: str
    target: Target

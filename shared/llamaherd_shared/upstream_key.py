"""The API key of each llama-server, derived so that no secret ever stands in an event."""

import hashlib
import hmac
from typing import Final

ROUTER: Final = "llama-server-router"
"""Stands for the model of a node's router, which serves several."""


def upstream_key(
    secret: bytes, *, node: str, model: str, index: int, generation: int, router_generation: int = 0
) -> str:
    """The `--api-key` of one spawn of one instance: HMAC-SHA256 of its name under the herd's secret.

    Supervisor and gateway compute it each for itself from `InstanceStarted`; the secret reaches them as a file.
    An instance with a `router_generation` has its router's key.
    """
    if router_generation:
        model, index, generation = ROUTER, 0, router_generation
    name = f"{node}\n{model}\n{index}\n{generation}"
    return hmac.new(secret, name.encode(), hashlib.sha256).hexdigest()

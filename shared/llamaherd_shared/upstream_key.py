"""The API key of each llama-server, derived so that no secret ever stands in an event."""

import hashlib
import hmac


def upstream_key(secret: bytes, *, node: str, model: str, index: int, generation: int) -> str:
    """The `--api-key` of one spawn of one instance: HMAC-SHA256 of its name under the herd's secret.

    Supervisor and gateway compute it each for itself from `InstanceStarted`; the secret reaches them as a file.
    """
    name = f"{node}\n{model}\n{index}\n{generation}"
    return hmac.new(secret, name.encode(), hashlib.sha256).hexdigest()

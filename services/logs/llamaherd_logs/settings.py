"""Settings of the logs service: the `logs` mapping of `llamaherd.yaml`, or `LLAMAHERD_LOGS_*`."""

from typing import Annotated

import msgspec


class LogsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long lines are kept. The oldest go first, whichever limit is reached first."""

    keep_days: Annotated[float, msgspec.Meta(gt=0, le=3650)] = 14.0
    """Days since a line arrived."""
    max_bytes: Annotated[int, msgspec.Meta(ge=10_000_000)] = 2_000_000_000
    """Bytes in use in the projection, the search index included."""

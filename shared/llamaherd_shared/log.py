"""structlog without rich, which it imports where it is installed: 5 MB and a tenth of a second for each service.

Rich would colour tracebacks that no service prints. Import structlog from here, and nowhere else.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, cast

__all__ = ["structlog"]


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """Let imports of this module fail, unless somebody has imported it already."""
    modules = cast(dict[str, Any], sys.modules)
    hidden = modules.setdefault(module, None) is None
    try:
        yield
    finally:
        if hidden:
            del modules[module]


with _without("rich"):
    import structlog

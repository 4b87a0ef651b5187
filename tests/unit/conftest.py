"""The unit tests are to be over in two seconds."""

import gc
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

HERE: Final = Path(__file__).parent
MOST_CASES: Final = 24
"""Of a module: pytest takes a millisecond for each test, whatever that does."""
# None of these tests waits inside uvloop, so a signal reaches them; a thread for each would take a tenth of the time.
TIMEOUT = pytest.mark.timeout(method="signal")

# By default every 700 new objects make Python look for garbage: another tenth.
gc.set_threshold(100_000, 50, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    for item in mine:
        item.add_marker(TIMEOUT)
    for path, count in Counter(item.path for item in mine).items():
        if count > MOST_CASES:
            raise pytest.UsageError(f"{path} has {count} cases: move it to tests/cases, where they may be many.")


def pytest_collection_finish() -> None:
    # Modules and tests stay to the end: pytest need not look through them for garbage when it is over.
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Its plugin would import hypothesis only to say that there is nothing to say.
    if "hypothesis" not in sys.modules:
        session.config.pluginmanager.set_blocked("hypothesispytest")

"""The unit tests are to be over in two seconds."""

import gc
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# None of these tests waits inside uvloop, so a signal reaches them; a thread for each would take a tenth of the time.
TIMEOUT = pytest.mark.timeout(method="signal")

# By default every 700 new objects make Python look for garbage: another tenth.
gc.set_threshold(100_000, 50, 50)


spent_s = 0.0
"""In the tests and their fixtures: collecting and telling of 1,800 takes pytest as long again."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    global spent_s
    spent_s += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if all(HERE in Path(argument).resolve().parents or Path(argument).resolve() == HERE for argument in config.args):
        terminalreporter.write_line(f"{spent_s:.2f} s in the unit tests themselves")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(TIMEOUT)


def pytest_collection_finish() -> None:
    # Modules and tests stay to the end: pytest need not look through them for garbage when it is over.
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Its plugin would import hypothesis only to say that there is nothing to say.
    if "hypothesis" not in sys.modules:
        session.config.pluginmanager.set_blocked("hypothesispytest")

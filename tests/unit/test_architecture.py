"""Who may import what. Reads lines; imports nothing of ours."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "llamaherd_shared": ROOT / "shared",
    "llamaherd": ROOT / "llamaherd",
    **{f"llamaherd_{path.name}": path for path in (ROOT / "services").iterdir() if path.is_dir()},
}

SHELL = {
    "__main__", "actions", "api", "app", "asking", "attending", "blobs", "bus", "conversations", "docs", "edge",
    "exchange", "gate", "gguf_file", "handlers", "host", "keeping", "leftover", "loading", "models", "nvml",
    "process", "protocol", "pursuit", "relay", "settings", "slices", "spawning", "store", "tail", "telemetry", "turns",
    "upstream", "workplace",
}  # fmt: skip
"""File names allowed to touch the outside world, wherever they stand. Every other module is core."""

SHELL_FOLDERS = {"bus", "cli", "launcher"}
"""Packages that are adapters as a whole."""

SHELL_PATHS = {
    "llamaherd_gateway/routing/growing.py",
    "llamaherd_gateway/routing/placing.py",
    "llamaherd_gateway/routing/watching.py",
    "llamaherd_shared/configuration.py",
    "llamaherd_shared/loop_watch.py",
    "llamaherd_shared/projection.py",
    "llamaherd_shared/service.py",
    "llamaherd_shared/tasks.py",
    "llamaherd/client.py",
    "llamaherd/console.py",
    "llamaherd_supervisor/devices.py",
    "llamaherd_supervisor/files.py",
    "llamaherd_supervisor/folder_watch.py",
    "llamaherd_supervisor/folder.py",
    "llamaherd_supervisor/instance_files.py",
    "llamaherd_supervisor/instance_log.py",
    "llamaherd_supervisor/journal.py",
    "llamaherd_supervisor/leftovers.py",
    "llamaherd_supervisor/listing.py",
    "llamaherd_supervisor/maintenance.py",
    "llamaherd_supervisor/memory.py",
    "llamaherd_supervisor/needs.py",
    "llamaherd_supervisor/program.py",
    "llamaherd_supervisor/loads.py",
    "llamaherd_supervisor/reloading.py",
    "llamaherd_supervisor/pulls/entries.py",
    "llamaherd_supervisor/pulls/fetch.py",
    "llamaherd_supervisor/pulls/hub.py",
    "llamaherd_supervisor/pulls/part_file.py",
    "llamaherd_supervisor/router/log.py",
}

IO = {
    "asyncio", "httpx", "litestar", "nats", "opentelemetry", "os", "psutil", "pynvml", "random",
    "secrets", "signal", "socket", "sqlite3", "sqlite_utils", "subprocess", "threading", "time", "uuid", "uvicorn",
    "watchfiles",
}  # fmt: skip

IMPORT = re.compile(r"^[ \t]*(?:from ([\w.]+) import (\([^)]*\)|[^#\n]+)|import ([^#\n]+))", re.MULTILINE)
"""Every import begins a line: ruff sees to that. Syntax trees of everything would take ten times as long."""

NAME = re.compile(r"([\w.]+)(?: as \w+)?")


def imported(path: Path) -> Iterator[str]:
    for module, names, plain in IMPORT.findall(path.read_text()):
        assert not module.startswith("."), f"{path}: use absolute imports"
        yield from (f"{module}.{name}" for name in NAME.findall(names))
        yield from NAME.findall(plain)


@cache
def modules(package: str) -> list[Path]:
    return sorted((FOLDERS[package] / package).rglob("*.py"))


def is_shell(path: Path) -> bool:
    inside = path.relative_to(ROOT).as_posix()
    return (
        path.stem in SHELL
        or bool(SHELL_FOLDERS & set(path.parent.parts[len(ROOT.parts) :]))
        or any(inside.endswith(shell) for shell in SHELL_PATHS)
    )


@pytest.mark.parametrize("package", FOLDERS)
def test_modules_import_only_what_their_place_allows(package: str) -> None:
    assert modules(package), f"{package} has no module"
    for path in modules(package):
        check_imports(package, path)


def check_imports(package: str, path: Path) -> None:
    may_do_io = is_shell(path)
    for name in imported(path):
        top = name.split(".")[0]
        if top in FOLDERS and top not in {package, "llamaherd_shared"}:
            assert package == "llamaherd", f"{path}: {name} belongs to a sibling service"
            assert name.split(".")[1] == "settings", f"{path}: the launcher may read settings, not {name}"
        if package == "llamaherd_shared":
            assert top not in FOLDERS or top == package, f"{path}: shared imports no service"
        if top == "structlog":
            assert path.name == "log.py", f"{path}: import structlog from llamaherd_shared.log"
        if top == "nats":
            assert package == "llamaherd_shared", f"{path}: only the bus speaks to nats"
            assert path.parent.name == "bus", f"{path}: only the bus speaks to nats"
        assert may_do_io or top not in IO, f"{path}: {name} is I/O in a core module"


@pytest.mark.parametrize("package", FOLDERS)
def test_no_module_is_named_for_nothing(package: str) -> None:
    names = {path.stem for path in modules(package)}

    assert not names & {"utils", "util", "helpers", "common", "manager", "misc"}


def test_unit_tests_leave_made_up_inputs_to_properties() -> None:
    """Hypothesis would take most of the two seconds that all unit tests have."""
    unit = Path(__file__).parent

    assert [path for path in unit.rglob("*.py") if any(name.startswith("hypothesis") for name in imported(path))] == []


@pytest.mark.parametrize("package", FOLDERS)
def test_nobody_waits_with_what_swallows_a_cancellation(package: str) -> None:
    """`asyncio.wait_for` of Python 3.11 does, when what it waits for is done in the same moment; `asyncio.timeout` does
    not. Before a service runs, or in the launcher, that does no harm."""
    for path in modules(package):
        if package != "llamaherd" and path.parent.name != "bus":
            assert "asyncio.wait_for(" not in path.read_text(), path

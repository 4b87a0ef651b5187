"""Fixtures every kind of test may use. Processes are owned by `harness/`, and imported when one is wanted: unit tests
want none, and have no time for such imports."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.herd import Herd
    from harness.nats import NatsServer

NO_LLAMA_SERVER = "no llama-server: build one with `uv run llamaherd install llama-server` (about five minutes)"


@pytest.fixture
def nats_server(tmp_path: Path) -> "Iterator[NatsServer]":
    """A nats-server of this test's own."""
    from harness.nats import NatsServer

    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shared_nats_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[NatsServer]":
    """One nats-server for a module whose tests use different prefixes or subjects."""
    from harness.nats import NatsServer

    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def herd(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Herd]":
    """The demo herd on a real llama-server, for tests that leave it as they found it."""
    yield from demo_herd(tmp_path_factory.mktemp("herd"))


@pytest.fixture
def own_herd(tmp_path: Path) -> "Iterator[Herd]":
    """A demo herd of this test's own, to kill and starve."""
    yield from demo_herd(tmp_path)


def demo_herd(folder: Path) -> "Iterator[Herd]":
    from harness.herd import Herd, llama_server_or_none

    if llama_server_or_none() is None:
        pytest.skip(NO_LLAMA_SERVER)
    running = Herd(folder, "--demo").start()
    yield running
    running.stop()

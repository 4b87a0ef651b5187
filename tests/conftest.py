"""Fixtures every kind of test may use. Processes are owned by `harness/`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.herd import Herd, llama_server_or_none
from harness.nats import NatsServer

NO_LLAMA_SERVER = "no llama-server: build one with `uv run llamaherd install llama-server` (about five minutes)"


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server of this test's own."""
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shared_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One nats-server for a module whose tests use different prefixes or subjects."""
    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    """The demo herd on a real llama-server, for tests that leave it as they found it."""
    if llama_server_or_none() is None:
        pytest.skip(NO_LLAMA_SERVER)
    running = Herd(tmp_path_factory.mktemp("herd"), "--demo").start()
    yield running
    running.stop()


@pytest.fixture
def own_herd(tmp_path: Path) -> Iterator[Herd]:
    """A demo herd of this test's own, to kill and starve."""
    if llama_server_or_none() is None:
        pytest.skip(NO_LLAMA_SERVER)
    running = Herd(tmp_path, "--demo").start()
    yield running
    running.stop()

"""What a supervisor tells of an end that nobody asked for, against a real nats-server and a fake llama-server."""

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from harness.deadline import until, wait_until
from harness.fake_llama_server import set_switches
from harness.nats import NatsServer
from harness.supervisor import Node, herd_of
from llamaherd_shared.events.instance import InstanceExited, InstanceFailed
from llamaherd_supervisor.lifecycle import State

GOLDEN = Path(__file__).parents[1] / "golden" / "llama_server" / "faults"
MODELS = (f"faulty-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("running"), shared_nats_server, name="faulty.lan")

    async def start() -> None:
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()

    uvloop.run(start())
    yield node
    node.clean_up()


@pytest.fixture
def model() -> str:
    return next(MODELS)


def lines_of(name: str) -> list[str]:
    return (GOLDEN / f"{name}.log").read_text().splitlines()


def test_failed_crashed_and_unloaded_are_told_apart(running: Node) -> None:
    """T11 (peers.md): one exit code stood for all three."""
    failed, crashed, unloaded = next(MODELS), next(MODELS), next(MODELS)

    async def body() -> None:
        running.add_model(failed, exit_on_start=1, raw_lines=lines_of("unknown_architecture-alpaca"))
        running.add_model(crashed)
        running.add_model(unloaded)
        async with herd_of(running) as herd:
            for model in (failed, crashed, unloaded):
                await herd.offered(model)
                await herd.load(model)
            await herd.state(State.FAILED, failed)
            ready = await herd.state(State.READY, crashed)
            await herd.state(State.READY, unloaded)

            os.kill(ready.pid or 0, signal.SIGSEGV)
            await herd.unload(unloaded)
            await herd.state(State.STOPPED, unloaded)
            await until(lambda: "exited" in herd.kinds(crashed), what="the crash is told")

            exits = [fact for fact in herd.facts if isinstance(fact, InstanceExited)]
            told = {fact.model: (fact.cause, fact.fault, bool(fact.restart_at_ns)) for fact in exits}
            assert told == {
                failed: ("crash", "unknown_architecture", False),
                crashed: ("crash", "internal_error", True),
                unloaded: ("unload", "", False),
            }
            (given_up,) = [fact for fact in herd.facts if isinstance(fact, InstanceFailed)]
            assert (given_up.model, given_up.fault) == (failed, "unknown_architecture")

    uvloop.run(body())


def test_line_that_tells_why_is_found_however_much_is_printed_behind_it(running: Node, model: str) -> None:
    async def body() -> None:
        lines = lines_of("bad_argument-long_usage")
        running.add_model(model, exit_on_start=1, raw_lines=lines)
        async with herd_of(running, model) as herd:
            await herd.offered()

            await herd.load()

            await herd.state(State.FAILED)
            failed = herd.history()[-1]
            assert isinstance(failed, InstanceFailed)
            assert failed.fault == "bad_argument"
            assert "--chat-template-file" in failed.reason
            assert len(failed.last_lines) == 20
            assert lines[0] not in failed.last_lines
            assert herd.kinds() == ["started", "exited", "failed"]

    uvloop.run(body())


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """Processes whose ids are written to this file have 64 MB together."""
    for folder, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(folder) / f"llamaherd-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(64 * 2**20))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        yield group / "cgroup.procs"
        wait_until(lambda group=group: not (group / "cgroup.procs").read_text(), what="nobody is in the group")
        group.rmdir()
        return
    pytest.skip("the memory of a group of processes cannot be limited here")


def test_kill_by_the_kernel_for_want_of_memory_is_told_as_that(
    tmp_path: Path, shared_nats_server: NatsServer, little_memory: Path
) -> None:
    node = Node(tmp_path, shared_nats_server, name="small.lan")
    node.llama_server = tmp_path / "greedy"
    greedy = f"{sys.executable} -c 'bytes(range(256)) * 2**20'"
    node.llama_server.write_text(f"#!/bin/sh\necho $$ > {little_memory}\nexec {greedy}\n")
    node.llama_server.chmod(0o700)
    node.add_model("m")

    async def body() -> None:
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            await herd.offered()

            await herd.load()

            await herd.state(State.FAILED)
            exited, failed = herd.history()[1], herd.history()[-1]
            assert isinstance(exited, InstanceExited)
            assert isinstance(failed, InstanceFailed)
            assert (exited.signal, exited.fault, failed.fault) == ("SIGKILL", "out_of_memory", "out_of_memory")
            assert "the kernel killed it because memory was full" in failed.reason

    try:
        uvloop.run(body())
    finally:
        node.clean_up()


def test_memory_that_is_full_may_be_free_at_the_next_try(running: Node, model: str) -> None:
    """T7 (peers.md): a model that found no memory was an error until somebody started it by hand."""

    async def body() -> None:
        full = lines_of("out_of_memory-weights")
        running.add_model(model, exit_on_start=1, only_first_starts=1, raw_lines=full)
        async with herd_of(running, model) as herd:
            await herd.offered()

            await herd.load()

            await herd.state(State.READY)
            exited = herd.history()[1]
            assert isinstance(exited, InstanceExited)
            assert exited.fault == "out_of_memory"
            assert "242.08 MB were asked for" in exited.reason

    uvloop.run(body())


def test_kill_from_outside_is_told_from_a_kill_for_silence(running: Node, model: str) -> None:
    async def body() -> None:
        path = running.add_model(model)
        async with herd_of(running, model) as herd:
            await herd.offered()
            await herd.load()
            first = await herd.state(State.READY)

            os.kill(first.pid or 0, signal.SIGKILL)
            await until(lambda: herd.instance().generation == 2 and herd.instance().state is State.READY)
            set_switches(path, hang_health=True)
            await until(lambda: herd.kinds().count("exited") == 2, what="it is killed for its silence")

            exits = [fact for fact in herd.history() if isinstance(fact, InstanceExited)]
            assert [(fact.cause, fact.fault, fact.signal) for fact in exits] == [
                ("crash", "killed", "SIGKILL"),
                ("unhealthy", "unresponsive", "SIGKILL"),
            ]

    uvloop.run(body())

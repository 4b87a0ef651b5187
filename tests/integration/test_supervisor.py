"""The supervisor as a process, against a real nats-server and a fake llama-server that misbehaves on request."""

import asyncio
import contextlib
import itertools
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
import uvloop

from harness.deadline import until
from harness.fake_llama_server import set_switches
from harness.nats import NatsServer
from harness.random_gguf import write_garbage, write_garbage_gguf, write_truncated_gguf
from harness.supervisor import Node, herd_of
from llamaherd_shared.bus import Recorded
from llamaherd_shared.errors import NotFound, Rejected, Unavailable
from llamaherd_shared.events.instance import InstanceExited, InstanceFailed, InstanceProgressed, InstanceStarted
from llamaherd_shared.events.line import decode_lines
from llamaherd_shared.events.model import ModelFound, ModelRejected, ModelRemoved
from llamaherd_shared.events.node import NodeJoined, NodeLeft
from llamaherd_shared.streams import EVENTS
from llamaherd_supervisor.lifecycle import State

NAMES = (f"host-{number}.lan" for number in itertools.count())
MODELS = (f"model-{number}.Q8_0" for number in itertools.count())


@pytest.fixture
def node(tmp_path: Path, shared_nats_server: NatsServer) -> Iterator[Node]:
    """A host of its own for each test; they share one nats-server."""
    node = Node(tmp_path, shared_nats_server, name=next(NAMES))
    yield node
    node.clean_up()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer) -> Iterator[Node]:
    """A host whose supervisor runs for all tests that are content with a model of their own."""
    node = Node(tmp_path_factory.mktemp("running"), shared_nats_server, name=next(NAMES))

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


def test_model_is_found_loaded_served_and_unloaded(running: Node, model: str) -> None:
    async def body() -> None:
        running.add_model(model, slow_load_s=0.2)
        async with herd_of(running, model) as herd:
            await herd.offered()

            accepted = await herd.load()
            ready = await herd.state(State.READY)
            await herd.unload()
            await herd.state(State.STOPPED)

            assert (accepted.node, accepted.model, accepted.state) == (running.name, model, "stopped")
            assert ready.generation == 1
            assert herd.kinds() == ["started", "ready", "draining", "stopping", "exited"]
            assert running.llama_servers(model) == []

    uvloop.run(body())


def test_crash_waits_out_backoff_and_comes_back(running: Node, model: str) -> None:
    async def body() -> None:
        running.add_model(model)
        async with herd_of(running, model) as herd:
            await herd.offered()
            await herd.load()
            first = await herd.state(State.READY)

            os.kill(first.pid or 0, signal.SIGKILL)

            await until(lambda: herd.kinds() == ["started", "ready", "exited", "started", "ready"])
            exited, restarted = herd.history()[2:4]
            assert isinstance(exited, InstanceExited)
            assert (exited.cause, exited.signal, exited.exit_code) == ("crash", "SIGKILL", None)
            assert any("listening on" in line for line in exited.last_lines)
            assert isinstance(restarted, InstanceStarted)
            assert (restarted.generation, restarted.restarts) == (2, 1)
            assert (restarted.at_ns - exited.at_ns) / 1e9 < 1.0
            assert restarted.at_ns >= (exited.restart_at_ns or 0)
            assert len(running.llama_servers(model)) == 1

    uvloop.run(body())


def test_model_that_keeps_crashing_while_loading_is_given_up_and_can_be_loaded_by_hand(
    running: Node, model: str
) -> None:
    async def body() -> None:
        path = running.add_model(model, exit_on_start=1, log_lines=["srv  the card is on fire"])
        async with herd_of(running, model) as herd:
            await herd.offered()

            await herd.load()

            await herd.state(State.FAILED)
            failed = herd.history()[-1]
            assert isinstance(failed, InstanceFailed)
            assert f"3 times while loading {model} (last: exit code 1)" in failed.reason
            assert any("the card is on fire" in line for line in failed.last_lines)
            assert herd.kinds() == ["started", "exited"] * 3 + ["failed"]

            before = len(herd.facts)
            set_switches(path)
            accepted = await herd.load()

            await herd.state(State.READY)
            assert accepted.sequence == herd.sequences[before - 1], "following from there shows no older failure"

    uvloop.run(body())


def test_model_that_was_given_up_starts_again_after_a_reset(running: Node, model: str) -> None:
    async def body() -> None:
        path = running.add_model(model, exit_on_start=1)
        async with herd_of(running, model) as herd:
            await herd.offered()
            await herd.load()
            await herd.state(State.FAILED)
            set_switches(path)

            done = await herd.reset()

            ready = await herd.state(State.READY)
            assert (done.state, done.forgotten, done.starts) == ("failed", True, True)
            assert (ready.crashed_ns, ready.load_crashes) == ((), 0)
            assert herd.kinds()[-4:] == ["failed", "exited", "started", "ready"]
            again = await herd.reset()
            assert (again.state, again.forgotten, again.starts) == ("ready", False, False)

    uvloop.run(body())


def test_reset_ends_the_wait_for_the_next_try(node: Node) -> None:
    async def body() -> None:
        path = node.add_model("unlucky", exit_on_start=1)
        async with herd_of(node, "unlucky") as herd:
            node.start(backoff_base_s=60, backoff_max_s=60)
            await herd.offered()
            await herd.load()
            await herd.state(State.BACKOFF)
            set_switches(path)

            await herd.reset()

            await herd.state(State.READY)

    uvloop.run(body())


def test_reset_after_a_restart_of_the_supervisor_leaves_the_model_unloaded(node: Node) -> None:
    """It was given up before, and nobody has asked for it since."""

    async def body() -> None:
        node.add_model("old", exit_on_start=1)
        async with herd_of(node, "old") as herd:
            node.start()
            await herd.offered()
            await herd.load()
            await herd.state(State.FAILED)
            node.kill()
            node.start()
            await herd.serving()

            done = await herd.reset()

            await herd.state(State.STOPPED)
            assert (done.forgotten, done.starts) == (True, False)

    uvloop.run(body())


def test_reset_of_a_model_that_is_not_there_is_refused(running: Node) -> None:
    async def body() -> None:
        async with herd_of(running, "nowhere") as herd:
            with pytest.raises(NotFound, match="nowhere"):
                await herd.reset()

    uvloop.run(body())


def test_model_that_no_llama_server_can_load_is_given_up_at_once(running: Node, model: str) -> None:
    async def body() -> None:
        line = "llama_model_load: error loading model: unknown model architecture: 'alpaca'"
        running.add_model(model, exit_on_start=1, raw_lines=[line])
        async with herd_of(running, model) as herd:
            await herd.offered()

            await herd.load()

            await herd.state(State.FAILED)
            failed = herd.history()[-1]
            assert isinstance(failed, InstanceFailed)
            assert failed.fault == "unknown_architecture"
            assert failed.reason == "this llama-server does not know the architecture alpaca: a newer one may"
            assert herd.kinds() == ["started", "exited", "failed"]

    uvloop.run(body())


def test_instance_that_crashes_again_and_again_when_ready_is_given_up(running: Node, model: str) -> None:
    async def body() -> None:
        running.add_model(model, exit_after_s=0.15, exit_code=7)
        async with herd_of(running, model) as herd:
            await herd.offered()

            await herd.load()

            await herd.state(State.FAILED)
            failed = herd.history()[-1]
            assert isinstance(failed, InstanceFailed)
            assert "ended 3 times within 300 s (last: exit code 7)" in failed.reason

    uvloop.run(body())


def test_instance_that_ignores_sigterm_is_killed_after_the_time_out(running: Node, model: str) -> None:
    async def body() -> None:
        running.add_model(model, ignore_sigterm=True)
        async with herd_of(running, model) as herd:
            await herd.offered()
            await herd.load()
            await herd.state(State.READY)

            await herd.unload()

            await herd.state(State.STOPPED)
            exited = herd.history()[-1]
            assert isinstance(exited, InstanceExited)
            assert (exited.cause, exited.signal, exited.last_lines) == ("unload", "SIGKILL", [])
            assert running.llama_servers(model) == []

    uvloop.run(body())


@pytest.mark.parametrize("trouble", ["hangs", "is stopped"])
def test_instance_that_no_longer_answers_is_killed_and_restarted(running: Node, model: str, trouble: str) -> None:
    async def body() -> None:
        path = running.add_model(model)
        async with herd_of(running, model) as herd:
            await herd.offered()
            await herd.load()
            first = await herd.state(State.READY)

            if trouble == "hangs":
                set_switches(path, hang_health=True)
            else:
                os.kill(first.pid or 0, signal.SIGSTOP)
            await herd.state(State.BACKOFF)
            set_switches(path)

            again = await herd.state(State.READY)
            exited = next(fact for fact in herd.history() if isinstance(fact, InstanceExited))
            assert (exited.cause, exited.signal) == ("unhealthy", "SIGKILL")
            assert again.generation == 2
            assert len(running.llama_servers(model)) == 1

    uvloop.run(body())


def test_supervisor_killed_right_after_a_load_leaves_no_unknown_process(node: Node) -> None:
    """The process may have been spawned while its start never reached the log: its mark tells whose it is."""

    async def body() -> None:
        node.add_model("m", slow_load_s=0.5)
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            await herd.load()
            await until(node.llama_servers)

            node.kill()
            node.start()
            await herd.serving()
            await herd.load()

            ready = await herd.state(State.READY)
            assert [process.pid for process in node.llama_servers()] == [ready.pid]

    uvloop.run(body())


def test_stopped_supervisor_leaves_no_process_and_says_good_bye(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        node.add_model("b", slow_load_s=30)
        node.add_model("c", ignore_sigterm=True)
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            for model in ("a", "b", "c"):
                await herd.load(model)
            await herd.state(State.READY, "a")
            await herd.state(State.LOADING, "b")
            await herd.state(State.READY, "c")

            code = await asyncio.to_thread(node.stop)

            assert code == 0, node.output
            assert node.llama_servers() == []
            await until(lambda: any(isinstance(fact, NodeLeft) for fact in herd.facts))
            assert isinstance(herd.facts[-1], NodeLeft)
            assert herd.kinds("a") == ["started", "ready", "draining", "stopping", "exited"]
            assert herd.kinds("b") == ["started", "stopping", "exited"]
            assert all(herd.instance(model).state is State.STOPPED for model in ("a", "b", "c"))

    uvloop.run(body())


def test_requests_in_flight_finish_before_the_stop(running: Node, model: str) -> None:
    """T3 (peers.md): swaps killed models that were generating."""

    async def body() -> None:
        path = running.add_model(model, busy_slots=1)
        async with herd_of(running, model) as herd:
            await herd.offered()
            await herd.load()
            await herd.state(State.READY)

            await herd.unload()
            await herd.state(State.DRAINING)
            # Long enough to be stopped if the busy slot were not respected.
            with pytest.raises(AssertionError):
                await until(lambda: "stopping" in herd.kinds(), within_s=1.0)
            set_switches(path)

            await herd.state(State.STOPPED)
            draining, stopping = herd.history()[2:4]
            assert 1.0 < (stopping.at_ns - draining.at_ns) / 1e9 < 10

    uvloop.run(body())


def test_drain_ends_when_its_time_is_over(running: Node, model: str) -> None:
    async def body() -> None:
        running.add_model(model, busy_slots=1)
        async with herd_of(running, model) as herd:
            await herd.offered()
            await herd.load()
            await herd.state(State.READY)

            await herd.unload()

            await herd.state(State.STOPPED)

    uvloop.run(body())


def test_duplicate_loads_are_one_process(running: Node, model: str) -> None:
    async def body() -> None:
        path = running.add_model(model, slow_load_s=0.3)
        async with herd_of(running, model) as herd:
            await herd.offered()

            await asyncio.gather(*(herd.load() for _ in range(20)))
            await herd.state(State.READY)
            await herd.load()

            assert len(running.llama_servers(model)) == 1
            assert len(path.with_name(f"{model}.gguf.starts").read_text().split()) == 1
            assert herd.kinds() == ["started", "ready"]

    uvloop.run(body())


def test_load_during_a_stop_starts_again_afterwards(running: Node, model: str) -> None:
    """T2 (peers.md): a start that raced a stop left the model wedged."""

    async def body() -> None:
        running.add_model(model)
        async with herd_of(running, model) as herd:
            await herd.offered()
            await herd.load()
            await herd.state(State.READY)

            await herd.unload()
            await herd.load()
            await herd.unload()
            await herd.load()

            await until(lambda: herd.kinds()[-1] == "ready" and herd.instance().state is State.READY)
            await until(lambda: len(running.llama_servers(model)) == 1)

    uvloop.run(body())


def test_unload_while_loading_stops_at_once(running: Node, model: str) -> None:
    """T6 (peers.md): the exit command to a loading model was not read until it was killed."""

    async def body() -> None:
        running.add_model(model, slow_load_s=60)
        async with herd_of(running, model) as herd:
            await herd.offered()
            await herd.load()
            await herd.state(State.LOADING)

            await herd.unload()

            await herd.state(State.STOPPED)
            assert herd.kinds() == ["started", "stopping", "exited"]
            exited = herd.history()[-1]
            assert isinstance(exited, InstanceExited)
            assert exited.signal != "SIGKILL", "it has heard that it was to go"

    uvloop.run(body())


@pytest.mark.parametrize("others", [[], ["another gateway"], [""]], ids=["nobody", "a gateway", "a person"])
def test_a_load_ends_when_nobody_wants_it_any_more(running: Node, model: str, others: list[str]) -> None:
    async def body() -> None:
        running.add_model(model, slow_load_s=1.5)
        async with herd_of(running, model) as herd:
            await herd.offered()
            for by in ("a gateway", *others):
                await herd.load(by=by)
            await herd.state(State.LOADING)

            await herd.cancel_load(by="a gateway")

            await herd.state(State.READY if others else State.STOPPED)
            if others:
                await herd.cancel_load(by=others[0])
                assert (await herd.load()).state == "ready", "what is ready stays"
                return
            assert herd.kinds() == ["started", "stopping", "exited"]
            await herd.load(by="a gateway")
            await herd.state(State.READY)

    uvloop.run(body())


def test_unload_during_backoff_and_after_failure_forgets_the_restart(node: Node) -> None:
    async def body() -> None:
        node.add_model("m", exit_on_start=1)
        async with herd_of(node) as herd:
            node.start(backoff_base_s=30, backoff_max_s=30)
            await herd.serving()
            await herd.load()
            await herd.state(State.BACKOFF)

            await herd.unload()

            await herd.state(State.STOPPED)

    uvloop.run(body())


def test_commands_are_refused_with_a_sentence(node: Node) -> None:
    async def body() -> None:
        node.add_model("cria")
        write_garbage(node.models_dir / "noise.gguf")
        write_garbage_gguf(node.models_dir / "damaged.gguf")
        short = write_truncated_gguf(node.models_dir / "short.gguf")
        os.utime(short, (1, 1))
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()

            with pytest.raises(NotFound, match=r"lan has no model 'cris' \(did you mean 'cria'\?\); it has cria$"):
                await herd.load("cris")
            with pytest.raises(Rejected, match=r"noise\.gguf: it is not a GGUF file: it begins with"):
                await herd.load("noise")
            with pytest.raises(Rejected, match=r"the file is damaged|ends within its header"):
                await herd.load("damaged")
            with pytest.raises(Rejected, match="the file ends before its weights do"):
                await herd.load("short")
            with pytest.raises(NotFound, match="lan has no model 'nothing'"):
                await herd.unload("nothing")
            accepted = await herd.unload("cria")
            assert accepted.state == "stopped"

    uvloop.run(body())


def test_load_without_llama_server_says_how_to_install_one(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        node.llama_server = node.folder / "not-there"
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()

            with pytest.raises(Unavailable, match="run `llamaherd install llama-server`"):
                await herd.load()

            joined = next(fact for fact in herd.facts if isinstance(fact, NodeJoined))
            assert joined.llama_server == ""

    uvloop.run(body())


def test_models_folder_is_followed(running: Node, model: str) -> None:
    async def body() -> None:
        async with herd_of(running, model) as herd:
            path = running.add_model(model)
            await herd.offered()
            found = herd.known.models[model]
            assert isinstance(found, ModelFound)
            assert (found.architecture, found.title, found.context_tokens) == ("llama", "Random", 512)
            assert (found.size_bytes, found.quantization, found.chat) == (path.stat().st_size, "F32", True)

            whole = path.read_bytes()
            slow = running.models_dir / f"slow-{model}.gguf"
            slow.write_bytes(whole[: len(whole) // 2])
            path.unlink()
            await until(lambda: isinstance(herd.known.models[model], ModelRemoved))
            assert slow.stem not in herd.known.models, "a file that is being copied is not offered, nor rejected"
            slow.write_bytes(whole)
            await herd.offered(slow.stem)
            assert isinstance(herd.known.models[slow.stem], ModelFound)

    uvloop.run(body())


def test_facts_about_models_are_not_repeated_by_a_restart(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        write_garbage(node.models_dir / "noise.gguf")
        async with herd_of(node) as herd:
            for _ in range(2):
                node.start()
                await herd.serving()
                assert await asyncio.to_thread(node.stop) == 0

            await until(lambda: sum(isinstance(fact, NodeLeft) for fact in herd.facts) == 2)
            about = [fact for fact in herd.facts if isinstance(fact, ModelFound | ModelRejected)]
            assert sorted(fact.model for fact in about) == ["m", "noise"]

    uvloop.run(body())


def test_second_supervisor_on_the_same_data_folder_is_refused(node: Node) -> None:
    async def body() -> None:
        async with herd_of(node) as herd:
            first = node.start()
            await herd.serving()
            other = Node(node.folder, node.server, name="another")

            code = await asyncio.to_thread(other.run, 10)

            assert code == 1
            assert f"another supervisor (process {first.pid}) uses the data folder {node.data_dir}" in node.output
            assert first.poll() is None

    uvloop.run(body())


def test_second_supervisor_of_the_same_name_is_refused(node: Node, tmp_path: Path) -> None:
    async def body() -> None:
        other = Node(tmp_path / "other", node.server, name=node.name)
        async with herd_of(node) as herd:
            first = node.start()
            await herd.serving()

            code = await asyncio.to_thread(other.run, 10)

            assert code == 1
            assert f"node {node.name} already has a supervisor (process {first.pid}" in other.output
            assert first.poll() is None

    uvloop.run(body())


def test_projection_that_was_deleted_is_rebuilt_to_the_same_content(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        node.add_model("other")
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            await herd.load()
            ready = await herd.state(State.READY)
            os.kill(ready.pid or 0, signal.SIGKILL)
            await until(lambda: herd.kinds()[-1] == "ready" and len(herd.kinds()) == 5)
            assert await asyncio.to_thread(node.stop) == 0
            before = rows(node)

            for path in (node.data_dir / "projections").iterdir():
                path.unlink()
            node.start()
            await herd.serving()

            # Starting adds facts about the node, and none about its instances and models.
            await until(lambda: rows(node) == before)

    uvloop.run(body())


def rows(node: Node) -> dict[str, list[tuple[object, ...]]]:
    file = next((node.data_dir / "projections").glob("supervisor.*.sqlite"))
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        return {table: db.execute(f"select * from {table} order by 1").fetchall() for table in ("instance", "model")}


def test_supervision_goes_on_while_the_bus_is_away_and_the_facts_follow_in_order(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    """T18 (peers.md): a partition ended in duplicates and orphans."""

    async def body() -> None:
        node = Node(tmp_path, nats_server)
        path = node.add_model("m")
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            await herd.load()
            first = await herd.state(State.READY)

            with node.crowding() as most:
                nats_server.kill()
                os.kill(first.pid or 0, signal.SIGKILL)
                starts = path.with_name("m.gguf.starts")
                await until(lambda: len(starts.read_text().split()) == 2, what="the restart without a bus")
                nats_server.start()

                await until(lambda: herd.kinds() == ["started", "ready", "exited", "started", "ready"], within_s=15)
                assert (await herd.load()).state == "ready"
            assert most == {"m": 1, "": 1}
            assert [process.pid for process in node.llama_servers()] == [herd.instance().pid]
            happened_ns = [fact.at_ns for fact in herd.history()]
            assert happened_ns == sorted(happened_ns)
            assert await asyncio.to_thread(node.stop) == 0
            assert node.llama_servers() == []

    uvloop.run(body())


async def limit_facts(server: NatsServer, max_msg_size: int) -> None:
    """Let nats-server store no larger fact; -1: any."""
    client = await nats.connect(server.url)
    try:
        config = (await client.jetstream().stream_info(EVENTS)).config
        config.max_msg_size = max_msg_size
        await client.jetstream().update_stream(config)
    finally:
        await client.close()


def test_supervision_goes_on_while_the_bus_refuses_facts(tmp_path: Path, nats_server: NatsServer) -> None:
    """As it does with a full disk: all instances were stopped for it."""

    async def body() -> None:
        node = Node(tmp_path, nats_server)
        path = node.add_model("m")
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            await herd.load()
            first = await herd.state(State.READY)

            await limit_facts(nats_server, 10)
            os.kill(first.pid or 0, signal.SIGKILL)
            starts = path.with_name("m.gguf.starts")
            await until(lambda: len(starts.read_text().split()) == 2, what="the restart")
            await until(lambda: "facts wait for the bus to take them" in node.output)
            await limit_facts(nats_server, -1)

            await until(lambda: herd.kinds() == ["started", "ready", "exited", "started", "ready"], within_s=15)
            assert await asyncio.to_thread(node.stop) == 0

    uvloop.run(body())


def test_supervisor_stops_in_order_while_the_bus_is_away(tmp_path: Path, nats_server: NatsServer) -> None:
    async def body() -> None:
        node = Node(tmp_path, nats_server)
        node.add_model("m")
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            await herd.load()
            await herd.state(State.READY)

            nats_server.kill()
            code = await asyncio.to_thread(node.stop, 20)

            assert code == 0, node.output
            assert node.llama_servers() == []
            assert "the last facts could not be stored" in node.output
            nats_server.start()

    uvloop.run(body())


def test_lines_of_an_instance_reach_the_bus_with_their_levels(running: Node, model: str) -> None:
    async def body() -> None:
        running.add_model(model, log_lines=["srv  hello from the model"], exit_on_start=1)
        async with herd_of(running, model) as herd:
            lines: list[tuple[str, str]] = []

            def seen(recorded: Recorded) -> None:
                pack = decode_lines(recorded.data)
                assert (pack.service, pack.unit) == ("llama-server", f"{model}/0")
                lines.extend((line.level, line.text) for line in pack.lines)

            watch = await herd.bus.watch(herd.bus.subjects.log(running.name, "llama-server", f"{model}/0"), seen)
            await herd.offered()
            await herd.load()

            await until(lambda: [line for line in lines if line[0] == "info" and "hello from the model" in line[1]])
            await until(lambda: [line for line in lines if line[0] == "error" and "failed to load" in line[1]])
            await watch.close()

    uvloop.run(body())


def test_progress_is_told_while_loading(running: Node, model: str) -> None:
    async def body() -> None:
        running.add_model(model, slow_load_s=0.8)
        async with herd_of(running, model) as herd:
            await herd.offered()
            await herd.load()
            await herd.state(State.READY)

            told = [fact for fact in herd.facts if isinstance(fact, InstanceProgressed) and fact.model == model]
            ratios = [fact.ratio for fact in told]
            assert ratios
            assert ratios == sorted(ratios)
            assert len(ratios) <= 5

    uvloop.run(body())


@pytest.mark.parametrize("signs", [{"chatter_s": 0.2}, {"grow_bytes": 2**20}, {"read_bytes": 2**20}], ids=str)
def test_load_may_take_as_long_as_it_takes_while_it_goes_on(node: Node, signs: dict[str, Any]) -> None:
    """T12: slow is not stuck."""

    async def body() -> None:
        node.add_model("slow", slow_load_s=3.0, **signs)
        async with herd_of(node, "slow") as herd:
            node.start(load_stall_s=1.0)
            await herd.offered()
            await herd.load()
            ready = await herd.state(State.READY)

            assert ready.generation == 1
            assert "exited" not in herd.kinds()

    uvloop.run(body())


def test_server_that_answers_probes_but_never_finishes_a_request_is_ended_by_an_unload(node: Node) -> None:
    """T14: it kept its memory, because it looked well and ignored the stop."""

    async def body() -> None:
        node.add_model("numb", busy_slots=1, ignore_sigterm=True)
        async with herd_of(node, "numb") as herd:
            node.start(drain_timeout_s=0.5, stop_timeout_s=0.5)
            await herd.offered()
            await herd.load()
            await herd.state(State.READY)

            await herd.unload()
            await herd.state(State.STOPPED)

            exited = herd.history()[-1]
            assert isinstance(exited, InstanceExited)
            assert (exited.cause, exited.signal) == ("unload", "SIGKILL")
            assert node.llama_servers() == []

    uvloop.run(body())


def test_server_that_answers_probes_and_infers_nothing_is_told_and_then_replaced(node: Node) -> None:
    """T14: it had run out of memory, looked well, and nobody heard of it."""

    async def body() -> None:
        node.add_model("numb", delay_token_s=10_000.0, tokens=2)
        async with herd_of(node, "numb") as herd:
            node.start(answer_stall_s=0.8, answer_kill_s=3.0)
            await herd.offered()
            await herd.load()
            instance = await herd.state(State.READY)

            (process,) = node.llama_servers("numb")
            headers = {"Authorization": f"Bearer {process.environ()['LLAMA_API_KEY']}"}
            url = f"http://{instance.host}:{instance.port}/v1/chat/completions"
            body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
            async with httpx.AsyncClient() as client, client.stream("POST", url, json=body, headers=headers) as answer:
                lines = answer.aiter_lines()
                await anext(lines)

                await until(lambda: "nothing of its answers has moved" in herd.note, what="it is told")
                await until(lambda: herd.instance().generation == 2, what="it is started again")

            await until(lambda: not herd.note, what="it is taken back")
            await herd.state(State.READY)
            (exited,) = [fact for fact in herd.history() if isinstance(fact, InstanceExited)]
            assert (exited.cause, exited.fault) == ("unhealthy", "stuck")
            assert exited.reason == "nothing of its answers moved for 3 s, and it was ended"

    uvloop.run(body())


def test_load_of_which_nothing_moves_is_ended_and_given_up_with_the_reason(node: Node) -> None:
    """T9, T10: it would load for ever."""

    async def body() -> None:
        node.add_model("stuck", slow_load_s=100.0)
        async with herd_of(node, "stuck") as herd:
            node.start(load_stall_s=0.4)
            await herd.offered()
            await herd.load()
            await herd.state(State.FAILED)

            failed = herd.facts[-1]
            assert isinstance(failed, InstanceFailed)
            assert failed.fault == "stuck"
            assert "nothing of its load moved for 0.4 s" in failed.reason
            assert herd.kinds().count("started") == 3
            assert node.llama_servers() == []

    uvloop.run(body())


def test_second_load_tells_when_it_will_be_done(node: Node) -> None:
    async def body() -> None:
        node.add_model("twice", slow_load_s=1.0)
        async with herd_of(node, "twice") as herd:
            node.start()
            await herd.offered()
            await herd.load()
            await herd.state(State.READY)
            await herd.unload()
            await herd.state(State.STOPPED)
            first = [fact for fact in herd.facts if isinstance(fact, InstanceProgressed)]
            await herd.load()
            await herd.state(State.READY)

            told = [fact for fact in herd.facts if isinstance(fact, InstanceProgressed)]
            guesses = [fact.ready_at_ns - fact.at_ns for fact in told[len(first) :] if fact.ready_at_ns is not None]
            assert first
            assert all(fact.ready_at_ns is None for fact in first)
            assert guesses
            assert max(guesses) < 5e9

    uvloop.run(body())


def test_data_folder_that_cannot_be_written_is_one_sentence(node: Node) -> None:
    node.data_dir.rmdir()
    node.data_dir.write_text("a file")

    code = node.run(15)

    assert code == 1
    assert f"cannot write in the data folder {node.data_dir}" in node.output
    assert "Traceback" not in node.output
    node.data_dir.unlink()
    node.data_dir.mkdir()

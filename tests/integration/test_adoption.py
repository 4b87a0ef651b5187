"""Instances outlive their supervisor: it is killed with -9, and the next one finds, adopts, tells or ends them."""

import asyncio
import itertools
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvloop

from harness.deadline import until
from harness.fake_llama_server import set_switches
from harness.nats import NatsServer
from harness.supervisor import Herd, Node, herd_of
from llamaherd_shared.events.instance import InstanceExited, InstanceProgressed, InstanceReady, InstanceStarted
from llamaherd_shared.events.line import LinePack, decode_lines
from llamaherd_shared.streams import LOGS
from llamaherd_shared.upstream_key import upstream_key
from llamaherd_supervisor.command_line import INSTANCE_VARIABLE, render_mark
from llamaherd_supervisor.lifecycle import Instance, State

NAMES = (f"adopter-{number}" for number in itertools.count())


@pytest.fixture
def node(tmp_path: Path, shared_nats_server: NatsServer) -> Iterator[Node]:
    node = Node(tmp_path, shared_nats_server, name=next(NAMES))
    yield node
    node.clean_up()


async def loaded(herd: Herd) -> Instance:
    herd.node.start()
    await herd.serving()
    await herd.load()
    return await herd.state(State.READY)


async def killed_and_started_again(herd: Herd, **settings: float) -> None:
    herd.node.kill()
    herd.node.start(**settings)
    await herd.serving()


def key_of(node: Node, instance: Instance) -> str:
    return upstream_key(
        b"s3cret", node=node.name, model=instance.model, index=instance.index, generation=instance.generation
    )


def pids(node: Node) -> list[int]:
    return [process.pid for process in node.llama_servers()]


def test_generation_in_flight_completes_and_the_instance_is_adopted_as_it_is(node: Node) -> None:
    """T13 (peers.md): a killed supervisor left its processes orphaned."""

    async def body() -> None:
        node.add_model("m", tokens=60, delay_token_s=0.03)
        async with herd_of(node) as herd:
            ready = await loaded(herd)
            url = f"http://{ready.host}:{ready.port}/v1/chat/completions"
            headers = {"authorization": f"Bearer {key_of(node, ready)}"}
            question = {"model": "m", "stream": True, "messages": []}
            async with httpx.AsyncClient(headers=headers, timeout=20) as client:
                async with client.stream("POST", url, json=question) as answer:
                    lines = answer.aiter_lines()
                    await anext(lines)

                    await killed_and_started_again(herd)

                    rest = [line async for line in lines]
            assert rest[-2] == "data: [DONE]"
            assert sum('"content"' in line for line in rest) == 59
            assert herd.kinds() == ["started", "ready"], "nothing has happened to it"
            assert pids(node) == [ready.pid]
            assert (await herd.load()).state == "ready"
            assert "llama-server adopted" in node.output

    uvloop.run(body())


def test_end_of_an_adopted_instance_is_noticed_within_a_second_and_mended(node: Node) -> None:
    """T9 (peers.md): the end of a process was not noticed."""

    async def body() -> None:
        node.add_model("m")
        async with herd_of(node) as herd:
            first = await loaded(herd)
            await told(herd, "listening on")
            await killed_and_started_again(herd)

            at_ns = time.time_ns()
            os.kill(first.pid or 0, signal.SIGKILL)

            await until(lambda: herd.kinds() == ["started", "ready", "exited", "started", "ready"])
            exited = herd.history()[2]
            assert isinstance(exited, InstanceExited)
            assert (exited.cause, exited.exit_code, exited.signal) == ("crash", None, None)
            assert any("listening on" in line for line in exited.last_lines), "from before the adoption"
            assert (exited.at_ns - at_ns) / 1e9 < 1.0
            assert "ending=exit code unknown" in node.output
            assert herd.instance().generation == 2

    uvloop.run(body())


def test_adopted_instance_that_no_longer_answers_is_restarted(node: Node) -> None:
    async def body() -> None:
        path = node.add_model("m")
        async with herd_of(node) as herd:
            await loaded(herd)
            set_switches(path, hang_health=True)

            await killed_and_started_again(herd)
            await herd.state(State.BACKOFF)
            set_switches(path)

            again = await herd.state(State.READY)
            assert (again.generation, pids(node)) == (2, [again.pid])

    uvloop.run(body())


def test_loading_instance_is_adopted_and_becomes_ready(node: Node) -> None:
    async def body() -> None:
        node.add_model("m", slow_load_s=3)
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            await herd.load()
            loading = await herd.state(State.LOADING)
            await until(lambda: herd.instance().ratio > 0)

            await killed_and_started_again(herd)

            ready = await herd.state(State.READY)
            assert (ready.pid, pids(node)) == (loading.pid, [loading.pid])
            ratios = [fact.ratio for fact in herd.facts if isinstance(fact, InstanceProgressed)]
            assert ratios == sorted(ratios)
            assert herd.kinds() == ["started", "ready"]
            told = herd.history()[1]
            assert isinstance(told, InstanceReady)
            assert (told.slots, told.load_s > 2.5) == (1, True)

    uvloop.run(body())


def test_drain_goes_on_where_it_was(node: Node) -> None:
    async def body() -> None:
        path = node.add_model("m", busy_slots=1)
        async with herd_of(node) as herd:
            node.settings["drain_timeout_s"] = 30
            await loaded(herd)
            await herd.unload()
            await herd.state(State.DRAINING)

            await killed_and_started_again(herd)
            assert herd.instance().state is State.DRAINING
            set_switches(path)

            await herd.state(State.STOPPED)
            assert herd.kinds() == ["started", "ready", "draining", "stopping", "exited"]
            exited = herd.history()[-1]
            assert isinstance(exited, InstanceExited)
            assert (exited.cause, exited.exit_code) == ("unload", None)

    uvloop.run(body())


def test_stop_goes_on_to_its_deadline(node: Node) -> None:
    async def body() -> None:
        node.add_model("m", ignore_sigterm=True)
        async with herd_of(node) as herd:
            node.settings["stop_timeout_s"] = 3
            await loaded(herd)
            await herd.unload()
            await herd.state(State.STOPPING)

            await killed_and_started_again(herd)

            await herd.state(State.STOPPED)
            assert herd.kinds() == ["started", "ready", "draining", "stopping", "exited"]
            stopping, exited = herd.history()[-2:]
            assert 2.9 < (exited.at_ns - stopping.at_ns) / 1e9 < 5
            assert pids(node) == []

    uvloop.run(body())


def test_adopted_instance_is_unloaded_like_any_other_and_a_clean_stop_leaves_no_process(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        node.add_model("other")
        async with herd_of(node) as herd:
            await loaded(herd)
            await herd.load("other")
            await herd.state(State.READY, "other")
            await killed_and_started_again(herd)

            await herd.unload()
            await herd.state(State.STOPPED)
            code = await asyncio.to_thread(node.stop)

            assert code == 0, node.output
            assert pids(node) == []
            await herd.state(State.STOPPED, "other")
            assert herd.kinds("other") == ["started", "ready", "draining", "stopping", "exited"]

    uvloop.run(body())


def test_end_that_nobody_watched_is_told_with_the_last_lines_and_mended(node: Node) -> None:
    """T17 (peers.md): llamactl showed a model as running that had ended while its manager was away."""

    async def body() -> None:
        node.add_model("m")
        async with herd_of(node) as herd:
            first = await loaded(herd)

            node.kill()
            os.kill(first.pid or 0, signal.SIGKILL)
            await until(lambda: not node.llama_servers())
            node.start()

            await until(lambda: herd.kinds() == ["started", "ready", "exited", "started", "ready"])
            exited, restarted = herd.history()[2:4]
            assert isinstance(exited, InstanceExited)
            assert (exited.cause, exited.exit_code, exited.signal) == ("supervisor_lost", None, None)
            assert any("listening on" in line for line in exited.last_lines)
            assert isinstance(restarted, InstanceStarted)
            assert (restarted.generation, restarted.restarts) == (2, 0)

    uvloop.run(body())


def test_spawn_that_never_reached_the_log_is_told_and_adopted(tmp_path: Path, nats_server: NatsServer) -> None:
    """The bus is away while the instance crashes and is restarted, and the supervisor is killed before it returns."""

    async def body() -> None:
        node = Node(tmp_path, nats_server)
        node.add_model("m")
        async with herd_of(node) as herd:
            first = await loaded(herd)
            nats_server.kill()
            os.kill(first.pid or 0, signal.SIGKILL)
            (second,) = await until(lambda: [pid for pid in pids(node) if pid != first.pid])

            node.kill()
            nats_server.start()
            node.start()

            await until(lambda: herd.kinds() == ["started", "ready", "exited", "started", "ready"], within_s=20)
            again = herd.instance()
            assert (again.pid, again.generation) == (second, 2)
            assert pids(node) == [second]
            assert await asyncio.to_thread(node.stop) == 0

    uvloop.run(body())


def test_process_whose_record_was_not_completed_is_known_by_its_mark(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        async with herd_of(node) as herd:
            ready = await loaded(herd)

            node.kill()
            record = node.data_dir / "instances" / "m-0.json"
            record.write_text(re.sub(r'"pid":\d+', '"pid":null', record.read_text()))
            node.start()
            await herd.serving()

            assert (await herd.load()).state == "ready"
            assert pids(node) == [ready.pid]
            assert herd.kinds() == ["started", "ready"]

    uvloop.run(body())


@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_process_without_a_record_is_replaced(node: Node, damage: str) -> None:
    """T17 (peers.md): a restart that left processes behind failed again."""

    async def body() -> None:
        node.add_model("m")
        async with herd_of(node) as herd:
            first = await loaded(herd)

            node.kill()
            record = node.data_dir / "instances" / "m-0.json"
            record.unlink() if damage == "missing" else record.write_text('{"pid": "x')
            node.start()

            await until(lambda: herd.kinds()[2:] == ["exited", "started", "ready"])
            assert pids(node) == [herd.instance().pid] != [first.pid]
            assert f"ending llama-servers that belong to no instance pids=[{first.pid}]" in node.output

    uvloop.run(body())


def start_alone(node: Node, path: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A llama-server for the same file that no supervisor of ours has started."""
    words = [str(node.llama_server), "--model", str(path), "--port", "0"]
    return subprocess.Popen(words, env={**os.environ, **environment}, stderr=subprocess.DEVNULL, start_new_session=True)


def test_foreign_orphan_is_ended_even_if_it_ignores_sigterm(node: Node) -> None:
    async def body() -> None:
        path = node.add_model("m", ignore_sigterm=True)
        mark = render_mark(str(node.data_dir), node=node.name, model="m", index=3, generation=9)
        orphan = start_alone(node, path, {INSTANCE_VARIABLE: mark})
        try:
            async with herd_of(node) as herd:
                await until(lambda: path.with_name("m.gguf.starts").exists())

                node.start()
                await herd.serving()

                assert orphan.wait(5) == -signal.SIGKILL
                assert herd.kinds() == []
        finally:
            orphan.kill()
            orphan.wait(5)

    uvloop.run(body())


def test_strangers_are_left_alone(node: Node) -> None:
    async def body() -> None:
        path = node.add_model("m")
        async with herd_of(node) as herd:
            await loaded(herd)
            stranger = start_alone(node, path, {})
            try:
                await killed_and_started_again(herd)
                assert await asyncio.to_thread(node.stop) == 0

                assert stranger.poll() is None
            finally:
                stranger.kill()
                stranger.wait(5)

    uvloop.run(body())


async def packs_of(herd: Herd, unit: str) -> list[LinePack]:
    """Every stored pack of an instance so far."""
    head = await herd.bus.stream_head(LOGS)
    packs = []
    async for batch in herd.bus.read(LOGS, after=0):
        found = [decode_lines(recorded.data) for recorded in batch]
        packs += [pack for pack in found if (pack.node, pack.unit) == (herd.node.name, unit)]
        if batch and batch[-1].sequence >= head.last:
            break
    return packs


def chatter_in(packs: list[LinePack]) -> list[int]:
    texts = [line.text for pack in packs for line in pack.lines]
    return [int(text.rpartition(" ")[2]) for text in texts if "chatter: " in text]


def test_no_line_is_lost_or_doubled_over_kills_of_the_supervisor(node: Node) -> None:
    async def body() -> None:
        node.add_model("m", chatter_s=0.002, flood_lines=500)
        async with herd_of(node) as herd:
            await loaded(herd)
            for _ in range(4):
                await killed_and_started_again(herd)
                reached = max(chatter_in(await packs_of(herd, "m/0")), default=0)
                await told(herd, f"chatter: {reached + 100}")
            assert await asyncio.to_thread(node.stop) == 0

            packs = await packs_of(herd, "m/0")
            numbers = chatter_in(packs)
            assert numbers == list(range(len(numbers)))
            assert len(numbers) > 400
            assert [pack.first for pack in packs[1:]] == [pack.first + len(pack.lines) for pack in packs[:-1]]

    uvloop.run(body())


async def told(herd: Herd, words: str) -> None:
    """Wait until a line with these words is stored."""
    async with asyncio.timeout(20):
        while True:
            packs = await packs_of(herd, "m/0")
            if any(words in line.text for pack in packs for line in pack.lines):
                return
            await asyncio.sleep(0.05)


def test_lines_of_an_instance_that_died_unwatched_are_all_told(node: Node) -> None:
    async def body() -> None:
        node.add_model("m", chatter_s=0.002)
        async with herd_of(node) as herd:
            first = await loaded(herd)
            log = node.data_dir / "instances" / "m-0.1.log"

            node.kill()
            size = log.stat().st_size
            await until(lambda: log.stat().st_size > size + 5000)
            os.kill(first.pid or 0, signal.SIGKILL)
            await until(lambda: not node.llama_servers())
            written = [int(found) for found in re.findall(r"chatter: (\d+)\n", log.read_text())]
            node.start()
            await until(lambda: herd.kinds() == ["started", "ready", "exited", "started", "ready"])
            assert await asyncio.to_thread(node.stop) == 0

            packs = [pack for pack in await packs_of(herd, "m/0") if pack.generation == 1]
            assert chatter_in(packs) == written

    uvloop.run(body())


def wrap(node: Node) -> None:
    """Put a script between: it starts llama-server as a child and waits for it."""
    wrapper = node.folder / "wrapper"
    wrapper.write_text(f'#!/bin/sh\n"{node.llama_server}" "$@" &\nwait\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    node.llama_server = wrapper


@pytest.mark.parametrize("stubborn", [False, True], ids=["heeds SIGTERM", "ignores SIGTERM"])
@pytest.mark.parametrize("adopted", [False, True], ids=["own", "adopted"])
def test_stop_of_a_wrapper_script_leaves_none_of_its_children(node: Node, stubborn: bool, adopted: bool) -> None:
    async def body() -> None:
        node.add_model("m", ignore_sigterm=stubborn)
        wrap(node)
        async with herd_of(node) as herd:
            await loaded(herd)
            assert len(pids(node)) == 2
            if adopted:
                await killed_and_started_again(herd)
                assert herd.kinds() == ["started", "ready"]

            await herd.unload()

            await herd.state(State.STOPPED)
            assert pids(node) == []
            stopping, exited = herd.history()[-2:]
            took_s = (exited.at_ns - stopping.at_ns) / 1e9
            assert took_s > node.settings["stop_timeout_s"] if stubborn else took_s < node.settings["stop_timeout_s"]

    uvloop.run(body())


def test_children_of_a_wrapper_that_died_do_not_stay(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        wrap(node)
        async with herd_of(node) as herd:
            first = await loaded(herd)
            before = pids(node)

            node.kill()
            os.kill(first.pid or 0, signal.SIGKILL)
            node.start()

            await until(lambda: herd.kinds() == ["started", "ready", "exited", "started", "ready"])
            assert not set(before) & set(pids(node))
            assert len(pids(node)) == 2

    uvloop.run(body())


def test_of_two_supervisors_of_one_name_the_one_that_did_not_answer_leaves(node: Node, tmp_path: Path) -> None:
    """T18 (peers.md): a partition ended in duplicates and orphans."""

    async def body() -> None:
        node.add_model("m")
        successor = Node(tmp_path / "successor", node.server, name=node.name)
        successor.add_model("m")
        async with herd_of(node) as herd, herd_of(successor) as other:
            frozen = node.start()
            await herd.serving()
            await herd.load()
            await herd.state(State.READY)

            frozen.send_signal(signal.SIGSTOP)
            successor.start()
            await other.serving()
            frozen.send_signal(signal.SIGCONT)
            code = await asyncio.to_thread(frozen.wait, 20)

            assert code == 1
            assert f"node {node.name} has another supervisor now: give each host its own name" in node.output
            assert "Traceback" not in node.output
            assert pids(node) == []
            ready = await other.state(State.READY)
            assert pids(successor) == [ready.pid]
            assert other.kinds() == ["started", "ready", "exited", "started", "ready"]
        successor.clean_up()

    uvloop.run(body())

"""A supervisor whose models do not all fit, with fake llama-servers that take real memory.

Each model's file says 60 MiB and its llama-server takes as much, and some 15 for itself.
"""

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from harness.deadline import until
from harness.fake_llama_server import set_switches
from harness.nats import NatsServer
from harness.supervisor import Herd, Node, herd_of
from llamaherd_shared.errors import NoMemory
from llamaherd_shared.events.instance import (
    InstanceDraining,
    InstanceExited,
    InstanceFailed,
    InstanceMeasured,
    InstanceStarted,
    InstanceWaiting,
)
from llamaherd_supervisor.lifecycle import State

MIB = 2**20
SIZE_MIB = 60
QUICK = {"memory_budget": "130 MiB", "min_residence_s": 0.2, "patience_s": 60.0, "release_s": 0.0}
"""Room for one model."""
ROOM_FOR_TWO = {"memory_budget": "220 MiB"}
NAMES = (f"memory-{number}" for number in itertools.count())


@pytest.fixture
def node(tmp_path: Path, shared_nats_server: NatsServer) -> Iterator[Node]:
    node = Node(tmp_path, shared_nats_server, name=next(NAMES))
    node.settings |= QUICK
    yield node
    node.clean_up()


def add_model(node: Node, name: str, *, size_mib: int = SIZE_MIB, **switches: Any) -> None:
    path = node.add_model(name, takes_mib=size_mib, **switches)
    os.truncate(path, size_mib * MIB)


@contextlib.asynccontextmanager
async def serving(node: Node, *names: str, **settings: Any) -> AsyncIterator[Herd]:
    for name in names:
        add_model(node, name)
    async with herd_of(node) as herd:
        node.start(**settings)
        await herd.serving()
        for name in names:
            await herd.offered(name)
        yield herd


async def load(herd: Herd, name: str) -> None:
    await herd.load(name)
    await herd.state(State.READY, name)


def causes(herd: Herd, name: str) -> list[str]:
    return [fact.cause for fact in herd.history(name) if isinstance(fact, InstanceDraining | InstanceExited)]


def reasons(herd: Herd, name: str) -> list[str]:
    return [fact.reason for fact in herd.history(name) if isinstance(fact, InstanceWaiting)]


@contextlib.asynccontextmanager
async def at_work(herd: Herd, name: str, *, for_s: float = 1.0, ends: bool = True) -> AsyncIterator[None]:
    """While the model generates; its answer must come to its end, unless it is one that has none."""
    path = herd.node.models_dir / f"{name}.gguf"
    set_switches(path, takes_mib=SIZE_MIB, delay_token_s=for_s / 10, tokens=10, ignore_sigterm=not ends)
    instance = herd.instance(name)
    key = herd.node.llama_servers(name)[0].environ()["LLAMA_API_KEY"]
    url, headers = f"http://{instance.host}:{instance.port}", {"Authorization": f"Bearer {key}"}
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        yield
        if ends:
            assert "data: [DONE]" in [line async for line in lines]


def test_what_was_used_least_lately_makes_room_and_the_facts_say_for_whom(node: Node) -> None:
    async def body() -> None:
        async with serving(node, "a", "b", "c", **ROOM_FOR_TWO) as herd:
            await load(herd, "a")
            await load(herd, "b")
            async with at_work(herd, "a"):
                pass

            await load(herd, "c")

            assert (causes(herd, "a"), causes(herd, "b")) == ([], ["evicted for c", "evicted for c"])
            assert herd.kinds("b")[-3:] == ["draining", "stopping", "exited"]
            assert {state for name in "ac" if (state := herd.instance(name).state)} == {State.READY}

    uvloop.run(body())


def test_model_that_generates_is_not_unloaded_and_the_load_waits_for_it(node: Node) -> None:
    """T3"""

    async def body() -> None:
        async with serving(node, "a", "b") as herd:
            await load(herd, "a")
            async with at_work(herd, "a", for_s=2):
                await asyncio.sleep(0.3)
                accepted = await herd.load("b")
                await herd.state(State.WAITING, "b")
                assert herd.instance("a").state is State.READY

            await herd.state(State.READY, "b")

            assert accepted.state == "stopped"
            assert reasons(herd, "b")[0] == "a, which is at work"
            assert causes(herd, "a") == ["evicted for b", "evicted for b"]

    uvloop.run(body())


def test_model_that_always_works_gets_no_new_work_once_another_has_waited_too_long(node: Node) -> None:
    async def body() -> None:
        async with serving(node, "a", "b", patience_s=0.5, drain_timeout_s=0.2) as herd:
            await load(herd, "a")
            async with at_work(herd, "a", for_s=3):
                await herd.load("b")
                await herd.state(State.DRAINING, "a")
                # Longer than any other stop may take.
                await asyncio.sleep(0.5)
                assert herd.instance("a").state is State.DRAINING

            await herd.state(State.READY, "b")

    uvloop.run(body())


def test_model_that_says_it_works_and_does_nothing_is_ended(node: Node) -> None:
    """T14"""

    async def body() -> None:
        patience = {"patience_s": 0.3, "answer_stall_s": 1.0, "drain_timeout_s": 0.2, "stop_timeout_s": 0.5}
        async with serving(node, "b", **patience) as herd:
            add_model(node, "stuck", ignore_sigterm=True)
            await herd.offered("stuck")
            await load(herd, "stuck")
            async with at_work(herd, "stuck", for_s=10_000, ends=False):
                began = asyncio.get_running_loop().time()

                await load(herd, "b")

                assert 1.0 < asyncio.get_running_loop().time() - began < 8.0
                assert node.llama_servers("stuck") == []

    uvloop.run(body())


def test_load_that_can_never_fit_is_refused_at_once_with_the_arithmetic_and_nothing_is_unloaded(node: Node) -> None:
    async def body() -> None:
        add_model(node, "huge", size_mib=200)
        async with serving(node, "a") as herd:
            await herd.offered("huge")
            await load(herd, "a")

            with pytest.raises(NoMemory) as refused:
                await herd.load("huge")

            assert "huge needs 2" in refused.value.message
            assert "MiB of RAM (model 200 MiB + KV 32 KiB (512 tokens, f16) + compute" in refused.value.message
            assert "and 130 MiB are free of the 130 MiB of RAM that models may have" in refused.value.message
            assert herd.instance("a").state is State.READY
            assert herd.kinds("huge") == []

    uvloop.run(body())


def test_pinned_model_stays_and_what_needs_its_memory_is_refused(node: Node) -> None:
    async def body() -> None:
        node.configure({"a": {"pin": True}})
        async with serving(node, "a", "b") as herd:
            await load(herd, "a")
            await until(lambda: any(isinstance(fact, InstanceMeasured) for fact in herd.facts), what="it is measured")

            with pytest.raises(NoMemory, match=r"\(a has \d+ MiB, and may not be unloaded for it\)"):
                await herd.load("b")

    uvloop.run(body())


def test_lower_priority_goes_first_although_it_was_used_last(node: Node) -> None:
    async def body() -> None:
        node.configure({"a": {"priority": 1}})
        async with serving(node, "a", "b", "c", **ROOM_FOR_TWO) as herd:
            await load(herd, "a")
            await load(herd, "b")

            await load(herd, "c")

            assert herd.instance("a").state is State.READY
            assert causes(herd, "b")[0] == "evicted for c"

    uvloop.run(body())


def test_of_a_group_only_one_is_loaded_although_there_is_room(node: Node) -> None:
    async def body() -> None:
        node.configure({"a": {"group": "large"}, "b": {"group": "large"}})
        async with serving(node, "a", "b", "c", memory_budget="1 GiB", groups={"large": {"swap": True}}) as herd:
            await load(herd, "a")
            await load(herd, "c")

            await load(herd, "b")

            assert causes(herd, "a")[0] == "evicted for b"
            assert herd.instance("c").state is State.READY

    uvloop.run(body())


def test_model_that_loads_is_never_the_one_to_go(node: Node) -> None:
    """T6"""

    async def body() -> None:
        async with serving(node, "b") as herd:
            add_model(node, "slow", slow_load_s=1.5)
            await herd.offered("slow")
            await herd.load("slow")
            await herd.state(State.LOADING, "slow")

            await load(herd, "b")

            assert "slow, which is loading" in reasons(herd, "b")
            assert herd.kinds("slow")[:2] == ["started", "ready"]

    uvloop.run(body())


def test_model_that_has_just_been_loaded_stays_for_the_request_it_was_loaded_for(node: Node) -> None:
    """T4"""

    async def body() -> None:
        async with serving(node, "a", "b", min_residence_s=1.5) as herd:
            await load(herd, "a")
            ready_ns = herd.instance("a").since_ns

            await load(herd, "b")

            drained = next(fact for fact in herd.history("a") if isinstance(fact, InstanceDraining))
            assert drained.at_ns - ready_ns >= 1.5e9
            assert reasons(herd, "b")[0] == "a, which has just been loaded"

    uvloop.run(body())


def test_process_is_spawned_only_when_the_one_before_has_given_its_memory_back(node: Node) -> None:
    """T8"""

    async def body() -> None:
        async with serving(node, "b", stop_timeout_s=0.7) as herd:
            add_model(node, "deaf", ignore_sigterm=True)
            await herd.offered("deaf")
            await load(herd, "deaf")

            await load(herd, "b")

            exited = next(fact for fact in herd.history("deaf") if isinstance(fact, InstanceExited))
            started = next(fact for fact in herd.history("b") if isinstance(fact, InstanceStarted))
            assert exited.signal == "SIGKILL"
            assert started.at_ns >= exited.at_ns
            assert node.llama_servers("deaf") == []

    uvloop.run(body())


@pytest.mark.parametrize("how", ["unloaded and loaded", "loaded with other options", "crowded out and loaded"])
def test_process_that_is_slow_to_leave_is_never_there_together_with_the_next_one(node: Node, how: str) -> None:
    """T16: what llama-swap had stopped was still there when the next one of its name was started."""

    async def body() -> None:
        async with serving(node, "b", stop_timeout_s=0.7) as herd:
            add_model(node, "deaf", ignore_sigterm=True)
            await herd.offered("deaf")
            await load(herd, "deaf")

            with node.crowding() as most:
                if how == "unloaded and loaded":
                    await herd.unload("deaf")
                    await herd.load("deaf")
                elif how == "loaded with other options":
                    await herd.load("deaf", threads=2)
                # The memory it leaves is wanted twice.
                await herd.load("b")
                if how == "crowded out and loaded":
                    await herd.state(State.STOPPING, "deaf")
                    await herd.load("deaf")
                await until(lambda: herd.instance("deaf").generation == 2 and "ready" in herd.kinds("b"), within_s=20)
                await until(lambda: herd.kinds("deaf").count("ready") == 2, within_s=20, what="both were loaded")

            assert most == {"deaf": 1, "b": 1, "": 1}

    uvloop.run(body())


def test_two_loads_at_once_are_done_one_after_the_other(node: Node) -> None:
    """T7"""

    async def body() -> None:
        async with serving(node, "a", "b") as herd:
            await asyncio.gather(herd.load("a"), herd.load("b"))

            await until(lambda: {"ready"} <= set(herd.kinds("a")) & set(herd.kinds("b")), what="both were ready")

            assert len(node.llama_servers()) == 1

    uvloop.run(body())


@pytest.mark.parametrize("before", ["an unload", "an eviction"])
def test_model_that_generates_without_end_is_unloaded_in_time_and_its_memory_is_free(node: Node, before: str) -> None:
    """T30: Ollama's models were "Stopping..." until their context was full, and kept their memory."""

    async def body() -> None:
        limits = {"patience_s": 0.3, "drain_timeout_s": 0.5, "stop_timeout_s": 0.5}
        async with serving(node, "a", "b", **limits) as herd:
            await load(herd, "a")
            async with at_work(herd, "a", for_s=10_000, ends=False):
                if before == "an eviction":
                    await herd.load("b")
                    await herd.state(State.DRAINING, "a")
                began = asyncio.get_running_loop().time()

                await herd.unload("a")
                await herd.state(State.STOPPED, "a")

                assert asyncio.get_running_loop().time() - began < 3.0
                assert node.llama_servers("a") == []
                await load(herd, "b")

    uvloop.run(body())


def test_wait_that_nobody_wants_any_more_ends_and_nobody_is_unloaded_for_it(node: Node) -> None:
    async def body() -> None:
        async with serving(node, "a", "b", min_residence_s=2) as herd:
            await load(herd, "a")
            herd.model = "b"
            await herd.load("b", by="gateway")
            await herd.state(State.WAITING)

            await herd.cancel_load(by="gateway")

            await herd.state(State.STOPPED)
            assert set(herd.kinds("b")[:-1]) == {"waiting"}
            assert causes(herd, "b") == ["cancelled"]
            await asyncio.sleep(2)
            assert herd.instance("a").state is State.READY

    uvloop.run(body())


def test_load_that_waited_when_its_supervisor_was_killed_is_done_by_the_next_one(node: Node) -> None:
    async def body() -> None:
        async with serving(node, "a", "b", min_residence_s=1) as herd:
            await load(herd, "a")
            await herd.load("b")
            await herd.state(State.WAITING, "b")

            node.kill()
            node.start(min_residence_s=1)

            await herd.state(State.READY, "b", within_s=20)
            assert causes(herd, "a")[0] == "evicted for b"

    uvloop.run(body())


def test_models_of_the_start_take_what_room_there_is_and_do_not_push_each_other_out(node: Node) -> None:
    async def body() -> None:
        node.configure({"a": {"preload": True}, "b": {"preload": True}})
        async with serving(node, "a", "b") as herd:
            await until(
                lambda: sorted(herd.instance(name).state for name in "ab") == [State.FAILED, State.READY],
                what="one of them is ready",
            )

            (failed,) = [fact for fact in herd.facts if isinstance(fact, InstanceFailed)]
            assert failed.fault == "no_memory"
            assert "may not be unloaded for it" in failed.reason

    uvloop.run(body())


def test_crashed_model_keeps_its_memory_for_the_restart(node: Node) -> None:
    async def body() -> None:
        async with serving(node, "a", "b", backoff_base_s=1.0, backoff_max_s=1.0) as herd:
            await load(herd, "a")
            os.kill(herd.instance("a").pid or 0, signal.SIGKILL)
            await herd.state(State.BACKOFF, "a")

            await herd.load("b")

            await herd.state(State.READY, "a")
            await herd.state(State.READY, "b")
            assert herd.kinds("a")[:4] == ["started", "ready", "exited", "started"]

    uvloop.run(body())


def test_what_was_measured_is_the_next_estimate_and_outlives_the_projection(node: Node) -> None:
    async def body() -> None:
        add_model(node, "light", size_mib=100)
        set_switches(node.models_dir / "light.gguf", takes_mib=20)
        async with serving(node, "a", memory_budget="140 MiB") as herd:
            await herd.offered("light")
            await load(herd, "light")
            found = await until(
                lambda: [fact for fact in herd.facts if isinstance(fact, InstanceMeasured)], what="it is measured"
            )
            assert found[0].estimated["ram"] > 120 * MIB
            assert 20 * MIB < found[0].needs["ram"] == found[0].uses["ram"] < 60 * MIB
            await herd.unload("light")
            await herd.state(State.STOPPED, "light")

            assert node.stop() == 0
            for path in (node.data_dir / "projections").glob("supervisor*"):
                path.unlink()
            node.start(memory_budget="140 MiB")
            await herd.serving()
            await load(herd, "a")
            await load(herd, "light")

            assert causes(herd, "a") == [], "by the arithmetic alone both would not fit"

    uvloop.run(body())


def test_gpus_have_budgets_of_their_own(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LLAMA_DEVICES", '["Fake0: Card (2048 MiB, 2048 MiB free)"]')

    async def body() -> None:
        async with serving(node, "a", "b", memory_budget="4 GiB", vram_budget=["700 MiB"]) as herd:
            await load(herd, "a")

            await load(herd, "b")

            assert causes(herd, "a")[0] == "evicted for b"
            measured = next(fact for fact in herd.facts if isinstance(fact, InstanceMeasured))
            assert measured.estimated["gpu0"] > 400 * MIB

    uvloop.run(body())


def test_gpus_that_could_not_be_listed_once_count_all_the_same(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """T29 (peers.md): what told llama-swap of its GPUs failed once, and was never asked again."""
    monkeypatch.setenv("FAKE_LLAMA_DEVICES", '["Fake0: Card (2048 MiB, 2048 MiB free)"]')
    assert node.llama_server is not None
    start, *rest = node.llama_server.read_text().splitlines()
    tried = node.folder / "tried"
    fails_once = f'case "$*" in *--list-devices*) [ -e "{tried}" ] || {{ touch "{tried}"; exit 1; }};; esac'
    node.llama_server.write_text("\n".join([start, fails_once, *rest]))

    async def body() -> None:
        async with serving(node, "a", memory_budget="4 GiB") as herd:
            await load(herd, "a")

            measured = await until(
                lambda: [fact for fact in herd.facts if isinstance(fact, InstanceMeasured)], what="it is measured"
            )
            assert measured[0].estimated["gpu0"] > 400 * MIB

    uvloop.run(body())


def test_budget_that_is_none_is_told_at_the_start(node: Node) -> None:
    node.settings["memory_budget"] = "a lot"

    assert node.run(within_s=15) != 0
    assert "'a lot' is not an amount of memory: write `24 GiB`, `800 MB` or `75%` (`memory_budget`)" in node.output

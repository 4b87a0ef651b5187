"""Models of one router: facts and commands are those of any instance, whatever the router does by itself."""

import asyncio
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import uvloop

from harness.deadline import until
from harness.fake_llama_server import set_switches
from harness.nats import NatsServer
from harness.supervisor import Herd, Node, herd_of
from llamaherd_shared.errors import NoMemory
from llamaherd_shared.events.instance import InstanceExited, InstanceFailed, InstanceProgressed, InstanceStarted
from llamaherd_shared.events.line import LinePack, decode_lines
from llamaherd_shared.streams import LOGS
from llamaherd_shared.upstream_key import ROUTER, upstream_key
from llamaherd_supervisor.lifecycle import Instance, State

UNITS = ("a/0", "b/0", f"{ROUTER}/0")
NAMES = (f"routed-{number}" for number in itertools.count())


@pytest.fixture
def node(tmp_path: Path, shared_nats_server: NatsServer) -> Iterator[Node]:
    node = Node(tmp_path, shared_nats_server, name=next(NAMES))
    node.configure({"*": {"router": True}})
    node.settings["min_residence_s"] = 0
    yield node
    node.clean_up()


def router_of(node: Node) -> psutil.Process:
    """The only process that serves a preset."""
    (found,) = [process for process in node.llama_servers(ROUTER) if "--models-preset" in process.cmdline()]
    return found


def children_of(node: Node) -> dict[str, int]:
    """Model -> pid of its process in the router."""
    words = {process.pid: process.cmdline() for process in node.llama_servers(ROUTER)}
    return {each[each.index("--alias") + 1]: pid for pid, each in words.items() if "--alias" in each}


def key_of(node: Node, instance: Instance, started: InstanceStarted) -> str:
    return upstream_key(
        b"s3cret",
        node=node.name,
        model=instance.model,
        index=0,
        generation=instance.generation,
        router_generation=started.router_generation,
    )


def starts(herd: Herd, model: str) -> list[InstanceStarted]:
    return [fact for fact in herd.history(model) if isinstance(fact, InstanceStarted)]


def causes(herd: Herd, model: str) -> list[str]:
    return [fact.cause for fact in herd.history(model) if isinstance(fact, InstanceExited)]


async def loaded(herd: Herd, *models: str, **settings: int) -> None:
    herd.node.start(**settings)
    await herd.serving()
    for model in models:
        await herd.load(model)
        await herd.state(State.READY, model)


async def generate(herd: Herd, model: str, **more: object) -> httpx.Response:
    """A chat with a model, through the router, as the gateway would ask."""
    instance, started = herd.instance(model), starts(herd, model)[-1]
    async with httpx.AsyncClient(timeout=20) as client:
        return await client.post(
            f"http://{instance.host}:{instance.port}/v1/chat/completions",
            headers={"authorization": f"Bearer {key_of(herd.node, instance, started)}"},
            json={"model": model, "messages": [], **more},
        )


async def at_work(herd: Herd, model: str) -> "asyncio.Task[httpx.Response]":
    """A chat of two seconds, once the model is at it."""
    working = asyncio.create_task(generate(herd, model, max_tokens=100))
    words = psutil.Process(children_of(herd.node)[model]).cmdline()
    state = f"http://127.0.0.1:{words[words.index('--port') + 1]}/fake/state"
    await until(lambda: httpx.get(state, timeout=5).json()["active"], what=f"{model} is at work")
    return working


def test_models_of_a_router_share_its_address_and_are_loaded_and_unloaded_one_by_one(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        node.add_model("b")
        async with herd_of(node) as herd:
            await loaded(herd, "a", "b")

            first, second = herd.instance("a"), herd.instance("b")
            assert (first.host, first.port) == (second.host, second.port)
            assert (first.slots, first.context_tokens) == (1, 512)
            assert children_of(node) == {"a": first.pid, "b": second.pid}
            answer = await generate(herd, "b")
            assert answer.json()["model"] == "b"

            await herd.unload("a")
            await herd.state(State.STOPPED, "a")

            assert herd.kinds("a") == ["started", "ready", "draining", "stopping", "exited"]
            assert causes(herd, "a") == ["unload"]
            assert herd.kinds("b") == ["started", "ready"]
            assert children_of(node).keys() == {"b"}

    uvloop.run(body())


def test_the_progress_of_a_load_is_told(node: Node) -> None:
    async def body() -> None:
        node.add_model("a", slow_load_s=1.0)
        async with herd_of(node) as herd:
            await loaded(herd, "a")

            told = [(fact.stage, fact.ratio) for fact in herd.facts if isinstance(fact, InstanceProgressed)]
            assert ("weights", 0.9) in told

    uvloop.run(body())


def test_one_more_model_than_there_are_places_takes_that_of_the_one_idle_for_longest(node: Node) -> None:
    async def body() -> None:
        for name in "abc":
            node.add_model(name)
        async with herd_of(node) as herd:
            await loaded(herd, "a", "b", router_max_models=2)

            await herd.load("c")
            await herd.state(State.READY, "c")

            assert herd.kinds("a") == ["started", "ready", "draining", "stopping", "exited"]
            assert causes(herd, "a") == ["evicted for c"]
            assert herd.kinds("b") == ["started", "ready"]
            assert children_of(node).keys() == {"b", "c"}

            await herd.load("a")
            await herd.state(State.READY, "a")
            assert herd.instance("a").generation == 2

    uvloop.run(body())


def test_a_model_that_the_router_evicts_by_itself_is_told_and_not_started_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ROUTER_MOST", "1")

    async def body() -> None:
        node.add_model("a")
        node.add_model("b", tokens=1000, delay_token_s=0.02)
        async with herd_of(node) as herd:
            await loaded(herd, "a", "b")

            await herd.state(State.STOPPED, "a")

            assert herd.kinds("a") == ["started", "ready", "draining", "exited"]
            assert causes(herd, "a") == ["evicted for b"]
            assert children_of(node).keys() == {"b"}

            working = await at_work(herd, "b")
            await herd.load("a")
            await herd.state(State.READY, "a")
            assert (await working).status_code == 200
            await herd.state(State.STOPPED, "b")
            assert causes(herd, "b") == ["evicted for a"]

    uvloop.run(body())


def test_a_load_waits_while_all_models_of_the_router_are_at_work(node: Node) -> None:
    async def body() -> None:
        node.add_model("a", tokens=1000, delay_token_s=0.02)
        node.add_model("b")
        async with herd_of(node) as herd:
            await loaded(herd, "a", router_max_models=1)
            working = await at_work(herd, "a")

            await herd.load("b")
            await herd.state(State.WAITING, "b")
            await until(lambda: herd.instance("b").awaits == "a, which is at work", what="it waits for a")
            assert (await working).status_code == 200
            await herd.state(State.READY, "b")

            assert causes(herd, "a") == ["evicted for b"]

    uvloop.run(body())


def test_a_pinned_model_keeps_its_place_and_what_has_none_is_refused(node: Node) -> None:
    async def body() -> None:
        node.configure({"*": {"router": True}, "a": {"pin": True}})
        node.add_model("a")
        node.add_model("b")
        async with herd_of(node) as herd:
            await loaded(herd, "a", router_max_models=1)

            with pytest.raises(NoMemory) as refused:
                await herd.load("b")

            assert refused.value.message.startswith(
                "b needs 1 place of the router (itself 1 place), and 0 places are free of the 1 place of the router"
                " that models may have (a has 1 place, and may not be unloaded for it)"
            )
            assert herd.kinds("a") == ["started", "ready"]

    uvloop.run(body())


def test_a_load_that_waits_for_a_place_can_be_taken_back(node: Node) -> None:
    async def body() -> None:
        node.add_model("a", tokens=1000, delay_token_s=0.02)
        node.add_model("b")
        async with herd_of(node) as herd:
            await loaded(herd, "a", router_max_models=1)
            working = await at_work(herd, "a")
            await herd.load("b")
            await herd.state(State.WAITING, "b")

            await herd.unload("b")
            await herd.state(State.STOPPED, "b")
            assert (await working).status_code == 200
            await herd.load("a")

            assert herd.kinds("b")[-1] == "exited"
            assert set(herd.kinds("b")) == {"waiting", "exited"}
            assert herd.kinds("a") == ["started", "ready"]

    uvloop.run(body())


def test_a_model_that_cannot_be_loaded_fails_alone_with_its_own_last_lines(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        node.add_model("bad", exit_on_start=1)
        async with herd_of(node) as herd:
            await loaded(herd, "a")

            await herd.load("bad")
            await herd.state(State.FAILED, "bad")

            failed = [fact for fact in herd.history("bad") if isinstance(fact, InstanceFailed)]
            assert "3 times while loading bad" in failed[0].reason
            assert any("failed to load model" in line for line in failed[0].last_lines)
            assert not any(line.startswith("[") for line in failed[0].last_lines)
            assert {fact.exit_code for fact in herd.history("bad") if isinstance(fact, InstanceExited)} == {1}
            assert herd.kinds("a") == ["started", "ready"]

    uvloop.run(body())


def test_a_model_whose_process_crashes_is_started_again_in_the_same_router(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        node.add_model("b")
        async with herd_of(node) as herd:
            await loaded(herd, "a", "b")
            router = router_of(node).pid

            os.kill(children_of(node)["a"], signal.SIGKILL)
            await until(lambda: herd.instance("a").generation == 2, what="a is started again")
            await herd.state(State.READY, "a")

            assert causes(herd, "a") == ["crash"]
            assert router_of(node).pid == router
            assert herd.kinds("b") == ["started", "ready"]

    uvloop.run(body())


def test_a_model_that_no_longer_answers_is_killed_and_started_again(node: Node) -> None:
    async def body() -> None:
        path = node.add_model("a")
        async with herd_of(node) as herd:
            await loaded(herd, "a", probe_timeout_s=0.2)  # type: ignore[arg-type]

            set_switches(path, hang_health=True)
            await until(lambda: "unhealthy" in causes(herd, "a"), what="it was killed")
            set_switches(path)
            await herd.state(State.READY, "a")

            assert herd.instance("a").generation >= 2

    uvloop.run(body())


def test_a_router_that_is_killed_takes_its_models_along_and_all_come_back(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        node.add_model("b")
        async with herd_of(node) as herd:
            await loaded(herd, "a", "b")
            router, children = router_of(node), children_of(node)

            router.kill()
            await until(lambda: min(herd.instance(name).generation for name in "ab") == 2, what="both start again")
            for name in "ab":
                await herd.state(State.READY, name)

            for name in "ab":
                (exited,) = [fact for fact in herd.history(name) if isinstance(fact, InstanceExited)]
                assert (exited.cause, exited.signal) == ("crash", "SIGKILL")
                assert [fact.router_generation for fact in starts(herd, name)] == [1, 2]
            assert not {*children.values()} & {process.pid for process in node.llama_servers()}
            assert len(node.llama_servers()) == 3
            assert (await generate(herd, "a")).status_code == 200

    uvloop.run(body())


def test_a_router_that_cannot_be_started_is_the_reason_told_for_its_models(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        assert node.llama_server is not None
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            node.llama_server.unlink()

            await herd.load("a")
            await herd.state(State.FAILED, "a")

            (failed,) = [fact for fact in herd.history("a") if isinstance(fact, InstanceFailed)]
            assert "its router does not run: cannot start" in failed.reason

    uvloop.run(body())


def test_models_of_a_router_outlive_a_killed_supervisor(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        node.add_model("b")
        async with herd_of(node) as herd:
            await loaded(herd, "a", "b")
            before = {process.pid for process in node.llama_servers()}
            await generate(herd, "a")

            node.kill()
            node.start()
            await herd.serving()
            await herd.unload("b")
            await herd.state(State.STOPPED, "b")

            assert herd.kinds("a") == ["started", "ready"]
            assert herd.kinds("b") == ["started", "ready", "draining", "stopping", "exited"]
            assert {process.pid for process in node.llama_servers()} < before
            await herd.load("b")
            await herd.state(State.READY, "b")
            assert herd.kinds("a") == ["started", "ready"], "what runs is not disturbed by another preset"
            assert (await generate(herd, "a")).status_code == 200

    uvloop.run(body())


def test_models_whose_router_has_gone_with_the_supervisor_are_told_and_loaded_again(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        async with herd_of(node) as herd:
            await loaded(herd, "a")
            router = router_of(node)

            node.kill()
            router.kill()
            node.start()
            await herd.serving()
            await until(lambda: herd.instance("a").generation == 2, what="a is loaded again")
            await herd.state(State.READY, "a")

            assert causes(herd, "a") == ["supervisor_lost"]
            assert len(node.llama_servers()) == 2

    uvloop.run(body())


def test_a_router_that_hangs_when_the_next_supervisor_comes_is_started_again(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        async with herd_of(node) as herd:
            await loaded(herd, "a")

            node.kill()
            router_of(node).suspend()
            node.start(probe_timeout_s=0.3)
            await herd.serving()
            await until(lambda: herd.instance("a").generation == 2, within_s=20, what="a is loaded again")
            await herd.state(State.READY, "a")

            assert len(node.llama_servers()) == 2

    uvloop.run(body())


def test_a_stop_leaves_nothing_of_the_router(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        async with herd_of(node) as herd:
            await loaded(herd, "a")

            assert await asyncio.to_thread(node.stop) == 0

            assert node.llama_servers() == []
            assert causes(herd, "a") == ["shutdown"]

    uvloop.run(body())


def test_lines_are_those_of_the_model_that_wrote_them_once_each_whoever_reads_them(node: Node) -> None:
    async def packs_of(herd: Herd) -> list[LinePack]:
        packs: list[LinePack] = []
        head = await herd.bus.stream_head(LOGS)
        async for batch in herd.bus.read(LOGS, after=0):
            packs += [decode_lines(recorded.data) for recorded in batch]
            if batch and batch[-1].sequence >= head.last:
                break
        return [pack for pack in packs if pack.node == node.name]

    async def body() -> None:
        node.add_model("a", chatter_s=0.01)
        node.add_model("b", chatter_s=0.01)
        async with herd_of(node) as herd:
            await loaded(herd, "a", "b")
            for _ in range(2):
                node.kill()
                node.start()
                await herd.serving()
            await asyncio.to_thread(node.stop)

            packs = await packs_of(herd)
            said_by = {
                unit: [line.text for pack in packs if pack.unit == unit for line in pack.lines] for unit in UNITS
            }
            for name in "ab":
                said = [text for text in said_by[f"{name}/0"] if "chatter" in text]
                numbers = [int(text.rpartition(" ")[2]) for text in said]
                assert numbers == list(range(len(numbers)))
                assert len(numbers) > 50
            own = said_by[f"{ROUTER}/0"]
            assert sum("spawning server instance with name=" in text for text in own) == 2
            assert not any("chatter" in text for text in own)

    uvloop.run(body())


def test_a_load_with_other_options_starts_only_its_own_model_again(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        node.add_model("b")
        async with herd_of(node) as herd:
            await loaded(herd, "a", "b")

            accepted = await herd.load("a", slots=2)
            await until(lambda: herd.instance("a").generation == 2, what="a is started again")
            ready = await herd.state(State.READY, "a")

            assert accepted.replaces == 1
            assert ready.slots == 2
            assert starts(herd, "a")[-1].options == {"slots": 2}
            assert herd.kinds("b") == ["started", "ready"]

    uvloop.run(body())


def test_words_for_the_router_hold_for_all_its_models_and_ours_are_refused(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        async with herd_of(node) as herd:
            node.settings["router_args"] = ["--threads", "3"]
            await loaded(herd, "a")

            assert router_of(node).cmdline()[-2:] == ["--threads", "3"]

    uvloop.run(body())
    node.kill()
    node.settings["router_args"] = ["--port", "80"]
    assert node.run(10) == 2
    assert "`--port` is the supervisor's to decide: leave it out (`router_args`)" in node.output


def test_a_model_with_words_or_variables_of_its_own_has_a_process_of_its_own(node: Node) -> None:
    async def body() -> None:
        for name in ("plain", "worded", "semi;colon"):
            node.add_model(name)
        node.configure({"*": {"router": True}, "worded": {"args": ["--keep", "7"]}})
        async with herd_of(node) as herd:
            await loaded(herd, "plain", "worded", "semi;colon")

            assert children_of(node).keys() == {"plain"}
            assert [bool(starts(herd, name)[0].router_generation) for name in ("worded", "semi;colon")] == [
                False,
                False,
            ]
            assert len(node.llama_servers("worded")) == 1

    uvloop.run(body())

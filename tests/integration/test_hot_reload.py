"""A changed llamaherd.yaml: followed by supervisors and gateways, kept as it was while it is wrong."""

import asyncio
import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from harness.deadline import until, wait_until
from harness.fake_llama_server import set_switches
from harness.gateway import GatewayProcess, run_in_herd
from harness.gateway import Herd as Fleet
from harness.nats import NatsServer
from harness.random_gguf import write_random_gguf
from harness.supervisor import Herd, Node, herd_of
from llamaherd_shared.commands import ReloadConfiguration, Reloaded, Restart
from llamaherd_shared.errors import Rejected
from llamaherd_shared.events.instance import InstanceExited, InstanceStarted
from llamaherd_shared.events.model import ModelFound
from llamaherd_supervisor.lifecycle import State

NAMES = (f"reload-{number}" for number in itertools.count())


@pytest.fixture
def node(tmp_path: Path, shared_nats_server: NatsServer) -> Iterator[Node]:
    node = Node(tmp_path, shared_nats_server, name=next(NAMES))
    yield node
    node.clean_up()


async def reload(herd: Herd, **fields: Any) -> Reloaded:
    subject = herd.bus.subjects.command("supervisor", "reload", node=herd.node.name)
    return await herd.bus.request(subject, ReloadConfiguration(**fields), Reloaded)


async def load(herd: Herd, *models: str) -> None:
    for model in models:
        await herd.load(model)
    for model in models:
        await herd.state(State.READY, model)


def told(herd: Herd, model: str) -> list[dict[str, Any]]:
    return [fact.options for fact in herd.history(model) if isinstance(fact, InstanceStarted)]


def test_only_what_would_be_started_otherwise_starts_again(node: Node) -> None:
    async def body() -> None:
        for model in ("changed", "renamed", "plain"):
            node.add_model(model)
        before = {"changed": {"slots": 1}, "renamed": {"slots": 1, "aliases": ["a"]}, "gone": {"slots": 3}}
        node.configure(before)
        async with herd_of(node, "changed") as herd:
            node.start()
            await herd.serving()
            await load(herd, "changed", "renamed", "plain")

            renamed = {"slots": 1, "aliases": ["b"], "fallback": "plain", "ttl_s": 5, "rules": {"set": {"seed": 1}}}
            node.configure({"changed": {"slots": 2, "env": {"SECRET": "s3same"}}, "renamed": renamed})
            await until(lambda: herd.instance().generation == 2 and herd.instance().state is State.READY)
            nothing = await reload(herd)

            assert told(herd, "changed") == [{"slots": 1}, {"slots": 2}]
            exited = next(fact for fact in herd.history("changed") if isinstance(fact, InstanceExited))
            assert exited.cause == "reload"
            assert (len(told(herd, "renamed")), len(told(herd, "plain"))) == (1, 1)
            assert nothing == Reloaded(node=node.name, restarts=[], offered=[], gone=[], later=[])
            assert "['slots: 1 -> 2', 'env.SECRET: changed']" in node.output
            assert "s3same" not in node.output

    uvloop.run(body())


def test_a_dry_run_tells_what_would_start_again_and_changes_nothing(node: Node, tmp_path: Path) -> None:
    async def body() -> None:
        node.add_model("m")
        node.add_model("n")
        elsewhere = write_random_gguf(tmp_path / "elsewhere.gguf", layers=1, width=16)
        node.configure({"m": {"slots": 1}, "second": {"path": "n.gguf"}})
        async with herd_of(node, "m") as herd:
            node.start(drain_timeout_s=1)
            await herd.serving()
            await load(herd, "m", "n")

            text = f"models: {{m: {{path: {elsewhere}}}, new: {{path: m.gguf}}, n: {{threads: 2}}}}"
            foreseen = await reload(herd, dry_run=True, text=text)

            assert foreseen == Reloaded(
                node=node.name,
                restarts=[
                    Restart(
                        model="m",
                        index=0,
                        why=[f"path: {node.models_dir / 'm.gguf'} -> {elsewhere}", "slots: 1 -> unset"],
                    ),
                    Restart(model="n", index=0, why=["threads: unset -> 2"]),
                ],
                offered=["new"],
                gone=["second"],
                later=[],
            )
            assert await reload(herd, dry_run=True) == Reloaded(
                node=node.name, restarts=[], offered=[], gone=[], later=[]
            )
            with pytest.raises(Rejected, match=r"llamaherd\.yaml:1:14: setting `models\.m\.slots`"):
                await reload(herd, dry_run=True, text="models: {m: {slots: no}}")
            assert (herd.instance("m").generation, herd.instance("n").generation) == (1, 1)
            assert "new" not in herd.known.models

    uvloop.run(body())


def test_edits_in_quick_succession_end_with_one_process_of_each_model_and_the_last_options(node: Node) -> None:
    """T15 (peers.md): rapid edits of llama-swap's configuration started the same model twice.

    Some are mistakes, some are told by `reload` at once, and the models are slow to load and to leave.
    """

    async def body() -> None:
        names = ("quick", "slow", "deaf")
        node.add_model("quick")
        node.add_model("slow", slow_load_s=0.3)
        node.add_model("deaf", ignore_sigterm=True)
        node.configure(with_slots(1, names))
        async with herd_of(node, "quick") as herd:
            node.start(stop_timeout_s=0.3)
            await herd.serving()
            await load(herd, *names)

            with node.crowding() as most:
                for slots in range(2, 18):
                    if slots % 4 == 3:
                        node.configure("models: {quick: {slots: none}}")
                        with pytest.raises(Rejected):
                            await reload(herd)
                    node.configure(with_slots(slots, names))
                    if slots % 3:
                        await asyncio.gather(reload(herd), reload(herd), *(herd.load(name) for name in names))
                    if slots % 6 == 0:
                        # By itself, once the file has rested; the others are still on their way.
                        await until(partial(is_ready_with, herd, "quick", slots=slots), what="an edit counts")
                for name in names:
                    await until(partial(is_ready_with, herd, name, slots=17), what=f"{name} has the last options")
                nothing = await reload(herd)

            assert nothing == Reloaded(node=node.name, restarts=[], offered=[], gone=[], later=[])
            assert most == {name: 1 for name in names} | {"": 3}
            assert sorted(process.pid for process in node.llama_servers()) == sorted(
                herd.instance(name).pid or 0 for name in names
            )

    uvloop.run(body())


def with_slots(slots: int, models: Iterable[str]) -> dict[str, Any]:
    return {model: {"slots": slots} for model in models}


def is_ready_with(herd: Herd, model: str, *, slots: int) -> bool:
    return told(herd, model)[-1] == {"slots": slots} and herd.instance(model).state is State.READY


def test_a_mistake_in_the_file_changes_nothing_and_is_told_until_it_is_mended(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        node.configure({"m": {"slots": 1}})
        async with herd_of(node, "m") as herd:
            node.start()
            await herd.serving()
            await load(herd, "m")

            node.configure("models:\n  m: {slots: 2, context: 5}\n")
            await until(lambda: "models.m" in herd.note, what="the mistake is told with the presence")
            with pytest.raises(Rejected, match="unknown setting `context`"):
                await reload(herd)
            assert "llamaherd.yaml:2:17: `models.m`: unknown setting `context`" in herd.note
            assert "what was read before still holds" in herd.note
            assert herd.note.rstrip(".") in node.output
            assert herd.ready_pid == (node.process.pid if node.process else 0), "it serves all the same"
            assert len(told(herd, "m")) == 1

            node.configure({"m": {"slots": 2}})
            await until(lambda: herd.instance().generation == 2 and herd.instance().state is State.READY)
            await until(lambda: not herd.note, what="nothing is wrong any more")

    uvloop.run(body())


def test_answers_under_way_are_finished_before_the_restart(node: Node) -> None:
    async def body() -> None:
        path = node.add_model("m", busy_slots=1)
        node.configure({"m": {"slots": 1}})
        async with herd_of(node, "m") as herd:
            node.start()
            await herd.serving()
            await load(herd, "m")

            node.configure({"m": {"slots": 2}})
            await herd.state(State.DRAINING)
            set_switches(path, busy_slots=0)
            await until(lambda: herd.instance().generation == 2 and herd.instance().state is State.READY)

            assert herd.kinds() == ["started", "ready", "draining", "stopping", "exited", "started", "ready"]

    uvloop.run(body())


def test_what_an_entry_offers_comes_and_goes_with_it(node: Node, tmp_path: Path) -> None:
    async def body() -> None:
        elsewhere = write_random_gguf(tmp_path / "elsewhere.gguf", layers=1, width=16)
        node.add_model("m")
        node.configure({})
        async with herd_of(node, "extra") as herd:
            node.start()
            await herd.serving()

            node.configure({"extra": {"path": str(elsewhere)}, "m": {"capabilities": ["completion", "tools"]}})
            await herd.offered("extra")
            await load(herd, "extra")
            m = herd.known.models["m"]
            assert isinstance(m, ModelFound)
            assert m.capabilities == ["completion", "tools"]

            node.configure({"m": {"preload": True}})
            await herd.state(State.STOPPED, "extra")
            await herd.state(State.READY, "m")
            assert elsewhere.exists()

    uvloop.run(body())


def test_what_has_changed_while_no_supervisor_ran_counts_for_what_is_adopted(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        node.add_model("n")
        node.configure({"m": {"slots": 1}})
        async with herd_of(node, "m") as herd:
            node.start()
            await herd.serving()
            await load(herd, "m", "n")

            node.kill()
            node.configure({"m": {"slots": 2}})
            node.start()
            await until(lambda: herd.instance("m").generation == 2 and herd.instance("m").state is State.READY)

            assert told(herd, "m") == [{"slots": 1}, {"slots": 2}]
            assert len(told(herd, "n")) == 1

    uvloop.run(body())


def test_settings_of_the_supervisor_itself_are_told_to_count_later(node: Node) -> None:
    async def body() -> None:
        node.configure("supervisor: {max_missed: 3}")
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()

            node.configure("supervisor: {max_missed: 4}")

            assert (await reload(herd)).later == ["supervisor.max_missed"]

    uvloop.run(body())


def test_without_a_file_there_is_nothing_to_read_again(node: Node) -> None:
    async def body() -> None:
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            with pytest.raises(
                Rejected, match=r"was started without a configuration file: `llamaherd up --config FILE`"
            ):
                await reload(herd)

    uvloop.run(body())


def test_a_gateway_follows_aliases_rules_and_the_default_model(tmp_path: Path, shared_nats_server: NatsServer) -> None:
    config = tmp_path / "llamaherd.yaml"

    def configure(text: str) -> None:
        part = config.with_suffix(".part")
        part.write_text(text)
        part.replace(config)

    configure("models: {reloaded: {aliases: [old]}}")
    gateway = GatewayProcess(tmp_path / "gateway", shared_nats_server.url, config=config).start()

    def asked(name: str) -> int:
        body = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
        return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=10).status_code

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_ready_model("reloaded")
        assert (asked("old"), asked("new")) == (200, 404)

        rules = "{set: {seed: 5}}"
        configure(
            f"models: {{reloaded: {{aliases: ['new-*'], rules: {rules}}}}}\ngateway: {{aliases: {{x: reloaded}}}}"
        )
        wait_until(lambda: asked("new-one") == 200, what="the new alias answers")
        assert (asked("old"), asked("x")) == (404, 200)
        assert (await fleet.state("reloaded"))["body"]["seed"] == 5

        configure("models: {reloaded: {aliases: [3]}}")
        wait_until(lambda: "what was read before still holds" in gateway.log.read_text(), what="it is told")
        assert asked("new-one") == 200

        configure("gateway: {default_model: reloaded, queue_limit: 3}")
        wait_until(lambda: asked("anything") == 200, what="the default model answers")
        assert "gateway.queue_limit" in gateway.log.read_text()

    try:
        run_in_herd(shared_nats_server.url, gateway, scenario)
    finally:
        gateway.stop()

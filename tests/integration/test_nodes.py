"""Nodes that come and go: drained for maintenance, killed, and gone without a word."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from harness.deadline import wait_until
from harness.nats import NatsServer
from harness.pair import Pair, chat, make_pair, start
from harness.supervisor import Node, herd_of
from llamaherd_shared.commands import DrainNode, NodeDrainState
from llamaherd_shared.errors import Unavailable
from llamaherd_shared.events.instance import InstanceExited
from llamaherd_shared.events.node import NodeDrained, NodeJoined, NodeResumed

SILENCE_S = 6.5
"""One beat that does not come."""
NOTICED_S = 20.0
"""That, and time for what follows."""


@pytest.fixture
def pair(tmp_path: Path, nats_server: NatsServer) -> Iterator[Pair]:
    with make_pair(tmp_path, nats_server, node_silence_s=SILENCE_S) as pair:
        yield pair


@pytest.fixture
def moving(tmp_path: Path, nats_server: NatsServer) -> Iterator[Pair]:
    with make_pair(tmp_path, nats_server, models={"*": {"failover": True}}, node_silence_s=SILENCE_S) as pair:
        yield pair


def said(node: Node, *, drained: bool) -> NodeDrainState:
    async def body() -> NodeDrainState:
        async with herd_of(node) as herd:
            subject = herd.bus.subjects.command("supervisor", "drain", node=node.name)
            return await herd.bus.request(subject, DrainNode(drained=drained), NodeDrainState)

    return uvloop.run(body())


def home_of(pair: Pair, model: str) -> Node:
    (name,) = pair.places(model)
    return next(node for node in pair.nodes if node.name == name)


def vanish(node: Node) -> None:
    """Supervisor and llama-servers at once, without a word, as with its host."""
    node.kill()
    for process in node.llama_servers():
        os.kill(process.pid, signal.SIGKILL)


def test_drained_node_finishes_unloads_and_takes_no_loads_until_it_is_resumed(pair: Pair) -> None:
    start(pair)
    model = pair.add_model()
    gateway = pair.gateways[0]
    assert chat(gateway, model).status_code == 200
    home = home_of(pair, model)

    assert said(home, drained=True).loaded == [model]
    wait_until(lambda: not home.llama_servers(), what="what ran there is gone")

    assert chat(gateway, model).status_code == 200
    assert home_of(pair, model) is not home
    other = home_of(pair, model)
    assert said(other, drained=True).drained
    wait_until(lambda: not other.llama_servers(), what="nothing runs anywhere")
    answer = chat(gateway, model)
    assert answer.status_code == 503
    assert "which is drained for maintenance" in answer.json()["error"]["message"]

    assert not said(home, drained=False).drained
    wait_until(lambda: chat(gateway, model).status_code == 200, what="the node takes loads again")
    assert home_of(pair, model) is home


def test_maintenance_outlasts_the_supervisor(pair: Pair) -> None:
    node = pair.nodes[0]
    node.configure({"*": {"preload": True}})
    start(pair)
    model = pair.add_model()
    wait_until(lambda: len(node.llama_servers(model)) == 1, what="it is loaded from the start")

    said(node, drained=True)
    wait_until(lambda: not node.llama_servers(), what="it is gone")
    node.kill()
    node.start()

    async def body() -> None:
        async with herd_of(node, model) as herd:
            await herd.serving()
            with pytest.raises(Unavailable, match=f"{node.name} is drained for maintenance"):
                await herd.load()
            assert node.llama_servers() == []
            facts = [fact for fact in herd.facts if isinstance(fact, NodeJoined | NodeDrained | NodeResumed)]
            assert [getattr(fact, "drained", None) for fact in facts] == [False, None, True]
            exits = [fact.cause for fact in herd.facts if isinstance(fact, InstanceExited)]
            assert exits == ["drained"]

    uvloop.run(body())
    said(node, drained=False)
    wait_until(lambda: len(node.llama_servers(model)) == 1, what="it is loaded again")


def test_model_that_moves_is_loaded_elsewhere_as_soon_as_its_node_is_drained(moving: Pair) -> None:
    start(moving)
    model = moving.add_model()
    assert chat(moving.gateways[0], model).status_code == 200
    home = home_of(moving, model)

    said(home, drained=True)

    wait_until(
        lambda: moving.places(model) == [node.name for node in moving.nodes if node is not home], what="it moved"
    )


def test_model_that_moves_is_loaded_elsewhere_once_when_its_node_vanishes(moving: Pair) -> None:
    start(moving)
    model = moving.add_model()
    assert chat(moving.gateways[0], model).status_code == 200
    home = home_of(moving, model)
    other = next(node for node in moving.nodes if node is not home)

    vanish(home)

    wait_until(lambda: len(other.llama_servers(model)) == 1, within_s=NOTICED_S, what="it is loaded elsewhere")
    assert chat(moving.gateways[1], model).status_code == 200
    assert len(other.llama_servers(model)) == 1


def test_request_for_a_model_whose_node_has_vanished_is_answered_by_another_node(pair: Pair) -> None:
    start(pair)
    model = pair.add_model()
    gateway = pair.gateways[0]
    assert chat(gateway, model).status_code == 200
    home = home_of(pair, model)

    vanish(home)
    began = time.monotonic()
    answer = chat(gateway, model, timeout_s=NOTICED_S)

    assert answer.status_code == 200, answer.text
    assert time.monotonic() - began < NOTICED_S
    assert home_of(pair, model) is not home
    assert chat(gateway, model).status_code == 200


@pytest.fixture
def patient(tmp_path: Path, nats_server: NatsServer) -> Iterator[Pair]:
    """Gateways that would wait long for news of a node that vanished."""
    with make_pair(tmp_path, nats_server, node_silence_s=60) as pair:
        yield pair


def test_instance_that_is_just_being_loaded_elsewhere_answers_as_soon_as_it_is_ready(patient: Pair) -> None:
    here, there = patient.nodes
    here.configure({"*": {"preload": True}})
    there.configure({})
    start(patient)
    model = patient.add_model(slow_load_s=1.5)
    gateway = patient.gateways[0]
    wait_until(lambda: chat(gateway, model).status_code == 200, what="it is served")
    there.configure({"*": {"preload": True}})
    wait_until(lambda: sorted(patient.places(model)) == ["a", "b"], what="it has been started on the other one too")

    vanish(here)

    began = time.monotonic()
    assert chat(gateway, model).status_code == 200
    assert time.monotonic() - began < 15


def test_of_two_instances_the_one_that_is_there_answers_when_the_others_node_vanishes(pair: Pair) -> None:
    for node in pair.nodes:
        node.configure({"*": {"preload": True}})
    start(pair)
    model = pair.add_model()
    wait_until(lambda: sorted(pair.places(model)) == ["a", "b"], what="it is loaded on both")
    gateway = pair.gateways[0]
    wait_until(lambda: chat(gateway, model).status_code == 200, what="it is served")

    vanish(pair.nodes[0])

    began = time.monotonic()
    assert [chat(gateway, model).status_code for _ in range(6)] == [200] * 6
    assert time.monotonic() - began < 5.0


def test_node_whose_supervisor_is_back_serves_what_it_served(pair: Pair) -> None:
    start(pair)
    model = pair.add_model()
    gateway = pair.gateways[0]
    assert chat(gateway, model).status_code == 200
    home = home_of(pair, model)

    home.kill()
    wait_until(lambda: "is not heard any more" in gateway.log.read_text(), within_s=NOTICED_S, what="that is noticed")
    assert chat(gateway, model).status_code == 200
    home.start()
    wait_until(lambda: "is heard again" in gateway.log.read_text(), what="it is back")

    assert chat(gateway, model).status_code == 200
    assert pair.places(model) == [home.name]

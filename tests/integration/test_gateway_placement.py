"""Two nodes with the same models, and two gateways that ask where to load them."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from harness.deadline import wait_until
from harness.gateway import SECRET, GatewayProcess
from harness.nats import NatsServer
from harness.supervisor import Node

MIB = 2**20
NUMBERS = itertools.count(1)
ROOM_FOR_ONE = {"memory_budget": "130 MiB", "min_residence_s": 0.2, "release_s": 0.0}
NO_ROOM = {"memory_budget": "20 MiB"}


class Pair:
    """Nodes `a` and `b`, gateways `left` and `right`."""

    def __init__(self, folder: Path, server: NatsServer) -> None:
        self.nodes = [Node(folder / name, server, name=name) for name in ("a", "b")]
        for node in self.nodes:
            (node.folder / "secret").write_bytes(SECRET)
            node.settings |= ROOM_FOR_ONE
        self.gateways = [GatewayProcess(folder / name, server.url, ask_timeout_s=3) for name in ("left", "right")]

    def add_model(self) -> str:
        """On both nodes; returns its name once both gateways know where it is."""
        name = f"model{next(NUMBERS)}"
        for node in self.nodes:
            os.truncate(node.add_model(name, takes_mib=60), 60 * MIB)
        for gateway in self.gateways:
            wait_until(lambda gateway=gateway: name in known(gateway), what=f"{name} is known")
        return name

    def places(self, model: str) -> list[str]:
        """The nodes where it is loaded."""
        return [node.name for node in self.nodes for _ in node.llama_servers(model)]


def known(gateway: GatewayProcess) -> list[str]:
    return [entry["id"] for entry in httpx.get(f"{gateway.url}/v1/models", timeout=5).json()["data"]]


def chat(gateway: GatewayProcess, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=20)


@pytest.fixture
def pair(tmp_path: Path, nats_server: NatsServer) -> Iterator[Pair]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    pair = Pair(tmp_path, nats_server)
    yield pair
    for gateway in pair.gateways:
        if gateway.process is not None:
            with contextlib.suppress(Exception):
                gateway.stop()
    for node in pair.nodes:
        node.clean_up()


def start(pair: Pair, **settings: dict[str, str]) -> Pair:
    """`settings`: of a node by its name, on top of the others."""
    for node in pair.nodes:
        node.start(**settings.get(node.name, {}))
    for gateway in pair.gateways:
        gateway.start()
    return pair


def test_load_goes_where_nobody_has_to_leave_for_it(pair: Pair) -> None:
    start(pair)
    first, second, third = pair.add_model(), pair.add_model(), pair.add_model()
    left, right = pair.gateways

    assert chat(left, first).status_code == chat(right, second).status_code == 200

    assert sorted(pair.places(first) + pair.places(second)) == ["a", "b"]
    assert chat(left, third).status_code == 200
    assert len(pair.places(first) + pair.places(second)) == 1


def test_load_goes_to_the_node_that_has_room_for_it(pair: Pair) -> None:
    start(pair, a=NO_ROOM)
    model = pair.add_model()

    assert chat(pair.gateways[0], model).status_code == 200
    assert pair.places(model) == ["b"]


def test_model_that_no_node_has_room_for_is_refused_with_what_each_says(pair: Pair) -> None:
    start(pair, a=NO_ROOM, b=NO_ROOM)
    model = pair.add_model()

    answer = chat(pair.gateways[0], model)

    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert f"a: {model} needs 85 MiB of RAM" in message
    assert f"b: {model} needs 85 MiB of RAM" in message


def test_two_gateways_that_ask_at_once_end_in_one_load(pair: Pair) -> None:
    start(pair, a={"memory_budget": "2 GiB"}, b={"memory_budget": "2 GiB"})
    models = [pair.add_model() for _ in range(4)]

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(chat, gateway, model) for model in models for gateway in pair.gateways]

    assert [answer.result().status_code for answer in asked] == [200] * 8
    assert [len(pair.places(model)) for model in models] == [1] * 4
    assert [len(starts(pair, model)) for model in models] == [1] * 4


def starts(pair: Pair, model: str) -> list[str]:
    files = [node.models_dir / f"{model}.gguf.starts" for node in pair.nodes]
    return [line for file in files if file.exists() for line in file.read_text().split()]


def test_node_that_does_not_answer_makes_no_offer(pair: Pair) -> None:
    start(pair)
    model = pair.add_model()
    pair.nodes[0].kill()

    assert chat(pair.gateways[0], model).status_code == 200
    assert pair.places(model) == ["b"]


def test_model_goes_to_a_node_with_the_labels_it_requires(pair: Pair) -> None:
    for node in pair.nodes:
        node.configure({"*": {"requires": {"gpu": "large"}}})
    start(pair, b={"labels": "{gpu: large}"})
    model = pair.add_model()

    assert chat(pair.gateways[0], model).status_code == 200
    assert pair.places(model) == ["b"]

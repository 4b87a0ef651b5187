"""Two nodes with the same models, and two gateways that ask where to load them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.nats import NatsServer
from harness.pair import Pair, chat, make_pair, start

NO_ROOM = {"memory_budget": "20 MiB"}


@pytest.fixture
def pair(tmp_path: Path, nats_server: NatsServer) -> Iterator[Pair]:
    with make_pair(tmp_path, nats_server) as pair:
        yield pair


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

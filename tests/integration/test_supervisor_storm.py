"""Many instances at once: what one of them needs must not keep the others waiting. In full size: `just bench-storm`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from harness.nats import NatsServer
from harness.storm import crash_all, holds, imports_while_serving, load_all, longest_hold_s
from harness.supervisor import Node, herd_of

LIMIT_S = 0.05


@pytest.fixture
def node(tmp_path: Path, shared_nats_server: NatsServer) -> Iterator[Node]:
    node = Node(tmp_path, shared_nats_server, name="many.lan")
    yield node
    node.clean_up()


def test_many_instances_start_crash_and_restart_without_holding_the_event_loop(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    names = [f"m{number}" for number in range(20)]

    async def body() -> None:
        for name in names:
            node.add_model(name)
        node.common["loop_watch_s"] = LIMIT_S
        async with herd_of(node, names[0]) as herd:
            node.start()
            await herd.serving()

            await load_all(herd, names, within_s=30)
            await crash_all(herd, names, within_s=30)

            assert len(node.llama_servers()) == len(names)
            for name in names:
                assert herd.kinds(name) == ["started", "ready", "exited", "started", "ready"]

    uvloop.run(body())
    assert node.stop(30) == 0

    # An import holds the loop for as long as it takes to compile, where no byte code is kept yet.
    assert imports_while_serving(node.output) == []
    assert longest_hold_s(node.output) <= LIMIT_S, holds(node.output)

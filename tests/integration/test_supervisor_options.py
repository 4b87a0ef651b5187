"""What llama-servers are started with: `models` of llamaherd.yaml and what a load asks for."""

import asyncio
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from harness.deadline import until
from harness.fake_llama_server import set_switches
from harness.nats import NatsServer
from harness.random_gguf import write_random_gguf
from harness.supervisor import Herd, Node, herd_of
from llamaherd_shared.commands import DeleteModel, DescribeModel, ModelDeleted, ModelDescription
from llamaherd_shared.errors import Rejected
from llamaherd_shared.events.instance import InstanceExited, InstanceFailed, InstanceStarted
from llamaherd_shared.events.model import ModelFound, ModelRejected
from llamaherd_supervisor.lifecycle import State

NAMES = (f"options-{number}" for number in itertools.count())
FAKE_SERVER = Path(__file__).parents[1] / "harness" / "fake_llama_server.py"


@pytest.fixture
def node(tmp_path: Path, shared_nats_server: NatsServer) -> Iterator[Node]:
    node = Node(tmp_path, shared_nats_server, name=next(NAMES))
    yield node
    node.clean_up()


def words_of(node: Node, model: str) -> list[str]:
    """The command line of the only process of a model."""
    (process,) = node.llama_servers(model)
    return process.cmdline()


def value_of(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def told(herd: Herd, model: str = "") -> list[dict[str, Any]]:
    """The options of every start."""
    return [fact.options for fact in herd.history(model) if isinstance(fact, InstanceStarted)]


def test_a_model_is_started_as_its_entries_say(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        node.configure(
            {
                "*": {"slots": 2, "gpu_layers": "all"},
                "m": {
                    "context_tokens": 100,
                    "flash_attention": True,
                    "args": ["--keep", 7],
                    "env": {"OWN": "here", "FROM_FILE": f"file:{node.folder / 'value'}", "KEY": "${API_KEY}"},
                },
            }
        )
        (node.folder / "value").write_text("from a file\n")
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            await herd.load()
            ready = await herd.state(State.READY)

            words = words_of(node, "m")
            assert value_of(words, "--ctx-size") == "200"
            assert value_of(words, "--parallel") == "2"
            assert value_of(words, "--flash-attn") == "on"
            assert words[-2:] == ["--keep", "7"]
            (process,) = node.llama_servers("m")
            environment = process.environ()
            assert (environment["OWN"], environment["FROM_FILE"]) == ("here", "from a file")
            assert environment["KEY"] == environment["LLAMA_API_KEY"]
            assert told(herd) == [{"slots": 2, "gpu_layers": "all", "context_tokens": 100, "flash_attention": True}]
            assert (ready.slots, ready.context_tokens) == (2, 100)
            assert "from a file" not in node.output
            record = (node.data_dir / "instances" / "m-0.json").read_text()
            assert "from a file" not in record
            assert "here" not in record.replace(str(node.folder), "")

    uvloop.run(body())


def test_another_context_is_loaded_anew_when_that_is_longer(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        node.configure({"m": {"context_tokens": 64, "slots": 1}})
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            await herd.load(context_tokens=16, for_request=True)
            await herd.state(State.READY)
            assert told(herd)[0]["context_tokens"] == 64, "a request gets what is configured at least"

            enough = await herd.load(context_tokens=48, for_request=True, threads=3)
            longer = await herd.load(context_tokens=128, for_request=True)
            await until(lambda: herd.instance().generation == 2 and herd.instance().state is State.READY)
            again = await herd.load(context_tokens=128, for_request=True)
            plain = await herd.load()
            await herd.state(State.READY)

            assert [each.replaces for each in (enough, longer, again, plain)] == [0, 1, 0, 0]
            assert [options["context_tokens"] for options in told(herd)] == [64, 128]
            assert herd.kinds() == ["started", "ready", "draining", "stopping", "exited", "started", "ready"]
            exited = herd.history()[4]
            assert isinstance(exited, InstanceExited)
            assert exited.cause == "reload"

            await herd.unload()
            await herd.state(State.STOPPED)
            await herd.load()
            await until(lambda: herd.instance().generation == 3 and herd.instance().state is State.READY)
            assert told(herd)[2]["context_tokens"] == 64, "what was asked for is over with the unload"

    uvloop.run(body())


def test_what_a_load_asked_for_outlives_a_crash_and_the_supervisor(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            await herd.load(context_tokens=32, slots=1)
            first = await herd.state(State.READY)

            (process,) = node.llama_servers("m")
            process.kill()
            await until(lambda: herd.instance().generation == 2 and herd.instance().state is State.READY)
            node.kill()
            node.start()
            await herd.serving()
            again = await herd.load(context_tokens=32)

            assert first.generation == 1
            assert again.replaces == 0
            assert told(herd) == [{"context_tokens": 32, "slots": 1}] * 2

    uvloop.run(body())


def test_answers_under_way_are_finished_before_a_model_is_loaded_anew(node: Node) -> None:
    async def body() -> None:
        path = node.add_model("m", busy_slots=1)
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            await herd.load(slots=1)
            await herd.state(State.READY)

            accepted = await herd.load(slots=2)
            await herd.state(State.DRAINING)
            again = await herd.load(slots=2)
            set_switches(path, busy_slots=0)
            await until(lambda: herd.instance().generation == 2 and herd.instance().state is State.READY)

            assert (accepted.replaces, again.replaces) == (1, 1)
            assert told(herd) == [{"slots": 1}, {"slots": 2}]

    uvloop.run(body())


def test_a_model_that_is_to_be_preloaded_is_loaded_at_the_start_and_when_it_comes(node: Node) -> None:
    async def body() -> None:
        node.add_model("first")
        node.configure({name: {"preload": True} for name in ("first", "later", "never")})
        async with herd_of(node, "first") as herd:
            node.start()
            await herd.state(State.READY, "first")
            node.add_model("later")
            await herd.state(State.READY, "later")

            await herd.unload("first")
            await herd.state(State.STOPPED, "first")
            node.add_model("another")
            await herd.offered("another")
            assert herd.instance("first").state is State.STOPPED, "unloaded by somebody, it stays so"

    uvloop.run(body())


def test_an_entry_offers_a_file_from_elsewhere(node: Node, tmp_path: Path) -> None:
    async def body() -> None:
        elsewhere = write_random_gguf(tmp_path / "elsewhere.gguf", layers=1, width=16)
        node.configure({"own-name": {"path": str(elsewhere)}, "missing": {"path": "nowhere.gguf"}})
        async with herd_of(node, "own-name") as herd:
            node.start()
            await herd.serving()
            await herd.load()
            await herd.state(State.READY)

            assert value_of(words_of(node, "own-name"), "--model") == str(elsewhere)
            missing = herd.known.models["missing"]
            assert isinstance(missing, ModelRejected)
            assert missing.reason == "it cannot be read: No such file or directory"
            subject = herd.bus.subjects.command("supervisor", "delete", node=node.name)
            with pytest.raises(Rejected, match=r"^own-name is there by `models\.own-name\.path` in llamaherd\.yaml"):
                await herd.bus.request(subject, DeleteModel(model="own-name", unload=True), ModelDeleted)
            assert elsewhere.exists()

    uvloop.run(body())


def test_another_server_is_started_watched_and_stopped_like_llama_server(node: Node) -> None:
    async def body() -> None:
        command = [sys.executable, "-I", "-S", str(FAKE_SERVER), "--alias", "${MODEL}", "--host", "${HOST}"]
        node.configure(
            {
                "whisper": {
                    "command": [*command, "--port", "${PORT}", "--model", str(node.folder / "w.gguf")],
                    "health_path": "/v1/health",
                    "capabilities": ["audio"],
                    "slots": 3,
                }
            }
        )
        write_random_gguf(node.folder / "w.gguf", layers=1, width=16)
        node.llama_server = None
        async with herd_of(node, "whisper") as herd:
            node.start()
            await herd.serving()
            found = herd.known.models["whisper"]
            await herd.load()
            ready = await herd.state(State.READY)

            assert isinstance(found, ModelFound)
            assert (found.path, found.capabilities) == ("", ["audio"])
            assert (ready.slots, ready.context_tokens) == (3, 0)
            assert value_of(words_of(node, "whisper"), "--alias") == "whisper"
            (process,) = node.llama_servers("whisper")
            process.kill()
            await until(lambda: herd.instance().generation == 2 and herd.instance().state is State.READY)

            port = herd.instance().port
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            await herd.unload()
            await herd.state(State.DRAINING)
            assert herd.instance().state is State.DRAINING, "somebody is connected"
            writer.close()
            await herd.state(State.STOPPED)

            subject = herd.bus.subjects.command("supervisor", "describe", node=node.name)
            with pytest.raises(Rejected, match="whisper has no file: it is served by a command"):
                await herd.bus.request(subject, DescribeModel(model="whisper"), ModelDescription)

    uvloop.run(body())


def test_what_is_missing_is_told_and_nothing_is_tried_again(node: Node) -> None:
    async def body() -> None:
        node.add_model("a")
        node.add_model("b")
        node.configure({"a": {"draft_model": "small.gguf"}, "b": {"env": {"TOKEN": "file:/nowhere/token"}}})
        async with herd_of(node, "a") as herd:
            node.start()
            await herd.serving()
            reasons = []
            for model in ("a", "b"):
                await herd.load(model)
                await herd.state(State.FAILED, model)
                failed = herd.history(model)[-1]
                assert isinstance(failed, InstanceFailed)
                reasons.append(failed.reason)

            assert reasons == [
                f"a cannot be started: there is no file {node.models_dir / 'small.gguf'} (`draft_model`)",
                "cannot read the secret in /nowhere/token: No such file or directory (`models.b.env.TOKEN`)",
            ]

    uvloop.run(body())


def test_a_supervisor_does_not_start_with_a_mistake_in_the_file(node: Node) -> None:
    node.configure('models:\n  m:\n    args: ["--port", "1"]\n')

    assert node.run(within_s=15) == 2
    assert "llamaherd.yaml:3:12: `models.m`: `--port` is the supervisor's to decide: leave it out" in node.output

"""A supervisor process finds projectors, starts models with them, and follows what becomes of their files."""

import itertools
from collections.abc import Iterator

import pytest
import uvloop

from harness.deadline import until
from harness.nats import NatsServer
from harness.random_gguf import write_random_gguf
from harness.random_projector import write_random_projector
from harness.supervisor import Herd, Node, herd_of
from llamaherd_shared.events.model import ModelFound, ModelRejected, ModelRemoved
from llamaherd_supervisor.lifecycle import State

NAMES = (f"seeing-{number}.lan" for number in itertools.count())


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("seeing"), shared_nats_server, name=next(NAMES))
    write_random_gguf(node.models_dir / "seer.gguf", layers=1, width=16)
    yield node
    node.clean_up()


async def capable(herd: Herd, *capabilities: str, model: str = "seer") -> ModelFound:
    """Wait until this is what the last fact says the model can do."""

    def told() -> ModelFound | None:
        fact = herd.known.models.get(model)
        return fact if isinstance(fact, ModelFound) and fact.capabilities == list(capabilities) else None

    found = await until(told, what=f"{model} is told to have {capabilities}")
    assert found is not None
    return found


def test_model_is_started_with_its_projector(node: Node) -> None:
    async def body() -> None:
        projector = write_random_projector(node.models_dir / "mmproj-seer.gguf", embedding_length=16)
        node.start()
        async with herd_of(node, "seer") as herd:
            found = await capable(herd, "completion", "vision")
            await herd.serving()
            await herd.load()
            await herd.state(State.READY)

            (process,) = node.llama_servers("seer")
            words = process.cmdline()
            assert words[words.index("--mmproj") + 1] == str(projector)
            assert (found.projector, found.projector_bytes) == (str(projector), projector.stat().st_size)
            assert "mmproj-seer" not in herd.known.models

    uvloop.run(body())


def test_projector_that_comes_changes_and_goes_is_followed(node: Node) -> None:
    async def body() -> None:
        path = node.models_dir / "mmproj-F16.gguf"
        node.start()
        async with herd_of(node, "seer") as herd:
            await capable(herd, "completion")

            write_random_projector(path, embedding_length=16)
            await capable(herd, "completion", "vision")
            write_random_projector(path, embedding_length=16, sees=False, hears=True)
            await capable(herd, "completion", "audio")
            path.unlink()
            last = await capable(herd, "completion")

            assert last.projector == ""

    uvloop.run(body())


def test_projector_that_fits_no_model_is_rejected_until_its_model_comes(node: Node) -> None:
    async def body() -> None:
        path = write_random_projector(node.models_dir / "mmproj-F16.gguf", embedding_length=48)
        node.start()
        async with herd_of(node, "seer") as herd:
            await capable(herd, "completion")
            rejected = await until(lambda: herd.known.models.get("mmproj-F16"), what="a fact about the projector")
            assert isinstance(rejected, ModelRejected)
            assert rejected.path == str(path)
            assert "embeddings of length 48, and does not fit seer with 16" in rejected.reason

            write_random_gguf(node.models_dir / "other.gguf", layers=1, width=48)
            await capable(herd, "completion", "vision", model="other")

            await until(lambda: isinstance(herd.known.models["mmproj-F16"], ModelRemoved), what="the rejection ends")

    uvloop.run(body())


def test_next_supervisor_has_nothing_new_to_say_and_still_knows_what_the_model_itself_can_do(node: Node) -> None:
    async def body() -> None:
        path = write_random_projector(node.models_dir / "mmproj.gguf", embedding_length=16)
        node.start()
        async with herd_of(node, "seer") as herd:
            await capable(herd, "completion", "vision")
            await herd.serving()
            node.stop()
            node.start()
            await herd.serving()
            assert len([fact for fact in herd.facts if isinstance(fact, ModelFound)]) == 1

            node.stop()
            path.unlink()
            node.start()

            await capable(herd, "completion")

    uvloop.run(body())

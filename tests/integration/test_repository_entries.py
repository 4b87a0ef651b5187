"""Entries of `models` that name a repository: pulled by themselves, against a real nats-server and a fake hub."""

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from harness.deadline import until
from harness.fake_hub import FakeHub, Switches
from harness.gateway import SECRET, GatewayProcess
from harness.nats import NatsServer
from harness.random_gguf import write_random_gguf
from harness.random_projector import write_random_projector
from harness.supervisor import Herd, Node, herd_of
from llamaherd_shared.commands import (
    CancelPull,
    DeleteModel,
    ModelDeleted,
    PullAccepted,
    PullCancelled,
    PullModel,
    ReloadConfiguration,
    Reloaded,
)
from llamaherd_shared.errors import Rejected, Unavailable
from llamaherd_shared.events.instance import InstanceStarted
from llamaherd_shared.events.model import ModelFound, ModelRejected, ModelRemoved
from llamaherd_shared.events.pull import PullFailed, PullFinished, PullStarted
from llamaherd_supervisor.lifecycle import State

NAMES = (f"entries-{number}" for number in itertools.count())
NUMBERS = itertools.count()
QUICK = {"pull_backoff_s": 0.02, "pull_retries": 1, "pull_timeout_s": 10, "hub_token": ""}
NOBODY = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_random_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", layers=1, width=32).read_bytes()


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


class Place:
    """A node, and a repository with one model in two quantizations."""

    def __init__(self, node: Node, hub: FakeHub, data: bytes) -> None:
        self.node, self.hub, self.data = node, hub, data
        self.repository = f"maker/Tiny{next(NUMBERS)}-GGUF"
        self.entry = {"repository": f"{self.repository}:Q8_0"}
        self.target = node.models_dir / self.repository / "Tiny-Q8_0.gguf"
        hub.files[self.repository] = {"Tiny-Q8_0.gguf": data, "Tiny-Q2_K.gguf": data}
        hub.switches = Switches()
        hub.seen.clear()
        hub.go_on.clear()

    @property
    def coming(self) -> str:
        """What is said while half of it is here, as a pattern."""
        return rf"it is being downloaded from {self.repository}:Q8_0: \d+ %"

    def run(self, body: Callable[[Herd], Awaitable[None]], **settings: Any) -> None:
        """With a supervisor that was started for it; the model it speaks of is `gemma`."""

        async def all_of_it() -> None:
            async with herd_of(self.node, "gemma") as herd:
                self.node.start(**settings)
                await herd.serving()
                await body(herd)

        uvloop.run(all_of_it())


@pytest.fixture
def place(tmp_path: Path, shared_nats_server: NatsServer, hub: FakeHub, model_bytes: bytes) -> Iterator[Place]:
    node = Node(tmp_path, shared_nats_server, name=next(NAMES))
    node.settings |= {**QUICK, "hub_url": hub.url}
    yield Place(node, hub, model_bytes)
    hub.go_on.set()
    node.clean_up()


async def found(herd: Herd, model: str = "gemma") -> ModelFound:
    def there() -> ModelFound | None:
        event = herd.known.models.get(model)
        return event if isinstance(event, ModelFound) else None

    try:
        event = await until(there, what=f"{model} is offered")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{herd.known.models}\n{herd.node.output[-3000:]}") from None
    assert event is not None
    return event


async def rejected(herd: Herd, reason: str, model: str = "gemma") -> ModelRejected:
    def told() -> ModelRejected | None:
        event = herd.known.models.get(model)
        return event if isinstance(event, ModelRejected) and re.search(reason, event.reason) else None

    try:
        event = await until(told, what=f"{model}: {reason}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{herd.known.models}\n{herd.node.output[-3000:]}") from None
    assert event is not None
    return event


async def removed(herd: Herd) -> None:
    await reload(herd)
    await until(lambda: isinstance(herd.known.models.get("gemma"), ModelRemoved), what="gemma is gone")


async def reload(herd: Herd, **fields: Any) -> Reloaded:
    subject = herd.bus.subjects.command("supervisor", "reload", node=herd.node.name)
    return await herd.bus.request(subject, ReloadConfiguration(**fields), Reloaded)


async def refused_load(herd: Herd) -> Unavailable:
    with pytest.raises(Unavailable) as refused:
        await herd.load()
    return refused.value


@asynccontextmanager
async def started(gateway: GatewayProcess) -> AsyncIterator[None]:
    await asyncio.to_thread(gateway.start)
    try:
        yield
    finally:
        await asyncio.to_thread(gateway.stop)


def rejections(herd: Herd) -> list[ModelRejected]:
    return [fact for fact in herd.facts if isinstance(fact, ModelRejected)]


def pulls(herd: Herd, kind: type[PullStarted | PullFinished | PullFailed]) -> list[Any]:
    return [fact for fact in herd.facts if isinstance(fact, kind)]


def test_repository_of_an_entry_is_pulled_at_the_start_and_served_under_its_key(place: Place) -> None:
    place.node.configure({"gemma": place.entry})

    async def body(herd: Herd) -> None:
        gemma = await found(herd)
        own = await found(herd, "Tiny-Q8_0")
        await herd.load()
        await herd.state(State.READY)

        assert (gemma.path, gemma.repository) == (str(place.target), f"{place.repository}:Q8_0")
        assert (own.path, own.repository) == (str(place.target), "")
        assert place.target.read_bytes() == place.data
        assert [fact.source for fact in pulls(herd, PullStarted)] == [place.repository]
        await until(lambda: pulls(herd, PullFinished), what="the pull has ended")
        subject = herd.bus.subjects.command("supervisor", "delete", node=place.node.name)
        with pytest.raises(Rejected, match=r"gemma is there by `models\.gemma\.repository` in llamaherd\.yaml"):
            await herd.bus.request(subject, DeleteModel(model="gemma"), ModelDeleted)

    place.run(body)


def test_entry_may_be_called_as_the_file_is(place: Place) -> None:
    place.node.configure({"Tiny-Q8_0": place.entry})

    async def body(herd: Herd) -> None:
        assert (await found(herd, "Tiny-Q8_0")).repository == f"{place.repository}:Q8_0"
        assert [name for name, event in herd.known.models.items() if isinstance(event, ModelFound)] == ["Tiny-Q8_0"]

    place.run(body)


def test_what_is_here_is_offered_without_the_hub_at_the_next_start(place: Place) -> None:
    place.node.configure({"gemma": place.entry})

    async def first(herd: Herd) -> None:
        await found(herd)
        place.node.stop()

    async def second(herd: Herd) -> None:
        await herd.load()
        await herd.state(State.READY)
        assert len(pulls(herd, PullStarted)) == 1
        assert not [fact for fact in rejections(herd) if "could not" in fact.reason]

    place.run(first)
    place.run(second, hub_url=NOBODY)


def test_what_somebody_pulled_before_is_not_asked_of_the_hub(place: Place) -> None:
    async def body(herd: Herd) -> None:
        subject = herd.bus.subjects.command("supervisor", "pull", node=place.node.name)
        await herd.bus.request(subject, PullModel(repository=place.repository), PullAccepted)
        await until(lambda: pulls(herd, PullFinished), what="it has been pulled")
        place.hub.seen.clear()

        place.node.configure({"gemma": {"repository": place.repository}})
        await reload(herd)

        await found(herd)
        assert place.hub.seen == []

    place.node.configure({})
    place.run(body)


def test_entry_that_is_added_is_pulled_and_told_of_while_it_comes(place: Place) -> None:
    place.hub.switches = Switches(hold_after=len(place.data) // 2)

    async def body(herd: Herd) -> None:
        text = f"models: {{gemma: {{repository: '{place.repository}:Q8_0'}}}}"
        foreseen = await reload(herd, dry_run=True, text=text)
        place.node.configure({"gemma": place.entry})
        reloaded = await reload(herd)
        told = await rejected(herd, "[1-9] %|[1-9]0 %")
        refused = await refused_load(herd)
        place.hub.go_on.set()
        await found(herd)

        assert (foreseen.offered, foreseen.coming) == (reloaded.offered, reloaded.coming) == ([], ["gemma"])
        assert told.retry_after_s == 10
        assert re.fullmatch(f"gemma cannot be loaded yet: {place.coming}", str(refused))
        assert refused.retry_after_s == 10
        percents = [int(fact.reason.split()[-2]) for fact in rejections(herd) if fact.reason.endswith("%")]
        assert percents == sorted(set(percents))
        assert 0 < max(percents) <= 100

    place.node.configure({})
    place.run(body)


def test_model_that_is_to_be_loaded_from_the_start_is_loaded_once_it_has_come(place: Place) -> None:
    place.node.configure({"gemma": {**place.entry, "preload": True}})

    async def body(herd: Herd) -> None:
        await herd.state(State.READY)

    place.run(body)


def test_pull_that_failed_is_tried_again_by_a_load(place: Place) -> None:
    place.node.configure({"gemma": place.entry})
    place.hub.switches = Switches(refuse_listing=[(503, {})] * 2)

    async def body(herd: Herd) -> None:
        told = await rejected(herd, "could not be downloaded")
        refused = await refused_load(herd)
        await found(herd)

        assert told.reason == (
            f"it could not be downloaded from {place.repository}:Q8_0: 127.0.0.1 cannot answer now (503);"
            " it is tried again in 60 s, and `llamaherd load gemma` tries at once"
        )
        assert told.retry_after_s is None
        assert str(refused) == f"gemma cannot be loaded yet: it is being downloaded from {place.repository}:Q8_0"
        await herd.load()
        await herd.state(State.READY)

    place.run(body)


def test_pull_that_failed_is_tried_again_by_itself_each_time_after_twice_the_wait(place: Place) -> None:
    place.node.configure({"gemma": place.entry})
    place.hub.switches = Switches(refuse_listing=[(503, {})] * 6)

    async def body(herd: Herd) -> None:
        await found(herd)

        reasons = [fact.reason for fact in rejections(herd) if "could not" in fact.reason]
        waits = [wait[1] for reason in reasons if (wait := re.search(r"tried again in ([\d.]+) s", reason))]
        assert waits == ["0.05", "0.1", "0.2"]

    place.run(body, pull_again_s=0.05)


def test_pull_that_failed_is_not_tried_again_once_its_entry_is_gone(place: Place) -> None:
    """Another one that fails after it is tried again: by then it would have been as well."""
    place.node.configure({"gemma": place.entry})
    place.hub.switches = Switches(refuse_listing=[(503, {})] * 4)

    async def body(herd: Herd) -> None:
        await rejected(herd, "could not be downloaded")
        place.node.configure({})
        await removed(herd)
        asked = len(place.hub.seen)
        place.node.configure({"other": {**place.entry, "repository": f"{place.repository}:Q2_K"}})
        await reload(herd)
        await found(herd, "other")

        assert not [each for each in place.hub.seen[asked:] if "Q8_0" in each.path]

    place.run(body, pull_again_s=0.3)


def test_pull_that_was_cancelled_or_is_of_nothing_that_there_is_is_not_tried_again_by_itself(place: Place) -> None:
    place.hub.switches = Switches(hold_after=5000)
    place.node.configure({"gemma": place.entry, "nothing": {"repository": "maker/There-Is-None-GGUF"}})

    async def body(herd: Herd) -> None:
        nothing = await rejected(herd, "could not be downloaded", "nothing")
        (started,) = await until(lambda: pulls(herd, PullStarted), what="it has begun")
        subject = herd.bus.subjects.command("supervisor", "pull-cancel", node=herd.node.name)
        await herd.bus.request(subject, CancelPull(pull=started.pull), PullCancelled)
        place.hub.go_on.set()
        cancelled = await rejected(herd, "could not be downloaded")

        for told, model in ((nothing, "nothing"), (cancelled, "gemma")):
            assert told.reason.endswith(f"; `llamaherd load {model}` tries again")

    place.run(body, pull_again_s=0.05)


def test_pull_that_failed_is_tried_again_by_a_reload_and_goes_on_where_it_broke(place: Place) -> None:
    place.node.configure({"gemma": place.entry})
    place.hub.switches = Switches(break_after=[5000, 0])

    async def body(herd: Herd) -> None:
        await rejected(herd, "could not be downloaded")
        assert [fact.done_bytes for fact in pulls(herd, PullFailed)] == [5000]
        await reload(herd)
        await found(herd)

        assert place.hub.downloads()[-1].range == "bytes=5000-"

    place.run(body)


def test_pull_that_a_stop_broke_off_goes_on_at_the_next_start(place: Place) -> None:
    place.node.configure({"gemma": place.entry})
    place.hub.switches = Switches(hold_after=5000)

    async def first(herd: Herd) -> None:
        await until(lambda: list(place.target.parent.glob("*.part")), what="it has begun")
        await until(lambda: any(part.stat().st_size == 5000 for part in place.target.parent.glob("*.part")))
        place.node.stop()
        assert not [fact for fact in rejections(herd) if "could not" in fact.reason]
        place.hub.switches = Switches()

    async def second(herd: Herd) -> None:
        await found(herd)
        assert place.hub.downloads()[-1].range == "bytes=5000-"

    place.run(first)
    place.run(second)


def test_entry_that_is_taken_out_ends_its_pull_and_leaves_its_file(place: Place) -> None:
    place.hub.switches = Switches(hold_after=5000)
    place.node.configure({"gemma": place.entry})

    async def body(herd: Herd) -> None:
        await until(lambda: pulls(herd, PullStarted), what="it has begun")
        place.node.configure({})
        await removed(herd)
        await until(lambda: [fact.cause for fact in pulls(herd, PullFailed)] == ["cancelled"])
        place.hub.switches = Switches()
        place.hub.go_on.set()

        place.node.configure({"gemma": place.entry})
        await reload(herd)
        await found(herd)
        place.node.configure({})
        await removed(herd)
        assert place.target.read_bytes() == place.data
        await herd.load("Tiny-Q8_0")

    place.run(body)


def test_two_entries_of_one_repository_share_a_pull_that_stays_while_one_wants_it(place: Place) -> None:
    place.hub.switches = Switches(hold_after=5000)
    entries = {"gemma": place.entry, "second": {**place.entry, "context_tokens": 512}}
    place.node.configure(entries)

    async def body(herd: Herd) -> None:
        await rejected(herd, " %")
        await rejected(herd, " %", "second")
        place.node.configure({"second": entries["second"]})
        await reload(herd)
        place.hub.go_on.set()
        await found(herd, "second")

        assert len(pulls(herd, PullStarted)) == 1

    place.run(body)


def test_model_runs_on_until_the_file_of_another_quantization_has_come(place: Place) -> None:
    place.node.configure({"gemma": place.entry})

    async def body(herd: Herd) -> None:
        await found(herd)
        await herd.load()
        await herd.state(State.READY)
        place.hub.switches = Switches(hold_after=5000)
        place.node.configure({"gemma": {"repository": f"{place.repository}:Q2_K"}})
        await reload(herd)
        await rejected(herd, " %")
        assert herd.instance().state is State.READY
        place.hub.go_on.set()
        await until(lambda: herd.instance().generation == 2 and herd.instance().state is State.READY)

        paths = [Path(fact.path).name for fact in herd.history() if isinstance(fact, InstanceStarted)]
        assert paths == ["Tiny-Q8_0.gguf", "Tiny-Q2_K.gguf"]

    place.run(body)


def test_file_that_lies_elsewhere_in_the_folder_is_remembered(place: Place) -> None:
    (place.node.models_dir / "Tiny-Q8_0.gguf").write_bytes(place.data)
    place.node.configure({"gemma": place.entry})

    async def first(herd: Herd) -> None:
        assert (await found(herd)).path == str(place.node.models_dir / "Tiny-Q8_0.gguf")
        assert place.hub.downloads() == []
        place.node.stop()
        place.hub.seen.clear()

    async def second(herd: Herd) -> None:
        await herd.load()
        assert place.hub.seen == []

    place.run(first)
    place.run(second)


def test_node_that_is_not_what_the_model_requires_does_not_pull_it(place: Place) -> None:
    place.node.configure({"gemma": {**place.entry, "requires": {"gpu": "h200"}}})

    async def body(herd: Herd) -> None:
        told = await rejected(herd, "is not downloaded to this node")
        with pytest.raises(Rejected, match=r"it requires gpu: h200 \(`supervisor\.labels`\)"):
            await herd.load()

        assert told.retry_after_s is None
        assert place.hub.seen == []

    place.run(body)


def test_model_whose_file_was_removed_comes_again_by_a_load(place: Place) -> None:
    place.node.configure({"gemma": place.entry})

    async def body(herd: Herd) -> None:
        await found(herd)
        place.target.unlink()
        await rejected(herd, "it is not in the models folder: `llamaherd load gemma` downloads it from")
        await refused_load(herd)
        await found(herd)

    place.run(body)


def test_projector_of_the_repository_lets_the_model_see_under_both_names(place: Place, tmp_path: Path) -> None:
    place.hub.files[place.repository]["mmproj-F16.gguf"] = write_random_projector(
        tmp_path / "eyes.gguf", embedding_length=32
    ).read_bytes()
    place.node.configure({"gemma": place.entry})

    async def body(herd: Herd) -> None:
        gemma, own = await found(herd), await found(herd, "Tiny-Q8_0")

        assert Path(gemma.projector).parent == place.target.parent
        assert gemma.projector == own.projector
        assert gemma.capabilities == own.capabilities

    place.run(body)


def test_clients_are_told_how_far_it_is_and_to_come_back(
    place: Place, tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer
) -> None:
    (place.node.folder / "secret").write_bytes(SECRET)
    place.node.configure({"wanted": {**place.entry, "aliases": ["gpt-4o"]}, "eager": place.entry})
    place.node.add_model("spare")
    place.hub.switches = Switches(hold_after=len(place.data) // 2)
    models = {"wanted": {"aliases": ["gpt-4o"]}, "eager": {"fallback": "spare"}}
    gateway = GatewayProcess(tmp_path_factory.mktemp("gateway"), shared_nats_server.url, models=models)

    async def body(herd: Herd) -> None:
        await rejected(herd, " %", "wanted")
        async with started(gateway), httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:

            async def ask(model: str) -> httpx.Response:
                messages = [{"role": "user", "content": "hello"}]
                return await client.post("/v1/chat/completions", json={"model": model, "messages": messages})

            for name in ("wanted", "gpt-4o"):
                answer = await ask(name)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
                sentence = f"the model 'wanted' on {place.node.name} cannot be served yet: {place.coming}"
                assert re.fullmatch(sentence, answer.json()["error"]["message"])
            assert (await ask("eager")).status_code == 200, "its fallback answers"
            place.hub.go_on.set()
            await found(herd, "wanted")
            deadline = time.monotonic() + 20
            while (answer := await ask("wanted")).status_code == 503 and time.monotonic() < deadline:
                pass
            assert answer.status_code == 200, answer.text

    place.run(body)

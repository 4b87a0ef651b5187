"""Model files on a supervisor's host, against a real nats-server and a hub that misbehaves on request."""

import asyncio
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import uvloop

from harness.deadline import until
from harness.fake_hub import COMMIT, FakeHub, Switches
from harness.nats import NatsServer
from harness.random_gguf import write_garbage, write_random_gguf
from harness.random_projector import write_random_projector
from harness.supervisor import Herd, Node, herd_of
from llamaherd_shared.commands import (
    CancelPull,
    DeleteModel,
    DescribeModel,
    ModelDeleted,
    ModelDescription,
    PullAccepted,
    PullCancelled,
    PullModel,
)
from llamaherd_shared.errors import Conflict, HerdError, NotFound, Rejected, Unavailable
from llamaherd_shared.events.model import ModelFound, ModelRemoved
from llamaherd_shared.events.pull import (
    PullBase,
    PullFailed,
    PullFinished,
    PullProgressed,
    PullStarted,
)
from llamaherd_supervisor.lifecycle import State
from llamaherd_supervisor.pulls.part_file import PartFile

A = TypeVar("A", bound=msgspec.Struct)

NAMES = (f"files-{number}" for number in itertools.count())
NUMBERS = itertools.count()
QUICK = {"pull_backoff_s": 0.02, "pull_retries": 3, "pull_timeout_s": 10, "hub_token": ""}


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_random_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", layers=1, width=32).read_bytes()


class Shelf:
    """A repository with one model, a node to pull it to, and that node's own plain file."""

    def __init__(self, node: Node, hub: FakeHub, data: bytes) -> None:
        number = next(NUMBERS)
        self.node, self.hub, self.data = node, hub, data
        self.repository, self.model, self.blob = f"maker/Tiny{number}-GGUF", f"Tiny{number}-Q8_0", f"blob{number}"
        self.file = f"{self.model}.gguf"
        self.folder = node.models_dir / self.repository
        self.target = self.folder / self.file
        hub.files[self.repository] = {"README.md": b"# Tiny", self.file: data}
        hub.files.setdefault("", {})[self.blob] = data
        hub.switches = Switches()
        hub.seen.clear()
        hub.go_on.clear()

    @property
    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.part"))


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer, hub: FakeHub) -> Iterator[Node]:
    """A node whose supervisor runs for all tests that are content with a model of their own."""
    node = Node(tmp_path_factory.mktemp("running"), shared_nats_server, name=next(NAMES))
    node.settings |= {**QUICK, "hub_url": hub.url}

    async def start() -> None:
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()

    uvloop.run(start())
    yield node
    hub.go_on.set()
    node.clean_up()


@pytest.fixture
def shelf(running: Node, hub: FakeHub, model_bytes: bytes) -> Shelf:
    return Shelf(running, hub, model_bytes)


@pytest.fixture
def own(tmp_path: Path, shared_nats_server: NatsServer, hub: FakeHub, model_bytes: bytes) -> Iterator[Shelf]:
    """With a node of the test's own, to start and to stop."""
    node = Node(tmp_path, shared_nats_server, name=next(NAMES))
    node.settings |= {**QUICK, "hub_url": hub.url}
    yield Shelf(node, hub, model_bytes)
    hub.go_on.set()
    node.clean_up()


class Files:
    """The commands about files, and the facts of pulls."""

    def __init__(self, herd: Herd, shelf: Shelf) -> None:
        self.herd, self.node, self.shelf = herd, herd.node, shelf

    async def ask(self, verb: str, command: msgspec.Struct, reply: type[A]) -> A:
        subject = self.herd.bus.subjects.command("supervisor", verb, node=self.node.name)
        return await self.herd.bus.request(subject, command, reply, timeout_s=30)

    async def pull(self, repository: str | None = None, **wanted: Any) -> PullAccepted:
        """The shelf's own repository, unless another one or none is named."""
        repository = self.shelf.repository if repository is None else repository
        return await self.ask("pull", PullModel(repository=repository, **wanted), PullAccepted)

    async def pull_blob(self, **wanted: Any) -> PullAccepted:
        return await self.pull("", **{"url": f"{self.shelf.hub.url}/files/{self.shelf.blob}", **wanted})

    async def cancel(self, pull: str, *, discard: bool = False) -> PullCancelled:
        return await self.ask("pull-cancel", CancelPull(pull=pull, discard=discard), PullCancelled)

    async def delete(self, model: str, *, unload: bool = False) -> ModelDeleted:
        return await self.ask("delete", DeleteModel(model=model, unload=unload), ModelDeleted)

    async def describe(self, model: str, *, verbose: bool = False) -> ModelDescription:
        return await self.ask("describe", DescribeModel(model=model, verbose=verbose), ModelDescription)

    def facts(self, pull: str) -> list[PullBase]:
        return [fact for fact in self.herd.facts if isinstance(fact, PullBase) and fact.pull == pull]

    async def progress(self, pull: str, done_bytes: int) -> None:
        def has_come() -> bool:
            return any(isinstance(fact, PullProgressed) and fact.done_bytes >= done_bytes for fact in self.facts(pull))

        await until(has_come, what=f"{done_bytes} bytes of the pull")

    async def ended(self, pull: str) -> PullFinished | PullFailed:
        def last() -> PullFinished | PullFailed | None:
            ends = [fact for fact in self.facts(pull) if isinstance(fact, PullFinished | PullFailed)]
            return ends[-1] if ends else None

        found = await until(last, what="the pull has ended")
        assert found is not None
        return found

    async def finished(self, pull: str) -> PullFinished:
        end = await self.ended(pull)
        assert isinstance(end, PullFinished), end
        return end

    async def failed(self, pull: str) -> PullFailed:
        end = await self.ended(pull)
        assert isinstance(end, PullFailed), end
        return end


@asynccontextmanager
async def supervised(shelf: Shelf, **settings: Any) -> AsyncIterator[Files]:
    """The node's supervisor, started if it is not running."""
    async with herd_of(shelf.node, shelf.model) as herd:
        if shelf.node.process is None or shelf.node.process.poll() is not None:
            shelf.node.start(**settings)
            await herd.serving()
        yield Files(herd, shelf)


def run(shelf: Shelf, body: Callable[[Files], Awaitable[None]], **settings: Any) -> None:
    async def all_of_it() -> None:
        async with supervised(shelf, **settings) as files:
            await body(files)

    uvloop.run(all_of_it())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Pulls that succeed, whatever happens on the way.


def test_repository_is_pulled_checked_and_offered(shelf: Shelf) -> None:
    async def body(files: Files) -> None:
        accepted = await files.pull()
        end = await files.finished(accepted.pull)

        assert (accepted.model, accepted.node) == (shelf.model, shelf.node.name)
        assert (accepted.total_bytes, accepted.joined, accepted.present) == (len(shelf.data), False, False)
        assert shelf.target.read_bytes() == shelf.data
        assert (end.path, end.sha256, end.size_bytes) == (str(shelf.target), sha256(shelf.data), len(shelf.data))
        assert shelf.parts == []
        facts = [fact for fact in files.herd.facts if getattr(fact, "model", "") == shelf.model]
        facts = [fact for fact in facts if not isinstance(fact, PullProgressed)]
        assert [type(fact) for fact in facts] == [PullStarted, ModelFound, PullFinished]
        started, found, _ = facts
        assert isinstance(started, PullStarted)
        assert (started.source, started.revision) == (shelf.repository, COMMIT)
        assert [(file.name, file.sha256) for file in started.files] == [(shelf.file, sha256(shelf.data))]
        assert isinstance(found, ModelFound)
        assert found.capabilities == ["completion"]
        assert [seen.path for seen in shelf.hub.downloads()] == [f"/cdn/{shelf.repository}/{shelf.file}"]

        await files.herd.load()
        await files.herd.state(State.READY)

    run(shelf, body)


def test_broken_connection_is_continued_where_it_broke(shelf: Shelf) -> None:
    half = len(shelf.data) // 2
    shelf.hub.switches = Switches(break_after=[half, 1000])

    async def body(files: Files) -> None:
        accepted = await files.pull()
        await files.finished(accepted.pull)

        assert [seen.range for seen in shelf.hub.downloads()] == ["", f"bytes={half}-", f"bytes={half + 1000}-"]
        notes = [fact.note for fact in files.facts(accepted.pull) if isinstance(fact, PullProgressed) and fact.note]
        assert any("trying again" in note for note in notes)
        assert shelf.target.read_bytes() == shelf.data

    run(shelf, body)


def test_connection_from_which_nothing_comes_is_given_up_and_made_again(own: Shelf) -> None:
    own.hub.switches = Switches(hold_after=5000)

    async def body(files: Files) -> None:
        accepted = await files.pull()
        await until(lambda: len(own.hub.downloads()) >= 2, what="it asks again")
        own.hub.switches = Switches()
        await files.finished(accepted.pull)

        assert own.hub.downloads()[1].range == "bytes=5000-"

    run(own, body, pull_timeout_s=0.3)


def test_hub_that_asks_to_wait_is_waited_for(shelf: Shelf) -> None:
    shelf.hub.switches = Switches(
        refuse=[(429, {"Retry-After": "0.3"}), (503, {})], refuse_listing=[(429, {"Retry-After": "0.2"}), (502, {})]
    )

    async def body(files: Files) -> None:
        accepted = await files.pull()
        await files.finished(accepted.pull)

        notes = [fact.note for fact in files.facts(accepted.pull) if isinstance(fact, PullProgressed)]
        assert any("(429); trying again in 0.3 s" in note for note in notes)
        assert any("(503)" in note for note in notes)

    run(shelf, body)


def test_server_that_knows_no_ranges_sends_everything_again(shelf: Shelf) -> None:
    shelf.hub.switches = Switches(break_after=[5000], ignore_range=True)

    async def body(files: Files) -> None:
        end = await files.finished((await files.pull()).pull)

        assert end.sha256 == sha256(shelf.data)

    run(shelf, body)


def test_second_asker_joins_the_pull_under_way(shelf: Shelf) -> None:
    shelf.hub.switches = Switches(hold_after=5000)

    async def body(files: Files) -> None:
        first, second = await asyncio.gather(files.pull(), files.pull(f"hf.co/{shelf.repository}:q8_0"))
        shelf.hub.go_on.set()
        await files.finished(first.pull)

        assert first.pull == second.pull
        assert sorted([first.joined, second.joined]) == [False, True]
        assert len(shelf.hub.downloads()) == 1

    run(shelf, body)


def test_part_of_an_earlier_pull_is_taken_up(shelf: Shelf) -> None:
    shelf.hub.switches = Switches(hold_after=20_000)

    async def body(files: Files) -> None:
        first = await files.pull()
        await files.progress(first.pull, 20_000)
        cancelled = await files.cancel(first.pull)
        end = await files.failed(first.pull)
        shelf.hub.switches = Switches()
        second = await files.pull()
        await files.finished(second.pull)

        assert cancelled.model == shelf.model
        assert (end.cause, end.done_bytes) == ("cancelled", 20_000)
        assert second.done_bytes >= 20_000
        assert shelf.hub.downloads()[1].range == "bytes=20000-"
        with pytest.raises(NotFound, match="no pull"):
            await files.cancel(first.pull)

    run(shelf, body)


def test_part_of_another_version_is_fetched_anew(shelf: Shelf) -> None:
    shelf.folder.mkdir(parents=True)
    (shelf.folder / f"{shelf.file}.part").write_bytes(b"x" * 1000)

    async def body(files: Files) -> None:
        await files.finished((await files.pull()).pull)

        assert [seen.range for seen in shelf.hub.downloads()] == ["bytes=1000-", ""]
        assert shelf.target.read_bytes() == shelf.data

    run(shelf, body)


def test_cancelled_pull_leaves_nothing_when_it_is_told_so(shelf: Shelf) -> None:
    shelf.hub.switches = Switches(hold_after=20_000)

    async def body(files: Files) -> None:
        pull = (await files.pull()).pull
        await files.progress(pull, 20_000)
        await files.cancel(pull, discard=True)
        end = await files.failed(pull)

        assert (end.cause, end.done_bytes) == ("cancelled", 0)
        assert not shelf.folder.exists()

    run(shelf, body)


def test_model_that_is_there_is_compared_and_not_fetched_again(shelf: Shelf) -> None:
    async def body(files: Files) -> None:
        await files.finished((await files.pull()).pull)
        again = await files.pull()
        end = await files.finished(again.pull)

        assert again.present
        assert end.sha256 == sha256(shelf.data)
        assert len(shelf.hub.downloads()) == 1

    run(shelf, body)


def test_newer_version_takes_the_place_of_an_older_one(shelf: Shelf, tmp_path: Path) -> None:
    async def body(files: Files) -> None:
        await files.finished((await files.pull()).pull)
        newer = write_random_gguf(tmp_path / "newer.gguf", layers=1, width=32, seed=2, title="Newer").read_bytes()
        shelf.hub.files[shelf.repository][shelf.file] = newer
        end = await files.finished((await files.pull()).pull)

        assert end.sha256 == sha256(newer)
        found = files.herd.known.models[shelf.model]
        assert isinstance(found, ModelFound)
        assert found.title == "Newer"

    run(shelf, body)


def test_split_model_comes_with_all_its_parts_and_goes_with_them(shelf: Shelf, tmp_path: Path) -> None:
    second = write_random_gguf(tmp_path / "second.gguf", layers=1, width=16).read_bytes()
    shelf.hub.files[shelf.repository] = {
        "Q4_K_M/Big-Q4_K_M-00001-of-00002.gguf": shelf.data,
        "Q4_K_M/Big-Q4_K_M-00002-of-00002.gguf": second,
    }

    async def body(files: Files) -> None:
        accepted = await files.pull()
        end = await files.finished(accepted.pull)
        described = await files.describe("Big-Q4_K_M")

        names = [f"Big-Q4_K_M-0000{number}-of-00002.gguf" for number in (1, 2)]
        assert accepted.total_bytes == end.size_bytes == len(shelf.data) + len(second)
        assert end.path == str(shelf.folder / names[0])
        assert sorted(path.name for path in shelf.folder.iterdir()) == names
        assert len(described.tensors) == 2 * 12

        deleted = await files.delete("Big-Q4_K_M")

        assert deleted.paths == [str(shelf.folder / name) for name in names]
        assert not shelf.folder.exists()

    run(shelf, body)


def test_projector_comes_along_with_its_model_once_for_all_quantizations(shelf: Shelf, tmp_path: Path) -> None:
    eyes = write_random_projector(tmp_path / "eyes.gguf", embedding_length=32).read_bytes()
    other = shelf.model.replace("Q8_0", "Q4_0")
    shelf.hub.files[shelf.repository] |= {"mmproj-model-f16.gguf": eyes, f"{other}.gguf": shelf.data}

    async def body(files: Files) -> None:
        pulls = await asyncio.gather(files.pull(quantization="Q8_0"), files.pull(quantization="Q4_0"))
        ends = [await files.finished(accepted.pull) for accepted in pulls]

        projector = shelf.folder / f"mmproj-{shelf.model.removesuffix('-Q8_0')}-F16.gguf"
        assert projector.read_bytes() == eyes
        assert len([seen for seen in shelf.hub.seen if "/cdn/" in seen.path and "mmproj" in seen.path]) == 1
        for end, model in zip(ends, (shelf.model, other), strict=True):
            assert [file.name for file in end.files] == [f"{model}.gguf", "mmproj-model-f16.gguf"]
            found = files.herd.known.models[model]
            assert isinstance(found, ModelFound)
            assert (found.projector, found.capabilities) == (str(projector), ["completion", "vision"])

        first = await files.delete(shelf.model)
        assert first.paths == [str(shelf.target)]
        last = await files.delete(other)
        assert last.paths == [str(shelf.folder / f"{other}.gguf"), str(projector)]
        assert not shelf.folder.exists()

    run(shelf, body)


def test_model_that_is_called_a_projector_is_refused(shelf: Shelf) -> None:
    shelf.hub.files[shelf.repository]["mmproj-F16.gguf"] = shelf.data

    async def body(files: Files) -> None:
        end = await files.failed((await files.pull()).pull)

        assert end.reason == "mmproj-F16.gguf cannot be served: it is no projector but a model"
        assert not list(shelf.folder.glob("*.gguf"))

    run(shelf, body)


def test_projector_that_is_called_a_model_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    shelf.hub.files[shelf.repository][shelf.file] = write_random_projector(tmp_path / "eyes.gguf").read_bytes()

    async def body(files: Files) -> None:
        end = await files.failed((await files.pull()).pull)

        assert end.reason == f"{shelf.file} cannot be served: it is no model but a projector, a part for one"

    run(shelf, body)


def test_blob_is_adopted_from_a_url_under_the_name_it_is_given(shelf: Shelf) -> None:
    shelf.hub.switches = Switches(token="t0k3n")
    url = f"{shelf.hub.url}/files/{shelf.blob}"
    wanted = {"url": f"{url}?key=s3cr3t", "name": "mine", "sha256": f"sha256:{sha256(shelf.data)}", "token": "t0k3n"}

    async def body(files: Files) -> None:
        accepted = await files.pull_blob(**wanted)
        end = await files.finished(accepted.pull)
        started = files.facts(accepted.pull)[0]
        await files.finished((await files.pull_blob(**wanted)).pull)

        assert isinstance(started, PullStarted)
        assert (started.source, started.total_bytes) == (url, 0)
        assert (end.path, end.size_bytes) == (str(shelf.node.models_dir / "mine.gguf"), len(shelf.data))
        assert len(shelf.hub.downloads()) == 1
        told = shelf.node.output + "".join(repr(fact) for fact in files.herd.facts)
        assert "t0k3n" not in told
        assert "s3cr3t" not in told

    run(shelf, body)


def test_blob_takes_the_place_of_another_only_when_told_so(shelf: Shelf, tmp_path: Path) -> None:
    other = write_random_gguf(tmp_path / "other.gguf", layers=1, width=16).read_bytes()
    shelf.hub.files[""]["other"] = other
    url = f"{shelf.hub.url}/files/other"

    async def body(files: Files) -> None:
        await files.finished((await files.pull_blob(name="place")).pull)
        refused = await files.failed((await files.pull_blob(url=url, name="place")).pull)
        end = await files.finished((await files.pull_blob(url=url, name="place", replace=True)).pull)

        assert "is there and is another file" in refused.reason
        assert end.sha256 == sha256(other)

    run(shelf, body)


# Pulls that fail, and say why.


def failing(shelf: Shelf, reason: str, *, parts: int) -> None:
    async def body(files: Files) -> None:
        end = await files.failed((await files.pull()).pull)

        assert reason in end.reason
        assert end.cause == "failed"
        assert len(shelf.parts) == parts
        assert shelf.model not in files.herd.known.models

    run(shelf, body)


def test_file_with_the_wrong_checksum_is_not_kept(shelf: Shelf) -> None:
    shelf.hub.switches = Switches(announced_sha256="0" * 64)

    failing(shelf, f"instead of {'0' * 64}: it was not kept", parts=0)


def test_server_that_contradicts_itself_about_the_length_is_not_believed(shelf: Shelf) -> None:
    size = len(shelf.data)
    shelf.hub.switches = Switches(announced_size=size + 1)

    failing(shelf, f"announced with {size + 1:,} bytes, and {size:,} are to come", parts=0)


def test_more_than_was_announced_is_refused(shelf: Shelf) -> None:
    shelf.hub.switches = Switches(no_length=True, extra=b"and more")

    failing(shelf, "and more came", parts=1)


def test_connection_that_always_breaks_is_given_up_with_what_came_kept(shelf: Shelf) -> None:
    shelf.hub.switches = Switches(break_after=[100] * 4)

    failing(shelf, "4 times in a row", parts=1)


def test_file_that_is_no_model_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    shelf.hub.files[shelf.repository][shelf.file] = write_garbage(tmp_path / "garbage").read_bytes()

    failing(shelf, "cannot be served: it is not a GGUF file", parts=0)


@pytest.mark.parametrize(
    ("wanted", "error", "sentence"),
    [
        ({"repository": "nobody/nothing"}, NotFound, "has no repository nobody/nothing"),
        ({"repository": "no repository"}, Rejected, "write OWNER/NAME"),
        ({"quantization": "Q2_K"}, NotFound, "has no Q2_K; it has Q8_0"),
        ({"repository": "two/models"}, Rejected, "name one of a.gguf, b.gguf"),
        ({"repository": "no/models"}, NotFound, "no model in the GGUF format"),
        ({"revision": "../../etc"}, Rejected, "no branch, tag or commit"),
        ({"name": "../up"}, Rejected, "cannot be the name of a model"),
        ({"repository": ""}, Rejected, "name what to pull"),
        ({"repository": "", "url": "file:///etc/passwd"}, Rejected, "must begin with http"),
    ],
)
def test_each_wrong_wish_has_its_sentence(
    shelf: Shelf, wanted: dict[str, str], error: type[HerdError], sentence: str
) -> None:
    shelf.hub.files["two/models"] = {"a.gguf": b"", "b.gguf": b""}
    shelf.hub.files["no/models"] = {"README.md": b""}

    async def body(files: Files) -> None:
        with pytest.raises(error, match=sentence):
            await files.pull(**wanted)

        assert shelf.hub.downloads() == []

    run(shelf, body)


def test_token_goes_to_the_hub_and_not_to_where_it_keeps_its_files(own: Shelf, tmp_path: Path) -> None:
    own.hub.switches = Switches(token="hf_secret")
    (tmp_path / "token").write_text("hf_secret\n")

    async def body(files: Files) -> None:
        await files.finished((await files.pull()).pull)

        asked = [seen.authorization for seen in own.hub.seen if not seen.path.startswith("/cdn/")]
        assert asked == ["Bearer hf_secret"] * 2
        assert [seen.authorization for seen in own.hub.downloads()] == [""]
        assert "hf_secret" not in own.node.output

    run(own, body, hub_token=f"file:{tmp_path / 'token'}")


def test_repository_that_wants_a_token_says_how_to_give_one(shelf: Shelf) -> None:
    shelf.hub.switches = Switches(token="hf_secret")

    async def body(files: Files) -> None:
        with pytest.raises(Rejected, match=r"refuses access to repository .* \(401\).*`hub_token`"):
            await files.pull()

        await files.finished((await files.pull(token="hf_secret")).pull)

    run(shelf, body)


def test_hub_that_is_not_there_is_told(own: Shelf) -> None:
    async def body(files: Files) -> None:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await files.pull()

    run(own, body, hub_url="http://127.0.0.1:1", pull_retries=1)


def test_pull_that_does_not_fit_on_the_disk_is_refused_with_the_arithmetic(own: Shelf, small_disk: Path) -> None:
    own.node.models_dir = small_disk
    own.hub.files[""]["endless"] = b"x" * 2**21

    async def body(files: Files) -> None:
        with pytest.raises(Unavailable, match=f"it needs {len(own.data):,} bytes, the disk has .* free"):
            await files.pull()
        unknown = await files.failed((await files.pull_blob(name="x")).pull)
        own.hub.switches = Switches(no_length=True)
        endless = await files.failed((await files.pull_blob(url=f"{own.hub.url}/files/endless", name="y")).pull)

        assert "does not fit" in unknown.reason
        assert "the disk is full" in endless.reason

    run(own, body)


def test_model_of_the_same_name_elsewhere_in_the_folder_is_in_the_way(shelf: Shelf) -> None:
    async def body(files: Files) -> None:
        shelf.node.add_model(shelf.model)
        await files.herd.offered()
        with pytest.raises(Conflict, match=f"another model {shelf.model}"):
            await files.pull()
        other = await files.finished((await files.pull(name="renamed")).pull)
        twin = shelf.node.models_dir / "twin.gguf"
        twin.write_bytes(shelf.data)
        await files.herd.offered("twin")
        same = await files.finished((await files.pull(name="twin")).pull)

        assert other.path == str(shelf.folder / "renamed.gguf")
        assert same.path == str(twin), "the very same file need not be fetched"
        assert len(shelf.hub.downloads()) == 1

    run(shelf, body)


def test_two_sources_under_one_name_are_not_pulled_at_once(shelf: Shelf) -> None:
    shelf.hub.switches = Switches(hold_after=1000)

    async def body(files: Files) -> None:
        first = await files.pull()
        with pytest.raises(Conflict, match=f"is pulling {shelf.model} from {shelf.repository}"):
            await files.pull_blob(name=shelf.model)
        await files.cancel(first.pull)

    run(shelf, body)


# Restarts.


def test_pull_of_a_killed_supervisor_is_told_as_lost_and_taken_up(own: Shelf) -> None:
    own.hub.switches = Switches(hold_after=30_000)

    async def body(files: Files) -> None:
        first = await files.pull()
        await files.progress(first.pull, 30_000)
        own.node.kill()
        own.hub.switches = Switches()
        own.node.start()
        await files.herd.serving()
        lost = await files.failed(first.pull)
        await files.finished((await files.pull()).pull)

        assert lost.cause == "lost"
        assert own.hub.downloads()[-1].range == "bytes=30000-"

    run(own, body)


def test_stopped_supervisor_ends_its_pulls_and_keeps_their_parts(own: Shelf) -> None:
    own.hub.switches = Switches(hold_after=30_000)

    async def body(files: Files) -> None:
        pull = (await files.pull()).pull
        await files.progress(pull, 30_000)
        assert await asyncio.to_thread(own.node.stop) == 0
        end = await files.failed(pull)
        own.node.start()
        await files.herd.serving()

        assert (end.cause, end.done_bytes) == ("shutdown", 30_000)
        assert [part.stat().st_size for part in own.parts] == [30_000]
        assert len([fact for fact in files.facts(pull) if isinstance(fact, PullFailed)]) == 1
        assert files.herd.known.pulls == {}

    run(own, body)


def test_part_that_another_supervisor_writes_is_left_to_it(tmp_path: Path) -> None:
    mine, theirs = PartFile(tmp_path / "m.gguf"), PartFile(tmp_path / "m.gguf")
    theirs.open()
    theirs.write(b"x")

    with pytest.raises(Conflict, match="another supervisor is writing"):
        mine.open()
    mine.discard()

    assert theirs.path.read_bytes() == b"x"
    theirs.close()
    mine.open()
    assert mine.take_up()
    assert mine.size_bytes == 1
    mine.close()


def test_supervisor_that_pulls_nothing_does_without_http() -> None:
    code = "import sys, llamaherd_supervisor.app; sys.exit('httpx' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What a file says, and its end.


def test_model_found_before_capabilities_were_told_is_found_again(own: Shelf) -> None:
    path = own.node.add_model(own.model)
    status = path.stat()

    async def body() -> None:
        async with herd_of(own.node, own.model) as herd:
            old = ModelFound(
                node=own.node.name,
                model=own.model,
                at_ns=1,
                path=str(path),
                size_bytes=status.st_size,
                modified_ns=status.st_mtime_ns,
            )
            await herd.bus.append(herd.bus.subjects.model(own.node.name, own.model), old, msg_id=own.node.name)
            own.node.start()
            await herd.serving()
            found = herd.known.models[own.model]

            assert isinstance(found, ModelFound)
            assert found.capabilities == ["completion"]

    uvloop.run(body())


def test_model_is_described_without_being_loaded(shelf: Shelf) -> None:
    shelf.node.add_model(shelf.model)

    async def body(files: Files) -> None:
        await files.herd.offered()
        short = await files.describe(shelf.model)
        verbose = await files.describe(shelf.model, verbose=True)

        assert short.metadata["general.architecture"] == "llama"
        assert short.metadata["tokenizer.ggml.tokens"] == []
        assert "tokenizer.ggml.tokens" in short.emptied
        assert "tokenizer.chat_template" not in short.metadata
        assert short.chat_template.startswith("{% for message in messages %}")
        shapes = {tensor.name: tensor.shape for tensor in short.tensors}
        assert shapes["blk.0.ffn_up.weight"] == [16, 32]
        tokens = verbose.metadata["tokenizer.ggml.tokens"]
        assert isinstance(tokens, list)
        assert len(tokens) == 260
        assert verbose.emptied == []
        with pytest.raises(NotFound, match=f"did you mean '{shelf.model}'"):
            await files.describe(shelf.model + "x")
        assert files.herd.kinds() == []

    run(shelf, body)


def test_loaded_model_is_deleted_only_once_it_is_unloaded(shelf: Shelf) -> None:
    path = shelf.node.add_model(shelf.model)

    async def body(files: Files) -> None:
        await files.herd.offered()
        await files.herd.load()
        await files.herd.state(State.READY)
        with pytest.raises(Conflict, match=f"{shelf.model} is ready: unload it first"):
            await files.delete(shelf.model)
        assert path.exists()

        deleted = await files.delete(shelf.model, unload=True)

        assert deleted.paths == [str(path)]
        assert not path.exists()
        await until(lambda: isinstance(files.herd.known.models[shelf.model], ModelRemoved), what="it is removed")
        assert files.herd.kinds()[-1] == "exited"
        with pytest.raises(NotFound):
            await files.delete(shelf.model)

    run(shelf, body)


def test_model_that_failed_can_be_deleted(shelf: Shelf) -> None:
    shelf.node.add_model(shelf.model, exit_on_start=1)

    async def body(files: Files) -> None:
        await files.herd.offered()
        await files.herd.load()
        await files.herd.state(State.FAILED)

        await files.delete(shelf.model)

        await files.herd.state(State.STOPPED)

    run(shelf, body)


def test_only_what_is_in_the_models_folder_is_deleted(shelf: Shelf, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    linked = write_random_gguf(elsewhere / "linked.gguf", layers=1, width=16)
    other = write_random_gguf(elsewhere / "other.gguf", layers=1, width=16)
    (shelf.node.models_dir / "more").symlink_to(elsewhere)
    link = shelf.node.models_dir / "link.gguf"
    link.symlink_to(other)

    async def body(files: Files) -> None:
        await files.herd.offered("link")
        await files.herd.offered("linked")
        with pytest.raises(Rejected, match="outside the models folder"):
            await files.delete("linked")
        await files.delete("link")

        assert linked.exists()
        assert other.exists(), "the link went, not what it leads to"
        assert not os.path.lexists(link)

    run(shelf, body)


def test_broken_file_can_be_deleted_and_not_described(shelf: Shelf) -> None:
    path = write_garbage(shelf.node.models_dir / shelf.file)

    async def body(files: Files) -> None:
        await files.herd.offered()
        with pytest.raises(Rejected, match="cannot be read: it is not a GGUF file"):
            await files.describe(shelf.model)
        await files.delete(shelf.model)

        assert not path.exists()

    run(shelf, body)

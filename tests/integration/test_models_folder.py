"""The models folder: what is offered, what is not yet, and how soon."""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from harness.deadline import until
from harness.nats import NatsServer
from harness.random_gguf import write_random_gguf, write_split_gguf, write_truncated_gguf
from harness.supervisor import Herd, Node, herd_of
from llamaherd_shared.errors import Rejected
from llamaherd_shared.events.model import ModelFound, ModelRejected, ModelRemoved
from llamaherd_supervisor import listing
from llamaherd_supervisor.gguf_file import GgufHead, UnreadableGguf

NOBODY = 65534
LONG_S = 600.0
"""Between two looks at a folder, in tests of what does not wait for one."""


def heads(folder: Path) -> dict[str, GgufHead | str]:
    """What each file of the folder says about itself, or why it cannot be served, by its path in the folder."""
    found = {}
    for path, sighting in listing.look(folder).files.items():
        head = listing.read(sighting).head
        assert isinstance(head, GgufHead | UnreadableGguf)
        found[str(Path(path).relative_to(folder))] = head if isinstance(head, GgufHead) else str(head)
    return found


# What is in a folder.


def test_split_model_is_one_with_the_size_and_the_weights_of_all_its_files(tmp_path: Path) -> None:
    parts = write_split_gguf(tmp_path, "big")
    one = write_random_gguf(tmp_path / "one.gguf", layers=1, width=16)

    files = listing.look(tmp_path).files
    split, whole = heads(tmp_path)["big-00001-of-00003.gguf"], heads(tmp_path)["one.gguf"]

    assert set(files) == {str(parts[0]), str(one)}
    assert files[str(parts[0])].size_bytes == sum(part.stat().st_size for part in parts)
    assert isinstance(split, GgufHead)
    assert isinstance(whole, GgufHead)
    assert split.parameters == whole.parameters


def test_split_model_that_is_not_complete_says_what_is_wrong(tmp_path: Path) -> None:
    first, second, third = write_split_gguf(tmp_path, "big")

    os.rename(second, tmp_path / "aside")
    assert heads(tmp_path) == {first.name: f"{second.name}: file 2 of 3 is missing"}
    shutil.copy(third, second)
    (wrong,) = heads(tmp_path).values()
    assert wrong == f"{second.name}: it is not file 2 of 3 (`split.no` is 2, `split.count` 3)"
    second.write_bytes((tmp_path / "aside").read_bytes()[:-100])
    (cut,) = heads(tmp_path).values()
    assert str(cut).startswith(f"{second.name}: the file ends before its weights do")
    os.rename(tmp_path / "aside", second)
    assert isinstance(heads(tmp_path)[first.name], GgufHead)
    os.rename(first, tmp_path / "other.gguf")
    told = heads(tmp_path)
    assert told[first.name] == "file 1 of 3 is missing"
    assert "NAME-00001-of-00003.gguf" in str(told["other.gguf"])


def test_links_lead_to_models_and_not_in_circles(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "models"
    elsewhere.mkdir()
    (folder / "maker").mkdir(parents=True)
    blob = write_random_gguf(elsewhere / "0a1b2c", layers=1, width=16)
    (folder / "maker" / "linked.gguf").symlink_to(blob)
    (folder / "shelf").symlink_to(elsewhere)
    write_random_gguf(elsewhere / "far.gguf", layers=1, width=16)
    (folder / "maker" / "back").symlink_to(folder)
    (folder / "gone.gguf").symlink_to(elsewhere / "nothing")

    found, folders = heads(folder), listing.look(folder).folders

    assert {name for name, head in found.items() if isinstance(head, GgufHead)} == {
        "maker/linked.gguf",
        "shelf/far.gguf",
    }
    assert found["gone.gguf"] == f"it is a link to {elsewhere / 'nothing'}, where there is nothing"
    assert str(elsewhere) in folders, "a linked file changes where it is"


def test_hub_caches_of_hugging_face_are_deep_enough_to_be_found(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--maker--cria-GGUF" / "snapshots" / "a1b2c3"
    snapshot.mkdir(parents=True)
    write_random_gguf(snapshot / "cria.gguf", layers=1, width=16)

    assert list(heads(tmp_path)) == [str((snapshot / "cria.gguf").relative_to(tmp_path))]


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """root may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_what_may_not_be_read_says_so_and_hides_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "locked").mkdir(parents=True)
    write_random_gguf(folder / "locked" / "inside.gguf", layers=1, width=16)
    write_random_gguf(folder / "secret.gguf", layers=1, width=16).chmod(0o000)
    write_random_gguf(folder / "open.gguf", layers=1, width=16)
    for each in (tmp_path, *tmp_path.parents):
        if each.owner() == folder.owner() and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o011)
    (folder / "locked").chmod(0o000)
    try:
        with as_nobody():
            listed, found = listing.look(folder), heads(folder)
            (secret,) = (listing.read(each) for path, each in listed.files.items() if path.endswith("secret.gguf"))
    finally:
        (folder / "locked").chmod(0o755)

    assert isinstance(found.pop("open.gguf"), GgufHead)
    assert found == {"secret.gguf": "it cannot be read: Permission denied"}
    assert isinstance(secret.head, UnreadableGguf)
    assert secret.head.closed, "it is asked again although it stays the same"
    assert listed.closed == {str(folder / "locked"): "Permission denied"}


# What a supervisor makes of it.


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer) -> Iterator[Node]:
    """A host whose supervisor is told what changes, and looks by itself only once in a very long while."""
    node = Node(tmp_path_factory.mktemp("watched"), shared_nats_server, name="watched.lan")
    node.settings["scan_interval_s"] = LONG_S

    async def start() -> None:
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()

    uvloop.run(start())
    yield node
    node.clean_up()


async def told(herd: Herd, model: str, kind: type[ModelFound | ModelRejected | ModelRemoved]) -> float:
    """Wait for a fact of this kind about a model; returns how long that took."""
    began = time.monotonic()
    await until(lambda: isinstance(herd.known.models.get(model), kind), what=f"{model} is {kind.__name__}")
    return time.monotonic() - began


def test_new_file_is_offered_and_a_removed_one_is_not_without_waiting_for_a_look(running: Node) -> None:
    async def body() -> None:
        async with herd_of(running, "new") as herd:
            path = write_random_gguf(running.models_dir / "new.gguf", layers=1, width=16)
            took = await told(herd, "new", ModelFound)
            path.unlink()
            await told(herd, "new", ModelRemoved)

            # It is there for half a second before it is read; the rest is what a busy machine needs.
            assert took < 5

    uvloop.run(body())


def test_folders_may_come_and_go(running: Node) -> None:
    async def body() -> None:
        async with herd_of(running) as herd:
            folder = running.models_dir / "maker" / "cria"
            for _ in range(2):
                folder.mkdir(parents=True)
                await asyncio.to_thread(write_random_gguf, folder / "deep.gguf", layers=1, width=16)
                await told(herd, "deep", ModelFound)
                await asyncio.to_thread(shutil.rmtree, running.models_dir / "maker")
                await told(herd, "deep", ModelRemoved)

    uvloop.run(body())


def test_models_folder_itself_may_come_and_go(tmp_path: Path, shared_nats_server: NatsServer) -> None:
    node = Node(tmp_path, shared_nats_server, name="late.lan")
    node.settings["scan_interval_s"] = LONG_S
    node.models_dir.rmdir()

    async def body() -> None:
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            for _ in range(2):
                node.models_dir.mkdir()
                node.add_model("m")
                await told(herd, "m", ModelFound)
                await asyncio.to_thread(shutil.rmtree, node.models_dir)
                await told(herd, "m", ModelRemoved)

    try:
        uvloop.run(body())
        assert "the models folder does not exist" in node.output
    finally:
        node.clean_up()


def test_file_that_grows_is_not_offered_and_says_so(running: Node, tmp_path: Path) -> None:
    whole = write_random_gguf(tmp_path / "whole.gguf", layers=1, width=16).read_bytes()

    async def body() -> None:
        async with herd_of(running, "growing") as herd:
            with (running.models_dir / "growing.gguf").open("wb", buffering=0) as file:
                for byte in whole:
                    file.write(bytes([byte]))
                    await asyncio.sleep(0.005)
                    if "growing" in herd.known.models:
                        break
                growing = herd.known.models["growing"]
                with pytest.raises(Rejected, match="still being copied"):
                    await herd.load()
                file.write(whole[file.tell() :])
            await told(herd, "growing", ModelFound)

            assert isinstance(growing, ModelRejected)
            assert growing.reason == "it is still being copied"
            about = [type(fact) for fact in herd.facts if getattr(fact, "model", "") == "growing"]
            assert about == [ModelRejected, ModelFound]

    uvloop.run(body())


def test_file_of_full_length_is_not_offered_while_it_is_being_written(running: Node) -> None:
    async def body() -> None:
        async with herd_of(running, "reserved") as herd:
            path = write_random_gguf(running.models_dir / "reserved.gguf", layers=1, width=16)
            last = path.read_bytes()[-1:]
            with path.open("r+b", buffering=0) as file:
                while "reserved" not in herd.known.models:
                    file.seek(-1, os.SEEK_END)
                    file.write(last)
                    await asyncio.sleep(0.05)
                meanwhile = herd.known.models["reserved"]
            await told(herd, "reserved", ModelFound)

            assert isinstance(meanwhile, ModelRejected)
            assert meanwhile.reason == "it is still being copied"

    uvloop.run(body())


def test_model_whose_file_is_written_anew_is_taken_back_until_it_is_whole(running: Node, tmp_path: Path) -> None:
    async def body() -> None:
        async with herd_of(running, "again") as herd:
            path = write_random_gguf(running.models_dir / "again.gguf", layers=1, width=16)
            await told(herd, "again", ModelFound)
            newer = write_random_gguf(tmp_path / "newer.gguf", layers=2, width=16, title="Newer").read_bytes()

            path.write_bytes(newer[:1000])
            await told(herd, "again", ModelRejected)
            path.write_bytes(newer)
            await told(herd, "again", ModelFound)

            found = herd.known.models["again"]
            assert isinstance(found, ModelFound)
            assert (found.title, found.size_bytes) == ("Newer", len(newer))

    uvloop.run(body())


def test_model_that_is_moved_into_its_place_is_never_taken_back(running: Node, tmp_path: Path) -> None:
    async def body() -> None:
        async with herd_of(running, "moved") as herd:
            path = write_random_gguf(running.models_dir / "moved.gguf", layers=1, width=16)
            await told(herd, "moved", ModelFound)

            os.replace(write_random_gguf(tmp_path / "n.gguf", layers=1, width=16, title="Newer"), path)
            await until(
                lambda: getattr(herd.known.models["moved"], "title", "") == "Newer", what="the newer one is told"
            )

            about = [type(fact) for fact in herd.facts if getattr(fact, "model", "") == "moved"]
            assert about == [ModelFound, ModelFound]

    uvloop.run(body())


def test_split_model_is_offered_once_its_last_file_is_there(running: Node, tmp_path: Path) -> None:
    parts = write_split_gguf(tmp_path, "parts")

    async def body() -> None:
        async with herd_of(running, "parts") as herd:
            for part in (parts[2], parts[0]):
                shutil.copy(part, running.models_dir)
            await told(herd, "parts", ModelRejected)
            early = herd.known.models["parts"]
            shutil.copy(parts[1], running.models_dir)
            await told(herd, "parts", ModelFound)

            assert isinstance(early, ModelRejected)
            assert early.reason == "it is still being copied"
            found = herd.known.models["parts"]
            assert isinstance(found, ModelFound)
            assert found.size_bytes == sum(part.stat().st_size for part in parts)
            await herd.load()
            assert (running.models_dir / parts[1].name).exists()
            (running.models_dir / parts[1].name).unlink()
            await told(herd, "parts", ModelRejected)

    uvloop.run(body())


def test_file_whose_copy_was_broken_off_is_told_as_cut_short(running: Node) -> None:
    async def body() -> None:
        async with herd_of(running, "cut") as herd:
            path = write_truncated_gguf(running.models_dir / "cut.gguf")
            an_hour_ago = time.time() - 3600
            os.utime(path, (an_hour_ago, an_hour_ago))
            await told(herd, "cut", ModelRejected)

            cut = herd.known.models["cut"]
            assert isinstance(cut, ModelRejected)
            assert "cut short" in cut.reason

    uvloop.run(body())


def test_folder_that_cannot_be_watched_is_looked_at(running: Node, tmp_path: Path) -> None:
    """A linked file on a file system that tells nothing: what changes behind a link in another folder, for one."""
    node = Node(tmp_path, running.server, name="unwatched.lan")
    node.settings["scan_interval_s"] = 0.1
    behind = tmp_path / "behind"
    behind.mkdir()
    middle = tmp_path / "middle"
    middle.symlink_to(behind)
    (node.models_dir / "m.gguf").symlink_to(middle / "m")

    async def body() -> None:
        async with herd_of(node) as herd:
            node.start()
            await told(herd, "m", ModelRejected)
            write_random_gguf(behind / "m", layers=1, width=16)
            await told(herd, "m", ModelFound)

    try:
        uvloop.run(body())
    finally:
        node.clean_up()

"""What changed in the models folder, and what is worth a fact."""

from typing import Final

import msgspec
import pytest

from llamaherd_shared.events.model import ModelEvent, ModelFound, ModelRejected, ModelRemoved
from llamaherd_supervisor.gguf_file import GgufHead, ProjectorHead, UnreadableGguf
from llamaherd_supervisor.models import (
    GgufFile,
    Sighting,
    is_news,
    is_on_its_way,
    judge,
    model_name,
    survey,
    take_up,
)

SECOND: Final = 10**9
FILE = Sighting("/models/cria.gguf", 100, 50 * SECOND)
HEAD = GgufHead(
    architecture="llama",
    title="Cria",
    parameters=7,
    context_tokens=2048,
    embedding_length=64,
    quantization="Q8_0",
    chat=True,
    capabilities=["completion"],
)
CRIA = GgufFile(FILE, HEAD)
EYES = GgufFile(
    Sighting("/models/mmproj-cria.gguf", 10, 50 * SECOND),
    ProjectorHead(senses=["vision"], embedding_lengths=frozenset({64}), quantization="F16"),
)


def of(path: str, head: GgufHead | ProjectorHead | UnreadableGguf) -> GgufFile:
    return GgufFile(Sighting(path, 1, 50 * SECOND), head)


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("cria.gguf", "cria"),
        ("Llama-3.1-8B.Q4_K_M.gguf", "Llama-3.1-8B.Q4_K_M"),
        ("LOUD.GGUF", "LOUD"),
        ("big-00001-of-00003.gguf", "big"),
        ("big-00002-of-00003.gguf", None),
        ("cria.gguf.part", None),
        (".hidden.gguf", None),
        ("readme.md", None),
    ],
)
def test_name_of_a_model_is_its_file_name(file_name: str, name: str | None) -> None:
    assert model_name(file_name) == name


def test_first_of_two_files_with_one_name_is_taken() -> None:
    events = survey("n", [of("/b/cria.gguf", HEAD), of("/a/cria.gguf", HEAD)], now_ns=0)

    assert {name: event.path for name, event in events.items() if isinstance(event, ModelFound)} == {
        "cria": "/a/cria.gguf"
    }


def test_readable_file_is_found() -> None:
    found = judge("n", "cria", CRIA, now_ns=60 * SECOND)

    assert found == ModelFound(
        node="n",
        model="cria",
        at_ns=60 * SECOND,
        path=FILE.path,
        size_bytes=100,
        modified_ns=50 * SECOND,
        architecture="llama",
        title="Cria",
        parameters=7,
        context_tokens=2048,
        embedding_length=64,
        quantization="Q8_0",
        chat=True,
        capabilities=["completion"],
    )


def test_model_with_a_projector_sees_and_the_projector_is_no_model() -> None:
    events = survey("n", [CRIA, EYES], now_ns=0)

    assert list(events) == ["cria"]
    found = events["cria"]
    assert isinstance(found, ModelFound)
    assert found.capabilities == ["completion", "vision"]
    assert (found.projector, found.projector_bytes) == (EYES.seen.path, 10)


def test_capability_that_the_model_has_itself_is_told_once() -> None:
    seeing = msgspec.structs.replace(HEAD, capabilities=["completion", "vision"])

    found = survey("n", [GgufFile(FILE, seeing), EYES], now_ns=0)["cria"]

    assert isinstance(found, ModelFound)
    assert found.capabilities == ["completion", "vision"]


def test_projector_that_is_nobodys_is_rejected_and_the_spare_of_another_is_not() -> None:
    alone = survey("n", [EYES], now_ns=0)
    spare = survey("n", [CRIA, EYES, of("/models/mmproj-cria-F32.gguf", EYES.head)], now_ns=0)

    (rejected,) = alone.values()
    assert isinstance(rejected, ModelRejected)
    assert (rejected.model, rejected.path) == ("mmproj-cria", EYES.seen.path)
    assert "put it beside its model" in rejected.reason
    assert list(spare) == ["cria"]


def test_projectors_of_one_name_in_two_folders_are_two() -> None:
    files = [
        of(f"/{folder}/{name}.gguf", head)
        for folder in "ab"
        for name, head in ((folder * 4, HEAD), ("mmproj", EYES.head))
    ]

    events = survey("n", files, now_ns=0)

    projectors = {name: event.projector for name, event in events.items() if isinstance(event, ModelFound)}
    assert projectors == {"aaaa": "/a/mmproj.gguf", "bbbb": "/b/mmproj.gguf"}


def test_file_that_is_being_copied_is_left_alone_for_a_while() -> None:
    short = GgufFile(FILE, UnreadableGguf("cut short", truncated=True))

    assert is_on_its_way(short, now_ns=59 * SECOND)
    assert not is_on_its_way(short, now_ns=61 * SECOND)
    assert not is_on_its_way(CRIA, now_ns=50 * SECOND)
    assert not is_on_its_way(GgufFile(FILE, UnreadableGguf("no GGUF")), now_ns=50 * SECOND)


def test_unreadable_file_is_rejected_with_its_reason() -> None:
    rejected = judge("n", "cria", GgufFile(FILE, UnreadableGguf("cut short")), now_ns=61 * SECOND)

    assert rejected == ModelRejected(node="n", model="cria", at_ns=61 * SECOND, path=FILE.path, reason="cut short")


def test_file_is_taken_up_from_what_was_told_of_it() -> None:
    assert take_up(judge("n", "cria", CRIA, now_ns=0)) == CRIA


def test_file_of_which_too_little_was_told_is_read_again() -> None:
    (with_projector,) = survey("n", [CRIA, EYES], now_ns=0).values()
    old = msgspec.structs.replace(judge("n", "cria", CRIA, now_ns=0), embedding_length=0)
    broken = judge("n", "cria", GgufFile(FILE, UnreadableGguf("no GGUF")), now_ns=0)

    assert [take_up(event) for event in (with_projector, old, broken, REMOVED)] == [None] * 4


FOUND = judge("n", "cria", CRIA, now_ns=60 * SECOND)
LATER = judge("n", "cria", CRIA, now_ns=99 * SECOND)
REMOVED = ModelRemoved(node="n", model="cria", at_ns=70 * SECOND)


@pytest.mark.parametrize(
    ("last", "event", "news"),
    [
        (None, FOUND, True),
        (FOUND, LATER, False),
        (FOUND, REMOVED, True),
        (REMOVED, LATER, True),
        (None, REMOVED, False),
    ],
)
def test_only_news_is_recorded(last: ModelEvent | None, event: ModelEvent, news: bool) -> None:
    assert is_news(last, event) is news

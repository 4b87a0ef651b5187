"""What changed in the models folder, and what is worth a fact."""

from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from llamaherd_shared.events.model import ModelEvent, ModelFound, ModelRejected, ModelRemoved
from llamaherd_shared.model_spec import Models
from llamaherd_supervisor.gguf_file import GgufHead, ProjectorHead, UnreadableGguf
from llamaherd_supervisor.models import (
    GgufFile,
    Sighting,
    first_name,
    is_news,
    judge,
    model_name,
    survey,
    take_up,
)
from llamaherd_supervisor.offers import Offers

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
PLAIN = Offers(Models(), Path("/models"))


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


@pytest.mark.parametrize(
    ("file_name", "first"),
    [
        ("cria.gguf", "cria.gguf"),
        ("big-00001-of-00003.gguf", "big-00001-of-00003.gguf"),
        ("big-00003-of-00003.GGUF", "big-00001-of-00003.GGUF"),
        ("big-00003-of-00003.gguf.part", None),
        (".big-00003-of-00003.gguf", None),
    ],
)
def test_every_file_of_a_split_model_leads_to_its_first(file_name: str, first: str | None) -> None:
    assert first_name(file_name) == first


def test_file_that_cannot_be_read_is_in_nobodys_way() -> None:
    broken = of("/a/cria.gguf", UnreadableGguf("cut short"))

    (found,) = survey("n", [broken, of("/b/cria.gguf", HEAD)], PLAIN, now_ns=0).values()

    assert isinstance(found, ModelFound)
    assert found.path == "/b/cria.gguf"


def test_first_of_two_files_with_one_name_is_taken() -> None:
    events = survey("n", [of("/b/cria.gguf", HEAD), of("/a/cria.gguf", HEAD)], PLAIN, now_ns=0)

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
    events = survey("n", [CRIA, EYES], PLAIN, now_ns=0)

    assert list(events) == ["cria"]
    found = events["cria"]
    assert isinstance(found, ModelFound)
    assert found.capabilities == ["completion", "vision"]
    assert (found.projector, found.projector_bytes) == (EYES.seen.path, 10)


def test_capability_that_the_model_has_itself_is_told_once() -> None:
    seeing = msgspec.structs.replace(HEAD, capabilities=["completion", "vision"])

    found = survey("n", [GgufFile(FILE, seeing), EYES], PLAIN, now_ns=0)["cria"]

    assert isinstance(found, ModelFound)
    assert found.capabilities == ["completion", "vision"]


def test_projector_that_is_nobodys_is_rejected_and_the_spare_of_another_is_not() -> None:
    alone = survey("n", [EYES], PLAIN, now_ns=0)
    spare = survey("n", [CRIA, EYES, of("/models/mmproj-cria-F32.gguf", EYES.head)], PLAIN, now_ns=0)

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

    events = survey("n", files, PLAIN, now_ns=0)

    projectors = {name: event.projector for name, event in events.items() if isinstance(event, ModelFound)}
    assert projectors == {"aaaa": "/a/mmproj.gguf", "bbbb": "/b/mmproj.gguf"}


def test_unreadable_file_is_rejected_with_its_reason() -> None:
    rejected = judge("n", "cria", GgufFile(FILE, UnreadableGguf("cut short")), now_ns=61 * SECOND)

    assert rejected == ModelRejected(node="n", model="cria", at_ns=61 * SECOND, path=FILE.path, reason="cut short")


def test_file_is_taken_up_from_what_was_told_of_it() -> None:
    assert take_up(judge("n", "cria", CRIA, now_ns=0)) == CRIA


def test_file_of_which_too_little_was_told_is_read_again() -> None:
    (with_projector,) = survey("n", [CRIA, EYES], PLAIN, now_ns=0).values()
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


# What `models` of llamaherd.yaml changes.


def survey_with(*files: GgufFile, **entries: Any) -> dict[str, ModelFound | ModelRejected]:
    """A survey where `entries` are said of models; a file outside the folder is one that only an entry speaks of."""
    aside = {file.seen.path for file in files if not file.seen.path.startswith("/models/")}
    return survey("n", files, Offers(Models(entries), Path("/models")), aside=aside, now_ns=0)


def found_in(events: dict[str, ModelFound | ModelRejected], name: str) -> ModelFound:
    found = events[name]
    assert isinstance(found, ModelFound), found
    return found


def test_a_file_outside_the_folder_is_offered_under_the_name_of_its_entry() -> None:
    events = survey_with(CRIA, of("/else/other.gguf", HEAD), big={"path": "/else/other.gguf"})

    assert {name: found_in(events, name).path for name in events} == {
        "cria": "/models/cria.gguf",
        "big": "/else/other.gguf",
    }


def test_a_file_of_the_folder_may_have_a_second_name() -> None:
    events = survey_with(CRIA, **{"cria-long": {"path": "cria.gguf"}})

    assert found_in(events, "cria-long").path == found_in(events, "cria").path == "/models/cria.gguf"


def test_both_names_of_a_file_have_its_projector() -> None:
    events = survey_with(CRIA, EYES, alpaca={"path": "cria.gguf"})

    assert list(events) == ["cria", "alpaca"]
    assert found_in(events, "alpaca").projector == found_in(events, "cria").projector == EYES.seen.path
    assert found_in(events, "alpaca").capabilities == ["completion", "vision"]


def test_projector_without_a_name_stays_its_models_when_that_has_a_second_name() -> None:
    eyes = of("/models/mmproj-F16.gguf", EYES.head)

    events = survey_with(CRIA, eyes, alpaca={"path": "cria.gguf"})

    assert found_in(events, "alpaca").projector == found_in(events, "cria").projector == eyes.seen.path


def test_file_of_a_repository_is_offered_under_the_name_of_its_entry_as_well() -> None:
    file = of("/models/maker/cria-GGUF/cria-Q8_0.gguf", HEAD)

    events = survey_with(CRIA, file, cria={"repository": "maker/cria-GGUF:Q8_0"})

    assert {name: (found_in(events, name).path, found_in(events, name).repository) for name in events} == {
        "cria": (file.seen.path, "maker/cria-GGUF:Q8_0"),
        "cria-Q8_0": (file.seen.path, ""),
    }


def test_entry_whose_repository_is_not_here_is_rejected_whatever_has_its_name() -> None:
    (rejected,) = survey_with(CRIA, cria={"repository": "maker/cria-GGUF"}).values()

    assert isinstance(rejected, ModelRejected)
    assert (rejected.model, rejected.path) == ("cria", "")
    assert "`llamaherd load cria` downloads it from maker/cria-GGUF" in rejected.reason


def test_the_file_of_an_entry_counts_more_than_one_of_that_name() -> None:
    events = survey_with(CRIA, of("/models/new.gguf", HEAD), cria={"path": "new.gguf"})

    assert found_in(events, "cria").path == "/models/new.gguf"


def test_an_entry_whose_file_is_not_there_is_rejected() -> None:
    missing = of("/else/m.gguf", UnreadableGguf("it cannot be read: No such file or directory"))

    (rejected,) = survey_with(missing, m={"path": "/else/m.gguf"}).values()

    assert isinstance(rejected, ModelRejected)
    assert (rejected.path, rejected.reason) == ("/else/m.gguf", "it cannot be read: No such file or directory")


def test_the_projector_of_an_entry_takes_the_place_of_the_one_beside_the_model() -> None:
    ears = of("/else/ears.gguf", ProjectorHead(senses=["audio"]))

    hearing = found_in(survey_with(CRIA, EYES, ears, cria={"mmproj": "/else/ears.gguf"}), "cria")
    blind = found_in(survey_with(CRIA, EYES, cria={"mmproj": "none"}), "cria")
    nothing = found_in(survey_with(CRIA, cria={"mmproj": "missing.gguf"}), "cria")

    assert (hearing.projector, hearing.capabilities) == ("/else/ears.gguf", ["completion", "audio"])
    assert (blind.projector, blind.capabilities) == ("", ["completion"])
    assert (nothing.projector, nothing.capabilities) == ("/models/missing.gguf", ["completion"])
    assert found_in(survey_with(CRIA, EYES, **{"*": {"mmproj": "none"}}), "cria").projector == ""


@pytest.mark.parametrize(
    ("said", "capabilities", "embedding"),
    [
        ({"capabilities": ["completion", "tools"]}, ["completion", "tools"], False),
        ({"embeddings": True}, ["embedding"], True),
        ({"reranking": True}, ["rerank"], False),
        ({"slots": 2}, ["completion"], False),
    ],
)
def test_what_a_model_can_be_asked_for_is_as_its_entry_says(
    said: dict[str, Any], capabilities: list[str], embedding: bool
) -> None:
    found = found_in(survey_with(CRIA, cria=said), "cria")

    assert (found.capabilities, found.embedding) == (capabilities, embedding)
    assert found.configured == ("slots" not in said)
    assert (take_up(found) is None) == found.configured, "it is read again when the entry has changed"


def test_an_embedding_model_can_be_made_to_complete() -> None:
    embedder = of("/models/e.gguf", msgspec.structs.replace(HEAD, embedding=True, capabilities=["embedding"]))

    found = found_in(survey_with(embedder, e={"embeddings": False}), "e")

    assert (found.capabilities, found.embedding) == (["completion"], False)


def test_another_server_is_a_model_without_a_file() -> None:
    found = found_in(survey_with(whisper={"command": ["serve"], "capabilities": ["audio"]}), "whisper")

    assert (found.path, found.size_bytes, found.capabilities) == ("", 0, ["audio"])
    with_file = found_in(survey_with(w={"command": ["serve"], "path": "w.bin"}), "w")
    assert (with_file.path, with_file.capabilities) == ("/models/w.bin", ["completion"])

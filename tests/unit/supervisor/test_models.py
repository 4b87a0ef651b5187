"""What changed in the models folder, and what is worth a fact."""

from typing import Final

import pytest

from llamaherd_shared.events.model import ModelEvent, ModelFound, ModelRejected, ModelRemoved
from llamaherd_supervisor.gguf_file import GgufHead, UnreadableGguf
from llamaherd_supervisor.models import Sighting, changed_models, is_news, judge, model_name, name_files

SECOND: Final = 10**9
FILE = Sighting("/models/cria.gguf", 100, 50 * SECOND)
HEAD = GgufHead(architecture="llama", title="Cria", parameters=7, context_tokens=2048, quantization="Q8_0", chat=True)


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
    first, second = Sighting("/a/cria.gguf", 1, 1), Sighting("/b/cria.gguf", 2, 2)

    assert name_files([second, first]) == {"cria": first}


def test_only_what_changed_is_read() -> None:
    grown = Sighting(FILE.path, FILE.size_bytes + 1, FILE.modified_ns)

    assert changed_models({}, {"cria": FILE}) == (["cria"], [])
    assert changed_models({"cria": FILE}, {"cria": FILE}) == ([], [])
    assert changed_models({"cria": FILE}, {"cria": grown}) == (["cria"], [])
    assert changed_models({"cria": FILE}, {}) == ([], ["cria"])


def test_readable_file_is_found() -> None:
    found = judge("n", "cria", FILE, HEAD, now_ns=60 * SECOND)

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
        quantization="Q8_0",
        chat=True,
    )


def test_file_that_is_being_copied_is_neither_found_nor_rejected() -> None:
    short = UnreadableGguf("cut short", truncated=True)

    assert judge("n", "cria", FILE, short, now_ns=59 * SECOND) is None
    rejected = judge("n", "cria", FILE, short, now_ns=61 * SECOND)
    assert rejected == ModelRejected(node="n", model="cria", at_ns=61 * SECOND, path=FILE.path, reason="cut short")


def test_wrong_file_is_rejected_at_once() -> None:
    assert isinstance(judge("n", "x", FILE, UnreadableGguf("no GGUF"), now_ns=50 * SECOND), ModelRejected)


FOUND = judge("n", "cria", FILE, HEAD, now_ns=60 * SECOND)
LATER = judge("n", "cria", FILE, HEAD, now_ns=99 * SECOND)
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

"""What a name means."""

import pytest

from llamaherd_gateway.routing.names import REMEMBERED, Names, file_name, is_pattern

NAMES = Names(
    ("cria", "Qwen3-8B", "org/model", "tagged:latest"),
    {"gpt-4o": "cria", "claude-*": "Qwen3-8B", "cria-old": "cria", "Qwen3-8B": "cria"},
    None,
)


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        ("cria", "cria"),
        ("cria:latest", "cria"),
        ("CRIA", "cria"),
        ("qwen3-8b:latest", "Qwen3-8B"),
        ("qwen3-8b.gguf", "Qwen3-8B"),
        ("tagged", "tagged:latest"),
        ("org/model", "org/model"),
        ("gpt-4o", "cria"),
        ("GPT-4o:latest", "cria"),
        ("claude-sonnet-4-5", "Qwen3-8B"),
        ("cri", None),
        ("", None),
        ("[", None),
    ],
)
def test_a_name_is_looked_up_as_clients_write_it(asked: str, model: str | None) -> None:
    assert NAMES.resolve(asked) == model
    assert NAMES.resolve(asked) == model, "the second time from memory"


def test_a_model_is_never_hidden_by_an_alias() -> None:
    assert NAMES.resolve("Qwen3-8B") == "Qwen3-8B"
    assert NAMES.aliases == {"gpt-4o": "cria", "cria-old": "cria"}


def test_a_default_model_answers_to_everything_else() -> None:
    names = Names(("cria",), {}, "cria")

    assert names.resolve("whatever") == "cria"


def test_made_up_names_do_not_fill_the_memory() -> None:
    for number in range(REMEMBERED + 10):
        NAMES.resolve(f"made-up-{number}")

    assert len(NAMES._seen) <= REMEMBERED


def test_a_default_and_a_configured_alias_may_lead_to_a_name_that_a_client_made() -> None:
    names = Names(("cria",), {"mine": "cria", "gpt-*": "mine", "gpt-4o": "mine"}, "mine")

    assert [names.resolve(asked) for asked in ("gpt-5", "gpt-4o", "whatever")] == ["cria"] * 3


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("CRIA:latest", "cria"),
        ("tagged", "tagged:latest"),
        ("GPT-4o", "gpt-4o"),
        ("claude-3", None),
        ("cri", None),
    ],
)
def test_a_name_is_spelled_as_it_was_made(asked: str, name: str | None) -> None:
    assert NAMES.spelling(asked) == name


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mine", "mine"),
        ("mine:v1", "mine-v1"),
        ("me/mine:v1", "me-mine-v1"),
        ("hf.co/me/mine", "hf.co-me-mine"),
        ("../../etc/passwd", "etc-passwd"),
        (".hidden", "hidden"),
        ("mine.gguf", "mine"),
        ("mine-00001-of-00002", "mine"),
        ("mine.GGUF.part", "mine"),
        ("a" * 300, "a" * 150),
        ("::", "model"),
        ("..", "model"),
    ],
)
def test_a_name_becomes_that_of_a_file(name: str, file: str) -> None:
    assert file_name(name) == file


def test_patterns_are_told_from_names() -> None:
    assert [is_pattern(name) for name in ("a*", "a?", "[a]", "a", "a:b/c")] == [True, True, True, False, False]

"""What a name means."""

import pytest

from llamaherd_gateway.routing.names import REMEMBERED, Names

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

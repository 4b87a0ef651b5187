import pytest

from llamaherd_logs.search import NOTHING, fts_query


@pytest.mark.parametrize(
    ("text", "query"),
    [
        (None, None),
        ("", None),
        ("  \n", None),
        ("load", '"load"'),
        ("load model", '"load" "model"'),
        ('"load model" cria', '"load model" "cria"'),
        ('"never closed', '"never closed"'),
        ("load*", '"load"*'),
        ("llama_mod*", '"llama mod"*'),
        ("127.0.0.1:8080", '"127 0 0 1 8080"'),
        ("*", NOTHING),
        ('"', NOTHING),
        ('"" -- ()', NOTHING),
        ("error ->", '"error"'),
        ("a NOT b OR c AND d NEAR(e)", '"a" "NOT" "b" "OR" "c" "AND" "d" "NEAR e"'),
        ("text:secret", '"text secret"'),
        ("^first", '"first"'),
        ("nul\0byte", '"nul byte"'),
        ("größe", '"größe"'),
    ],
)
def test_text_becomes_a_query(text: str | None, query: str | None) -> None:
    assert fts_query(text) == query

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(max_examples=100, deadline=None)
@given(st.text(st.one_of(st.characters(), st.sampled_from('"*^:()-+{} ANDORNOT')), max_size=60))
def test_whatever_is_typed_is_no_syntax_error(text: str) -> None:
    query = fts_query(text)

    if query:
        # A lone surrogate cannot arrive (the bus carries UTF-8), and cannot be bound either.
        INDEX.execute("select rowid from line_fts where line_fts match ?", (query,)).fetchall()


def test_thousands_of_words_are_cut_not_refused() -> None:
    INDEX.execute("select rowid from line_fts where line_fts match ?", (fts_query("word " * 5000),)).fetchall()


INDEX = sqlite3.connect(":memory:")
INDEX.execute("create virtual table line_fts using fts5(text)")
INDEX.execute("insert into line_fts values('words to be found')")

"""Whatever is searched for, SQLite takes the query."""

import sqlite3

from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_logs.search import fts_query

INDEX = sqlite3.connect(":memory:")
INDEX.execute("create virtual table line_fts using fts5(text)")
INDEX.execute("insert into line_fts values('words to be found')")


@settings(max_examples=1000, deadline=None)
@given(st.text(st.one_of(st.characters(), st.sampled_from('"*^:()-+{} ANDORNOT')), max_size=60))
def test_whatever_is_typed_is_no_syntax_error(text: str) -> None:
    query = fts_query(text)

    if query:
        # A lone surrogate cannot arrive (the bus carries UTF-8), and cannot be bound either.
        INDEX.execute("select rowid from line_fts where line_fts match ?", (query,)).fetchall()


def test_thousands_of_words_are_cut_not_refused() -> None:
    INDEX.execute("select rowid from line_fts where line_fts match ?", (fts_query("word " * 5000),)).fetchall()

"""From what a person types to a query of SQLite's FTS5. Pure; whatever is typed, the result is well-formed.

Words must all occur. `"a phrase"` occurs as it is. `load*` is the beginning of a word. Everything else is a
separator, as it was when the line was indexed: `llama_model-7` finds the words llama, model, 7 in a row.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

MAX_TERMS: Final = 64
"""Terms looked at; FTS5 itself refuses a few hundred."""

NOTHING: Final = ""
"""The query of a text without a single word: no line matches it."""

_PIECES: Final = re.compile(r'"([^"]*)"?|([^\s"]+)')


def fts_query(text: str | None) -> str | None:
    """An FTS5 query; `None`: no condition; `NOTHING`: there is no word to look for."""
    if text is None or not text.strip():
        return None
    terms = [term for found in _PIECES.finditer(text) if (term := _term(found))]
    return " ".join(terms[:MAX_TERMS]) or NOTHING


def _term(found: re.Match[str]) -> str:
    """One quoted FTS5 string, which has no syntax inside; empty when nothing is left to look for."""
    phrase, word = found[1], found[2]
    tokens = " ".join(_tokens(phrase if word is None else word))
    if not tokens:
        return ""
    return f'"{tokens}"*' if word is not None and word.endswith("*") else f'"{tokens}"'


def _tokens(text: str) -> Iterator[str]:
    """Runs of letters and digits, cut where FTS5's `unicode61` cuts."""
    run = ""
    for character in text:
        if _is_token_character(character):
            run += character
        elif run:
            yield run
            run = ""
    if run:
        yield run


def _is_token_character(character: str) -> bool:
    # unicode61: categories L*, N* and Co; diacritical marks belong to the letter before them.
    category = unicodedata.category(character)
    return category[0] in "LNM" or category == "Co"

"""Writes the generated parts of docs/api.md from the gateway's tables of routes: `just docs`.

tests/system/test_api_docs.py runs every curl line of the page.
"""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from llamaherd_gateway.dialects.llama import ABOUT_UPSTREAM, LOOKS
from llamaherd_gateway.handlers import Handler, LmStudioHandlers, OllamaHandlers, OpenAiHandlers, OwnHandlers
from llamaherd_gateway.problems import STATUSES
from llamaherd_gateway.response_handlers import ResponseHandlers
from llamaherd_gateway.routes import HEALTH, PAGES, ROUTES

PAGE: Final = Path(__file__).parent / "api.md"
ADDRESS: Final = "http://127.0.0.1:8080"
DEMO: Final = Path(__file__).parents[1] / "llamaherd" / "llamaherd" / "demo" / "cria.gguf"

SECTIONS: Final = ("openai", "anthropic", "ollama", "lmstudio", "llama", "gateway")
"""The names of the dialects, and what belongs to none."""

KINDS: Final = {
    "embedder": "a model for embeddings",
    "reranker": "a model for reranking",
    "coder": "a model that can fill gaps",
    "listener": "a model that hears",
    "decider": "a model for typed decisions",
}
"""Names in curl lines that stand for models other than the demo model."""

_KIND: Final = re.compile(f'model(?:=|": ")({"|".join(KINDS)})\\b')


class Entry(NamedTuple):
    """One route."""

    section: str
    method: str
    path: str
    about: str
    line: str
    """Its curl line."""
    status: int = 200
    """What the line is answered with."""

    @property
    def title(self) -> str:
        return f"{self.method} {self.path}"


class Row(Protocol):
    """Of a table of the gateway."""

    @property
    def dialect(self) -> Any: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def example(self) -> str: ...
    @property
    def example_status(self) -> int: ...


def rows() -> list[Row]:
    """Every table: relayed routes, pages, and handlers."""
    return [*ROUTES, *PAGES, *handlers()]


def handlers() -> tuple[Handler, ...]:
    """Made without anything to act on."""
    return (
        *OllamaHandlers.__new__(OllamaHandlers).table(),
        *LmStudioHandlers.__new__(LmStudioHandlers).table(),
        *OpenAiHandlers.__new__(OpenAiHandlers).table(),
        *ResponseHandlers.__new__(ResponseHandlers).table(),
        *OwnHandlers.__new__(OwnHandlers).table(),
    )


def entries() -> list[Entry]:
    """Every route, by section."""
    found = [_entry(row) for row in rows()] + list(_others())
    return sorted(found, key=lambda entry: SECTIONS.index(entry.section))


def _entry(row: Row) -> Entry:
    line = render_line(row.method, row.path, row.example)
    return Entry(row.dialect.name, row.method, row.path, row.about, line, row.example_status)


def _others() -> Iterator[Entry]:
    for path, look in LOOKS.items():
        yield Entry("llama", "GET", path, look.about, render_line("GET", path, f"{path}?model=cria"))
    rest = '/upstream/cria/tokenize {"content": "Hello"}'
    methods = "GET, POST, DELETE"
    yield Entry("llama", methods, "/upstream/{model}/{path*}", ABOUT_UPSTREAM, render_line("POST", "", rest))
    for path, about in HEALTH.items():
        yield Entry("gateway", "GET", path, about, render_line("GET", path, ""))


def render_line(method: str, path: str, example: str) -> str:
    """The curl line of a route. `example`: an address in place of the path, then a JSON body or curl's options."""
    path, rest = (example.partition(" ")[::2]) if example.startswith("/") else (path, example)
    words = ["curl"]
    if method == "HEAD":
        words.append("-I")
    elif method != ("POST" if rest.startswith(("{", "-F", "--data")) else "GET"):
        words += ["-X", method]
    words.append(shlex.quote(ADDRESS + path))
    if rest.startswith("{"):
        words += ["-H 'content-type: application/json'", "-d", shlex.quote(rest)]
    elif rest:
        words.append(rest)
    line = " ".join(words)
    return line.replace("DIGEST", digest()) if "DIGEST" in line else line


@cache
def digest() -> str:
    """SHA-256 of the demo model's file, which is what the lines send."""
    return sha256(DEMO.read_bytes()).hexdigest()


def render_section(name: str, anchors: "Counter[str]") -> str:
    """A table of the routes, then each with its curl line. `anchors`: how often a heading has stood before."""
    here = [entry for entry in entries() if entry.section == name]
    lines = ["| method | path | what it does |", "| --- | --- | --- |"]
    for entry in here:
        anchor = re.sub(r"[^\w\- ]", "", entry.title.lower()).replace(" ", "-")
        number = anchors[anchor]
        anchors[anchor] += 1
        link = f"#{anchor}-{number}" if number else f"#{anchor}"
        lines.append(f"| {entry.method} | [`{entry.path}`]({link}) | {entry.about} |")
    for entry in here:
        lines += ["", f"### `{entry.title}`", "", "```", entry.line, "```"]
        if note := render_note(entry):
            lines += ["", note]
    return "\n".join(lines)


def render_note(entry: Entry) -> str:
    """What must be there for the line to work, and what it is answered with."""
    kind = _KIND.search(entry.line)
    if kind is None:
        return f"Answers {entry.status}." if entry.status != 200 else ""
    others = f" Any other answers {entry.status}." if entry.status != 200 else ""
    return f"`{kind[1]}` stands for {KINDS[kind[1]]}.{others}"


def render_statuses() -> str:
    return "\n".join(
        ["| status | when |", "|---|---|", *[f"| {status} | {when} |" for status, when in STATUSES.items()]]
    )


def render(page: str) -> str:
    """The page with every generated part made anew between its two markers."""
    anchors: Counter[str] = Counter()
    page = replace_part(page, "statuses", render_statuses())
    for name in SECTIONS:
        page = replace_part(page, name, render_section(name, anchors))
    return page


def replace_part(page: str, name: str, made: str) -> str:
    start, end = f"<!-- {name}: generated by docs/api.py -->", f"<!-- {name}: end -->"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{made}\n{end}{after}"


def curl_lines(page: str) -> list[str]:
    """Every line of the page that can be run, in its order."""
    return [line for line in page.splitlines() if line.startswith("curl ")]


if __name__ == "__main__":
    current = PAGE.read_text()
    made = render(current)
    if "--check" in sys.argv:
        sys.exit(0 if made == current else "docs/api.md is not current: run `just docs`")
    PAGE.write_text(made)

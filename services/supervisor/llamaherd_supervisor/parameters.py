"""Every parameter of a llama-server, read from its own `--help`.

A category begins with `----- sampling params -----`. A parameter begins at the left edge: its flags, what follows them,
then, behind at least two spaces or on lines of their own, its description, folded at 70 columns. So it is printed by
11434.0.0 (`tests/golden/llama_server/help.txt`), and was by all versions that have categories.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from llamaherd_shared.commands import Parameter, ParameterCategory
from llamaherd_shared.model_options import find_conflict

_CATEGORY: Final = re.compile(r"-{3,} (?P<title>.+?)(?: params)? -{3,}")
_HEAD: Final = re.compile(
    r"(?P<flags>--?\w[\w.-]*(?:, +--?\w[\w.-]*)*)(?: (?P<value>\S+(?: \S+)*))?(?: {2,}(?P<text>\S.*))?"
)
_ENV: Final = re.compile(r"\(env: (\w+)\)")
_DEFAULT: Final = re.compile(r"\bdefault: ?")
_NUMBER: Final = re.compile(r"(-?\d+(?:\.\d+)?)(?=[,;]| =|$)")
_QUOTED: Final = re.compile(r"""(["'])(.*?)\1""")
_CHOICE: Final = re.compile(r"[\[{<](.+[|,].+)[\]}>]|([a-z\d-]+(?:,[a-z\d-]+){2,})")
_WORD: Final = re.compile(r"\w[\w+-]*")
_LISTED: Final = re.compile(r"^allowed values: (.+)$", re.MULTILINE)
_BULLET: Final = re.compile(r"^ ?- ([\w+-]+)( \(default\))?: ", re.MULTILINE)
_INDENT: Final = " " * 40
_WIDTH: Final = 70
_FIRST: Final = "common"
"""Of parameters that stand before any category."""
_NAMES: Final = {"example-specific": "server"}
"""Programs of llama.cpp are "examples" to it."""


def parse_help(text: str) -> list[ParameterCategory]:
    """The categories in the help's order; empty when the text tells of no parameter."""
    categories: dict[str, list[Parameter]] = {}
    name = _FIRST
    for lines in _blocks(text.splitlines()):
        if found := _CATEGORY.fullmatch(lines[0]):
            name = _NAMES.get(found["title"], found["title"])
        else:
            categories.setdefault(name, []).append(_parse_parameter(lines))
    return [ParameterCategory(name=name, parameters=parameters) for name, parameters in categories.items()]


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Each title of a category, and each parameter with the lines that belong to it."""
    block: list[str] = []
    for line in lines:
        if _CATEGORY.fullmatch(line) or _HEAD.fullmatch(line):
            if block:
                yield block
            block = [line]
        elif block and line.startswith(" "):
            block.append(line)
    if block:
        yield block


def _parse_parameter(lines: Sequence[str]) -> Parameter:
    head = _HEAD.fullmatch(lines[0])
    assert head is not None
    text = _unfold([head["text"] or "", *(_outdent(line).rstrip() for line in lines[1:])])
    variable = _ENV.findall(text)
    description = _ENV.sub("", text).strip()
    on, off = _split(re.split(r", +", head["flags"]))
    conflicts = [found for flag in (*on, *off) if (found := find_conflict(flag)) is not None]
    allowed, default = _find_allowed(head["value"] or "", description), _find_default(description)
    if default is not None and _BULLET.search(description) and default not in allowed and _WORD.fullmatch(default):
        allowed.append(default)
    return Parameter(
        flags=on,
        off=off,
        value=head["value"] or "",
        allowed=allowed,
        default=default,
        variable=variable[-1] if variable else "",
        description=description,
        option=next((option for _, option in conflicts if option is not None), ""),
        owned=any(option is None for _, option in conflicts),
    )


def _outdent(line: str) -> str:
    """Spaces behind the usual indent belong to the text."""
    return line.removeprefix(_INDENT) if line.startswith(_INDENT) else line.lstrip()


def _unfold(lines: Sequence[str]) -> str:
    """One line for what was one before it was folded: a line was when the next word had no room on it."""
    unfolded: list[str] = []
    before = ""
    for line in lines:
        word = line.partition(" ")[0]
        begins = line.startswith((" ", "- ", "(default:", "(env:"))
        if before and word and not begins and len(before) + 1 + len(word) > _WIDTH:
            unfolded[-1] += f" {line}"
        else:
            unfolded.append(line)
        before = line
    return "\n".join(line for line in unfolded if line.strip())


def _split(flags: list[str]) -> tuple[list[str], list[str]]:
    """Flags that say yes, and behind them those that say no: `-kvo, --kv-offload, -nkvo, --no-kv-offload`."""
    first = next((place for place, flag in enumerate(flags) if flag.startswith("--no-")), 0)
    if first > 1 and flags[first - 1].startswith("-n"):
        first -= 1
    return (flags[:first], flags[first:]) if first else (flags, [])


def _find_default(text: str) -> str | None:
    """What stands behind `default:`, without what the help explains of it; `None` when nothing does."""
    found = _DEFAULT.search(text)
    if found is None:
        marked = [name for name, is_default in _BULLET.findall(text) if is_default]
        return marked[0] if marked else None
    value = _until_closed(text[found.end() :]).strip()
    if quoted := _QUOTED.match(value):
        return quoted[2]
    number = _NUMBER.match(value)
    return number[1] if number else value


def _until_closed(text: str) -> str:
    """The beginning, up to the end of the line or the parenthesis that was opened before it."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth < 0 or character == "\n":
            return text[:place]
    return text


def _find_allowed(value: str, text: str) -> list[str]:
    """The values a parameter takes, as far as the help lists them."""
    choice, listed = _CHOICE.fullmatch(value), _LISTED.search(text)
    if choice:
        words = re.split(r"[|,]", choice[1] or choice[2])
    elif listed:
        words = listed[1].split(", ")
    else:
        words = [name for name, _ in _BULLET.findall(text)]
    return words if all(_WORD.fullmatch(word) for word in words) else []

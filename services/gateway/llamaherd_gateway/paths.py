"""Matching a path against templates such as `/v1/models/{id*}`."""

import re
from collections.abc import Iterable
from typing import Final, Generic, Protocol, TypeVar
from urllib.parse import unquote

_HOLE: Final = re.compile(r"\{(\w+)(\*?)\}")


class HasPath(Protocol):
    """Whatever a table of paths leads to."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...


R = TypeVar("R", bound=HasPath)


class Paths(Generic[R]):
    """Routes by path. `{name}` stands for one segment, `{name*}` for the rest; a fixed path wins over both."""

    def __init__(self, routes: Iterable[R]) -> None:
        self._fixed: dict[str, list[R]] = {}
        self._open: list[tuple[re.Pattern[str], R]] = []
        for route in routes:
            if "{" in route.path:
                self._open.append((_compile(route.path), route))
            else:
                self._fixed.setdefault(route.path, []).append(route)

    def find(self, path: str) -> list[tuple[R, dict[str, str]]]:
        """Every route of this (still percent-encoded) path, with the decoded values of its holes."""
        if fixed := self._fixed.get(path):
            return [(route, {}) for route in fixed]
        found = []
        for pattern, route in self._open:
            if match := pattern.fullmatch(path):
                found.append((route, {name: unquote(value) for name, value in match.groupdict().items()}))
        return found


def _compile(template: str) -> re.Pattern[str]:
    parts, at = [], 0
    for hole in _HOLE.finditer(template):
        parts.append(re.escape(template[at : hole.start()]))
        parts.append(f"(?P<{hole[1]}>{'.+' if hole[2] else '[^/]+'})")
        at = hole.end()
    return re.compile("".join(parts) + re.escape(template[at:]))

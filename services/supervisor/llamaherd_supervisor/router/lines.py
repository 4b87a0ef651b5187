"""The lines of a router's log, told apart: its own, and those of the processes it has started. Pure.

What a process writes, the router writes with the process's port before it: `[52741] 0.00.591.306 I srv ...`.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

_PORT: Final = re.compile(r"^\[ *(?P<port>\d+)\] ")
_SPAWNED: Final = re.compile(r" spawning server instance with name=(?P<model>.+) on port (?P<port>\d+)$")
_EXITED: Final = re.compile(r" instance name=(?P<model>.+) exited with status -?\d+$")


class Sorted(msgspec.Struct, frozen=True, kw_only=True):
    """One line."""

    text: str
    """As it was written."""
    model: str = ""
    """Whose process wrote it; empty: the router itself."""
    port: int = 0
    """Of the process that wrote it, or that the router says has begun or ended."""
    ends: bool = False
    """No more lines come from that port."""


Ports = Mapping[int, str]
"""Port -> model: the newest process of each."""


def sort_line(ports: Ports, line: str) -> tuple[Ports, Sorted]:
    """Whose line it is; the router's own lines tell who has which port."""
    if found := _PORT.match(line):
        port = int(found["port"])
        model = ports.get(port, "")
        return ports, Sorted(text=line[found.end() :] if model else line, model=model, port=port if model else 0)
    if found := _SPAWNED.search(line):
        others = {port: model for port, model in ports.items() if model != found["model"]}
        return {**others, int(found["port"]): found["model"]}, Sorted(text=line, port=int(found["port"]))
    if found := _EXITED.search(line):
        port = next((port for port, model in ports.items() if model == found["model"]), 0)
        return ports, Sorted(text=line, port=port, ends=True)
    return ports, Sorted(text=line)

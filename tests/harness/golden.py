"""What the real llama-server answered once (`tests/golden/record.py`), for tests of the dialects."""

import itertools
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "golden" / "llama_server"


@cache
def golden(file: str) -> bytes:
    """An answer's body, as it came."""
    return (FOLDER / file).read_bytes()


@cache
def golden_index() -> dict[str, Any]:
    """File -> `path`, `request`, `status`, `content_type`, and the `server` (see tests/golden/cases.py)."""
    index: dict[str, Any] = json.loads((FOLDER / "index.json").read_bytes())
    return index


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    """The data in pieces, as a network might bring it."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return (data[start:end] for start, end in itertools.pairwise(edges))


def events(stream: bytes) -> list[tuple[str, Any]]:
    """(name, content) of every server-sent event; text where the data is no JSON."""
    found = []
    for block in stream.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "data" in fields:
            data = fields["data"]
            found.append((fields.get("event", ""), json.loads(data) if data.startswith(("{", "null")) else data))
    return found

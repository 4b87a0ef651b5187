"""The GPUs that a llama-server can use, as `llama-server --list-devices` prints them."""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

_DEVICE: Final = re.compile(
    r"^\s+(?P<kind>[A-Za-z]+)(?P<index>\d+): (?P<title>.*) \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\)"
)
_CUDA: Final = "CUDA"
_SHARES_RAM: Final = frozenset({"MTL", "Metal", "BLAS"})
"""What these have is RAM."""
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    total_bytes: int
    free_bytes: int
    """When it was listed."""
    nvidia: int | None = None
    """Its number among NVIDIA's GPUs; `None`: it is none."""


def read_listing(text: str, environment: Mapping[str, str]) -> list[Gpu]:
    """The GPUs in llama-server's order. `environment` is what it was run with."""
    found = [match for line in text.splitlines() if (match := _DEVICE.match(line))]
    numbers = visible_numbers(environment)
    return [
        Gpu(
            title=match["title"],
            total_bytes=int(match["total"]) * 2**20,
            free_bytes=int(match["free"]) * 2**20,
            nvidia=_number(int(match["index"]), numbers) if match["kind"] == _CUDA else None,
        )
        for match in found
        if match["kind"] not in _SHARES_RAM and int(match["total"])
    ]


def visible_numbers(environment: Mapping[str, str]) -> list[int] | None:
    """Which of NVIDIA's GPUs a process sees, in its order; `None`: all, or named in a way that is not told here."""
    words = [word.strip() for word in environment.get(VISIBLE, "").split(",")]
    if VISIBLE in environment and words == [""]:
        return []
    return [int(word) for word in words] if all(word.isdigit() for word in words) else None


def _number(index: int, numbers: list[int] | None) -> int:
    return numbers[index] if numbers is not None and index < len(numbers) else index

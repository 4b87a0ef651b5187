"""How much memory instances may have on each device of a node, and how much of it they have. Pure.

A device is RAM (`ram`) or one GPU (`gpu0`, ...). `Bytes` maps devices to bytes; a device that is not there has none.
The node's router counts as one more device: it has places, and each of its models takes one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

Bytes = Mapping[str, int]

RAM: Final = "ram"
PLACES: Final = "router"
"""The device whose "bytes" are places in the router."""
GIB: Final = 2**30
_LEFT_SHARE: Final = 0.1
_MOST_LEFT: Final = {RAM: 8 * GIB}
_MOST_LEFT_ON_GPU: Final = GIB
"""Without a setting a tenth of a device is left alone, at most so much: for the system in RAM, for the desktop on a
GPU, and on both for what estimates miss. llama-server's own `--fit-target` leaves 1 GiB on a GPU."""
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[KMGT]i?B|B)?", re.IGNORECASE)
_UNITS: Final = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """RAM or a GPU, as it is now."""

    name: str
    total_bytes: int
    others_bytes: int = 0
    """In use by anything but our instances."""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """What one instance has of the memory."""

    needs: Bytes
    """By the estimate."""
    uses: Bytes = {}
    """As measured; empty: not yet."""
    ready: bool = False
    """It has taken all it needs at first: what was measured counts, not the estimate."""


def gpu(index: int) -> str:
    return f"gpu{index}"


def parse_size(text: str) -> float | int:
    """Bytes (`24 GiB`, `512 MB`, `1024`), or a share of the device as a float (`75 %` is 0.75). Raises `ValueError`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not an amount of memory: write `24 GiB`, `800 MB` or `75%`")
    number, unit = float(found[1]), (found[2] or "B").lower()
    return number / 100 if unit == "%" else int(number * _UNITS[unit])


def make_budget(devices: Iterable[Device], ram: str, gpus: Sequence[str]) -> dict[str, int]:
    """What instances may have of each device. `ram` and `gpus` are settings: an empty text leaves the default.

    Of `gpus` the last one holds for all GPUs behind it. Raises `ValueError`.
    """
    budget = {}
    for device in devices:
        said = ram if device.name == RAM else _said_of_gpu(device.name, gpus)
        size = parse_size(said) if said else device.total_bytes - _left(device)
        budget[device.name] = int(size * device.total_bytes) if isinstance(size, float) else size
    return budget


def _said_of_gpu(name: str, gpus: Sequence[str]) -> str:
    index = int(name.removeprefix("gpu"))
    return gpus[min(index, len(gpus) - 1)] if gpus else ""


def _left(device: Device) -> int:
    return min(int(device.total_bytes * _LEFT_SHARE), _MOST_LEFT.get(device.name, _MOST_LEFT_ON_GPU))


def within_reach(budget: Bytes, devices: Iterable[Device]) -> dict[str, int]:
    """The budget, as far as others leave it: what they use beyond what the budget leaves them is not to be had."""
    return {
        device.name: max(0, min(budget.get(device.name, 0), device.total_bytes - device.others_bytes))
        for device in devices
    }


def held(hold: Hold) -> Bytes:
    """What counts: what was measured once it is ready, before that the estimate, where it is more."""
    if hold.ready and hold.uses:
        return hold.uses
    return {device: max(hold.needs.get(device, 0), hold.uses.get(device, 0)) for device in {*hold.needs, *hold.uses}}


def add(*all_bytes: Bytes) -> dict[str, int]:
    """The sum on each device."""
    return {
        device: sum(each.get(device, 0) for each in all_bytes)
        for device in dict.fromkeys(device for each in all_bytes for device in each)
    }


def lacking(needs: Bytes, free: Bytes) -> dict[str, int]:
    """What is missing on each device where something is; empty when it fits."""
    missing = {device: count - free.get(device, 0) for device, count in needs.items()}
    return {device: count for device, count in missing.items() if count > 0}


def subtract(limits: Bytes, *taken: Bytes) -> dict[str, int]:
    """What is left of each device; negative where more is taken than there may be."""
    total = add(*taken)
    return {device: count - total.get(device, 0) for device, count in limits.items()}


def render_bytes(count: float) -> str:
    """Binary units, as exact as sums of them have to be: `512 B`, `300 MiB`, `13.4 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def render_amount(count: int, device: str) -> str:
    """`13.4 GiB`; of the router `2 places`."""
    return render_bytes(count) if device != PLACES else f"{count} {'place' if count == 1 else 'places'}"


def render_device(name: str) -> str:
    """`RAM`, `GPU 0`, `the router`."""
    if name == PLACES:
        return "the router"
    return "RAM" if name == RAM else f"GPU {name.removeprefix('gpu')}"

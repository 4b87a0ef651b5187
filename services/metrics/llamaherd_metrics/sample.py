"""From readings to samples: counters become rates, names get their units. Pure.

A reading is what the operating system said at one moment, counters included. A rate needs two readings of the
same thing; a counter that went backwards was reset, and its rate is 0 for that one interval.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from llamaherd_shared.events.sample import Sample


class HostReading(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a host. Counters count from its boot."""

    at_s: float
    """Monotonic clock."""
    cores: tuple[tuple[float, float], ...]
    """Per core: seconds busy (all but idle and iowait), seconds in all."""
    memory_total_bytes: int
    memory_available_bytes: int
    memory_used_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int
    disk_total_bytes: int
    """Size of the file system that holds the data folder."""
    disk_used_bytes: int
    disk_read_bytes: int
    """All disks together."""
    disk_write_bytes: int
    network_rx_bytes: int
    """All interfaces but the loopback, over which the herd talks to itself."""
    network_tx_bytes: int
    load: tuple[float, float, float]
    """Over 1, 5 and 15 minutes."""
    uptime_s: float


class ProcessReading(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a process."""

    at_s: float
    """Monotonic clock."""
    pid: int
    cpu_s: float
    """User and system time since its start."""
    rss_bytes: int
    threads: int


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """What one scrape read, GPUs apart."""

    host: HostReading
    processes: Mapping[str, ProcessReading] = {}
    """By source."""


class GpuReading(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a GPU. `None`: this GPU or driver does not tell."""

    index: int
    utilization_pct: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    process_memory_bytes: Mapping[int, int] = {}
    """By process id, as the driver sees it: another process namespace has other ids."""


def shape_samples(
    node: str, previous: Readings, current: Readings, gpus: Sequence[GpuReading], *, at_ns: int
) -> Iterator[Sample]:
    """The samples of one scrape. A process seen for the first time has no rate yet: it waits for the next scrape."""
    yield Sample(node=node, source="host", at_ns=at_ns, values=host_values(previous.host, current.host))
    gpu_memory = gpu_memory_by_process(gpus)
    for source, process in current.processes.items():
        before = previous.processes.get(source)
        if before is not None and before.pid == process.pid:
            values = process_values(before, process, gpu_memory_bytes=gpu_memory.get(process.pid))
            yield Sample(node=node, source=source, at_ns=at_ns, values=values)
    for gpu in gpus:
        if values := gpu_values(gpu):
            yield Sample(node=node, source=f"gpu/{gpu.index}", at_ns=at_ns, values=values)


def host_values(previous: HostReading, current: HostReading) -> dict[str, float]:
    """What a host did between two readings, and what it has now."""
    elapsed_s = current.at_s - previous.at_s
    values: dict[str, float] = {"cpu_pct": _busy_pct(_total(previous.cores), _total(current.cores))}
    for core, (before, now) in enumerate(zip(previous.cores, current.cores, strict=False)):
        values[f"cpu_{core}_pct"] = _busy_pct(before, now)
    for name in ("memory_total", "memory_available", "memory_used", "swap_total", "swap_used", "disk_total"):
        values[f"{name}_bytes"] = float(getattr(current, f"{name}_bytes"))
    values["disk_used_bytes"] = float(current.disk_used_bytes)
    for name in ("disk_read_bytes", "disk_write_bytes", "network_rx_bytes", "network_tx_bytes"):
        values[f"{name}_per_s"] = rate(getattr(previous, name), getattr(current, name), elapsed_s)
    values["load1"], values["load5"], values["load15"] = current.load
    values["uptime_s"] = current.uptime_s
    return finite(values)


def process_values(
    previous: ProcessReading, current: ProcessReading, *, gpu_memory_bytes: int | None = None
) -> dict[str, float]:
    """What a process did between two readings. `cpu_pct` 100 is one core fully used."""
    values = {
        "cpu_pct": 100 * rate(previous.cpu_s, current.cpu_s, current.at_s - previous.at_s),
        "rss_bytes": float(current.rss_bytes),
        "threads": float(current.threads),
    }
    if gpu_memory_bytes is not None:
        values["gpu_memory_used_bytes"] = float(gpu_memory_bytes)
    return finite(values)


def gpu_values(reading: GpuReading) -> dict[str, float]:
    """What a GPU tells; what it does not tell is absent."""
    told = {
        "utilization_pct": reading.utilization_pct,
        "memory_used_bytes": reading.memory_used_bytes,
        "memory_total_bytes": reading.memory_total_bytes,
        "power_w": reading.power_w,
        "temperature_c": reading.temperature_c,
    }
    return finite({name: float(value) for name, value in told.items() if value is not None})


def gpu_memory_by_process(readings: Sequence[GpuReading]) -> dict[int, int]:
    """Bytes per process id, added up over all GPUs."""
    total: dict[int, int] = {}
    for reading in readings:
        for pid, used_bytes in reading.process_memory_bytes.items():
            total[pid] = total.get(pid, 0) + used_bytes
    return total


def rate(previous: float, current: float, elapsed_s: float) -> float:
    """Growth of a counter per second; 0 when it was reset or no time has passed."""
    return (current - previous) / elapsed_s if elapsed_s > 0 and current > previous else 0.0


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Without NaN and infinities: one of them would spoil every mean it enters."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def next_tick(start_s: float, interval_s: float, now_s: float) -> float:
    """The first tick after now. Ticks stay multiples of the interval from `start_s`: no drift, and a scrape that
    took longer than an interval skips the ticks it missed."""
    return start_s + (math.floor((now_s - start_s) / interval_s) + 1) * interval_s


def _total(cores: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(busy for busy, _ in cores), sum(total for _, total in cores)


def _busy_pct(before: tuple[float, float], now: tuple[float, float]) -> float:
    return min(100.0, 100 * rate(before[0], now[0], now[1] - before[1]))

"""What memory this node has, and who uses it now: RAM as psutil and the container tell, GPUs as NVML does."""

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import psutil

from llamaherd_supervisor.budget import RAM, Bytes, Device, gpu
from llamaherd_supervisor.eviction import Key
from llamaherd_supervisor.gpu_listing import Gpu, read_listing
from llamaherd_supervisor.nvml import GpuMemory, Gpus

_LISTING_S: Final = 20.0
"""A driver that was not used for long may take seconds to wake up."""
_LISTING_TRIES: Final = 3
_LISTING_PAUSE_S: Final = 1.0
"""Between two of them: what is found out now holds for as long as the supervisor runs."""
_CONTAINER_LIMITS: Final = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""(limit, use, details) of a container (cgroups of version 2, then 1)."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One look at all devices."""

    devices: tuple[Device, ...]
    uses: Mapping[Key, Bytes]
    """By instance."""


class Devices:
    """Of this node. Reading takes some milliseconds, with GPUs more: use a thread."""

    def __init__(self) -> None:
        self._nvidia = Gpus()
        self.gpus: tuple[Gpu, ...] = ()
        """Those that llama-server can use; its `CUDA0` is `gpu0`."""

    async def find(self, llama_server: str, environment: Mapping[str, str]) -> None:
        """Ask llama-server which GPUs it can use. One that does not tell, however often it is asked, uses none."""
        for tried in range(_LISTING_TRIES if llama_server else 0):
            if tried:
                await asyncio.sleep(_LISTING_PAUSE_S)
            listing = await _list_devices(llama_server, environment)
            if listing is not None:
                self.gpus = tuple(read_listing(listing, environment))
                return

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(gpu(index) for index in range(len(self.gpus)))

    def read(self, pids: Mapping[Key, int], assumed: Mapping[Key, Bytes]) -> Reading:
        """`pids`: the processes of our instances. `assumed`: what they are taken to have of GPUs whose driver does not
        tell, as NVIDIA's in a container."""
        groups = _groups(set(pids.values()))
        nvidia = self._nvidia.read() if self.gpus else []
        uses: dict[Key, dict[str, int]] = {}
        private = 0
        for key, pid in pids.items():
            resident, own = _resident(groups.get(pid, []))
            private += own
            on_gpus = {name: count for name, count in assumed.get(key, {}).items() if name in self.names}
            uses[key] = {RAM: resident} | on_gpus | self._on_gpus(nvidia, groups.get(pid, []))
        return Reading(devices=(_ram(private), *self._devices(nvidia, uses)), uses=uses)

    def _on_gpus(self, nvidia: Sequence[GpuMemory | None], pids: list[int]) -> dict[str, int]:
        used = {
            gpu(index): sum(now.by_pid.get(pid, 0) for pid in pids)
            for index, listed in enumerate(self.gpus)
            if (now := _now(listed, nvidia)) is not None
        }
        return {name: count for name, count in used.items() if count}

    def _devices(self, nvidia: Sequence[GpuMemory | None], uses: Mapping[Key, Bytes]) -> list[Device]:
        devices = []
        for index, listed in enumerate(self.gpus):
            ours = sum(each.get(gpu(index), 0) for each in uses.values())
            others = listed.total_bytes - listed.free_bytes
            if (now := _now(listed, nvidia)) is not None:
                others = max(0, now.used_bytes - ours)
            devices.append(Device(name=gpu(index), total_bytes=listed.total_bytes, others_bytes=others))
        return devices


def _now(listed: Gpu, nvidia: Sequence[GpuMemory | None]) -> GpuMemory | None:
    """What its driver tells; `None`: nothing."""
    return nvidia[listed.nvidia] if listed.nvidia is not None and listed.nvidia < len(nvidia) else None


def _ram(private: int) -> Device:
    """`private`: what our instances have that is not a mapped file, whose memory counts as available."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    if (limited := _container()) is not None and limited[0] < total:
        total, available = limited[0], min(available, limited[0] - limited[1])
    return Device(name=RAM, total_bytes=total, others_bytes=max(0, total - available - private))


def _container() -> tuple[int, int] | None:
    """(limit, use that cannot be given back) of the container we are in; `None` outside of any."""
    for limit, use, details in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            stat = dict(line.split(" ", 1) for line in Path(details).read_text().splitlines())
            cached = int(stat.get("inactive_file") or stat.get("total_inactive_file") or 0)
            return int(Path(limit).read_text()), int(Path(use).read_text()) - cached
    return None


def _groups(leaders: set[int]) -> dict[int, list[int]]:
    """These processes, and those of the groups they lead."""
    groups = {leader: [leader] for leader in leaders}
    for pid in psutil.pids() if leaders else ():
        with contextlib.suppress(OSError):
            group = os.getpgid(pid)
            if group in groups and pid != group:
                groups[group].append(pid)
    return groups


def _resident(pids: list[int]) -> tuple[int, int]:
    """(resident bytes, those of them that are no mapped files)"""
    resident = private = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            memory = psutil.Process(pid).memory_info()
            resident += memory.rss
            private += memory.rss - getattr(memory, "shared", 0)
    return resident, private


async def _list_devices(llama_server: str, environment: Mapping[str, str]) -> str | None:
    """What it prints, nothing if it cannot be run; `None` when it fails, or does not end by itself."""
    try:
        process = await asyncio.create_subprocess_exec(
            llama_server,
            "--list-devices",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(_LISTING_S):
            output, _ = await process.communicate()
            return output.decode("utf-8", "replace") if process.returncode == 0 else None
    except TimeoutError:
        process.kill()
        await process.wait()
        return None

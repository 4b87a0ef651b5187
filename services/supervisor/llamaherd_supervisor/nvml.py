"""Memory of NVIDIA GPUs, through NVML. Where there are none, or no driver, there is nothing to read and no error.

Calls may block for seconds: use a thread.
"""

import ctypes
import sys
import time
from typing import Any, Final

import msgspec

_RETRY_S: Final = 30.0
"""Pause after a failure."""


class GpuMemory(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU now."""

    total_bytes: int
    used_bytes: int
    by_pid: dict[int, int] = {}


class Gpus:
    """All NVIDIA GPUs of this host, in NVML's order: that of their places on the bus."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._retry_at_s = 0.0

    def read(self) -> list[GpuMemory | None]:
        """Of each GPU; `None` for one that does not tell. Empty while there is no GPU, or while NVML fails."""
        if self._nvml is None and (time.monotonic() < self._retry_at_s or not self._open()):
            return []
        nvml = self._nvml
        try:
            found = [_read(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError:
            found = []
        if not any(found):
            # A driver that was updated answers only to one that opens it anew.
            self._close()
        return found

    def _open(self) -> bool:
        self._retry_at_s = time.monotonic() + _RETRY_S
        if not _has_library():
            return False
        # Imported late: the binding costs 13 MB of memory, which a host without NVIDIA's driver saves.
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return False
        self._nvml = pynvml
        return True

    def _close(self) -> None:
        nvml, self._nvml = self._nvml, None
        self._retry_at_s = time.monotonic() + _RETRY_S
        try:
            nvml.nvmlShutdown()
        except nvml.NVMLError:
            pass


def _has_library() -> bool:
    """Whether NVIDIA's driver is installed, as far as can be told without the binding."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def _read(nvml: Any, index: int) -> GpuMemory | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:
        # It has fallen off the bus, or has no memory of its own (`[N/A]` in nvidia-smi).
        return None
    return GpuMemory(total_bytes=memory.total, used_bytes=memory.used, by_pid=_by_pid(nvml, handle))


def _by_pid(nvml: Any, handle: Any) -> dict[int, int]:
    """Empty where it is not told, as in a container that does not see its own processes."""
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return {}
    return {process.pid: process.usedGpuMemory for process in processes if process.usedGpuMemory is not None}

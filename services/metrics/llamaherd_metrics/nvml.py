"""NVIDIA GPUs, through NVML. Where there are none, or no driver, there is nothing to read and no error.

A GPU that fails is reported once, and the others are read on. When none can be read NVML is shut down, left alone for
`RETRY_S` and opened anew, which is what a driver update needs. Calls may block for seconds: use a thread.
"""

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from llamaherd_metrics.sample import GpuReading

T = TypeVar("T")

RETRY_S: Final = 30.0
"""Pause after a failure."""
ABSENT_RETRY_S: Final = 600.0
"""Pause when there is no NVML at all: a driver may be installed while we run."""


class Gpus:
    """All GPUs of this host."""

    def __init__(self, trouble: Callable[[str], None]) -> None:
        """`trouble` gets one sentence when reading fails, and an empty one when it works again."""
        self._trouble = trouble
        self._nvml: Any = None
        self._count = 0
        self._retry_at_s = 0.0
        self._troubled = False

    def read(self) -> list[GpuReading]:
        """One reading per GPU that can be read; none while there is no GPU or NVML fails."""
        if self._nvml is None and (time.monotonic() < self._retry_at_s or not self._open()):
            return []
        readings, failed = [], ""
        for index in range(self._count):
            try:
                readings.append(_read_gpu(self._nvml, index))
            except self._nvml.NVMLError as error:
                failed = failed or f"GPU {index} cannot be read: {error}"
        if failed and not readings:
            self._fail(f"{failed}; trying again every {RETRY_S:g} s")
        elif failed:
            self._tell(failed)
        elif self._troubled:
            self._troubled = False
            self._trouble("")
        return readings

    def close(self) -> None:
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml = None

    def _open(self) -> bool:
        if not _has_library():
            self._retry_at_s = time.monotonic() + ABSENT_RETRY_S
            return False
        # Imported late: the binding costs 13 MB of memory, which a host without NVIDIA's driver saves.
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            absent = error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
            if absent and not self._troubled:
                self._retry_at_s = time.monotonic() + ABSENT_RETRY_S
            else:
                self._fail(f"NVML cannot be used: {error}; trying again every {RETRY_S:g} s")
            return False
        self._nvml = pynvml
        try:
            self._count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self._fail(f"the GPUs cannot be listed: {error}; trying again every {RETRY_S:g} s")
            return False
        return True

    def _fail(self, sentence: str) -> None:
        self.close()
        self._retry_at_s = time.monotonic() + RETRY_S
        self._tell(sentence)

    def _tell(self, sentence: str) -> None:
        if not self._troubled:
            self._troubled = True
            self._trouble(sentence)


def _has_library() -> bool:
    """Whether NVIDIA's driver is installed, as far as can be told without the binding."""
    if not sys.platform.startswith("linux"):
        return sys.platform == "win32"
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def _read_gpu(nvml: Any, index: int) -> GpuReading:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    utilization = _ask(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = _ask(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    processes: dict[int, int] = {}
    for listing in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        for process in _ask(nvml, listing, handle) or []:
            # `None` stands for "not available": under Windows' WDDM, for one. A process may be in both lists.
            if process.usedGpuMemory is not None:
                processes[process.pid] = max(processes.get(process.pid, 0), process.usedGpuMemory)
    return GpuReading(
        index=index,
        utilization_pct=utilization.gpu if utilization else None,
        memory_used_bytes=memory.used if memory else None,
        memory_total_bytes=memory.total if memory else None,
        power_w=milliwatts / 1000 if milliwatts is not None else None,
        temperature_c=_ask(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        process_memory_bytes=processes,
    )


def _ask(nvml: Any, question: Callable[..., T], *arguments: Any) -> T | None:
    """One value, or `None` when GPU or driver do not have it (`[N/A]` in nvidia-smi). Other errors are raised."""
    try:
        return question(*arguments)
    except nvml.NVMLError as error:
        if error.value in (
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_NO_PERMISSION,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        ):
            return None
        raise

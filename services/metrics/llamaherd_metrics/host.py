"""This host and its processes, as psutil reads them."""

import contextlib
import time
from pathlib import Path
from typing import Any, Final

import psutil

from llamaherd_metrics.sample import HostReading, ProcessReading
from llamaherd_metrics.targets import Target, Targets

START_TOLERANCE_S: Final = 2.0
"""How far two readings of one process's start may lie apart: the kernel derives it from the boot time, which
moves when the clock is set."""

_LOOPBACK: Final = ("lo", "lo0")


def read_host(data_dir: Path) -> HostReading:
    """Everything a host sample needs: about 1 ms on Linux."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    disk = psutil.disk_usage(str(data_dir))
    # psutil finds no disks in some containers.
    io = psutil.disk_io_counters(nowrap=False)
    nics = psutil.net_io_counters(pernic=True, nowrap=False)
    outside = [counters for name, counters in nics.items() if name not in _LOOPBACK]
    return HostReading(
        at_s=time.monotonic(),
        cores=tuple(_core_times(times) for times in psutil.cpu_times(percpu=True)),
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        memory_used_bytes=memory.used,
        swap_total_bytes=swap.total,
        swap_used_bytes=swap.used,
        disk_total_bytes=disk.total,
        disk_used_bytes=disk.used,
        disk_read_bytes=io.read_bytes if io else 0,
        disk_write_bytes=io.write_bytes if io else 0,
        network_rx_bytes=sum(counters.bytes_recv for counters in outside),
        network_tx_bytes=sum(counters.bytes_sent for counters in outside),
        load=psutil.getloadavg(),
        uptime_s=time.time() - psutil.boot_time(),
    )


class Processes:
    """Reads processes again and again without looking them up each time."""

    def __init__(self) -> None:
        self._open: dict[Target, psutil.Process] = {}

    def read(self, targets: Targets) -> dict[str, ProcessReading]:
        """By source; a process that is gone, or that is another one by now, is left out."""
        self._open = {target: process for target, process in self._open.items() if target in targets.values()}
        readings = {}
        for source, target in targets.items():
            with contextlib.suppress(psutil.Error):
                if (process := self._process(target)) is not None:
                    readings[source] = _read_process(process)
        return readings

    def _process(self, target: Target) -> psutil.Process | None:
        process = self._open.get(target)
        if process is None:
            process = psutil.Process(target.pid)
            if target.started_s is not None and abs(process.create_time() - target.started_s) > START_TOLERANCE_S:
                return None
            self._open[target] = process
        elif not process.is_running():
            return None
        return process


def _read_process(process: psutil.Process) -> ProcessReading:
    with process.oneshot():
        times = process.cpu_times()
        return ProcessReading(
            at_s=time.monotonic(),
            pid=process.pid,
            cpu_s=times.user + times.system,
            rss_bytes=process.memory_info().rss,
            threads=process.num_threads(),
        )


def _core_times(times: Any) -> tuple[float, float]:
    # Linux counts guest time in user time as well (proc(5)).
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total

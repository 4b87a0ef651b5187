"""Memory of GPUs without a GPU: not told, failing, coming back. NVIDIA's binding is there, its answers are made up."""

import sys

import pytest

from harness.nvml import Driver
from llamaherd_supervisor import nvml
from llamaherd_supervisor.nvml import GpuMemory, Gpus

TOLD = GpuMemory(total_bytes=80, used_bytes=30, by_pid={7: 20})


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    driver.count = 3
    monkeypatch.setitem(sys.modules, "pynvml", driver.binding())
    monkeypatch.setattr(nvml, "_has_library", lambda: True)
    monkeypatch.setattr(nvml, "_RETRY_S", 0.0)
    return driver


def test_memory_and_who_has_it_are_read(driver: Driver) -> None:
    assert Gpus().read() == [TOLD] * 3


@pytest.mark.parametrize("error", [3, 4, 13, 15], ids=["not supported", "no permission", "old driver", "lost"])
@pytest.mark.parametrize("question", ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetHandleByIndex"])
def test_gpu_that_does_not_tell_hides_no_other_one(driver: Driver, question: str, error: int) -> None:
    """T29 (peers.md): `[N/A]` for the memory of one GPU ended all readings."""
    driver.failing, driver.ailing = {question: error}, 1

    gpus = Gpus()

    assert [gpus.read() for _ in range(2)] == [[TOLD, None, TOLD]] * 2
    assert driver.opened == 1


def test_gpu_that_does_not_tell_who_uses_it_tells_how_much_is_used(driver: Driver) -> None:
    """T29 (peers.md): a question that a newer driver does not know ended all readings."""
    driver.failing = {"nvmlDeviceGetComputeRunningProcesses": 13}

    assert Gpus().read() == [GpuMemory(total_bytes=80, used_bytes=30)] * 3


@pytest.mark.parametrize("question", ["nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo"])
def test_driver_that_fails_later_is_read_again_when_it_is_back(driver: Driver, question: str) -> None:
    """T29 (peers.md): one failure, and what was known of the GPUs stood still for ever."""
    gpus = Gpus()
    gpus.read()

    driver.failing = {question: 999}
    assert not any(gpus.read())
    driver.failing = {}

    assert gpus.read() == [TOLD] * 3
    assert (driver.opened, driver.closed) == (2, 1)


def test_failure_is_not_tried_again_at_once(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_RETRY_S", 1000.0)
    driver.failing = {"nvmlInit": 18}
    gpus = Gpus()

    assert [gpus.read() for _ in range(5)] == [[]] * 5

    assert driver.opened == 1

"""The GPU adapter without a GPU: absent, failing, coming back. NVIDIA's binding is there, its answers are made up."""

import sys

import pytest

from harness.nvml import Driver
from llamaherd_metrics import nvml
from llamaherd_metrics.nvml import Gpus
from llamaherd_metrics.sample import GpuReading


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver.binding())
    monkeypatch.setattr(nvml, "_has_library", lambda: True)
    monkeypatch.setattr(nvml, "RETRY_S", 0.0)
    return driver


@pytest.fixture
def troubles() -> list[str]:
    return []


@pytest.fixture
def gpus(driver: Driver, troubles: list[str]) -> Gpus:
    return Gpus(troubles.append)


def test_host_without_nvidia_driver_has_no_gpus_and_no_trouble(troubles: list[str]) -> None:
    assert isinstance(Gpus(troubles.append).read(), list)
    assert troubles == []


def test_gpu_is_read(gpus: Gpus, troubles: list[str]) -> None:
    (reading,) = gpus.read()

    assert reading == GpuReading(
        index=0,
        utilization_pct=55,
        memory_used_bytes=30,
        memory_total_bytes=80,
        power_w=250.5,
        temperature_c=61,
        process_memory_bytes={7: 20},
    )
    assert troubles == []


@pytest.mark.parametrize("error", [3, 4, 13], ids=["not supported", "no permission", "old driver"])
def test_value_the_gpu_does_not_have_is_absent_and_the_rest_is_read(
    driver: Driver, gpus: Gpus, troubles: list[str], error: int
) -> None:
    """T29 (peers.md): memory that is `[N/A]`, or a question that a newer driver does not know, ended all readings."""

    driver.failing = {"nvmlDeviceGetMemoryInfo": error, "nvmlDeviceGetPowerUsage": error}

    (reading,) = gpus.read()

    assert (reading.memory_used_bytes, reading.power_w, reading.utilization_pct) == (None, None, 55)
    assert troubles == []


def test_gpu_that_fails_later_is_told_once_and_read_again_when_it_is_back(
    driver: Driver, gpus: Gpus, troubles: list[str]
) -> None:
    """T29 (peers.md): what read llama-swap's GPUs ended once, and what was shown of them stood still for ever."""
    gpus.read()
    driver.failing = {"nvmlDeviceGetUtilizationRates": 15}
    assert [gpus.read() for _ in range(3)] == [[], [], []]
    assert len(troubles) == 1
    assert "GPU 0 cannot be read" in troubles[0]

    driver.failing = {}
    assert len(gpus.read()) == 1

    assert troubles[1:] == [""]
    assert driver.opened == 4
    assert driver.closed == 3


def test_gpu_that_has_fallen_off_the_bus_hides_no_other_one(driver: Driver, gpus: Gpus, troubles: list[str]) -> None:
    driver.count, driver.ailing = 3, 1
    driver.failing = {"nvmlDeviceGetHandleByIndex": 15}

    assert [[reading.index for reading in gpus.read()] for _ in range(3)] == [[0, 2]] * 3
    assert (len(troubles), driver.opened) == (1, 1)

    driver.failing = {}
    assert len(gpus.read()) == 3
    assert troubles[1:] == [""]


def test_driver_that_goes_away_is_told_once(driver: Driver, gpus: Gpus, troubles: list[str]) -> None:
    gpus.read()
    driver.failing = {"nvmlDeviceGetMemoryInfo": 15, "nvmlInit": 9}

    assert [gpus.read() for _ in range(3)] == [[], [], []]

    assert len(troubles) == 1


def test_library_without_a_driver_is_no_trouble(driver: Driver, gpus: Gpus, troubles: list[str]) -> None:
    driver.failing = {"nvmlInit": 9}

    assert gpus.read() == []
    assert gpus.read() == []
    assert troubles == []
    assert driver.opened == 1


def test_failure_is_not_tried_again_at_once(driver: Driver, gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "RETRY_S", 1000.0)
    driver.failing = {"nvmlInit": 18}

    assert [gpus.read() for _ in range(5)] == [[]] * 5

    assert driver.opened == 1

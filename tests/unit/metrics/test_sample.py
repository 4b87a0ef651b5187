import math

import msgspec
import pytest

from llamaherd_metrics.sample import (
    GpuReading,
    HostReading,
    ProcessReading,
    Readings,
    finite,
    gpu_memory_by_process,
    gpu_values,
    host_values,
    next_tick,
    process_values,
    rate,
    shape_samples,
)

HOST = HostReading(
    at_s=10.0,
    cores=((1.0, 4.0), (0.0, 4.0)),
    memory_total_bytes=1000,
    memory_available_bytes=600,
    memory_used_bytes=400,
    swap_total_bytes=50,
    swap_used_bytes=5,
    disk_total_bytes=900,
    disk_used_bytes=90,
    disk_read_bytes=100,
    disk_write_bytes=100,
    network_rx_bytes=100,
    network_tx_bytes=100,
    load=(0.5, 0.25, 0.125),
    uptime_s=99.0,
)
PROCESS = ProcessReading(at_s=10.0, pid=7, cpu_s=1.0, rss_bytes=2000, threads=3)


def test_counters_of_a_host_become_rates_per_second() -> None:
    later = msgspec.structs.replace(
        HOST, at_s=12.0, cores=((2.0, 6.0), (0.5, 6.0)), disk_read_bytes=300, network_tx_bytes=101
    )

    values = host_values(HOST, later)

    assert values["cpu_0_pct"] == 50.0
    assert values["cpu_1_pct"] == 25.0
    assert values["cpu_pct"] == 37.5
    assert values["disk_read_bytes_per_s"] == 100.0
    assert values["disk_write_bytes_per_s"] == 0.0
    assert values["network_tx_bytes_per_s"] == 0.5
    assert values["memory_used_bytes"] == 400.0
    assert (values["load1"], values["load5"], values["load15"]) == (0.5, 0.25, 0.125)
    assert values["uptime_s"] == 99.0


def test_name_of_every_host_value_ends_in_its_unit() -> None:
    later = msgspec.structs.replace(HOST, at_s=11.0)

    units = ("_pct", "_bytes", "_bytes_per_s", "_s", "load1", "load5", "load15")
    assert all(name.endswith(units) for name in host_values(HOST, later))


@pytest.mark.parametrize(
    ("previous", "current", "elapsed_s", "expected"),
    [(0, 10, 2.0, 5.0), (10, 0, 1.0, 0.0), (0, 10, 0.0, 0.0), (0, 10, -1.0, 0.0)],
    ids=["grows", "was reset", "no time passed", "time went back"],
)
def test_rate(previous: float, current: float, elapsed_s: float, expected: float) -> None:
    assert rate(previous, current, elapsed_s) == expected


def test_core_that_was_switched_off_is_left_out() -> None:
    later = msgspec.structs.replace(HOST, at_s=11.0, cores=((2.0, 5.0),))

    values = host_values(HOST, later)

    assert "cpu_0_pct" in values
    assert "cpu_1_pct" not in values


def test_process_using_two_cores_shows_two_hundred_percent() -> None:
    later = msgspec.structs.replace(PROCESS, at_s=11.0, cpu_s=3.0)

    assert process_values(PROCESS, later) == {"cpu_pct": 200.0, "rss_bytes": 2000.0, "threads": 3.0}
    assert process_values(PROCESS, later, gpu_memory_bytes=5)["gpu_memory_used_bytes"] == 5.0


def test_what_a_gpu_does_not_tell_is_absent() -> None:
    assert gpu_values(GpuReading(index=0, memory_used_bytes=3, power_w=None)) == {"memory_used_bytes": 3.0}


def test_memory_of_a_process_on_two_gpus_is_added_up() -> None:
    gpus = [GpuReading(index=0, process_memory_bytes={7: 3}), GpuReading(index=1, process_memory_bytes={7: 4, 8: 1})]

    assert gpu_memory_by_process(gpus) == {7: 7, 8: 1}


def test_numbers_that_are_none_are_dropped() -> None:
    assert finite({"a": 1.0, "b": math.nan, "c": math.inf}) == {"a": 1.0}


def test_scrape_tells_host_processes_and_gpus() -> None:
    later = msgspec.structs.replace(HOST, at_s=11.0)
    before = Readings(host=HOST, processes={"instance/cria/0": PROCESS})
    now = Readings(host=later, processes={"instance/cria/0": msgspec.structs.replace(PROCESS, at_s=11.0)})
    gpus = [GpuReading(index=0, temperature_c=40, process_memory_bytes={7: 9}), GpuReading(index=1)]

    samples = {sample.source: sample.values for sample in shape_samples("n", before, now, gpus, at_ns=1)}

    assert list(samples) == ["host", "instance/cria/0", "gpu/0"]
    assert samples["instance/cria/0"]["gpu_memory_used_bytes"] == 9.0
    assert samples["gpu/0"] == {"temperature_c": 40.0}


def test_process_seen_for_the_first_time_waits_for_a_rate() -> None:
    now = Readings(host=HOST, processes={"service/ui": PROCESS})

    assert [sample.source for sample in shape_samples("n", Readings(host=HOST), now, [], at_ns=1)] == ["host"]


def test_restarted_process_has_no_rate_across_its_restart() -> None:
    before = Readings(host=HOST, processes={"service/ui": PROCESS})
    now = Readings(host=HOST, processes={"service/ui": msgspec.structs.replace(PROCESS, pid=8)})

    assert [sample.source for sample in shape_samples("n", before, now, [], at_ns=1)] == ["host"]


@pytest.mark.parametrize(
    ("now_s", "expected_s"),
    [(100.0, 101.0), (100.4, 101.0), (101.0, 102.0), (103.7, 104.0)],
    ids=["at the start", "in between", "exactly on a tick", "after a slow scrape: missed ticks are skipped"],
)
def test_ticks_stay_on_the_grid(now_s: float, expected_s: float) -> None:
    assert next_tick(100.0, 1.0, now_s) == expected_s

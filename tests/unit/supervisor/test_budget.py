"""Amounts of memory: written, counted, subtracted."""

import pytest

from llamaherd_supervisor.budget import (
    RAM,
    Device,
    Hold,
    held,
    lacking,
    make_budget,
    parse_size,
    render_bytes,
    render_device,
    subtract,
    within_reach,
)

GIB = 2**30
HOST = (Device(name=RAM, total_bytes=64 * GIB), Device(name="gpu0", total_bytes=24 * GIB))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24 GiB", 24 * GIB),
        ("1.5gib", 3 * GIB // 2),
        ("800 MB", 800_000_000),
        ("1024", 1024),
        ("75%", 0.75),
        (" 100 % ", 1.0),
    ],
)
def test_size_is_an_amount_or_a_share(text: str, expected: float) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1 GiB", "1 GiBs", "GiB"])
def test_what_is_no_size_is_told_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is not an amount of memory: write `24 GiB`"):
        parse_size(text)


def test_without_a_setting_a_tenth_is_left_alone_but_no_more_than_a_system_needs() -> None:
    small = [Device(name=RAM, total_bytes=10 * GIB), Device(name="gpu0", total_bytes=5 * GIB)]
    large = [Device(name=RAM, total_bytes=512 * GIB), Device(name="gpu0", total_bytes=80 * GIB)]

    assert make_budget(small, "", []) == {RAM: 9 * GIB, "gpu0": 5 * GIB - GIB // 2}
    assert make_budget(large, "", []) == {RAM: 504 * GIB, "gpu0": 79 * GIB}


def test_budget_is_what_the_settings_say_of_each_gpu_the_last_for_all_others() -> None:
    devices = [*HOST, Device(name="gpu1", total_bytes=48 * GIB), Device(name="gpu2", total_bytes=8 * GIB)]

    budget = make_budget(devices, "32 GiB", ["10 GiB", "50%"])

    assert budget == {RAM: 32 * GIB, "gpu0": 10 * GIB, "gpu1": 24 * GIB, "gpu2": 4 * GIB}


def test_what_others_use_beyond_what_is_left_to_them_is_out_of_reach() -> None:
    budget = {RAM: 58 * GIB, "gpu0": 23 * GIB}
    busy = [
        Device(name=RAM, total_bytes=64 * GIB, others_bytes=4 * GIB),
        Device(name="gpu0", total_bytes=24 * GIB, others_bytes=20 * GIB),
    ]

    assert within_reach(budget, busy) == {RAM: 58 * GIB, "gpu0": 4 * GIB}


def test_estimate_counts_until_an_instance_is_ready_and_then_what_was_measured() -> None:
    assert held(Hold(needs={RAM: 100}, uses={RAM: 30})) == {RAM: 100}
    assert held(Hold(needs={RAM: 100}, uses={RAM: 130})) == {RAM: 130}
    assert held(Hold(needs={RAM: 100}, uses={RAM: 30}, ready=True)) == {RAM: 30}
    assert held(Hold(needs={RAM: 100}, ready=True)) == {RAM: 100}


def test_lacking_is_told_by_device_and_empty_when_it_fits() -> None:
    free = subtract({RAM: 10, "gpu0": 5}, {RAM: 4}, {"gpu0": 5, RAM: 1})

    assert free == {RAM: 5, "gpu0": 0}
    assert lacking({RAM: 5}, free) == {}
    assert lacking({RAM: 6, "gpu0": 1, "gpu7": 2}, free) == {RAM: 1, "gpu0": 1, "gpu7": 2}


def test_amounts_and_devices_are_told_in_words() -> None:
    assert [render_bytes(count) for count in (0, 512, 300 * 2**20, 13.42 * GIB, 2048 * GIB)] == [
        "0 B",
        "512 B",
        "300 MiB",
        "13.4 GiB",
        "2048.0 GiB",
    ]
    assert [render_device(name) for name in (RAM, "gpu1")] == ["RAM", "GPU 1"]

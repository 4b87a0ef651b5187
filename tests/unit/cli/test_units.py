"""Numbers as people write and read them."""

import pytest

from llamaherd.failures import Misused
from llamaherd.units import parse_duration, render_bytes, render_count, render_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("1.5h", 5400), ("45", 45)]
)
def test_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10 minutes", "5x", "-3m"])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(Misused, match="1h30m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (4.9, "4 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (7200, "2 h"), (273_600, "3 d 4 h")],
)
def test_duration_is_written_with_two_units_at_most(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text


def test_sizes_are_written_short() -> None:
    assert [render_bytes(count) for count in (512, 1_500_000, 14 * 2**30)] == ["512 B", "1.4 MiB", "14 GiB"]
    assert [render_count(count) for count in (812, 3_200_000, 8_000_000_000)] == ["812", "3.2 M", "8.0 B"]

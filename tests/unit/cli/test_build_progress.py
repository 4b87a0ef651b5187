"""Progress read from lines of ninja, make and pip."""

import pytest

from llamaherd.build_progress import parse_build_line, parse_download_line


@pytest.mark.parametrize(
    ("line", "ratio"),
    [
        ("[52/208] Building CXX object src/llama.cpp.o", 0.25),
        ("[208/208] Linking CXX executable bin/llama-server", 1.0),
        ("[ 12%] Building C object ggml/src/ggml.c.o", 0.12),
        ("[100%] Built target llama-server", 1.0),
        ("[0/0] nothing", 0.0),
        ("-- Found Threads: TRUE", None),
        ("warning: see [1/2]", None),
        ("", None),
    ],
)
def test_build_line(line: str, ratio: float | None) -> None:
    assert parse_build_line(line) == ratio


@pytest.mark.parametrize(
    ("line", "ratio"),
    [("Progress 50 of 200", 0.25), ("Progress 200 of 200\n", 1.0), ("Progress 5 of 0", 0.0), ("Saved ./x", None)],
)
def test_download_line(line: str, ratio: float | None) -> None:
    assert parse_download_line(line) == ratio

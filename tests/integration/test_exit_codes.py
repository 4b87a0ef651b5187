"""Exit codes of the command line, from the words to what stands on the terminal."""

import pytest

from llamaherd.__main__ import run


@pytest.mark.parametrize(
    ("argv", "suggestion"),
    [(["laod"], 'Did you mean "load"'), (["up", "--dmeo"], "Did you mean --demo"), (["logs", "--level", "loud"], "")],
)
def test_a_mistake_on_the_command_line_is_2_and_gets_a_suggestion(
    argv: list[str], suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 2

    assert suggestion in " ".join(capsys.readouterr().err.split())


def test_help_and_version_are_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert run(["up", "--help"]) == 0
    assert run(["--version"]) == 0

    assert "llamaherd up --demo" in capsys.readouterr().out


def test_nobody_at_the_address_is_4(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ps", "--url", "http://127.0.0.1:9"]) == 4

    assert "llamaherd up" in capsys.readouterr().err


def test_a_length_of_time_that_is_none_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs", "--since", "soon", "--url", "http://127.0.0.1:9"]) == 2

    assert "1h30m" in capsys.readouterr().err

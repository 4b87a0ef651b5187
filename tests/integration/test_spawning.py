"""How a llama-server is started: what it is given, and what it must not have of us."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from llamaherd_supervisor import spawning

SH = "/bin/sh"


WITHOUT_LOCK, WITH_LOCK = "without the lock", "with the lock"
WAYS = [WITHOUT_LOCK, WITH_LOCK] if sys.platform == "linux" else [WITH_LOCK]
"""The second is that of other systems, and works here too."""


@pytest.fixture(params=WAYS)
def spawner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Spawner":
    if request.param == WITH_LOCK:
        monkeypatch.setattr(spawning, "_LIBC", None)
    return Spawner(tmp_path / "output")


class Spawner:
    def __init__(self, output: Path) -> None:
        self.output = output
        self.pid = 0

    def run(self, program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """What it wrote, once it has ended well."""
        with open(self.output, "ab") as file:
            self.pid = spawning.spawn(program, arguments, environment or {"PATH": os.defpath}, output=file.fileno())
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0
        return self.output.read_text()


def test_a_child_is_given_its_words_and_variables_and_no_others(spawner: Spawner) -> None:
    environment = {"PATH": os.defpath, "GREETING": "grüß dich = hello"}

    written = spawner.run(SH, "-c", 'printf "%s|" "$@" >&2; env', "sh", "a b", "", "ü", environment=environment)

    words, _, variables = written.partition("\n")[0].rpartition("|")
    assert words == "a b||ü"
    assert {variables, *written.splitlines()[1:]} >= {"GREETING=grüß dich = hello", f"PATH={os.defpath}"}
    assert "HOME=" not in written


def test_a_child_leads_a_session_of_its_own_and_reads_nothing(spawner: Spawner) -> None:
    written = spawner.run(SH, "-c", "cat; cut -d ' ' -f 5,6 /proc/$$/stat")

    assert written.split() == [str(spawner.pid), str(spawner.pid)]


def test_a_child_heeds_signals_that_python_ignores(spawner: Spawner) -> None:
    written = spawner.run(SH, "-c", "grep -E '^Sig(Ign|Blk):' /proc/self/status")

    deaf_to = [int(line.split()[1], 16) for line in written.splitlines()]
    ours = sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM))
    assert [mask & ours for mask in deaf_to] == [0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file that a library opens carelessly is inherited")
def test_a_child_has_none_of_our_files(tmp_path: Path) -> None:
    with open(tmp_path / "ours", "w") as ours:
        os.set_inheritable(ours.fileno(), True)

        written = Spawner(tmp_path / "output").run(SH, "-c", "ls /proc/$$/fd")

    assert written.split() == ["0", "1", "2"]


def test_a_program_without_a_slash_is_looked_up_in_its_own_path(spawner: Spawner, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "speak"
    program.parent.mkdir()
    program.write_text(f"#!{SH}\necho spoken\n")
    program.chmod(0o755)

    assert spawner.run("speak", environment={"PATH": str(program.parent)}) == "spoken\n"
    with pytest.raises(FileNotFoundError):
        spawner.run("speak")


def test_what_cannot_be_started_is_an_error_and_no_child(spawner: Spawner, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)

    with pytest.raises(FileNotFoundError):
        spawner.run(str(tmp_path / "missing"))
    with pytest.raises(PermissionError):
        spawner.run(str(tmp_path))
    with pytest.raises(OSError, match="Exec format"):
        spawner.run(str(tmp_path / "text"))
    with pytest.raises(OSError, match="NUL"):
        spawner.run(SH, "-c", "a\0b")
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)

"""Finding and installing llama-server. The build itself takes minutes: CI does it when it fills its cache."""

import os
import stat
import threading
from pathlib import Path

import pytest

from llamaherd.failures import Misused
from llamaherd.launcher import install
from llamaherd.launcher.install import InstallFailed, Progress, install_llama_server
from llamaherd.launcher.llama_server import cached_llama_server, find_llama_server, version_of

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder and a PATH without llama-server."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "cache"


def make_program(path: Path, text: str = "#!/bin/sh\necho 'version: 1 (abc)'\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_nearest_llama_server_wins(tmp_path: Path) -> None:
    assert find_llama_server(None, {}) is None
    cached = make_program(cached_llama_server())
    on_path = tmp_path / "bin" / "llama-server"
    named, of_environ = make_program(tmp_path / "named"), make_program(tmp_path / "of_environ")
    environ = {"LLAMAHERD_LLAMA_SERVER": str(of_environ)}

    found = [find_llama_server(None, {})]
    make_program(on_path)
    found += [find_llama_server(None, {}), find_llama_server(None, environ), find_llama_server(named, environ)]

    assert [one.path for one in found if one is not None] == [cached, on_path, of_environ, named]


def test_a_named_program_that_cannot_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("")

    with pytest.raises(Misused, match="--llama-server"):
        find_llama_server(tmp_path / "text", {})
    with pytest.raises(Misused, match="cannot open shared object"):
        version_of(make_program(tmp_path / "torn", "#!/bin/sh\necho 'cannot open shared object' >&2; exit 127\n"))


def test_without_a_compiler_the_sentence_names_the_packages() -> None:
    with pytest.raises(InstallFailed, match=r"apt install g\+\+ make"):
        install_llama_server(lambda _: None)


def test_what_is_there_is_not_built_again() -> None:
    path = make_program(cached_llama_server())

    assert install_llama_server(lambda _: None) == path


def test_a_second_install_waits_for_the_first_and_takes_its_result() -> None:
    results: list[Path] = []
    started = threading.Event()

    def second() -> None:
        started.set()
        results.append(install_llama_server(lambda _: None))

    thread = threading.Thread(target=second)
    with install._alone(cached_llama_server().parent):
        thread.start()
        started.wait(5)
        path = make_program(cached_llama_server())
    thread.join(10)

    assert results == [path]


def test_a_failing_tool_is_reported_with_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_program(tmp_path / "bin" / "c++")
    make_program(tmp_path / "bin" / "cmake", "#!/bin/sh\necho 'no such generator'; exit 3\n")
    make_program(tmp_path / "bin" / "make")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin{os.pathsep}/usr/bin")
    work = tmp_path / "work"
    work.mkdir()
    log = tmp_path / "build.log"

    with pytest.raises(InstallFailed, match=r"exit code 3[\s\S]*no such generator"):
        install._configure(tmp_path, work, log)

    assert "no such generator" in log.read_text()


def test_progress_is_a_ratio() -> None:
    assert 0 <= Progress("compiling", install._CONFIGURED).ratio < 1

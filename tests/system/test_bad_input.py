"""Bad input gets one clear sentence on what and where, a non-zero exit, and loses nothing."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.herd import Herd
from harness.random_gguf import write_garbage_gguf, write_truncated_gguf


def failed_start(herd: Herd, code: int | None = None) -> str:
    herd.start(wait=False)
    assert herd.process is not None
    returned = herd.process.wait(30)
    assert returned != 0
    if code is not None:
        assert returned == code, herd.output()
    assert "Traceback" not in herd.output()
    return herd.output()


def test_a_port_in_use_is_named_with_the_option_that_changes_it(tmp_path: Path) -> None:
    herd = Herd(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", herd.port))
        taken.listen()

        output = failed_start(herd)

    assert str(herd.port) in output
    assert "--port" in output
    assert not herd.processes()


def test_a_second_up_on_the_same_data_folder_is_refused_and_the_first_goes_on(herd: Herd, tmp_path: Path) -> None:
    second = Herd(tmp_path)
    second.data_dir = herd.data_dir

    output = failed_start(second)

    assert str(herd.data_dir) in output
    assert "already" in output
    assert herd.chat("cria", "hello", max_tokens=1).status_code == 200


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="root may write anywhere here")
def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """/proc refuses everybody, root too."""
    herd = Herd(tmp_path)
    herd.data_dir = Path("/proc/llamaherd") if Path("/proc/version").exists() else tmp_path / "file" / "data"
    (tmp_path / "file").write_text("")

    output = failed_start(herd)

    assert str(herd.data_dir) in output


def test_an_unknown_configuration_key_is_named_with_line_and_column(tmp_path: Path) -> None:
    config = tmp_path / "llamaherd.yaml"
    config.write_text("gateway:\n  prot: 8080\n")

    output = failed_start(Herd(tmp_path, "--config", str(config)), code=2)

    assert "llamaherd.yaml:2:3" in output.replace("\n", "")
    assert "prot" in output


def test_an_address_open_to_others_needs_insecure(tmp_path: Path) -> None:
    output = failed_start(Herd(tmp_path, "--host", "0.0.0.0"), code=2)

    assert "--insecure" in output


@pytest.mark.parametrize("write", [write_garbage_gguf, write_truncated_gguf], ids=["garbage", "truncated"])
def test_a_broken_gguf_is_refused_with_its_reason(herd: Herd, write: object, request: pytest.FixtureRequest) -> None:
    name = f"broken-{request.node.callspec.id}"
    path = herd.models_dir / f"{name}.gguf"
    write(path)  # type: ignore[operator]
    old = path.stat().st_mtime - 60
    os.utime(path, (old, old))
    try:
        rejected = herd.eventually(
            lambda: next(m["rejected"] for m in herd.fleet()["models"] if m["model"] == name),
            within_s=15,
            what="the supervisor looked at the file",
        )
        loaded = herd.cli("load", name)
        asked = herd.chat(name, "hello")
    finally:
        path.unlink()

    assert rejected
    assert loaded.returncode != 0
    assert asked.status_code in (404, 503)
    assert name in asked.json()["error"]["message"]


def test_the_cli_without_a_terminal_prints_no_colour_codes(herd: Herd) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llamaherd", "models", "--url", herd.ui_url], capture_output=True, check=True, timeout=30
    )

    assert b"\x1b[" not in done.stdout

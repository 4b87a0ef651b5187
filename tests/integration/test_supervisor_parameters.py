"""What a supervisor tells of the llama-server program, against a real nats-server and programs that tell little."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from harness.nats import NatsServer
from harness.supervisor import Herd, Node, herd_of
from llamaherd_shared.commands import DescribeParameters, Parameters
from llamaherd_shared.errors import Unavailable
from llamaherd_supervisor.program import read_parameters

HELP = Path(__file__).parents[1] / "golden" / "llama_server" / "help.txt"


def write_program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return path


async def ask(herd: Herd) -> Parameters:
    subject = herd.bus.subjects.command("supervisor", "parameters", node=herd.node.name)
    return await herd.bus.request(subject, DescribeParameters(), Parameters)


def test_parameters_are_told_by_category_and_the_program_is_run_once_for_each_version(
    tmp_path: Path, shared_nats_server: NatsServer
) -> None:
    node = Node(tmp_path, shared_nats_server, name="knowing.lan")
    runs = tmp_path / "runs"
    script = f'echo "$1 $LLAMA_ARG_THREADS." >> {runs}; cat {HELP}'
    node.llama_server = write_program(tmp_path / "llama-server", script)

    async def body() -> None:
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()

            first, second = await asyncio.gather(ask(herd), ask(herd))
            os.utime(tmp_path / "llama-server", ns=(1, 1))
            third = await ask(herd)

            assert first == second == third
            assert (first.node, first.llama_server) == (node.name, str(tmp_path / "llama-server"))
            assert [category.name for category in first.categories] == ["common", "sampling", "speculative", "server"]
            asked = [run for run in runs.read_text().splitlines() if run.startswith("--help")]  # devices are listed too
        assert asked == ["--help .", "--help ."]

    try:
        uvloop.run(body())
    finally:
        node.clean_up()


def test_without_a_llama_server_it_is_said_how_to_get_one(tmp_path: Path, shared_nats_server: NatsServer) -> None:
    node = Node(tmp_path, shared_nats_server, name="unknowing.lan")
    node.llama_server = tmp_path / "gone"

    async def body() -> None:
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()
            with pytest.raises(Unavailable, match="llamaherd install llama-server"):
                await ask(herd)

    try:
        uvloop.run(body())
    finally:
        node.clean_up()


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("exec /nowhere", r"tells of no parameters \(exit code 127\): the script that starts it cannot run /nowhere"),
        ("echo I am a teapot", r"tells of no parameters \(exit code 0\): is it a llama-server\?"),
        ("kill -ILL $$", r"tells of no parameters \(signal SIGILL\): the llama-server was built for another processor"),
        (
            "echo 'x: error while loading shared libraries: libcudart.so.12: cannot open' >&2; exit 127",
            r"\(exit code 127\): the library libcudart\.so\.12 is not on this machine",
        ),
        ("sleep 60", r"--help did not end within 0\.3 s"),
    ],
)
def test_program_that_tells_nothing_is_one_clear_sentence(tmp_path: Path, script: str, sentence: str) -> None:
    program = write_program(tmp_path / "llama-server", script)

    with pytest.raises(Unavailable, match=sentence) as refused:
        uvloop.run(read_parameters(str(program), os.environ, timeout_s=0.3 if "sleep" in script else 10))

    assert str(program) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])
def test_program_of_another_machine_is_one_clear_sentence(tmp_path: Path, run: Callable[..., object]) -> None:
    program = tmp_path / "llama-server"
    data = bytearray(Path(sys.executable).read_bytes())
    data[18:20] = b"\xff\xff"
    program.write_bytes(data)
    program.chmod(0o700)

    with pytest.raises(Unavailable, match=r"Exec format error|the program is none for this machine"):
        run(read_parameters(str(program), os.environ))

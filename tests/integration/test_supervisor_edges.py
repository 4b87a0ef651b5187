"""The supervisor's edges by themselves: the log file it follows and the HTTP it asks."""

import subprocess
from pathlib import Path

import pytest
import uvloop

from harness.deadline import until
from harness.fake_llama_server import install_fake_llama_server, set_switches
from llamaherd_shared.events.line import Line
from llamaherd_supervisor.process import free_port
from llamaherd_supervisor.tail import LAST_LINES, Tail
from llamaherd_supervisor.upstream import Upstream


class Lines(list[Line]):
    @property
    def texts(self) -> list[str]:
        return [line.text for line in self]


def follow(path: Path, *, max_bytes: int = 2**20) -> tuple[Tail, Lines]:
    lines = Lines()
    return Tail(path, lines.append, max_bytes=max_bytes), lines


def test_tail_begins_at_the_end_and_passes_on_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "m-0.log"
    path.write_text("of an earlier start\n")
    tail, lines = follow(path)

    with path.open("a") as file:
        file.write("0.00.000.001 E bad\n  more of it\nhalf")
        file.flush()
        tail.read()
        assert lines.texts == ["0.00.000.001 E bad", "  more of it"]
        file.write(" a line\nlast words")
    tail.finish()

    assert lines.texts == ["0.00.000.001 E bad", "  more of it", "half a line", "last words"]
    assert [line.level for line in lines] == ["error", "error", "info", "info"]
    assert tail.last_lines == tuple(lines.texts)


def test_tail_keeps_the_last_lines_only_and_cuts_endless_ones(tmp_path: Path) -> None:
    path = tmp_path / "m-0.log"
    path.touch()
    tail, lines = follow(path)

    path.write_text("\n".join([*(f"line {number}" for number in range(100)), "x" * 40_000]))
    tail.finish()

    assert len(tail.last_lines) == LAST_LINES
    assert max(len(text) for text in lines.texts) <= 16 * 1024
    assert sum(text.count("x") for text in lines.texts) == 40_000


def test_long_log_is_emptied_without_losing_a_line(tmp_path: Path) -> None:
    path = tmp_path / "m-0.log"
    path.touch()
    tail, lines = follow(path, max_bytes=4096)

    with path.open("a") as file:
        for number in range(1000):
            file.write(f"line {number}\n")
            file.flush()
            tail.read()
            tail.read()
            assert path.stat().st_size < 8192
    tail.finish()

    assert lines.texts == [f"line {number}" for number in range(1000)]


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.touch()
    return path


def test_upstream_tells_health_size_and_busy_slots(tmp_path: Path, model_path: Path) -> None:
    port = free_port("127.0.0.1")
    words = ["--model", model_path, "--port", port, "--parallel", 3, "--ctx-size", 600, "--slow-load-s", 0.5]
    program = install_fake_llama_server(tmp_path)
    process = subprocess.Popen([program, *map(str, words), "--api-key", "k3y"], stderr=subprocess.DEVNULL)

    async def body() -> None:
        upstream = Upstream("127.0.0.1", port, "k3y")
        seen: list[int | None] = []

        async def well() -> bool:
            seen.append(await upstream.probe_health(timeout_s=2))
            return seen[-1] == 200

        while not await well():
            await until(lambda: True)
        assert set(seen) <= {None, 503, 200}

        props = await upstream.probe_props(timeout_s=2)
        assert props is not None
        assert (props.total_slots, props.default_generation_settings.n_ctx) == (3, 200)
        assert await upstream.probe_busy_slots(timeout_s=2) == 0
        assert await Upstream("127.0.0.1", port, "wrong").probe_props(timeout_s=2) is None

        set_switches(model_path, busy_slots=2)
        assert await upstream.probe_busy_slots(timeout_s=2) == 2
        set_switches(model_path, hang_health=True)
        assert await upstream.probe_health(timeout_s=0.2) is None

    try:
        uvloop.run(body())
    finally:
        process.kill()
        process.wait(5)


def test_upstream_that_is_not_there_answers_nothing() -> None:
    async def body() -> None:
        upstream = Upstream("127.0.0.1", free_port("127.0.0.1"), "")

        assert await upstream.probe_health(timeout_s=1) is None
        assert await upstream.probe_busy_slots(timeout_s=1) is None

    uvloop.run(body())

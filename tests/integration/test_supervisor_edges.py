"""The supervisor's edges by themselves: the log file it follows and the HTTP it asks."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from harness.deadline import until
from harness.fake_llama_server import install_fake_llama_server, set_switches
from llamaherd_shared.events.line import Line
from llamaherd_supervisor.process import free_port
from llamaherd_supervisor.tail import LAST_LINES, Tail
from llamaherd_supervisor.upstream import Upstream
from llamaherd_supervisor.work import Use


class Lines:
    """What a tail passed on, and up to which byte of the file."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.ends: list[int] = []

    def offer(self, line: Line, end: int) -> None:
        self.lines.append(line)
        self.ends.append(end)

    @property
    def texts(self) -> list[str]:
        return [line.text for line in self.lines]


def follow(path: Path, *, max_bytes: int = 2**20, start: int | None = None) -> tuple[Tail, Lines]:
    lines = Lines()
    return Tail(path, lines.offer, max_bytes=max_bytes, start=start), lines


def finish(tail: Tail) -> tuple[str, ...]:
    return uvloop.run(tail.finish())


def test_tail_begins_at_the_end_and_passes_on_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "m-0.1.log"
    path.write_text("from before\n")
    tail, lines = follow(path)

    with path.open("a") as file:
        file.write("0.00.000.001 E bad\n  more of it\nhalf")
        file.flush()
        tail.read()
        assert lines.texts == ["0.00.000.001 E bad", "  more of it"]
        file.write(" a line\nlast words")
    last = finish(tail)

    assert lines.texts == ["0.00.000.001 E bad", "  more of it", "half a line", "last words"]
    assert [line.level for line in lines.lines] == ["error", "error", "info", "info"]
    assert last == ("from before", *lines.texts)


def test_tail_keeps_the_last_lines_only_and_cuts_endless_ones(tmp_path: Path) -> None:
    path = tmp_path / "m-0.1.log"
    path.touch()
    tail, lines = follow(path)

    path.write_text("\n".join([*(f"line {number}" for number in range(2 * LAST_LINES)), "x" * 40_000]))
    last = finish(tail)

    assert len(last) == LAST_LINES
    assert max(len(text) for text in lines.texts) <= 16 * 1024
    assert sum(text.count("x") for text in lines.texts) == 40_000


def test_whoever_comes_after_a_killed_reader_goes_on_behind_any_line(tmp_path: Path) -> None:
    path = tmp_path / "m-0.1.log"
    path.write_text("0.00.000.001 E bad\n\n  more of it\n" + "x" * 40_000 + "\n\u00fcber\nhalf")
    tail, lines = follow(path, start=0)
    last = finish(tail)

    for number, end in enumerate(lines.ends):
        later, rest = follow(path, start=end)

        assert "".join(finish(later)) == "".join(last)
        assert rest.texts == lines.texts[number + 1 :]
        assert [line.level for line in rest.lines] == [line.level for line in lines.lines[number + 1 :]]


def long_log(path: Path, lines_written: int) -> tuple[Lines, int]:
    """A log that is read while it is written; its lines, and the most bytes it took on the disk."""
    path.touch()
    tail, lines = follow(path, max_bytes=4096)
    most = 0
    with path.open("a") as file:
        for number in range(lines_written):
            file.write(f"line {number}\n")
            file.flush()
            tail.read()
            tail.read()
            most = max(most, path.stat().st_blocks * 512)
    finish(tail)
    return lines, most


def test_beginning_of_a_long_log_is_freed_without_losing_a_line(tmp_path: Path) -> None:
    path = tmp_path / "m-0.1.log"

    lines, most = long_log(path, 5000)

    assert lines.texts == [f"line {number}" for number in range(5000)]
    assert most <= 4 * 4096
    later, rest = follow(path, start=lines.ends[-3])
    assert finish(later) == tuple(lines.texts[-LAST_LINES:])
    assert rest.texts == lines.texts[-2:]
    behind, found = follow(path, start=100)
    finish(behind)
    assert found.texts[-200:] == lines.texts[-200:], "what was freed is passed over"


def test_long_log_is_emptied_where_its_beginning_cannot_be_freed(whole_files_only: Path) -> None:
    path = whole_files_only / "m-0.1.log"

    lines, _ = long_log(path, 5000)

    assert lines.texts == [f"line {number}" for number in range(5000)]
    assert path.stat().st_size <= 3 * 4096


@pytest.fixture
def whole_files_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that cannot free a part of a file."""
    folder = tmp_path / "ramfs"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a ramfs here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


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
        assert await upstream.probe_use(timeout_s=2) == Use(0)
        assert await Upstream("127.0.0.1", port, "wrong").probe_props(timeout_s=2) is None

        set_switches(model_path, busy_slots=2)
        assert await upstream.probe_use(timeout_s=2) == Use(2)
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
        assert await upstream.probe_use(timeout_s=1) is None

    uvloop.run(body())

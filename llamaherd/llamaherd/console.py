"""Where a command prints: rows and sentences to stdout, trouble to stderr, bars only where somebody watches."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

PIPED_WIDTH: Final = 240
"""Columns of a table that goes into a pipe: nothing is folded for a terminal that is not there."""
PATIENCE_S: Final = 2.0
"""What takes longer gets a progress bar."""


def make_console(*, stderr: bool = False) -> Console:
    """Colours on a terminal only, none with `NO_COLOR`; nothing in the text is taken for markup."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


class Screen:
    """Tells people what happens. With `quiet`, only trouble is told."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.out, self.err = make_console(), make_console(stderr=True)
        self._quiet = quiet

    def say(self, sentence: str | Text, style: str = "") -> None:
        if not self._quiet:
            self.out.print(sentence, style=style, soft_wrap=True)

    def show(self, renderable: Any) -> None:
        if not self._quiet:
            self.out.print(renderable)

    def note(self, sentence: str) -> None:
        """What a person should know and a program that reads our output should not."""
        if not self._quiet:
            self.err.print(sentence, soft_wrap=True)

    def warn(self, sentence: str) -> None:
        self.err.print(sentence, style="yellow", soft_wrap=True)

    def fail(self, sentence: str) -> None:
        self.err.print(Text.assemble(("error: ", "bold red"), sentence), soft_wrap=True)

    @contextmanager
    def bar(self, title: str) -> Iterator["Bar"]:
        """A progress bar that appears once the work has taken two seconds and leaves nothing behind."""
        bar = Bar(self.out, title, quiet=self._quiet)
        try:
            yield bar
        finally:
            bar.close()


class Bar:
    """On a terminal a bar; in a pipe a line at every tenth."""

    def __init__(self, console: Console, title: str, *, quiet: bool) -> None:
        self._console, self._title, self._quiet = console, title, quiet
        self._born = time.monotonic()
        self._tenth = 0
        self._progress: Progress | None = None
        self._task: Any = None

    def update(self, ratio: float | None, note: str = "") -> None:
        """Come to `ratio` (0 to 1; `None`: unknown) with a note of what is going on."""
        if self._quiet or time.monotonic() - self._born < PATIENCE_S:
            return
        if not self._console.is_terminal:
            if ratio is not None and int(ratio * 10) > self._tenth:
                self._tenth = int(ratio * 10)
                self._console.print(f"{self._title}: {ratio:.0%} {note}".rstrip(), soft_wrap=True)
            return
        note = f"{ratio:.0%} {note}" if ratio is not None else note
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task(self._title, total=None, note="")
            self._progress.start()
        self._progress.update(self._task, completed=ratio or 0.0, total=None if ratio is None else 1.0, note=note)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def print_json(value: Any) -> None:
    """One JSON document on a line of its own (NDJSON when called again)."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def print_raw_json(body: bytes) -> None:
    """A JSON document as the server sent it."""
    sys.stdout.write(body.decode().rstrip("\n") + "\n")
    sys.stdout.flush()

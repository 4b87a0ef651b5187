"""A disk that is full."""

import contextlib
from pathlib import Path


def fill(folder: Path) -> Path:
    """Write until the file system of `folder` takes no more; returns the file to remove again."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return filler

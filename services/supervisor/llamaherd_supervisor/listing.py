"""The models folder, as it is on the disk: which GGUF files are in it, and what they say about themselves."""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from llamaherd_supervisor.gguf_file import (
    GgufHead,
    ProjectorHead,
    UnreadableGguf,
    check_parts,
    parse_gguf,
    read_later_part,
)
from llamaherd_supervisor.models import GgufFile, Sighting, first_name, model_name, part_paths

_DEPTH: Final = 4
"""Folders within folders: `<publisher>/<model>/<file>.gguf` is how most tools keep them, Hugging Face's one deeper."""
_BUFFER_BYTES: Final = 256 * 1024


class Listing(msgspec.Struct, frozen=True):
    """What is in the models folder."""

    files: dict[str, Sighting] = {}
    """By path."""
    folders: dict[str, tuple[int, int]] = {}
    """Where a change would be news -> what it is now: device and inode."""
    closed: dict[str, str] = {}
    """Folders that cannot be listed, and why."""


def look(models_dir: Path) -> Listing:
    """List the GGUF files, of a split model its first. A folder that is not there is an empty one."""
    listing = Listing()
    _list(str(models_dir), _DEPTH, (), listing)
    if not listing.folders:
        nearest = next((folder for folder in models_dir.absolute().parents if folder.is_dir()), None)
        if nearest is not None:
            _note_folder(str(nearest), listing)
    return listing


def look_at(paths: Iterable[str]) -> dict[str, Sighting]:
    """These files, by path; one that is not there cannot be read, and that is what will be said of it."""
    return {path: _sighting(path) for path in paths}


def _sighting(path: str) -> Sighting:
    size_bytes = modified_ns = 0
    for part in part_paths(path):
        with contextlib.suppress(OSError):
            status = os.stat(part)
            size_bytes, modified_ns = size_bytes + status.st_size, max(modified_ns, status.st_mtime_ns)
    return Sighting(path, size_bytes, modified_ns)


def _list(folder: str, depth: int, above: tuple[tuple[int, int], ...], listing: Listing) -> None:
    """`above`: the folders it is in; a link back to one of them leads nowhere."""
    try:
        entries = list(os.scandir(folder))
        itself = _note_folder(folder, listing)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        listing.closed[folder] = error.strerror or str(error)
        return
    if itself in above:
        return
    for entry in entries:
        try:
            is_folder = entry.is_dir()
        except OSError:
            continue
        if is_folder:
            if depth > 1 and not entry.name.startswith("."):
                _list(entry.path, depth - 1, (*above, itself), listing)
        elif (first := first_name(entry.name)) and model_name(first):
            _note_file(entry, os.path.join(folder, first), listing)


def _note_folder(folder: str, listing: Listing) -> tuple[int, int]:
    status = os.stat(folder)
    listing.folders[folder] = status.st_dev, status.st_ino
    return listing.folders[folder]


def _note_file(entry: "os.DirEntry[str]", first: str, listing: Listing) -> None:
    """One of a split model adds to what is known of the others."""
    size_bytes = modified_ns = 0
    try:
        status = entry.stat()
        if not stat.S_ISREG(status.st_mode):
            return
        size_bytes, modified_ns = status.st_size, status.st_mtime_ns
        if entry.is_symlink():
            _note_folder(os.path.dirname(os.path.realpath(entry.path)), listing)
    except OSError:
        if not entry.is_symlink():
            # Gone between the listing and the look.
            return
    known = listing.files.get(first, Sighting(first, 0, 0))
    listing.files[first] = Sighting(first, known.size_bytes + size_bytes, max(known.modified_ns, modified_ns))


def read(sighting: Sighting) -> GgufFile:
    """With what the file says about itself, or why it cannot be served."""
    return GgufFile(sighting, _read_head(sighting))


def _read_head(sighting: Sighting) -> GgufHead | ProjectorHead | UnreadableGguf:
    first, *others = part_paths(sighting.path)
    count = 1 + len(others)
    try:
        head = _read_first(first, count)
        if isinstance(head, ProjectorHead) or head.parts == 1:
            return head
        check_parts(head, count)
        weights = sum(_read_other(other, number, count) for number, other in enumerate(others, start=2))
    except UnreadableGguf as error:
        return error
    return msgspec.structs.replace(head, parameters=head.parameters + weights)


def _read_first(path: str, count: int) -> GgufHead | ProjectorHead:
    with _open_gguf(path, f"file 1 of {count} is missing" if count > 1 else "") as file:
        return parse_gguf(file, size_bytes=os.fstat(file.fileno()).st_size)


def _read_other(path: str, number: int, count: int) -> int:
    name = os.path.basename(path)
    try:
        with _open_gguf(path, f"file {number} of {count} is missing") as file:
            return read_later_part(file, number, count, size_bytes=os.fstat(file.fileno()).st_size)
    except UnreadableGguf as error:
        raise UnreadableGguf(f"{name}: {error}", truncated=error.truncated, closed=error.closed) from error


@contextlib.contextmanager
def _open_gguf(path: str, missing: str) -> Iterator[BinaryIO]:
    """Raises `UnreadableGguf`, also for what happens while it is read. `missing`: what to say when it is not there."""
    try:
        with open(path, "rb", buffering=_BUFFER_BYTES) as file:
            yield file
    except FileNotFoundError as error:
        if os.path.islink(path):
            missing = f"it is a link to {os.path.realpath(path)}, where there is nothing"
        raise UnreadableGguf(missing or f"it cannot be read: {error.strerror}", truncated=True) from error
    except OSError as error:
        raise UnreadableGguf(f"it cannot be read: {error.strerror}", closed=True) from error

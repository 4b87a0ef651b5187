"""Files that clients have sent (Ollama's `/api/blobs`), kept until a model is made of them."""

import asyncio
import contextlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.errors import Unavailable

DIGEST: Final = re.compile(r"sha256[:-]([0-9a-f]{64})")
TICKET_S: Final = 3600.0
"""How long a supervisor may take to begin fetching a blob."""
KEPT_S: Final = 7 * 86400.0
"""A blob that no model was made of is deleted after this long, when the next one comes."""
PART_KEPT_S: Final = 86400.0
"""What a gateway that was killed had of one."""
CHUNK_BYTES: Final = 2**20
_MAGIC: Final = b"GGUF"


class Blobs:
    """One folder of files named by their SHA-256."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tickets: dict[str, tuple[str, float]] = {}
        """Secret -> (hex digest, when it ends)."""

    def hex_of(self, digest: str) -> str:
        """Of `sha256:<hex>`. Raises `BadRequest` for what is no digest."""
        found = DIGEST.fullmatch(digest)
        if found is None:
            raise BadRequest(f"invalid digest format: {digest[:100]!r} is not `sha256:` and 64 hexadecimal digits")
        return found[1]

    def find(self, digest: str) -> Path | None:
        """The file of `sha256:<hex>`. Raises `BadRequest` for what is no digest."""
        path = self._folder / self.hex_of(digest)
        return path if path.is_file() else None

    def is_gguf(self, digest: str) -> bool:
        """Whether it looks like a model at first sight; its supervisor reads the rest."""
        with (self._folder / self.hex_of(digest)).open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC

    async def store(self, digest: str, body: AsyncIterator[bytes], *, known: bool = False) -> bool:
        """Keep a file as it comes; `False` when it was there, or is `known` elsewhere.

        Raises `BadRequest` when it is another file, `Unavailable` when it cannot be kept.
        """
        wanted = self.hex_of(digest)
        if known or self.find(digest) is not None:
            async for _ in body:
                pass
            return False
        part = self._folder / f"{wanted}.{secrets.token_hex(4)}.part"
        try:
            await asyncio.to_thread(self._prepare)
            with part.open("wb") as file:
                found = await _write(file, body)
            if found != wanted:
                raise BadRequest(f"digest mismatch, expected {digest!r}, got 'sha256:{found}'")
            part.replace(self._folder / wanted)
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise  # it is the client that has left
            reason = (error.strerror or str(error)).lower()
            raise Unavailable(f"the file cannot be kept on the gateway's disk: {reason}") from error
        finally:
            part.unlink(missing_ok=True)
        return True

    def ticket(self, digest: str) -> str:
        """A secret with which the blob may be fetched by a supervisor."""
        secret = secrets.token_urlsafe(24)
        self._tickets[secret] = (self.hex_of(digest), time.monotonic() + TICKET_S)
        return secret

    def withdraw(self, ticket: str) -> None:
        """Whoever has it may begin nothing more with it."""
        self._tickets.pop(ticket, None)

    def admit(self, digest: str, secret: str) -> Path:
        """The file for the holder of a ticket. Raises `BadRequest` (404) otherwise."""
        wanted, until = self._tickets.get(secret, ("", 0.0))
        path = self.find(digest)
        if path is None or wanted != self.hex_of(digest) or time.monotonic() > until:
            raise BadRequest("there is no such blob for you", status=404)
        return path

    def discard(self, digest: str) -> None:
        """A model was made of it."""
        (self._folder / self.hex_of(digest)).unlink(missing_ok=True)

    def _prepare(self) -> None:
        """Make the folder, or delete from it what nobody has used for long."""
        self._folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        for path in self._folder.iterdir():
            kept_s = PART_KEPT_S if path.suffix == ".part" else KEPT_S
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - kept_s:
                    path.unlink()


async def read_file(path: Path) -> AsyncIterator[bytes]:
    """A file piece by piece."""
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield piece


async def _write(file: BinaryIO, body: AsyncIterator[bytes]) -> str:
    """The hexadecimal SHA-256 of what was written, once it is on the disk."""
    hashed = sha256()

    def take(pieces: list[bytes]) -> None:
        for piece in pieces:
            hashed.update(piece)
            file.write(piece)

    pieces: list[bytes] = []
    size = 0
    async for piece in body:
        pieces.append(piece)
        size += len(piece)
        if size >= CHUNK_BYTES:
            await asyncio.to_thread(take, pieces)
            pieces, size = [], 0
    await asyncio.to_thread(take, pieces)
    file.flush()
    await asyncio.to_thread(os.fsync, file.fileno())
    return hashed.hexdigest()

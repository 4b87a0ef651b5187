"""Files that clients have sent (Ollama's `/api/blobs`), kept until a model is made of them."""

import asyncio
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Final

from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.errors import Unavailable

DIGEST: Final = re.compile(r"sha256[:-]([0-9a-f]{64})")
TICKET_S: Final = 3600.0
"""How long a supervisor may take to begin fetching a blob."""
KEPT_S: Final = 7 * 86400.0
"""A blob that no model was made of is deleted after this long."""
CHUNK_BYTES: Final = 2**20


class Blobs:
    """One folder of files named by their SHA-256."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tickets: dict[str, tuple[str, float]] = {}
        """Secret -> (hex digest, when it ends)."""

    def find(self, digest: str) -> Path | None:
        """The file of `sha256:<hex>`. Raises `BadRequest` for what is no digest."""
        path = self._folder / _hex(digest)
        return path if path.is_file() else None

    async def store(self, digest: str, body: AsyncIterator[bytes]) -> bool:
        """Keep a file as it comes; `False` when it was there. Raises `BadRequest` when it is another file."""
        wanted = _hex(digest)
        if self.find(digest) is not None:
            async for _ in body:
                pass
            return False
        part = self._folder / f"{wanted}.{secrets.token_hex(4)}.part"
        hashed = sha256()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.sweep()
            with part.open("wb") as file:
                async for piece in body:
                    hashed.update(piece)
                    await asyncio.to_thread(file.write, piece)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            if hashed.hexdigest() != wanted:
                raise BadRequest(f"digest mismatch, expected {digest!r}, got 'sha256:{hashed.hexdigest()}'")
            part.replace(self._folder / wanted)
        except OSError as error:
            raise Unavailable(f"the file cannot be kept in {self._folder}: {error.strerror or error}") from error
        finally:
            part.unlink(missing_ok=True)
        return True

    def ticket(self, digest: str) -> str:
        """A secret with which the blob may be fetched by a supervisor."""
        secret = secrets.token_urlsafe(24)
        self._tickets[secret] = (_hex(digest), time.monotonic() + TICKET_S)
        return secret

    def admit(self, digest: str, secret: str) -> Path:
        """The file for the holder of a ticket. Raises `BadRequest` (404) otherwise."""
        wanted, until = self._tickets.get(secret, ("", 0.0))
        path = self.find(digest)
        if path is None or wanted != _hex(digest) or time.monotonic() > until:
            raise BadRequest("there is no such blob for you", status=404)
        return path

    def discard(self, digest: str) -> None:
        """A model was made of it."""
        (self._folder / _hex(digest)).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete what nobody has used for long."""
        oldest = time.time() - KEPT_S
        for path in self._folder.iterdir():
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)


async def read_file(path: Path) -> AsyncIterator[bytes]:
    """A file piece by piece."""
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield piece


def _hex(digest: str) -> str:
    found = DIGEST.fullmatch(digest)
    if found is None:
        raise BadRequest(f"invalid digest format: {digest[:100]!r} is not `sha256:` and 64 hexadecimal digits")
    return found[1]

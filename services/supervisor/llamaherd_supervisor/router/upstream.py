"""What is asked of a router over HTTP, and the events it sends. One connection per question, as to any llama-server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import quote

import msgspec

from llamaherd_shared.errors import Rejected, Unavailable

_ANSWER_S: Final = 10.0
"""For everything but a load, which waits for its turn."""
_MAX_BYTES: Final = 32 * 2**20
_LINE_BYTES: Final = 4 * 2**20


class RouterLost(Unavailable):
    """It does not answer; whoever supervises it knows more."""


class RouterRefused(Rejected):
    """It does not do what it was asked for."""


class RouterUpstream:
    """One router. Every question raises `RouterLost` or `RouterRefused`."""

    def __init__(self, host: str, port: int, api_key: str) -> None:
        self._host, self._port, self._api_key = host, port, api_key

    async def listing(self) -> bytes:
        """The body of `GET /models`."""
        return await self._ask("GET", "/models")

    async def read_preset(self) -> None:
        """Make it read its preset again. A model that runs and is told something else there is ended."""
        await self._ask("GET", "/models?reload=1")

    async def load(self, model: str) -> None:
        """Return when the model is loaded. Waits its turn while all that are loaded are at work.

        Not `POST /models/load`: that is refused instead of waiting, and `/props` goes through the router's queue.
        """
        await self._ask("GET", f"/props?model={quote(model, safe='')}&autoload=true", within_s=None)

    async def unload(self, model: str) -> None:
        """Returns when the router has told the process to end; one that is not loaded yet is killed."""
        await self._ask("POST", "/models/unload", {"model": model})

    async def events(self) -> AsyncIterator[bytes]:
        """The JSON of each event from now on; the first item is the listing. Ends with the connection."""
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=_LINE_BYTES)
        except OSError as error:
            raise self._lost(error) from error
        try:
            writer.write(self._head("GET", "/models/sse", 0))
            async with asyncio.timeout(_ANSWER_S):
                await reader.readuntil(b"\r\n\r\n")
            yield await self.listing()
            # Each event is one chunk, so its line is never broken by the framing.
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    yield line[6:].strip()
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise self._lost(error) from error
        finally:
            writer.close()

    async def _ask(self, method: str, path: str, content: Any = None, *, within_s: float | None = _ANSWER_S) -> bytes:
        """The body of a good answer."""
        body = b"" if content is None else msgspec.json.encode(content)
        try:
            async with asyncio.timeout(within_s):
                answer = await self._exchange(self._head(method, path, len(body)) + body)
            head, _, said = answer.partition(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
        except (OSError, ValueError, IndexError, TimeoutError) as error:
            raise self._lost(error) from error
        if status != 200:
            raise RouterRefused(_reason(said) or f"the router answered {status}")
        return said

    async def _exchange(self, request: bytes) -> bytes:
        """All that is answered until the connection ends."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            answer = bytearray()
            while data := await reader.read(65536):
                answer += data
                if len(answer) > _MAX_BYTES:
                    raise ValueError(f"more than {_MAX_BYTES} bytes")
            return bytes(answer)
        finally:
            writer.close()

    def _head(self, method: str, path: str, length: int) -> bytes:
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nAuthorization: Bearer {self._api_key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        ).encode()

    def _lost(self, error: Exception) -> RouterLost:
        return RouterLost(
            f"the router at {self._host}:{self._port} cannot be asked: {str(error) or 'no answer in time'}"
        )


def _reason(body: bytes) -> str:
    """`{"error": {"message": ...}}`"""
    with contextlib.suppress(msgspec.MsgspecError, KeyError, TypeError):
        return str(msgspec.json.decode(body)["error"]["message"])
    return ""

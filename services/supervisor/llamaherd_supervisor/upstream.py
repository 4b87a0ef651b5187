"""What a supervisor asks a llama-server over HTTP: whether it is well, how big it is, who is at work.

One short-lived connection per question: llama-server closes connections it announced as kept (performance.md),
and an idle one would keep one of its few HTTP threads.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from llamaherd_shared.model_options import ModelOptions
from llamaherd_supervisor.work import Use

_MAX_HEAD_BYTES: Final = 2**16
_MAX_ANSWER_BYTES: Final = 8 * 2**20
"""`GET /slots` carries the prompts of busy slots in some versions."""


class _Settings(msgspec.Struct, frozen=True):
    n_ctx: int = 0


class Props(msgspec.Struct, frozen=True):
    """`GET /props`."""

    total_slots: int = 1
    default_generation_settings: _Settings = msgspec.field(default_factory=_Settings)


class _Slot(msgspec.Struct):
    is_processing: bool = False
    id_task: int = -1
    n_prompt_tokens: int | None = None
    """Of the prompt so far, and of the answer."""


_PROPS: Final = msgspec.json.Decoder(Props)
_SLOTS: Final = msgspec.json.Decoder(list[_Slot])


class Upstream:
    """One llama-server. Every question returns `None` when there is no proper answer in time; none raises."""

    def __init__(self, host: str, port: int, api_key: str) -> None:
        self._host, self._port, self._api_key = host, port, api_key

    async def probe_health(self, *, timeout_s: float) -> int | None:
        """The status of `GET /health`: 503 while the model loads, 200 when it accepts work."""
        answer = await self._get("/health", timeout_s)
        return answer[0] if answer else None

    async def probe_props(self, *, timeout_s: float) -> Props | None:
        """Slots and context, from `GET /props`."""
        props: Props | None = await self._decoded("/props", _PROPS, timeout_s)
        return props

    async def probe_use(self, *, timeout_s: float) -> Use | None:
        """Whether it works, and whether it has since the last look, from `GET /slots`."""
        slots: list[_Slot] | None = await self._decoded("/slots", _SLOTS, timeout_s)
        if slots is None:
            return None
        counts = [slot.n_prompt_tokens for slot in slots if slot.n_prompt_tokens is not None]
        return Use(
            sum(slot.is_processing for slot in slots),
            tokens=sum(counts) if counts else None,
            newest=max((slot.id_task for slot in slots), default=-1),
        )

    async def _decoded(self, path: str, decoder: msgspec.json.Decoder[Any], timeout_s: float) -> Any:
        answer = await self._get(path, timeout_s)
        if answer is None or answer[0] != 200:
            return None
        try:
            return decoder.decode(answer[1])
        except msgspec.MsgspecError:
            return None

    async def _get(self, path: str, timeout_s: float) -> tuple[int, bytes] | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(path)
        except (OSError, TimeoutError, ValueError):
            return None

    async def _exchange(self, path: str) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Authorization: Bearer {self._api_key}\r\nConnection: close\r\n\r\n".encode()
        )
        question = _Question(request, loop.create_future())
        try:
            transport, _ = await loop.create_connection(lambda: question, self._host, self._port)
            try:
                return await question.answered
            finally:
                transport.abort()
        finally:
            # Nobody asks any more how it ends.
            question.answered.cancel()


class _Question(asyncio.Protocol):
    """A request on a connection of its own. Without asyncio's streams, as there are many probes a second."""

    def __init__(self, request: bytes, answered: "asyncio.Future[tuple[int, bytes]]") -> None:
        """`answered`: with status and body, or with `OSError` or `ValueError`."""
        self._request, self.answered = request, answered
        self._data = bytearray()
        self._head_size = self._size = 0
        """Of the answer's head, and of all of it; 0 until the head is here."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self.answered.done():
            return
        try:
            self._take()
        except (ValueError, IndexError):
            self.answered.set_exception(ValueError("this is no HTTP"))

    def _take(self) -> None:
        if not self._size and (b"\r\n\r\n" in self._data or len(self._data) > _MAX_HEAD_BYTES):
            self._head_size = self._data.index(b"\r\n\r\n") + 4
            _, _, length = self._data[: self._head_size].lower().partition(b"\r\ncontent-length:")
            self._size = self._head_size + int(length.partition(b"\r\n")[0] or 0)
            if self._size > _MAX_ANSWER_BYTES:
                raise ValueError(self._size)
        if self._size and len(self._data) >= self._size:
            status = int(self._data.split(b" ", 2)[1])
            self.answered.set_result((status, bytes(self._data[self._head_size : self._size])))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(error or ConnectionError("the connection ended before the answer did"))


class OtherServer(Upstream):
    """A server that is not llama-server: it tells whether it is well, and nothing about slots."""

    def __init__(
        self, host: str, port: int, api_key: str, *, health_path: str, said: Props, clients: Callable[[], int]
    ) -> None:
        """`said`: what its entry says of it; `clients`: how many are connected."""
        super().__init__(host, port, api_key)
        self._health_path, self._said, self._clients = health_path, said, clients

    async def probe_health(self, *, timeout_s: float) -> int | None:
        answer = await self._get(self._health_path, timeout_s)
        return answer[0] if answer else None

    async def probe_props(self, *, timeout_s: float) -> Props | None:
        return self._said

    async def probe_use(self, *, timeout_s: float) -> Use | None:
        """A gateway that has no request there any more closes its connections when it hears of the draining."""
        return Use(await asyncio.to_thread(self._clients))


def props_of(options: ModelOptions) -> Props:
    """Slots and context as an entry tells them; one slot when it does not."""
    return Props(options.slots or 1, _Settings(options.context_tokens or 0))

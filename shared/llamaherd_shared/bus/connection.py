"""One service's connection to the bus."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError
from nats.js.errors import Error as JetStreamError

from llamaherd_shared.bus import layout, reader, requests, wire
from llamaherd_shared.bus.publisher import EXPECTED_SUBJECT_SEQUENCE, MESSAGE_ID, Publisher, WrongSequence
from llamaherd_shared.bus.recorded import Recorded
from llamaherd_shared.bus.requests import TRACEPARENT
from llamaherd_shared.errors import HerdError, Unavailable
from llamaherd_shared.events import Event, encode_event
from llamaherd_shared.log import structlog
from llamaherd_shared.streams import EVENTS, PRESENCE, STREAMS, Stream, stream_name
from llamaherd_shared.subjects import Subjects
from llamaherd_shared.trace import traceparent

R = TypeVar("R", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)

RECONNECT_WAIT_S: Final = 0.2
DRAIN_S: Final = 5.0
TIME_TO_LIVE: Final = "Nats-TTL"
"""Header; seconds."""
_log = structlog.get_logger("llamaherd.bus")


class BusClosed(HerdError):
    """The connection is closed for good: the service ends and is started again."""

    kind = "unavailable"


class StreamHead(msgspec.Struct, frozen=True):
    """Identity and extent of a stream."""

    stream: str
    created: str
    """ISO 8601; differs when the stream was made anew."""
    first: int
    last: int
    """Sequences held; `first` is `last + 1` when it is empty."""


class Watch:
    """A plain subscription: what is said while it is open, nothing from before."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def close(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._subscription.unsubscribe()


class _Link:
    """What nats-py reports about the connection."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.troubles = 0
        self.publisher: Publisher | None = None
        self.closing = False

    async def on_error(self, error: Exception) -> None:
        self.troubles += 1
        if "permissions violation" in str(error).lower():
            _log.error("the bus refuses this service a subject: its nkey lacks the permission", error=str(error))
        elif not isinstance(error, (nats.errors.UnexpectedEOF, ConnectionError, nats.errors.NoServersError)):
            _log.debug("bus", error=repr(error))

    async def on_disconnect(self) -> None:
        if not self.closing:
            _log.warning("the bus is away; reconnecting")

    async def on_reconnect(self) -> None:
        _log.info("the bus is back")
        if self.publisher is not None:
            self.publisher.resend_soon()

    async def on_close(self) -> None:
        self.closed.set()


class Bus:
    """Append, offer, read, ask and answer. One per process."""

    def __init__(self, nc: Client, subjects: Subjects, link: _Link) -> None:
        self._nc = nc
        self._js: JetStreamContext = nc.jetstream(timeout=5)
        self._link = link
        self._publisher = link.publisher = Publisher(nc)
        self.subjects = subjects

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        service: str,
        subjects: Subjects | None = None,
        seed_file: Path | None = None,
        timeout_s: float | None = None,
    ) -> "Bus":
        """Connect and reconnect for ever. With `timeout_s`, raises `Unavailable` when no server answers by then."""
        nc, link = Client(), _Link()
        options: dict[str, Any] = {}
        if seed_file is not None:
            options["nkeys_seed_str"] = _read_seed(seed_file)
        connecting = nc.connect(
            url,
            name=f"llamaherd-{service}",
            inbox_prefix=inbox_prefix(service),
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # it sleeps for it: a float works
            connect_timeout=2,
            error_cb=link.on_error,
            disconnected_cb=link.on_disconnect,
            reconnected_cb=link.on_reconnect,
            closed_cb=link.on_close,
            **options,
        )
        try:
            await asyncio.wait_for(connecting, timeout_s)
        except TimeoutError as error:
            raise Unavailable(f"no nats-server answers at {url}: is it running? (`nats_url`)") from error
        except nats.errors.Error as error:
            raise Unavailable(f"nats-server at {url} refuses the connection: {error}") from error
        bus = cls(nc, subjects or Subjects(), link)
        await bus._publisher.start()
        return bus

    @property
    def closed(self) -> asyncio.Event:
        """Set when the connection is closed for good, asked for or not."""
        return self._link.closed

    @property
    def troubles(self) -> int:
        """Errors the connection has reported, permission violations among them."""
        return self._link.troubles

    @property
    def connected(self) -> bool:
        return self._nc.is_connected

    @property
    def dropped(self) -> int:
        """Offered messages that found the spool full."""
        return self._publisher.dropped

    @property
    def max_message_bytes(self) -> int:
        """Largest message that nats-server takes, headers included."""
        return self._nc.max_payload

    @property
    def waiting(self) -> int:
        """Messages taken and not yet known to be stored: grows while more is offered than nats-server can store."""
        return self._publisher.waiting

    def stream(self, name: str) -> str:
        """The real name of a stream under this bus's prefix."""
        return stream_name(name, self.subjects.prefix)

    async def ensure_streams(self, streams: Sequence[Stream] = STREAMS) -> None:
        """Create or update the streams; waits for a server that has just started."""
        deadline = time.monotonic() + 10
        while True:
            try:
                changed = await layout.ensure_streams(self._js, streams, self.subjects.prefix)
            except (nats.errors.Error, JetStreamError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise Unavailable(f"cannot create the streams on nats-server: {error}") from error
                await asyncio.sleep(RECONNECT_WAIT_S)
            else:
                if changed:
                    _log.info("streams created or updated", streams=",".join(changed))
                return

    async def append(self, subject: str, event: Event, *, msg_id: str, expected: int | None = None) -> int:
        """Store one fact and return its sequence. Waits while the bus is away.

        With `expected`, only if that is the subject's last sequence (0: it has none yet); else raises `Conflict`.
        """
        headers = message_headers(msg_id)
        if expected is not None:
            headers[EXPECTED_SUBJECT_SEQUENCE] = str(expected)
        try:
            return await self._store(subject, encode_event(event), headers)
        except WrongSequence:
            # A copy sent again finds its own first copy: that is no conflict.
            last = await self._last(EVENTS, subject)
            if last is not None and (last.headers or {}).get(MESSAGE_ID) == msg_id:
                return last.sequence
            raise

    async def publish(self, subject: str, payload: bytes, *, msg_id: str, ttl_s: int | None = None) -> int:
        """Store one message and return its sequence. Waits while the bus is away.

        `ttl_s`: after so many seconds it is gone, in a stream where messages may say so.
        """
        ttl = {} if ttl_s is None else {TIME_TO_LIVE: str(ttl_s)}
        return await self._store(subject, payload, {**message_headers(msg_id), **ttl})

    def offer(self, subject: str, payload: bytes, *, msg_id: str, headers: dict[str, str] | None = None) -> bool:
        """Queue one message without waiting; `False` when it was dropped because the bus has been away too long."""
        return self._publisher.offer(subject, payload, {**message_headers(msg_id), **(headers or {})}) is not None

    def read(self, stream: str, *, after: int) -> AsyncGenerator[list[Recorded], None]:
        """Batches of everything behind `after`, for ever; an empty one after a restart (`reader.read_stream`)."""
        return reader.read_stream(self._nc, self._js, self.stream(stream), after=after)

    async def stream_head(self, stream: str) -> StreamHead:
        """Raises `Unavailable` while the stream or the bus is not there."""
        try:
            state = await self._js.stream_info(self.stream(stream))
        except (nats.errors.Error, JetStreamError, TimeoutError) as error:
            wire.heed_cancellation()
            raise Unavailable(f"stream {stream} cannot be asked: {error}") from error
        wire.heed_cancellation()
        created = state.created.isoformat() if state.created else ""
        return StreamHead(stream, created, state.state.first_seq, state.state.last_seq)

    async def stored_at(self, stream: str, sequence: int) -> int | None:
        """When the message at `sequence` was stored, Unix nanoseconds; `None` when it is not there."""
        try:
            found = await self._js.get_msg(self.stream(stream), seq=sequence, direct=True)
        except NotFoundError:
            return None
        stamp = (found.headers or {}).get("Nats-Time-Stamp") or (found.time.isoformat() if found.time else "")
        return _parse_stamp(str(stamp))

    async def last_sequence(self, subject: str, *, stream: str = EVENTS) -> int:
        """Sequence of the newest message of one subject; 0 when it has none."""
        last = await self._last(stream, subject)
        return last.sequence if last is not None else 0

    async def newest(self, stream: str, subject: str, *, timeout_s: float) -> Recorded | None:
        """The newest message of one subject; `None` when it has none. Raises `Unavailable` when nobody can tell."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._last(stream, subject)
        except TimeoutError as error:
            raise Unavailable(f"stream {stream} did not answer within {timeout_s:g} s", retry_after_s=2) from error

    async def delete(self, stream: str, sequence: int) -> None:
        """Delete one message of a stream that allows it, if it is there still. Raises `Unavailable`."""
        try:
            await self._js.delete_msg(self.stream(stream), sequence)
        except APIError as error:
            # Whether it was there is told by the description alone: every failure to delete has the code 10057.
            if "no message found" not in (error.description or ""):
                raise Unavailable(f"a message of stream {stream} cannot be deleted: {error}") from error
        except (nats.errors.Error, JetStreamError, TimeoutError) as error:
            wire.heed_cancellation()
            raise Unavailable(f"stream {stream} cannot be asked: {error}", retry_after_s=2) from error

    async def serve(
        self,
        subject: str,
        request_type: type[R],
        handler: Callable[[R], Awaitable[msgspec.Struct]],
        *,
        concurrency: int = 16,
        queue: str = "herd",
    ) -> requests.Served:
        """Answer requests until drained (`requests.serve`)."""
        return await requests.serve(self._nc, subject, request_type, handler, concurrency=concurrency, queue=queue)

    async def request(self, subject: str, command: msgspec.Struct, reply_type: type[A], *, timeout_s: float = 5.0) -> A:
        """Ask (`requests.request`)."""
        return await requests.request(self._nc, subject, command, reply_type, timeout_s=timeout_s)

    async def watch(self, subject: str, seen: Callable[[Recorded], None]) -> Watch:
        """Call `seen` for every message published on `subject` from now on."""

        async def on_message(msg: Msg) -> None:
            headers = msg.headers or {}
            stream, sequence = headers.get("Nats-Stream", ""), int(headers.get("Nats-Sequence", 0))
            at_ns = _parse_stamp(headers.get("Nats-Time-Stamp", "")) or 0
            seen(Recorded(stream, sequence, at_ns, msg.subject, msg.data, 0, msg.headers))

        watch = Watch(await self._nc.subscribe(subject, cb=on_message))
        await wire.barrier(self._nc)
        return watch

    async def say(self, subject: str, payload: bytes) -> None:
        """Tell whoever watches now. Kept nowhere; lost while the bus is away."""
        if self._nc.is_connected:
            with contextlib.suppress(nats.errors.Error):
                await wire.publish(self._nc, subject, payload)

    async def beat(self, subject: str, payload: bytes, ttl_s: int) -> None:
        """Say that we are alive; forgotten after `ttl_s`. A beat that is lost is not repeated."""
        for _attempt in range(2):
            try:
                await self._js.publish(subject, payload, timeout=2, stream=self.stream(PRESENCE), msg_ttl=ttl_s)
            except NoStreamResponseError:
                # Presence lives in memory: a nats-server that was restarted has forgotten the stream itself.
                with contextlib.suppress(Unavailable):
                    await self.ensure_streams()
            except (nats.errors.Error, JetStreamError, TimeoutError):
                return
            else:
                return
            finally:
                wire.heed_cancellation()

    async def withdraw(self, subject: str) -> None:
        """Take back the last beat: say at once that we are gone."""
        with contextlib.suppress(nats.errors.Error, JetStreamError, TimeoutError):
            await self._js.publish(subject, b"", timeout=1, stream=self.stream(PRESENCE), msg_ttl=1)

    async def close(self) -> None:
        """Send what is still queued, then close."""
        self._link.closing = True
        if self._nc.is_connected:
            await self._publisher.drain(DRAIN_S)
        await self._publisher.close()
        # uvloop raises RuntimeError when nats-py flushes into a socket that nats-server has just closed.
        with contextlib.suppress(nats.errors.Error, OSError, RuntimeError):
            await self._nc.close()

    async def _store(self, subject: str, payload: bytes, headers: dict[str, str]) -> int:
        future = self._publisher.offer(subject, payload, headers)
        if future is None:
            raise Unavailable("the bus has been away for so long that nothing more can be queued")
        return await future

    async def _last(self, stream: str, subject: str) -> Recorded | None:
        """The newest message of a subject. Waits while the bus is away."""
        while True:
            try:
                found = await self._js.get_last_msg(self.stream(stream), subject, direct=True)
            except NotFoundError:
                return None
            except (nats.errors.Error, JetStreamError, TimeoutError) as error:
                if self._nc.is_closed:
                    raise BusClosed("the connection to the bus is closed") from error
                wire.heed_cancellation()
                await asyncio.sleep(RECONNECT_WAIT_S)
            else:
                headers = found.headers or {}
                at_ns = _parse_stamp(headers.get("Nats-Time-Stamp", "")) or 0
                return Recorded(stream, int(found.seq or 0), at_ns, subject, found.data or b"", headers=headers)


def message_headers(msg_id: str) -> dict[str, str]:
    """The id by which nats-server knows a copy, and the trace the running task works for, if any."""
    trace = traceparent.get()
    return {MESSAGE_ID: msg_id} if trace is None else {MESSAGE_ID: msg_id, TRACEPARENT: trace}


def inbox_prefix(service: str) -> str:
    """Each service has its own inbox, so that its nkey can be limited to it."""
    return f"_INBOX_{service}"


def _read_seed(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise Unavailable(f"cannot read the nkey seed {path}: {error.strerror} (`nats_seed_file`)") from error


def _parse_stamp(stamp: str) -> int | None:
    """Unix nanoseconds of an RFC 3339 stamp with up to nine decimals, as nats-server writes it."""
    if not stamp:
        return None
    whole, _, rest = stamp.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole[:19]).replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000_000 + int(rest[:9].ljust(9, "0") or 0)

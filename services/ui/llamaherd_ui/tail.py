"""The newest messages of every topic in memory, and the live streams that are fed from them.

A stream has no queue: it holds the position it has reached and takes the next page from the ring of its topic,
or, when it is further behind than the ring, from the projection (facts, requests) or from `HERD_LOGS` (lines).
So a slow client costs no memory, and a client that comes back is only a client that is behind.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from llamaherd_shared.bus import Bus, Recorded
from llamaherd_shared.errors import HerdError, Unavailable
from llamaherd_shared.events.line import decode_lines
from llamaherd_shared.events.presence import TTL_S, Presence
from llamaherd_shared.events.request import requests_of
from llamaherd_shared.events.sample import decode_sample
from llamaherd_shared.projection import Applied, Projection
from llamaherd_shared.streams import EVENTS, LOGS, PRESENCE, REQUESTS
from llamaherd_ui.resume import Position, first_id, last_id, render_comment, render_message, sequence_of
from llamaherd_ui.store import Row, count_requests_after, query, select_facts, select_gaps, select_requests_after
from llamaherd_ui.views import Request, Service, number_lines, render_request, render_service

PAGE: Final = 200
"""Messages of one topic in one write: no topic starves another."""
PASSING_BYTES: Final = 256 * 1024
REPLAY_LINES: Final = 5000
"""Lines in one page from the stream: each page costs a consumer."""
REPLAY_PACKS: Final = 1000
"""Missed packs of lines that are sent again; who missed more gets a gap and searches the history instead."""
REPLAY_TIMEOUT_S: Final = 5.0
"""How long missed lines may take to come from the stream."""
RECENT_REQUESTS: Final = 2000
"""Of one batch, at most so many are rendered for the ring; a flood has 100,000 in a batch, and the ring no room."""

_ENCODER: Final = msgspec.json.Encoder()
_PRESENCE_DECODER: Final = msgspec.json.Decoder(Presence)


class Message(msgspec.Struct, frozen=True):
    """One message of a topic, ready to be sent to anybody."""

    key: int
    """Grows within the topic: a sequence, or the id of a request or line."""
    name: str
    data: bytes


class Ring:
    """The newest messages of one topic, in the order of their keys, bounded in bytes."""

    def __init__(self, max_bytes: int, *, floor: int = 0) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._messages: deque[Message] = deque()
        self.floor = floor
        """Everything up to here has to be looked for elsewhere."""
        self.last = floor
        """Key of the newest message there was."""

    def push(self, message: Message) -> None:
        self._messages.append(message)
        self.last = message.key
        self._bytes += len(message.data)
        while self._bytes > self._max_bytes:
            oldest = self._messages.popleft()
            self._bytes -= len(oldest.data)
            self.floor = oldest.key

    def restart(self, floor: int) -> None:
        """Forget all; what comes next follows `floor`."""
        self._messages.clear()
        self._bytes = 0
        self.floor = self.last = floor

    def after(self, key: int, limit: int) -> list[Message] | None:
        """The next messages behind `key`; `None` when some of them are no longer here."""
        if key < self.floor:
            return None
        found = []
        for message in reversed(self._messages):
            if message.key <= key:
                break
            found.append(message)
        return found[: -limit - 1 : -1]


class Tail:
    """What happens in the herd now, for every open stream."""

    def __init__(self, bus: Bus, *, facts: Projection, requests: Projection, replay_limit: int, ring_bytes: int):
        self._bus, self._projections = bus, {EVENTS: facts, REQUESTS: requests}
        self.replay_limit = replay_limit
        self.facts, self.requests, self.lines = Ring(ring_bytes), Ring(ring_bytes), Ring(ring_bytes)
        # What is missed of these is not sent again: they hold a few moments for clients that are not the fastest.
        self.samples, self.beats = Ring(PASSING_BYTES), Ring(PASSING_BYTES)
        self.stream_id = ""
        self.epoch = 0
        """Counts the times at which every client had to start anew."""
        self.settled: Callable[[], bool] = lambda: True
        """Whether the projections have caught up: only then is a position from the future a mistake."""
        self.closing = False
        self.services: dict[tuple[str, str], Service] = {}
        self._heard_s: dict[tuple[str, str], float] = {}
        self._wakes: set[asyncio.Event] = set()
        self._reading: set[asyncio.Task[list[Message]]] = set()

    @property
    def streams_open(self) -> int:
        return len(self._wakes)

    @property
    def position(self) -> Position:
        """Where everything stands now."""
        return Position(self.stream_id, self.facts.last, self.requests.last, self.lines.last)

    def open(self, wake: asyncio.Event) -> None:
        self._wakes.add(wake)

    def leave(self, wake: asyncio.Event) -> None:
        self._wakes.discard(wake)

    def close(self) -> None:
        """Every stream says `restarting` and ends."""
        self.closing = True
        self._wake_all()

    def restart(self) -> None:
        """The streams are others than before: every client has to reload."""
        self.epoch += 1
        self._wake_all()

    def _wake_all(self) -> None:
        for wake in self._wakes:
            wake.set()

    # What comes in.

    def on_facts(self, applied: Applied) -> None:
        """Take facts that have been committed."""
        for recorded, _ in applied:
            if recorded.sequence != self.facts.last + 1:
                # Something is missing here: the projection knows whether it is a gap.
                self.facts.restart(recorded.sequence - 1)
            self.facts.push(_fact_message(_row(recorded)))
        self._wake_all()

    def on_requests(self, applied: Applied) -> None:
        """Take requests that have been committed."""
        for recorded, event in _newest(applied, RECENT_REQUESTS):
            if recorded.sequence != sequence_of(self.requests.last) + 1:
                # Missing here, as above, or left out: the projection has it.
                self.requests.restart(last_id(recorded.sequence - 1))
            for place, finished in enumerate(requests_of(event)):
                self.requests.push(_request_message(render_request(first_id(recorded.sequence) + place, finished)))
            self.requests.last = last_id(recorded.sequence)
        self._wake_all()

    def restart_lines(self, after: int) -> None:
        """Lines are known to begin behind this sequence."""
        self.lines.restart(last_id(after))

    async def follow_lines(self, after: int) -> None:
        """Take every pack of lines behind this sequence, for ever."""
        async for batch in self._bus.read(LOGS, after=after):
            for recorded in batch:
                if recorded.sequence != sequence_of(self.lines.last) + 1:
                    self.lines.restart(last_id(recorded.sequence - 1))
                for message in _line_messages(recorded):
                    self.lines.push(message)
                self.lines.last = max(self.lines.last, last_id(recorded.sequence))
            self._wake_all()

    def on_sample(self, recorded: Recorded) -> None:
        try:
            sample = decode_sample(recorded.data)
        except msgspec.MsgspecError:
            return
        self.samples.push(Message(self.samples.last + 1, "sample", _ENCODER.encode(sample)))
        self._wake_all()

    def on_presence(self, recorded: Recorded) -> None:
        """Take a beat; an empty one says that the service has left."""
        node_service = recorded.subject.rsplit(".", 2)[1:]
        if not recorded.data:
            for key, service in list(self.services.items()):
                tokens = self._bus.subjects.presence(service.node, service.service).rsplit(".", 2)[1:]
                if tokens == node_service:
                    self._drop_service(key)
            return
        try:
            presence = _PRESENCE_DECODER.decode(recorded.data)
        except msgspec.MsgspecError:
            return
        key = (presence.node, presence.service)
        before = self.services.get(key)
        self.services[key] = after = render_service(presence, seen_ns=time.time_ns())
        self._heard_s[key] = time.monotonic()
        if before is None or msgspec.structs.replace(before, seen_ns=after.seen_ns) != after:
            self._push_service(after)

    def expire_services(self) -> None:
        """Forget services that have been silent for too long."""
        for key, heard_s in list(self._heard_s.items()):
            if time.monotonic() - heard_s > TTL_S:
                self._drop_service(key)

    def _drop_service(self, key: tuple[str, str]) -> None:
        gone = self.services.pop(key)
        del self._heard_s[key]
        self._push_service(msgspec.structs.replace(gone, ready=False, seen_ns=0))

    def _push_service(self, service: Service) -> None:
        self.beats.push(Message(self.beats.last + 1, "service", _ENCODER.encode(service)))
        self._wake_all()

    async def read_presence(self) -> None:
        """Learn who is alive already; whoever is missed here is heard within a beat."""
        head = await self._bus.stream_head(PRESENCE)
        if head.last < head.first:
            return
        try:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                async for batch in self._bus.read(PRESENCE, after=head.first - 1):
                    for recorded in batch:
                        self.on_presence(recorded)
                    if batch and (batch[-1].sequence >= head.last or batch[-1].pending == 0):
                        return
        except TimeoutError:
            return

    # What has been missed.

    async def replay(self, stream: str, *, after: int) -> list[Message]:
        """The next page of facts or requests behind `after` from the projection, gaps among them."""
        projection = self._projections[stream]
        if stream == EVENTS:
            rows = await query(projection, select_facts, after=after, limit=PAGE)
            messages = [_fact_message(row) for row in rows]
            gaps = await query(projection, select_gaps, stream=stream, after=after)
            shown = [_gap_message(stream, gap.first, gap.last) for gap in gaps]
        else:
            found = await query(projection, select_requests_after, after=after, limit=PAGE)
            messages = [_request_message(request) for request in found]
            gaps = await query(projection, select_gaps, stream=stream, after=sequence_of(after))
            shown = [_gap_message(stream, gap.first, gap.last, key=last_id(gap.last)) for gap in gaps]
        until = messages[-1].key if len(messages) == PAGE else None
        messages += [gap for gap in shown if until is None or gap.key < until]
        return sorted(messages, key=lambda message: message.key)

    async def is_far_behind(self, stream: str, *, after: int) -> bool:
        """Whether more has been missed behind `after` than is sent again."""
        if stream == EVENTS:
            return self.facts.last - after > self.replay_limit
        missed = await query(self._projections[stream], count_requests_after, after=after, limit=self.replay_limit + 1)
        return missed > self.replay_limit

    async def replay_lines(self, *, after: int) -> list[Message]:
        """The next page of lines behind the id `after` from the stream; empty when it does not answer.

        Runs as a task of its own: a client that leaves must not cut the reader short of its clean-up.
        """
        task = asyncio.create_task(self._read_lines(after, until=sequence_of(self.lines.floor)))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)
        return await asyncio.shield(task)

    async def _read_lines(self, after: int, *, until: int) -> list[Message]:
        sequence = sequence_of(after)
        found: list[Message] = []
        batches = self._bus.read(LOGS, after=max(0, sequence - 1))
        try:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                async for batch in batches:
                    for recorded in batch:
                        if len(found) >= REPLAY_LINES:
                            return found
                        if recorded.sequence > sequence + 1:
                            gone = recorded.sequence - 1
                            found.append(_gap_message(LOGS, sequence + 1, gone, key=last_id(gone)))
                        sequence = recorded.sequence
                        found.extend(message for message in _line_messages(recorded) if message.key > after)
                    if sequence >= until:
                        return found
        except (TimeoutError, HerdError):
            pass
        finally:
            await batches.aclose()
        return found


class Feed:
    """One client's live stream."""

    def __init__(self, tail: Tail, position: Position | None, topics: frozenset[str], *, comment_interval_s: float):
        self._tail, self._topics, self._comment_interval_s = tail, topics, comment_interval_s
        self._wake = asyncio.Event()
        now = tail.position
        self._must_reset = position is not None and (
            position.stream_id != now.stream_id or (tail.settled() and _is_beyond(position, now))
        )
        self._at = now if position is None or self._must_reset else position
        self._epoch = tail.epoch
        self._sample, self._beat = tail.samples.last, tail.beats.last

    async def messages(self) -> AsyncIterator[bytes]:
        """Everything there is to send, as it comes, until the ui stops.

        Nothing is awaited in `finally`: Litestar cancels the generator of a client that left (litestar #3772).
        """
        self._tail.open(self._wake)
        try:
            yield render_comment("llamaherd")
            while not self._tail.closing:
                self._wake.clear()
                if chunk := b"".join(await self._collect()):
                    yield chunk
                elif not await self._is_woken():
                    yield render_comment("still here")
            yield render_message("restarting", b"{}", position=self._at)
        finally:
            self._tail.leave(self._wake)

    async def _is_woken(self) -> bool:
        """`False` when nothing happened for so long that the client should hear that we live."""
        if self._tail.closing:
            return True
        try:
            async with asyncio.timeout(self._comment_interval_s):
                return await self._wake.wait()
        except TimeoutError:
            return False

    async def _collect(self) -> list[bytes]:
        """The next page of every topic."""
        if self._must_reset or self._epoch != self._tail.epoch:
            return [self._reset()]
        found: list[bytes] = []
        try:
            if "fleet" in self._topics:
                found += await self._take_stored(EVENTS, self._tail.facts, "events")
                found += self._take_beats()
            if "requests" in self._topics:
                found += await self._take_stored(REQUESTS, self._tail.requests, "requests")
        except (_Behind, Unavailable):
            return [*found, self._reset()]
        if "logs" in self._topics:
            found += await self._take_lines()
        if "metrics" in self._topics:
            found += self._take_samples()
        return found

    def _reset(self) -> bytes:
        """Tell the client to reload its snapshot, and go on from now."""
        self._must_reset, self._epoch = False, self._tail.epoch
        self._at = self._tail.position
        self._sample, self._beat = self._tail.samples.last, self._tail.beats.last
        return render_message("reset", b"{}", position=self._at)

    async def _take_stored(self, stream: str, ring: Ring, field: str) -> list[bytes]:
        after: int = getattr(self._at, field)
        fresh = ring.after(after, PAGE)
        if fresh is None:
            if await self._tail.is_far_behind(stream, after=after):
                raise _Behind
            fresh = await self._tail.replay(stream, after=after)
            if not fresh:
                # What lies between are types this version does not know.
                self._move(field, ring.floor)
                return self._next_page(ring, field)
        return [self._sent(message, field) for message in fresh]

    def _next_page(self, ring: Ring, field: str) -> list[bytes]:
        return [self._sent(message, field) for message in ring.after(getattr(self._at, field), PAGE) or []]

    async def _take_lines(self) -> list[bytes]:
        ring, after = self._tail.lines, self._at.line
        fresh = ring.after(after, PAGE)
        if fresh is None:
            floor = ring.floor
            behind = sequence_of(floor) - sequence_of(after)
            fresh = (
                []
                if behind > min(REPLAY_PACKS, self._tail.replay_limit)
                else await self._tail.replay_lines(after=after)
            )
            if not fresh:
                first = sequence_of(after) + 1
                fresh = [_gap_message(LOGS, first, sequence_of(floor), key=floor)]
        return [self._sent(message, "line") for message in fresh]

    def _take_samples(self) -> list[bytes]:
        """Samples that were missed stay missed: the history has them."""
        fresh = self._tail.samples.after(max(self._sample, self._tail.samples.floor), PAGE) or []
        self._sample = fresh[-1].key if fresh else self._sample
        return [render_message(message.name, message.data) for message in fresh]

    def _take_beats(self) -> list[bytes]:
        fresh = self._tail.beats.after(self._beat, PAGE)
        if fresh is None:
            raise _Behind
        self._beat = fresh[-1].key if fresh else self._beat
        return [render_message(message.name, message.data) for message in fresh]

    def _sent(self, message: Message, field: str) -> bytes:
        self._move(field, message.key)
        return render_message(message.name, message.data, position=self._at)

    def _move(self, field: str, key: int) -> None:
        self._at = msgspec.structs.replace(self._at, **{field: key})


class _Behind(Exception):
    """This client is too far behind to be sent everything it missed."""


def _is_beyond(position: Position, now: Position) -> bool:
    """Whether a position of this stream lies in the future: the store was rolled back."""
    return position.events > now.events or position.requests > now.requests or position.line > now.line


def _row(recorded: Recorded) -> Row:
    return Row(recorded.sequence, recorded.at_ns, recorded.subject, recorded.data)


def _fact_message(row: Row) -> Message:
    head = f'{{"sequence":{row.sequence},"subject":{_ENCODER.encode(row.subject).decode()},"event":'
    return Message(row.sequence, "fact", head.encode() + row.data + b"}")


def _request_message(request: Request) -> Message:
    return Message(request.id, "request", _ENCODER.encode(request))


def _newest(applied: Applied, count: int) -> Applied:
    """The last messages of a batch: as many as hold `count` requests together, at least one."""
    found = 0
    for place in range(len(applied) - 1, -1, -1):
        found += len(requests_of(applied[place][1]))
        if found >= count:
            return applied[place:]
    return applied


def _gap_message(stream: str, first: int, last: int, *, key: int | None = None) -> Message:
    return Message(
        last if key is None else key, "gap", _ENCODER.encode({"stream": stream, "first": first, "last": last})
    )


def _line_messages(recorded: Recorded) -> list[Message]:
    try:
        pack = decode_lines(recorded.data)
    except msgspec.MsgspecError:
        return []
    return [Message(line.id, "line", _ENCODER.encode(line)) for line in number_lines(recorded.sequence, pack)]

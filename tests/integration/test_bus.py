"""The bus against a real nats-server, killed where that matters."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
import uvloop

from harness.deadline import until
from harness.nats import NatsServer
from llamaherd_shared.bus import Bus, PublishRefused, Recorded, wire
from llamaherd_shared.commands import Accepted, LoadModel
from llamaherd_shared.errors import Conflict, NotFound, Rejected, Unavailable
from llamaherd_shared.events.instance import InstanceDraining
from llamaherd_shared.streams import CONVERSATIONS, EVENTS, METRICS, PRESENCE, STREAMS
from llamaherd_shared.subjects import Subjects

FACT = InstanceDraining(node="n", model="m", at_ns=1, cause="unload")


@contextlib.asynccontextmanager
async def connected(server: NatsServer, service: str = "test", prefix: str = "herd") -> AsyncIterator[Bus]:
    bus = await Bus.connect(server.url, service=service, subjects=Subjects(prefix), timeout_s=10)
    try:
        await bus.ensure_streams()
        yield bus
    finally:
        await bus.close()


async def collect(bus: Bus, stream: str, into: list[Recorded], after: int = 0) -> None:
    async for batch in bus.read(stream, after=after):
        into.extend(batch)


@contextlib.asynccontextmanager
async def collecting(bus: Bus, stream: str, after: int = 0) -> AsyncIterator[list[Recorded]]:
    seen: list[Recorded] = []
    task = asyncio.create_task(collect(bus, stream, seen, after))
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_streams_are_created_once_by_any_number_of_racing_services(nats_server: NatsServer) -> None:
    async def body() -> None:
        buses = [await Bus.connect(nats_server.url, service=f"s{n}", timeout_s=10) for n in range(5)]

        await asyncio.gather(*(bus.ensure_streams() for bus in buses))
        await asyncio.gather(*(bus.ensure_streams() for bus in buses))

        for stream in STREAMS:
            assert (await buses[0].stream_head(stream.name)).last == 0
        for bus in buses:
            await bus.close()

    uvloop.run(body())


def test_a_message_of_a_subject_is_found_deleted_or_gone_by_itself(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server) as bus:
            kept, brief, other = (bus.subjects.conversation("k", name) for name in ("kept", "brief", "other"))
            sequence = await bus.publish(kept, b"hello", msg_id="a")
            await bus.publish(brief, b"soon gone", msg_id="b", ttl_s=1)

            found = await bus.newest(CONVERSATIONS, kept, timeout_s=5)
            assert found is not None
            assert (found.sequence, found.data, found.subject) == (sequence, b"hello", kept)
            assert await bus.newest(CONVERSATIONS, other, timeout_s=5) is None

            await bus.delete(CONVERSATIONS, sequence)
            assert await bus.newest(CONVERSATIONS, kept, timeout_s=5) is None
            await bus.delete(CONVERSATIONS, sequence)
            deadline = time.monotonic() + 10
            while await bus.newest(CONVERSATIONS, brief, timeout_s=5) is not None:
                assert time.monotonic() < deadline, "it does not expire"
                await asyncio.sleep(0.05)

    uvloop.run(body())


def test_a_question_for_a_message_ends_in_time_when_the_bus_is_away(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server) as bus:
            subject = bus.subjects.conversation("k", "kept")
            await bus.publish(subject, b"hello", msg_id="a")
            nats_server.kill()
            with pytest.raises(Unavailable, match="did not answer within"):
                await bus.newest(CONVERSATIONS, subject, timeout_s=0.5)
            nats_server.start()
            found = await bus.newest(CONVERSATIONS, subject, timeout_s=10)
            assert found is not None

    uvloop.run(body())


def test_compare_and_set_lets_one_writer_win(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server) as bus:
            subject = bus.subjects.instance("n", "m", 0)

            first = await bus.append(subject, FACT, msg_id="a", expected=0)
            with pytest.raises(Conflict, match="another writer"):
                await bus.append(subject, FACT, msg_id="b", expected=0)

            assert await bus.last_sequence(subject) == first
            assert await bus.append(subject, FACT, msg_id="b", expected=first) == first + 1

    uvloop.run(body())


def test_a_fact_sent_twice_under_one_id_is_stored_once(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server) as bus:
            subject = bus.subjects.instance("n", "m", 0)

            sequences = [await bus.append(subject, FACT, msg_id="a", expected=0) for _ in range(3)]

            assert sequences == [1, 1, 1]
            assert (await bus.stream_head(EVENTS)).last == 1

    uvloop.run(body())


def test_acknowledged_facts_survive_a_killed_server_and_arrive_once_in_a_reader(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server) as bus, collecting(bus, EVENTS) as seen:
            subject = bus.subjects.instance("n", "m", 0)
            acked: dict[str, int] = {}

            async def write(key: str) -> None:
                acked[key] = await bus.append(subject, FACT, msg_id=key)

            for kill in range(3):
                writers = [asyncio.create_task(write(f"{kill}-{n}")) for n in range(300)]
                await until(lambda done=kill * 300 + 50: len(acked) > done)
                nats_server.kill()
                nats_server.start()
                await asyncio.gather(*writers)

            last = max(acked.values())
            await until(lambda: seen and seen[-1].sequence >= last, within_s=20)
            assert sorted(acked.values()) == list(range(1, 901)), "each id stored exactly once"
            assert [recorded.sequence for recorded in seen] == list(range(1, 901)), "each read once, in order"

    uvloop.run(body())


def test_a_reader_that_has_caught_up_does_not_start_over_when_the_server_restarts(nats_server: NatsServer) -> None:
    """nats-py's ordered consumer restarts at sequence 1 here."""

    async def body() -> None:
        async with connected(nats_server) as bus:
            subject = bus.subjects.instance("n", "m", 0)
            for n in range(10):
                await bus.append(subject, FACT, msg_id=str(n))
            async with collecting(bus, EVENTS, after=10) as seen:
                nats_server.kill()
                nats_server.start()
                await bus.append(subject, FACT, msg_id="new")
                await until(lambda: seen)

                assert [recorded.sequence for recorded in seen] == [11]

    uvloop.run(body())


def test_a_burst_larger_than_the_window_is_stored_in_order(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server) as bus, collecting(bus, METRICS) as seen:
            for n in range(2_000):
                assert bus.offer(bus.subjects.sample("n", "host"), str(n).encode(), msg_id=str(n))

            await until(lambda: len(seen) == 2_000, within_s=30)
            assert [int(recorded.data) for recorded in seen] == list(range(2_000))
            assert seen[-1].pending == 0

    uvloop.run(body())


def test_a_message_no_server_would_take_is_refused_with_its_reason(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server) as bus:
            with pytest.raises(PublishRefused, match="over the server's limit"):
                await bus.publish(bus.subjects.sample("n", "host"), b"x" * 2_000_000, msg_id="big")

    uvloop.run(body())


def test_requests_overlap_and_refusals_cross_the_bus_as_their_own_kind(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server) as bus, connected(nats_server, "caller") as caller:
            together = asyncio.Barrier(4)

            async def load(command: LoadModel) -> Accepted:
                if command.model == "unknown":
                    raise NotFound("there is no model unknown")
                if command.model == "coming":
                    raise Unavailable("half of it is here", retry_after_s=10)
                await together.wait()
                return Accepted(node="n", model=command.model, state="loading", sequence=7)

            subject = bus.subjects.command("supervisor", "load", node="n")
            served = await bus.serve(subject, LoadModel, load)

            answers = await asyncio.gather(
                *(caller.request(subject, LoadModel(model=str(n)), Accepted) for n in range(4))
            )
            assert [answer.model for answer in answers] == ["0", "1", "2", "3"]
            with pytest.raises(NotFound, match="there is no model unknown"):
                await caller.request(subject, LoadModel(model="unknown"), Accepted)
            with pytest.raises(Unavailable, match="half of it is here") as refused:
                await caller.request(subject, LoadModel(model="coming"), Accepted)
            assert refused.value.retry_after_s == 10

            class Nonsense(msgspec.Struct):
                modle: int = 1

            with pytest.raises(Rejected, match="cannot read the request"):
                await caller.request(subject, Nonsense(), Accepted)
            await served.drain()
            with pytest.raises(Unavailable, match="nobody answers"):
                await caller.request(subject, LoadModel(model="m"), Accepted)

    uvloop.run(body())


def test_draining_finishes_what_is_being_answered(nats_server: NatsServer) -> None:
    """nats-py's micro service cancels it and drops the queue."""

    async def body() -> None:
        async with connected(nats_server) as bus, connected(nats_server, "caller") as caller:
            begun, release = asyncio.Event(), asyncio.Event()

            async def load(command: LoadModel) -> Accepted:
                begun.set()
                await release.wait()
                return Accepted(node="n", model=command.model, state="loading", sequence=0)

            served = await bus.serve("herd.cmd.test.load", LoadModel, load)
            asking = asyncio.create_task(caller.request("herd.cmd.test.load", LoadModel(model="m"), Accepted))
            await begun.wait()
            draining = asyncio.create_task(served.drain())
            release.set()

            assert (await asking).model == "m"
            await draining

    uvloop.run(body())


def test_presence_that_is_taken_back_is_pushed_to_watchers(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server) as bus, collecting(bus, PRESENCE) as seen:
            subject = bus.subjects.presence("n", "gateway")

            await bus.beat(subject, b"{}", 15)
            await until(lambda: seen)
            await bus.withdraw(subject)

            await until(lambda: len(seen) >= 2)
            assert [recorded.data for recorded in seen[:2]] == [b"{}", b""]

    uvloop.run(body())


def test_presence_is_said_again_after_the_server_forgot_its_stream(nats_server: NatsServer) -> None:
    """The stream lives in memory: a nats-server that was killed comes back without it."""

    async def body() -> None:
        async with connected(nats_server) as bus:
            subject = bus.subjects.presence("n", "gateway")
            await bus.beat(subject, b"before", 15)
            nats_server.kill()
            nats_server.start()
            await until(lambda: bus.connected)
            with pytest.raises(Unavailable, match="cannot be asked"):
                await bus.stream_head(PRESENCE)

            await bus.beat(subject, b"after", 15)

            async with collecting(bus, PRESENCE) as seen:
                await until(lambda: seen)
            assert [recorded.data for recorded in seen] == [b"after"]

    uvloop.run(body())


def test_a_loop_that_speaks_to_the_bus_ends_when_it_is_cancelled_wherever_that_hits(nats_server: NatsServer) -> None:
    """nats-py swallows a cancellation that hits inside its flush, and the loop would go on for ever."""

    async def body() -> None:
        async with connected(nats_server) as bus:
            subject = bus.subjects.presence("n", "gateway")

            async def beat_for_ever() -> None:
                while True:
                    await bus.beat(subject, b"x" * 40_000, 15)

            async def publish_for_ever() -> None:
                while True:
                    await wire.publish(bus._nc, "somewhere.else", b"x" * 40_000)

            for turns in range(100):
                tasks = [asyncio.create_task(beat_for_ever()), asyncio.create_task(publish_for_ever())]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()

                _, running = await asyncio.wait(tasks, timeout=5)

                assert not running, f"cancelled after {turns} turns of the loop and goes on"

    uvloop.run(body())


def test_a_watch_that_is_given_up_at_once_leaves_the_connection_whole(nats_server: NatsServer) -> None:
    """A cancelled flush of nats-py ends its reading, and the connection with it."""

    async def body() -> None:
        async with connected(nats_server) as bus:
            for turns in range(20):
                watching = asyncio.create_task(bus.watch(f"some.thing.{turns}", lambda _: None))
                for _ in range(turns):
                    await asyncio.sleep(0)
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

            await bus.append(bus.subjects.instance("n", "m", 0), FACT, msg_id="a")

            assert bus.troubles == 0

    uvloop.run(body())


def test_two_herds_with_different_prefixes_share_a_server_without_meeting(nats_server: NatsServer) -> None:
    async def body() -> None:
        async with connected(nats_server, prefix="a") as one, connected(nats_server, prefix="b") as two:
            await one.append(one.subjects.instance("n", "m", 0), FACT, msg_id="1")

            assert (await one.stream_head(EVENTS)).last == 1
            assert (await two.stream_head(EVENTS)).last == 0

    uvloop.run(body())


def test_no_server_at_the_address_is_one_sentence() -> None:
    async def body() -> None:
        with pytest.raises(Unavailable, match=r"no nats-server answers at nats://127\.0\.0\.1:1"):
            await Bus.connect("nats://127.0.0.1:1", service="test", timeout_s=0.5)

    uvloop.run(body())

"""One pull: the task that fetches the files of a model, checks them and puts them into the models folder.

It tells how it goes in facts of its own and never waits for the bus. Whatever ends it, what has come stays on disk,
unless it turned out to be something else than was announced; the next pull of the same files goes on there.
"""

import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llamaherd_shared.errors import Conflict, HerdError, Rejected, Unavailable
from llamaherd_shared.events.pull import (
    PullEnd,
    PullEvent,
    PullFailed,
    PullFile,
    PullFinished,
    PullProgressed,
    PullStarted,
)
from llamaherd_shared.service import new_id
from llamaherd_supervisor import store
from llamaherd_supervisor.gguf_file import UnreadableGguf
from llamaherd_supervisor.pulls import pace
from llamaherd_supervisor.pulls.part_file import PartFile, part_size
from llamaherd_supervisor.pulls.plan import Plan, PlannedFile
from llamaherd_supervisor.workplace import Workplace

if TYPE_CHECKING:
    from llamaherd_supervisor.pulls.hub import Body, Hub

_WRITE_BYTES: Final = 256 * 1024
_WRITE_S: Final = 0.1
"""What has come is written when it is so much, or when so much time has passed."""
_HEADWAY_BYTES: Final = 2**20
"""A connection that brought this much was worth having: attempts are counted anew."""
_REASONS: Final[dict[PullEnd, str]] = {
    "cancelled": "it was cancelled",
    "shutdown": "the supervisor was stopped",
}


class There(msgspec.Struct, frozen=True):
    """What of a plan is on disk before it begins."""

    done_bytes: dict[str, int]
    """By file."""
    present: bool
    """Whether every file has its place and size already."""


def measure(plan: Plan, models_dir: Path) -> There:
    """Look what is there. Sizes only: whether it is the right content is found out by the pull."""
    done, present = {}, True
    for file in plan.files:
        target = models_dir / file.target
        whole = bool(file.size_bytes) and store.file_size(target) == file.size_bytes
        present = present and whole
        done[file.name] = file.size_bytes if whole else min(part_size(target), file.size_bytes)
    return There(done, present)


class Fetch:
    """A pull that goes on."""

    def __init__(
        self,
        at: Workplace,
        hub: "Hub",
        plan: Plan,
        there: There,
        *,
        ended: Callable[["Fetch"], None],
        take_in: Callable[[Collection[str]], Awaitable[None]],
        shared: Callable[[str], asyncio.Lock],
    ) -> None:
        """`shared`: the lock of a file, by its target, that other pulls may fetch as well."""
        self.id, self.plan, self.present = new_id(), plan, there.present
        self._at, self._hub, self._ended, self._take_in, self._shared = at, hub, ended, take_in, shared
        self._sizes = {file.name: file.size_bytes for file in plan.files}
        self._done = dict(there.done_bytes)
        self._digests: dict[str, str] = {}
        self._parts: dict[str, PartFile] = {}
        self._told = pace.Told()
        self._cause: PullEnd = "shutdown"
        self._discard = False
        self._whole = False
        self._outcome: PullFinished | PullFailed | None = None
        self.end: asyncio.Future[PullFinished | PullFailed] = asyncio.get_running_loop().create_future()
        """How it ended, once it has."""
        self._task: asyncio.Task[None] | None = None

    @property
    def subject(self) -> str:
        return self._at.service.bus.subjects.pull(self._at.node, self.id)

    @property
    def total_bytes(self) -> int:
        """0 while the size of a file is not known."""
        return sum(self._sizes.values()) if all(self._sizes.values()) else 0

    @property
    def done_bytes(self) -> int:
        return sum(self._done.values())

    @property
    def outstanding_bytes(self) -> int:
        """Room it will still take, as far as it is known."""
        return max(0, sum(self._sizes.values()) - self.done_bytes)

    def start(self) -> None:
        self._record_start()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._end)

    async def cancel(self, cause: PullEnd, *, discard: bool = False) -> None:
        """End it; returns once it has ended. Raises `Conflict` when it is too late."""
        if self._whole and cause == "cancelled":
            raise Conflict(f"{self.plan.model} is whole: delete it instead")
        self._cause, self._discard = cause, discard
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            await self._fetch_all()
            self._outcome = self._finished()
        except HerdError as error:
            self._outcome = self._failed(error.message, "failed", kind=error.kind)
        except Exception:
            self._at.service.log.exception("a pull failed unexpectedly", model=self.plan.model)
            self._outcome = self._failed("this is a bug in llamaherd: the log of `supervisor` has more", "failed")
        finally:
            await self._clean_up()

    def _end(self, _: "asyncio.Task[None]") -> None:
        """Nothing is held any more: whoever hears that it ended may begin the next one at once."""
        self._ended(self)
        # None when it was cancelled.
        outcome = self._outcome or self._failed(_REASONS[self._cause], self._cause)
        self._record(outcome)
        self.end.set_result(outcome)
        log = self._at.service.log
        if isinstance(outcome, PullFailed):
            log.warning("pull ended without its model", model=self.plan.model, reason=outcome.reason)
        else:
            log.info("pulled", model=self.plan.model, bytes=self.done_bytes)

    def _record_start(self) -> None:
        plan = self.plan
        files = [PullFile(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256) for file in plan.files]
        self._record(
            PullStarted(
                node=self._at.node,
                pull=self.id,
                model=plan.model,
                at_ns=time.time_ns(),
                source=plan.source,
                revision=plan.revision,
                files=files,
                total_bytes=self.total_bytes,
                done_bytes=self.done_bytes,
            )
        )
        self._at.service.log.info("pull", model=plan.model, source=plan.source, bytes=self.total_bytes)

    async def _fetch_all(self) -> None:
        pending: list[tuple[PlannedFile, PartFile]] = []
        async with contextlib.AsyncExitStack() as held:
            for file in self.plan.files:
                if file.is_projector:
                    await held.enter_async_context(self._shared(file.target))
                if not await self._is_there(file):
                    part = PartFile(self._target(file))
                    self._parts[file.name] = part
                    await self._fetch(file, part)
                    pending.append((file, part))
            for file, part in pending:
                await self._check_kind(file, part)
            for _, part in pending:
                await asyncio.to_thread(part.sync)
            self._whole = True
            # At once, as long as nobody looks; the first file last: by it the model is found.
            for _, part in reversed(pending):
                await asyncio.to_thread(part.finish)
        await self._take_in([str(self._target(file)) for file in self.plan.files])

    def _target(self, file: PlannedFile) -> Path:
        return self._at.settings.models_dir / file.target

    async def _is_there(self, file: PlannedFile) -> bool:
        """Whether the file is in its place already. Raises `Conflict` when another one is and must stay."""
        target = self._target(file)
        size = await asyncio.to_thread(store.file_size, target)
        if size is None:
            return False
        if size == (file.size_bytes or size) and (file.size_bytes or file.sha256):
            digest = await self._hash(file, target, size)
            if digest == (file.sha256 or digest):
                self._sizes[file.name] = self._done[file.name] = size
                self._digests[file.name] = digest
                return True
        if not self.plan.may_replace:
            raise Conflict(f"{target} is there and is another file: delete {self.plan.model} first")
        self._done[file.name] = await asyncio.to_thread(part_size, target)
        return False

    async def _hash(self, file: PlannedFile, path: Path, size: int) -> str:
        """The SHA-256 of a file, in slices so that a cancellation is heeded."""
        digest, offset = hashlib.sha256(), 0
        while data := await asyncio.to_thread(store.hash_slice, path, offset, digest):
            offset += data
            self._done[file.name] = min(offset, size)
            self._tell(file, f"comparing the checksum of {path.name}")
        return digest.hexdigest()

    async def _fetch(self, file: PlannedFile, part: PartFile) -> None:
        """Bring a file's part to its whole size and the right checksum."""
        await asyncio.to_thread(part.open)
        while await asyncio.to_thread(part.take_up):
            self._notice(file, part, "taking up what is there")
        if self._sizes[file.name] and part.size_bytes > self._sizes[file.name]:
            await asyncio.to_thread(part.reset)
        taken_up = part.size_bytes > 0
        while True:
            await self._fill(file, part)
            digest = await asyncio.to_thread(part.digest)
            if digest == (file.sha256 or digest):
                break
            await asyncio.to_thread(part.reset)
            if not taken_up:
                await asyncio.to_thread(part.discard)
                raise Rejected(f"{file.name} has the checksum {digest} instead of {file.sha256}: it was not kept")
            # The beginning may be of another version of the file: once more, from the first byte.
            taken_up = False
        self._digests[file.name] = digest

    async def _fill(self, file: PlannedFile, part: PartFile) -> None:
        """Fetch what is missing, on as many connections as it takes. Raises `Unavailable` when it does not come."""
        from llamaherd_supervisor.pulls.hub import BeyondEnd, Broken

        attempt = 0
        while not self._sizes[file.name] or part.size_bytes < self._sizes[file.name]:
            before = part.size_bytes
            try:
                await self._download(file, part)
            except BeyondEnd as error:
                if error.total_bytes == part.size_bytes:
                    self._sizes[file.name] = part.size_bytes
                    return
                await asyncio.to_thread(part.reset)
                attempt += 1
            except Broken as error:
                attempt = 1 if part.size_bytes - before >= _HEADWAY_BYTES else attempt + 1
                if attempt <= self._at.settings.pull_retries:
                    await self._wait(file, part, attempt, error.message, error.retry_after_s)
                    continue
                raise Unavailable(f"{error.message}, {attempt} times in a row") from error
            if attempt > self._at.settings.pull_retries:
                raise Unavailable(f"{file.name} cannot be continued: its server has less of it than is here")

    async def _wait(self, file: PlannedFile, part: PartFile, attempt: int, reason: str, asked_s: float | None) -> None:
        base_s = self._at.settings.pull_backoff_s
        delay_s = pace.retry_delay_s(attempt, base_s=base_s, asked_s=asked_s, jitter=random.random())
        self._notice(file, part, f"{reason}; trying again in {delay_s:.3g} s")
        await asyncio.sleep(delay_s)

    async def _download(self, file: PlannedFile, part: PartFile) -> None:
        """Append what one connection brings. Raises `Broken` when that is not all."""
        from llamaherd_supervisor.pulls.hub import Broken

        async with self._hub.download(file.url, offset=part.size_bytes) as body:
            if body.offset < part.size_bytes:
                await asyncio.to_thread(part.reset)
            await self._learn_size(file, body)
            await self._append(file, part, body)
        expected = self._sizes[file.name]
        if expected and part.size_bytes < expected:
            raise Broken(f"only {part.size_bytes:,} of {expected:,} bytes came")
        self._sizes[file.name] = part.size_bytes

    async def _learn_size(self, file: PlannedFile, body: "Body") -> None:
        """Compare what the answer says with what was said before. Raises when it does not fit, nowhere or here."""
        if body.total_bytes is None:
            return
        known = self._sizes[file.name]
        if known and known != body.total_bytes:
            raise Rejected(
                f"{file.name} was announced with {known:,} bytes, and {body.total_bytes:,} are to come: its server"
                " contradicts itself"
            )
        if not known:
            free_bytes = await asyncio.to_thread(store.free_bytes, self._at.settings.models_dir)
            missing = body.total_bytes - body.offset
            if shortage := pace.find_shortage(needed_bytes=missing, free_bytes=free_bytes):
                raise Unavailable(f"{file.name} does not fit on {self._at.node}: {shortage}")
        self._sizes[file.name] = body.total_bytes

    async def _append(self, file: PlannedFile, part: PartFile, body: "Body") -> None:
        expected, waiting, written_s = self._sizes[file.name], bytearray(), 0.0
        try:
            async for chunk in body.chunks:
                waiting += chunk
                if expected and part.size_bytes + len(waiting) > expected:
                    waiting.clear()
                    raise Rejected(f"{file.name} was announced with {expected:,} bytes, and more came")
                if len(waiting) >= _WRITE_BYTES or time.monotonic() - written_s >= _WRITE_S:
                    ready, waiting, written_s = waiting, bytearray(), time.monotonic()
                    await asyncio.to_thread(part.write, ready)
                    self._notice(file, part)
        finally:
            # Also when the connection broke or somebody cancelled.
            if waiting:
                await asyncio.to_thread(part.write, waiting)
                self._notice(file, part)

    async def _check_kind(self, file: PlannedFile, part: PartFile) -> None:
        """Raises `Rejected` when what came is not what it should be; then nothing of it is kept."""
        kind: store.FileKind = "model" if file is self.plan.files[0] else "part"
        try:
            await asyncio.to_thread(store.check_file, part.path, "projector" if file.is_projector else kind)
        except UnreadableGguf as error:
            await asyncio.to_thread(part.discard)
            raise Rejected(f"{file.name} cannot be served: {error}") from error

    # Facts.

    def _notice(self, file: PlannedFile, part: PartFile, note: str = "") -> None:
        self._done[file.name] = part.size_bytes
        self._tell(file, note)

    def _tell(self, file: PlannedFile, note: str) -> None:
        done, total, now_s = self.done_bytes, self.total_bytes, time.monotonic()
        if not pace.is_worth_telling(self._told, done_bytes=done, total_bytes=total, note=note, now_s=now_s):
            return
        # Of use only while it is new: while the bus is away it is not queued behind the facts that matter.
        if self._at.journal.waiting:
            return
        self._told = pace.Told(now_s, done, note)
        self._record(
            PullProgressed(
                node=self._at.node,
                pull=self.id,
                model=self.plan.model,
                at_ns=time.time_ns(),
                done_bytes=done,
                total_bytes=total,
                file=file.name,
                note=note,
            )
        )

    def _finished(self) -> PullFinished:
        first = self.plan.files[0]
        return PullFinished(
            node=self._at.node,
            pull=self.id,
            model=self.plan.model,
            at_ns=time.time_ns(),
            path=str(self._target(first)),
            sha256=self._digests[first.name],
            size_bytes=sum(self._sizes.values()),
            files=[
                PullFile(name=name, size_bytes=size, sha256=self._digests[name]) for name, size in self._sizes.items()
            ],
        )

    def _failed(self, reason: str, cause: PullEnd, *, kind: str = "") -> PullFailed:
        kept = self._done | {name: part.size_bytes for name, part in self._parts.items()}
        return PullFailed(
            node=self._at.node,
            pull=self.id,
            model=self.plan.model,
            at_ns=time.time_ns(),
            reason=reason,
            cause=cause,
            done_bytes=sum(kept.values()),
            kind=kind,
        )

    def _record(self, event: PullEvent) -> None:
        self._at.journal.record(self.subject, event)

    async def _clean_up(self) -> None:
        models_dir = self._at.settings.models_dir
        for part in self._parts.values():
            if self._discard or not part.size_bytes:
                await asyncio.to_thread(part.discard)
            await asyncio.to_thread(part.close)
            await asyncio.to_thread(store.remove_empty_folders, part.path.parent, models_dir=models_dir)
        with contextlib.suppress(Exception):
            await self._hub.close()

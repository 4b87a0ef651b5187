"""Pulls of what entries of `models` name: begun when the file is not here, followed to the end, begun again on demand.

The facts about each pull are its own (`fetch.py`); what is said of the model meanwhile the models folder tells.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from llamaherd_shared.commands import PullModel
from llamaherd_shared.errors import Conflict, HerdError
from llamaherd_shared.events.model import ModelEvent, ModelFound
from llamaherd_shared.events.pull import PullFailed, PullFinished
from llamaherd_shared.tasks import end
from llamaherd_supervisor.folder import Folder
from llamaherd_supervisor.pulls.fetch import Fetch
from llamaherd_supervisor.pulls.handlers import Pulls
from llamaherd_supervisor.pulls.pace import doubled_s
from llamaherd_supervisor.reconcile import unmet_requirements
from llamaherd_supervisor.repositories import Download
from llamaherd_supervisor.workplace import Workplace

_HEALING: Final = frozenset({"unavailable", "conflict"})
"""Kinds of failures that may be over by themselves (`errors.KINDS`): not a wrong name, and not a wrong checksum, for
which all of a model would be downloaded again and again."""
_AGAIN_MOST_S: Final = 3600.0
"""Between two pulls that fail."""
_TELL_S: Final = 1.0
"""Between two looks how far a pull is; a whole percent more is told."""


class Entries:
    """Every entry of this node that names a repository. Use from one event loop."""

    def __init__(
        self,
        at: Workplace,
        pulls: Pulls,
        folder: Folder,
        downloads: dict[str, Download],
        *,
        arrived: Callable[[], object],
    ) -> None:
        """`downloads`: what `folder` reads; `arrived`: called when the file of an entry has come."""
        self._at, self._pulls, self._folder, self._downloads, self._arrived = at, pulls, folder, downloads, arrived
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._followed: dict[str, Fetch] = {}
        """By model; two entries may wait for one pull."""
        self._dropped: set[asyncio.Task[None]] = set()
        self._failures: dict[str, int] = {}
        """Pulls of it that have failed, one after the other."""
        self._again: dict[str, asyncio.TimerHandle] = {}
        self._trying: set[asyncio.Task[None]] = set()
        self._closing = False

    def take_up(self, known: Mapping[str, ModelEvent]) -> None:
        """Before the first look at the folder; `known`: what earlier supervisors have told."""
        for model, repository in self._at.offers.repositories.items():
            event = known.get(model)
            if isinstance(event, ModelFound) and event.repository == repository:
                self._downloads[model] = Download(repository=repository, path=event.path)
        self.expect()

    def expect(self) -> None:
        """Before a look at the folder for what is said now: what it does not find is on its way."""
        named = self._at.offers.repositories
        for model in [model for model, known in self._downloads.items() if named.get(model) != known.repository]:
            del self._downloads[model]
            self._forget_failures(model)
            if (task := self._tasks.pop(model, None)) is not None:
                self._dropped.add(task)
                task.add_done_callback(self._dropped.discard)
                task.cancel()
        for model in named.keys() - self._tasks.keys():
            self._expect(model)

    def begin(self) -> None:
        """After that look: pull what it has not found, what could not be pulled before once more."""
        for model in self._at.offers.repositories.keys() - self._tasks.keys():
            event = self._at.models.get(model)
            if isinstance(event, ModelFound):
                self._downloads[model] = Download(repository=event.repository, path=event.path)
                self._forget_failures(model)
            elif self._downloads[model].under_way:
                self._start(model)

    async def retry(self, model: str) -> None:
        """Somebody wants it: pull it if it is neither here nor on its way."""
        is_named = model in self._at.offers.repositories
        if not is_named or model in self._tasks or isinstance(self._at.models.get(model), ModelFound):
            return
        self._expect(model)
        if self._downloads[model].under_way:
            self._start(model)
            await self._folder.tell_anew()

    async def close(self) -> None:
        """Follow no pull any more; none is ended by this."""
        self._closing = True
        for model in list(self._again):
            self._do_not_try_again(model)
        await end(*self._tasks.values(), *self._dropped, *self._trying)

    def _expect(self, model: str) -> None:
        known = self._downloads.get(model)
        repository = self._at.offers.repositories[model]
        unmet = unmet_requirements(self._at.offers.spec(model), self._at.settings.labels)
        self._downloads[model] = Download(
            repository=repository,
            path=known.path if known is not None and known.repository == repository else "",
            under_way=not unmet,
            unfit=f"it requires {', '.join(unmet)} (`supervisor.labels`)" if unmet else "",
        )

    def _start(self, model: str) -> None:
        self._do_not_try_again(model)
        self._tasks[model] = asyncio.create_task(self._pull(model, self._downloads[model].repository))

    async def _pull(self, model: str, repository: str) -> None:
        heals = False
        try:
            ended = await self._fetch(model, repository)
            if isinstance(ended, PullFinished):
                outcome = Download(repository=repository, path=ended.path)
            else:
                outcome = Download(repository=repository, failure=ended.reason)
                heals = ended.cause == "failed" and ended.kind in _HEALING
        except HerdError as error:
            outcome = Download(repository=repository, failure=error.message)
            heals = error.kind in _HEALING
        except Exception:
            self._at.service.log.exception("a pull failed unexpectedly", model=model)
            failure = "this is a bug in llamaherd: the log of `supervisor` has more"
            outcome = Download(repository=repository, failure=failure)
        del self._tasks[model]
        if heals:
            outcome = msgspec.structs.replace(outcome, again_s=self._try_again_later(model))
        else:
            self._failures.pop(model, None)
        self._downloads[model] = outcome
        await self._folder.tell_anew()
        if outcome.path:
            self._arrived()

    def _try_again_later(self, model: str) -> float:
        """In so many seconds; 0: only when somebody wants it."""
        failures = self._failures[model] = self._failures.get(model, 0) + 1
        again_s = doubled_s(failures, base_s=self._at.settings.pull_again_s, most_s=_AGAIN_MOST_S)
        if again_s and not self._closing:
            self._again[model] = asyncio.get_running_loop().call_later(again_s, self._try_again, model)
        return again_s

    def _try_again(self, model: str) -> None:
        del self._again[model]
        trying = asyncio.create_task(self._retry_alone(model))
        self._trying.add(trying)
        trying.add_done_callback(self._trying.discard)

    async def _retry_alone(self, model: str) -> None:
        try:
            await self.retry(model)
        except Exception:
            self._at.service.log.exception("a pull could not be tried again", model=model)

    def _forget_failures(self, model: str) -> None:
        self._failures.pop(model, None)
        self._do_not_try_again(model)

    def _do_not_try_again(self, model: str) -> None:
        if (timer := self._again.pop(model, None)) is not None:
            timer.cancel()

    async def _fetch(self, model: str, repository: str) -> PullFinished | PullFailed:
        """How it ended. Raises why it could not begin."""
        fetch, joined = await self._pulls.begin(PullModel(repository=repository))
        self._followed[model] = fetch
        try:
            while not fetch.end.done():
                await self._tell(model, fetch)
                await asyncio.wait({fetch.end}, timeout=_TELL_S)
        except asyncio.CancelledError:
            if not (joined or self._closing or self._is_shared(fetch)):
                with contextlib.suppress(Conflict):
                    await fetch.cancel("cancelled")
            raise
        finally:
            if self._followed.get(model) is fetch:
                del self._followed[model]
        return fetch.end.result()

    async def _tell(self, model: str, fetch: Fetch) -> None:
        before = self._downloads[model]
        now = msgspec.structs.replace(before, done_bytes=fetch.done_bytes, total_bytes=fetch.total_bytes)
        self._downloads[model] = now
        # Of use only while it is new, like the pull's own progress.
        if now.percent != before.percent and not self._at.journal.waiting:
            await self._folder.tell_anew()

    def _is_shared(self, fetch: Fetch) -> bool:
        return sum(other is fetch for other in self._followed.values()) > 1

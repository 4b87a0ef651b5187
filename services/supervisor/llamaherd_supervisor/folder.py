"""The models of a node: what its folder and `models` of llamaherd.yaml offer, told as facts whenever it changes."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec

from llamaherd_shared.events.model import ModelEvent, ModelFound, ModelRejected, ModelRemoved
from llamaherd_supervisor import arrivals, listing, models
from llamaherd_supervisor.arrivals import Arrival
from llamaherd_supervisor.folder_watch import FolderWatch
from llamaherd_supervisor.gguf_file import UnreadableGguf
from llamaherd_supervisor.models import GgufFile, Sighting
from llamaherd_supervisor.offers import Offers
from llamaherd_supervisor.repositories import Download
from llamaherd_supervisor.workplace import Workplace

_ARRIVAL_LOOK_S: Final = 0.25
"""Between two looks while something is on its way."""
_SETTLING_LOOK_S: Final = 0.05
_WATCHED: Final = 5
"""Looks at a folder that is watched are rarer by this."""
_REST: Final = 20
"""The pause after a look is at least so many times as long as the look: a large folder takes its time."""


class Folder:
    """Looks at the models folder, and keeps `Workplace.models` as it was last told."""

    def __init__(
        self,
        at: Workplace,
        told: dict[str, ModelEvent],
        downloads: Mapping[str, Download],
        *,
        surveyed: Callable[[], None],
    ) -> None:
        """`told`: the dictionary behind `at.models`; `surveyed`: called when something may have changed in it.

        `downloads`: how it stands with files that entries of `models` have pulled.
        """
        self._at, self._told, self._downloads, self._surveyed_anew = at, told, downloads, surveyed
        self._recorded: dict[str, ModelEvent] = {}
        """The last fact about each model, also of those that are gone."""
        self._files: dict[str, GgufFile] = {}
        """What is in the models folder, by path."""
        self._arrivals: dict[str, Arrival] = {}
        """What is on its way into it, by path; a file that is replaced is in both."""
        self._closed: dict[str, str] = {}
        """Folders that could not be listed, and why."""
        self._watching = FolderWatch(at.service.log)
        self._surveyed: dict[str, GgufFile] | None = None
        """What was in it when last something was said about it."""
        self._aside: set[str] = set()
        """Of these, what only an entry of `models` speaks of."""
        self.looking = asyncio.Lock()
        """Held over a look at the models folder, and over what changes it."""

    async def take_up(self, known: Mapping[str, ModelEvent]) -> None:
        """Look for the first time; `known`: what earlier supervisors have told."""
        self._recorded = dict(known)
        for name, event in known.items():
            if (file := models.take_up(event)) is not None:
                self._files[file.seen.path] = file
            if not isinstance(event, ModelRemoved):
                self._told[name] = event
        models_dir = self._at.settings.models_dir
        if not models_dir.is_dir():
            self._at.service.log.warning("the models folder does not exist", models_dir=str(models_dir))
        await self.look()
        # What was put there just before is offered from the start.
        deadline = time.monotonic() + 2 * arrivals.SETTLED_S
        while any(arrival.file is None for arrival in self._arrivals.values()) and time.monotonic() < deadline:
            await asyncio.sleep(_SETTLING_LOOK_S)
            await self.look()

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        try:
            while True:
                began = time.monotonic()
                await self.look()
                await asyncio.sleep(_REST * (time.monotonic() - began))
                await self._watching.wait(self._pause_s())
        finally:
            self._watching.close()

    def _pause_s(self) -> float:
        if self._arrivals:
            return _ARRIVAL_LOOK_S
        return self._at.settings.scan_interval_s * (_WATCHED if self._watching.is_on else 1)

    async def look(self, *, anew: bool = False) -> None:
        """Tell what has changed; `anew`: also when no file has."""
        async with self.looking:
            await self._look(anew=anew)

    async def tell_anew(self) -> None:
        """Tell what has changed by other news than files."""
        async with self.looking:
            self._record_survey()

    async def take_in(self, paths: Collection[str]) -> None:
        """Tell of these files at once: nobody writes them any more."""
        async with self.looking:
            await self._look(whole=paths)

    async def foresee(self, offers: Offers) -> dict[str, ModelFound | ModelRejected]:
        """What would be told of each model if this were said about models. Changes nothing."""
        async with self.looking:
            files = {path: file for path, file in self._files.items() if path not in self._aside}
            aside = offers.files - files.keys()
            for path, sighting in listing.look_at(aside).items():
                files[path] = await asyncio.to_thread(listing.read, sighting)
        return self._survey(files, offers, aside)

    async def _look(self, *, anew: bool = False, whole: Collection[str] = ()) -> None:
        listed = await asyncio.to_thread(listing.look, self._at.settings.models_dir)
        self._say_closed(listed.closed)
        self._aside = self._at.offers.files - listed.files.keys()
        seen = listed.files | await asyncio.to_thread(listing.look_at, self._aside)
        self._watching.follow(listed.folders)
        for path in (self._files.keys() | self._arrivals.keys()) - seen.keys():
            self._forget(path)
        for sighting in seen.values():
            await self._meet(sighting, whole=sighting.path in whole)
        now_ns = time.time_ns()
        told = [file for each in self._arrivals.values() if (file := arrivals.untold(each, now_ns=now_ns)) is not None]
        files = self._files | {file.seen.path: file for file in told}
        if anew or files != self._surveyed:
            self._surveyed = files
            self._record_survey()

    async def _meet(self, sighting: Sighting, *, whole: bool) -> None:
        """Know the file as it is now, as soon as nothing more of it is expected."""
        path, now_ns = sighting.path, time.time_ns()
        known = self._files.get(path)
        if known is not None and known.seen == sighting and not _is_closed(known):
            self._arrivals.pop(path, None)
            return
        arrival = arrivals.notice(self._arrivals.get(path), sighting, now_ns=now_ns)
        if arrival.file is None and (whole or arrivals.may_be_read(arrival, now_ns=now_ns)):
            file = await asyncio.to_thread(listing.read, sighting)
            arrival = msgspec.structs.replace(arrival, file=file)
        self._arrivals[path] = arrival
        if arrival.file is not None and arrivals.is_complete(arrival, now_ns=now_ns):
            self._files[path] = arrival.file
            del self._arrivals[path]

    def _forget(self, path: str) -> None:
        self._files.pop(path, None)
        self._arrivals.pop(path, None)

    def _say_closed(self, closed: dict[str, str]) -> None:
        for folder, why in closed.items():
            if self._closed.get(folder) != why:
                self._at.service.log.warning("models in a folder cannot be offered", folder=folder, why=why)
        self._closed = closed

    def _survey(
        self, files: Mapping[str, GgufFile], offers: Offers, aside: set[str]
    ) -> dict[str, ModelFound | ModelRejected]:
        now_ns = time.time_ns()
        return models.survey(
            self._at.node, list(files.values()), offers, aside=aside, downloads=self._downloads, now_ns=now_ns
        )

    def _record_survey(self) -> None:
        events = self._survey(self._surveyed or {}, self._at.offers, self._aside)
        for name, event in events.items():
            self._record(name, event)
        for name in [name for name in self._told if name not in events]:
            self._record_removal(name)
        self._surveyed_anew()

    def record_deletion(self, name: str) -> None:
        """Of a model whose files are about to go; if they stay after all, the next look finds them."""
        event = self._told[name]
        if not isinstance(event, ModelRemoved):
            self._forget(event.path)
        self._record_removal(name)

    def _record_removal(self, name: str) -> None:
        self._record(name, ModelRemoved(node=self._at.node, model=name, at_ns=time.time_ns()))
        del self._told[name]

    def _record(self, name: str, event: ModelEvent) -> None:
        self._told[name] = event
        if not models.is_news(self._recorded.get(name), event):
            return
        self._recorded[name] = event
        self._at.journal.record(self._at.service.bus.subjects.model(self._at.node, name), event)
        if isinstance(event, ModelRejected) and event.reason == str(arrivals.ON_ITS_WAY):
            self._at.service.log.info("a model file is being copied", path=event.path)
        elif isinstance(event, ModelRejected) and not event.path:
            # How far it is the facts tell, and the log of its pull.
            if event.retry_after_s is None:
                self._at.service.log.warning("a model is not here", model=name, reason=event.reason)
        elif isinstance(event, ModelRejected):
            self._at.service.log.warning("a model file cannot be served", path=event.path, reason=event.reason)
        else:
            what = type(event).__name__.removeprefix("Model").lower()
            self._at.service.log.info("model", model=name, what=what)


def _is_closed(file: GgufFile) -> bool:
    return isinstance(file.head, UnreadableGguf) and file.head.closed

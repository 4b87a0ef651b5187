"""The models of a node: what its folder and `models` of llamaherd.yaml offer, told as facts whenever it changes."""

import asyncio
import time
from collections.abc import Callable, Mapping

from llamaherd_shared.events.model import ModelEvent, ModelFound, ModelRejected, ModelRemoved
from llamaherd_supervisor import models, store
from llamaherd_supervisor.handlers import Workplace
from llamaherd_supervisor.models import GgufFile
from llamaherd_supervisor.offers import Offers


class Folder:
    """Looks at the models folder, and keeps `Workplace.models` as it was last told."""

    def __init__(self, at: Workplace, told: dict[str, ModelEvent], *, surveyed: Callable[[], None]) -> None:
        """`told`: the dictionary behind `at.models`; `surveyed`: called when something may have changed in it."""
        self._at, self._told, self._surveyed_anew = at, told, surveyed
        self._recorded: dict[str, ModelEvent] = {}
        """The last fact about each model, also of those that are gone."""
        self._files: dict[str, GgufFile] = {}
        """What is in the models folder, by path."""
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

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._at.settings.scan_interval_s)
            await self.look()

    async def look(self, *, anew: bool = False) -> None:
        """Tell what has changed; `anew`: also when no file has."""
        async with self.looking:
            await self._look(anew)

    async def foresee(self, offers: Offers) -> dict[str, ModelFound | ModelRejected]:
        """What would be told of each model if this were said about models. Changes nothing."""
        async with self.looking:
            files = {path: file for path, file in self._files.items() if path not in self._aside}
            aside = offers.files - files.keys()
            for path, sighting in store.look_at(aside).items():
                files[path] = GgufFile(sighting, await asyncio.to_thread(store.read_head, sighting))
        return self._survey(files, offers, aside)

    async def _look(self, anew: bool) -> None:
        seen = await asyncio.to_thread(store.look, self._at.settings.models_dir)
        self._aside = self._at.offers.files - seen.keys()
        seen |= await asyncio.to_thread(store.look_at, self._aside)
        for path in self._files.keys() - seen.keys():
            del self._files[path]
        for path, sighting in seen.items():
            if path not in self._files or self._files[path].seen != sighting:
                file = GgufFile(sighting, await asyncio.to_thread(store.read_head, sighting))
                if not models.is_on_its_way(file, now_ns=time.time_ns()):
                    self._files[path] = file
        if anew or self._files != self._surveyed:
            self._surveyed = dict(self._files)
            self._record_survey()

    def _survey(
        self, files: Mapping[str, GgufFile], offers: Offers, aside: set[str]
    ) -> dict[str, ModelFound | ModelRejected]:
        return models.survey(self._at.node, list(files.values()), offers, aside=aside, now_ns=time.time_ns())

    def _record_survey(self) -> None:
        events = self._survey(self._files, self._at.offers, self._aside)
        for name, event in events.items():
            self._record(name, event)
        for name in [name for name in self._told if name not in events]:
            self._record_removal(name)
        self._surveyed_anew()

    def record_deletion(self, name: str) -> None:
        """Of a model whose files are about to go; if they stay after all, the next look finds them."""
        event = self._told[name]
        if not isinstance(event, ModelRemoved):
            self._files.pop(event.path, None)
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
        if isinstance(event, ModelRejected):
            self._at.service.log.warning("a model file cannot be served", path=event.path, reason=event.reason)
        else:
            what = type(event).__name__.removeprefix("Model").lower()
            self._at.service.log.info("model", model=name, what=what)

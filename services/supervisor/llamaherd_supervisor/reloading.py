"""A changed llamaherd.yaml: what is said about models counts at once; only what is started otherwise starts again."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

from llamaherd_shared.commands import ReloadConfiguration, Reloaded, Restart
from llamaherd_shared.configuration import Configuration
from llamaherd_shared.errors import Rejected
from llamaherd_shared.events.model import ModelEvent, ModelFound
from llamaherd_shared.model_spec import Models
from llamaherd_supervisor.folder import Folder
from llamaherd_supervisor.handlers import Owner
from llamaherd_supervisor.lifecycle import ALIVE, Wanted
from llamaherd_supervisor.offers import Offers
from llamaherd_supervisor.pulls.entries import Entries
from llamaherd_supervisor.reconcile import unmet_requirements
from llamaherd_supervisor.settings import SupervisorSettings
from llamaherd_supervisor.workplace import Workplace


class Reloading:
    """Answers `reload`, and follows the file."""

    def __init__(
        self,
        at: Workplace,
        folder: Folder,
        owners: Mapping[tuple[str, int], Owner],
        configuration: Configuration[SupervisorSettings],
        entries: Entries,
        *,
        settle: Callable[[], None],
    ) -> None:
        """`settle` sees to it that there are as many instances as there are to be."""
        self._settle = settle
        self._at, self._folder, self._owners, self._configuration = at, folder, owners, configuration
        self._entries = entries
        self._applying = asyncio.Lock()

    async def follow(self) -> None:
        """Apply the file whenever it has changed, until cancelled."""
        await self._configuration.follow(self._at.service, self._apply_file)

    async def answer(self, command: ReloadConfiguration) -> Reloaded:
        """Raises `SettingsError`, which is one of `Rejected`, when the file cannot be used: nothing changes then."""
        if command.text is not None:
            return await self._foresee(self._configuration.read_models(command.text), later=[])
        if self._configuration.config is None:
            text = f"the supervisor of {self._at.node} was started without a configuration file"
            raise Rejected(f"{text}: `llamaherd up --config FILE`")
        settings, said = self._configuration.read()
        later = self._configuration.needing_restart(settings)
        return await (self._foresee(said, later=later) if command.dry_run else self._apply(said, later=later))

    def restart_changed(self) -> list[Restart]:
        """Start again what would be started otherwise now."""
        restarts = []
        for owner in self._alive():
            if why := owner.changes():
                restarts.append(Restart(model=owner.instance.model, index=owner.instance.index, why=why))
                name = owner.instance.name
                self._at.service.log.info("llama-server starts again with other options", instance=name, why=why)
                owner.reload()
        return restarts

    async def _apply_file(self) -> None:
        settings, said = self._configuration.read()
        await self._apply(said, later=self._configuration.needing_restart(settings))

    async def _apply(self, said: Models, *, later: list[str]) -> Reloaded:
        async with self._applying:
            before, known = self._at.offers.defined, set(self._at.models)
            self._at.offers.replace(said)
            self._entries.expect()
            await self._folder.look(anew=True)
            self._entries.begin()
            gone = sorted(before - self._at.models.keys())
            self._unload(gone)
            coming = self._coming(self._at.offers, self._at.models)
            reloaded = Reloaded(
                node=self._at.node,
                restarts=self.restart_changed(),
                offered=sorted(self._at.models.keys() - known - coming),
                gone=sorted(known - self._at.models.keys()),
                later=later,
                coming=sorted(coming),
            )
            self._settle()
        self._at.service.log.info("llamaherd.yaml was read again", restarts=len(reloaded.restarts))
        if later:
            self._at.service.log.warning("what else has changed counts after a restart", settings=later)
        return reloaded

    async def _foresee(self, said: Models, *, later: list[str]) -> Reloaded:
        offers = Offers(said, self._at.settings.models_dir)
        events = await self._folder.foresee(offers)
        known, coming = set(self._at.models), self._coming(offers, events)
        restarts = []
        for owner in self._alive():
            found = events.get(owner.instance.model)
            why = owner.changes(offers, found) if isinstance(found, ModelFound) else []
            if why:
                restarts.append(Restart(model=owner.instance.model, index=owner.instance.index, why=why))
        return Reloaded(
            node=self._at.node,
            restarts=restarts,
            offered=sorted(events.keys() - known - coming),
            gone=sorted(known - events.keys()),
            later=later,
            coming=sorted(coming),
        )

    def _coming(self, offers: Offers, told: Mapping[str, ModelEvent]) -> set[str]:
        """What is to be pulled."""
        absent = {name for name in offers.repositories if not isinstance(told.get(name), ModelFound)}
        return {name for name in absent if not unmet_requirements(offers.spec(name), self._at.settings.labels)}

    def _alive(self) -> Iterable[Owner]:
        return [owner for _, owner in sorted(self._owners.items()) if owner.instance.state in ALIVE]

    def _unload(self, models: Iterable[str]) -> None:
        """What was there by its entry alone, and is not any more."""
        for (model, _), owner in self._owners.items():
            if model in models:
                owner.ask(Wanted(wanted=False, cause="unload", asked_ns=time.time_ns()))

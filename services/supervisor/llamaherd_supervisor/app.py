"""Composition root of the supervisor: what is started in which order, and how it ends."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import msgspec
import psutil

from llamaherd_shared import __version__
from llamaherd_shared.bus.requests import Served
from llamaherd_shared.commands import (
    Accepted,
    CancelLoad,
    CancelPull,
    DeleteModel,
    DescribeModel,
    DescribeParameters,
    DrainNode,
    GrowModel,
    LoadModel,
    OfferLoad,
    PullModel,
    ReloadConfiguration,
    ResetModel,
    UnloadModel,
)
from llamaherd_shared.configuration import Configuration
from llamaherd_shared.errors import HerdError, Unavailable
from llamaherd_shared.events import decode_event
from llamaherd_shared.events.model import ModelEvent, ModelFound
from llamaherd_shared.events.node import NodeJoined, NodeLeft
from llamaherd_shared.events.pull import PullFailed
from llamaherd_shared.model_spec import Models
from llamaherd_shared.projection import Applied, Follower, Source
from llamaherd_shared.service import Service
from llamaherd_shared.streams import EVENTS
from llamaherd_shared.tasks import end
from llamaherd_shared.upstream_key import ROUTER
from llamaherd_supervisor import reconcile, store
from llamaherd_supervisor.adoption import Adopt, Left
from llamaherd_supervisor.files import FileCommands
from llamaherd_supervisor.folder import Folder
from llamaherd_supervisor.journal import Journal, SecondSupervisor
from llamaherd_supervisor.leftovers import Leftovers
from llamaherd_supervisor.lifecycle import Instance, Wanted
from llamaherd_supervisor.loads import Commands, Here, Whois
from llamaherd_supervisor.maintenance import Maintenance
from llamaherd_supervisor.memory import Memory
from llamaherd_supervisor.offers import Offers
from llamaherd_supervisor.program import Program
from llamaherd_supervisor.projection import Known
from llamaherd_supervisor.pulls.entries import Entries
from llamaherd_supervisor.pulls.handlers import Pulls
from llamaherd_supervisor.reloading import Reloading
from llamaherd_supervisor.repositories import Download
from llamaherd_supervisor.router.app import Router
from llamaherd_supervisor.router.handlers import RoutedOwner
from llamaherd_supervisor.settings import SupervisorSettings, find_llama_server
from llamaherd_supervisor.workplace import Workplace

_WHOIS_S = 1.0
_FLUSH_S = 5.0
_STOP_MARGIN_S = 5.0
"""Beyond drain and stop time-outs, before the rest is killed without further ado."""
_UNWANTED = Wanted(wanted=False)


async def run(
    service: Service,
    settings: SupervisorSettings,
    said: Models,
    configuration: Configuration[SupervisorSettings],
    environment: Mapping[str, str],
) -> None:
    """Supervise until asked to stop; then leave no process behind."""
    await refuse_second(service)
    lock = store.lock_data_dir(service.common.data_dir)
    try:
        await Supervisor(service, settings, said, configuration, environment).run()
    finally:
        os.close(lock)


async def refuse_second(service: Service) -> None:
    """Two supervisors of one name would kill each other's instances: the second one leaves.

    When there is none, nats-server says so at once; the lock of the data folder catches one that is not on the bus.
    """
    node = service.common.node
    subject = service.bus.subjects.command("supervisor", "whois", node=node)
    with contextlib.suppress(Unavailable):
        here = await service.bus.request(subject, Whois(), Here, timeout_s=_WHOIS_S)
        raise SecondSupervisor(
            f"node {node} already has a supervisor (process {here.pid}, data folder {here.data_dir}):"
            " give each host its own name (`node`)"
        )


def _failure(tasks: Iterable[asyncio.Future[Any]]) -> BaseException | None:
    failures = [task.exception() for task in tasks if task.done()]
    return next((failure for failure in failures if failure is not None), None)


class Supervisor:
    """The instances and models of one node."""

    def __init__(
        self,
        service: Service,
        settings: SupervisorSettings,
        said: Models,
        configuration: Configuration[SupervisorSettings],
        environment: Mapping[str, str],
    ) -> None:
        """`said`: what llamaherd.yaml says about models."""
        self.service, self.settings = service, settings
        self.node = service.common.node
        self.subjects = service.bus.subjects
        self.journal = Journal(service.bus, node=self.node)
        self.models: dict[str, ModelEvent] = {}
        self.owners: dict[tuple[str, int], RoutedOwner] = {}
        self._tasks: dict[RoutedOwner, asyncio.Task[None]] = {}
        self._known = Known()
        self._joined = False
        self._preloaded: set[str] = set()
        self.memory = Memory(service, settings, tenants=self.owners, spec=lambda model: self.at.offers.spec(model))
        self.at = Workplace(
            service=service,
            settings=settings,
            journal=self.journal,
            llama_server=find_llama_server(settings),
            secret=store.read_secret(service.common.secret_file),
            environment=environment,
            models=self.models,
            offers=Offers(said, settings.models_dir),
            memory=self.memory,
        )
        self.router = Router(self.at, self._owner_of)
        self.maintenance = Maintenance(self.at, self.owners, resumed=self._preload)
        self.commands = Commands(self.at, self.owners, self._owner_of, drained=lambda: self.maintenance.drained)
        downloads: dict[str, Download] = {}
        self.folder = Folder(self.at, self.models, downloads, surveyed=self._preload)
        self.pulls = Pulls(self.at, self.folder.take_in)
        self.entries = Entries(
            self.at, self.pulls, self.folder, downloads, arrived=lambda: self.reloading.restart_changed()
        )
        self.reloading = Reloading(
            self.at, self.folder, self.owners, configuration, self.entries, settle=self.commands.settle
        )
        self._leftovers = Leftovers(self.at)
        self._joined_ns = 0
        """When we said that we are here; 0 before."""
        self._succeeded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails when another supervisor has taken this node's name."""

    async def run(self) -> None:
        projection = self.service.projection(store.SCHEMA, store.SCHEMA_VERSION)
        source = Source(
            stream=EVENTS,
            decode=decode_event,
            project=partial(store.project, node=self.node),
            committed=self._heed_successor,
        )
        follower = Follower(
            self.service.bus, projection, source, trouble=partial(self.service.trouble, about="projection")
        )
        following = asyncio.create_task(follower.run())
        journaling = asyncio.create_task(self.journal.run())
        stopping = asyncio.create_task(self.service.stopping.wait())
        caught_up = asyncio.create_task(follower.caught_up.wait())
        background: list[asyncio.Future[Any]] = [following, journaling, stopping, self._succeeded]
        try:
            await asyncio.wait([caught_up, *background], return_when=asyncio.FIRST_COMPLETED)
            if not caught_up.done():
                if failure := _failure(background):
                    raise failure
                await self._leftovers.end_all()
                return
            self._known = store.read_known(projection.db)
            self.maintenance.recall(self._known.drained)
            booking = self.memory.run(self.at.llama_server, self.at.environment, self._known.needs)
            background.append(asyncio.create_task(booking))
            await self._join()
            watching = asyncio.create_task(self.folder.watch())
            background += [watching, asyncio.create_task(self.reloading.follow())]
            served, slow = await self._serve(), await self._serve_files()
            self.service.ready()
            await asyncio.wait(background, return_when=asyncio.FIRST_COMPLETED)
            failure = _failure(background)
            if isinstance(failure, SecondSupervisor):
                # What we would say from now on is the other one's to say.
                journaling.cancel()
            if failure is None or isinstance(failure, SecondSupervisor):
                await self._leave(served, slow, watching, journaling)
            if failure is not None:
                # Of any other failure the instances know nothing: the next supervisor adopts them.
                raise failure
        finally:
            await self.entries.close()
            await self.pulls.close()
            await end(caught_up, *background, *self._tasks.values())
            await self.router.close()
            projection.close()

    def _heed_successor(self, applied: Applied) -> None:
        """Somebody took this node's name while we did not answer: of two that live the later one stays."""
        for _, event in applied:
            joined = isinstance(event, NodeJoined) and event.node == self.node
            if joined and event.at_ns > self._joined_ns > 0 and not self._succeeded.done():
                sentence = f"node {self.node} has another supervisor now: give each host its own name (`node`)"
                self._succeeded.set_exception(SecondSupervisor(sentence))

    async def _join(self) -> None:
        """Say that we are here, settle what the supervisor before us left, go on with what it wanted."""
        if not self.at.llama_server:
            self.service.log.warning(reconcile.NO_LLAMA_SERVER.format(node=self.node))
        self._joined_ns = time.time_ns()
        self.journal.record(
            self.subjects.node(self.node),
            NodeJoined(
                node=self.node,
                at_ns=self._joined_ns,
                version=__version__,
                cpus=os.cpu_count() or 1,
                memory_bytes=psutil.virtual_memory().total,
                models_dir=str(self.settings.models_dir),
                llama_server=self.at.llama_server,
                drained=self.maintenance.drained,
            ),
        )
        if self.maintenance.drained:
            self.service.log.warning(f"this node is drained for maintenance: `llamaherd resume {self.node}` ends that")
        for model, entry in self.at.offers.models.entries.items():
            if (group := entry.get("group")) and group not in self.settings.groups:
                self.service.log.warning("a group has no rules (`supervisor.groups`)", model=model, group=group)
        self._record_lost_pulls()
        await self._settle_leftovers()

    async def _settle_leftovers(self) -> None:
        """Adopt what the supervisor before us ran, tell what has ended meanwhile, end what belongs to nobody."""
        left, orphans = await self._leftovers.find(self._known)
        router = next((each for each in left if each.instance.model == ROUTER), None)
        left = [each for each in left if each is not router]
        for each in left:
            if isinstance(each.found, Adopt):
                self._own_left(each)
        # Before anything is started: orphans hold memory.
        self.entries.take_up(self._known.models)
        ending = self._leftovers.end(orphans, patience_s=self.settings.stop_timeout_s)
        await asyncio.gather(ending, self.folder.take_up(self._known.models))
        for each in left:
            if not isinstance(each.found, Adopt):
                self._own_left(each)
        self.router.start(router, [each.instance.model for each in left])
        self._joined = True
        self._preload()
        self.entries.begin()
        # The configuration may have changed since what was adopted was started.
        self.reloading.restart_changed()

    def _own_left(self, left: Left) -> None:
        self._own(left.instance, reconcile.wanted_after_restart(left.instance, left.found, left.record), left)

    def _record_lost_pulls(self) -> None:
        """What the supervisor before us was pulling: what has come is there, and nobody fetches the rest."""
        for pull in self._known.pulls.values():
            reason = f"the supervisor of {self.node} ended meanwhile; pull again to go on where it stopped"
            self.journal.record(
                self.subjects.pull(self.node, pull.pull),
                PullFailed(
                    node=self.node, pull=pull.pull, model=pull.model, at_ns=time.time_ns(), reason=reason, cause="lost"
                ),
            )

    def _own(self, instance: Instance, wanted: Wanted, left: Left | None = None) -> RoutedOwner:
        adopted = left.found if left is not None else None
        plan = adopted.record.plan if isinstance(adopted, Adopt) else None
        owner = RoutedOwner(instance, self.at, wanted, self.router, plan)
        self.owners[(instance.model, instance.index)] = owner
        self._tasks[owner] = asyncio.create_task(owner.run(left))
        return owner

    def _owner_of(self, model: str, index: int = 0) -> RoutedOwner:
        instance = Instance(node=self.node, model=model, index=index)
        return self.owners.get((model, index)) or self._own(instance, _UNWANTED)

    async def _serve(self) -> list[Served]:
        bus, command = self.service.bus, partial(self.subjects.command, "supervisor", node=self.node)
        commands = self.commands

        async def load(asked: LoadModel) -> Accepted:
            await self.entries.retry(asked.model)
            return await commands.load(asked)

        async def whois(_: Whois) -> Here:
            return Here(os.getpid(), str(self.service.common.data_dir))

        return [
            await bus.serve(command("load"), LoadModel, load),
            await bus.serve(command("offer"), OfferLoad, commands.offer),
            await bus.serve(command("grow"), GrowModel, commands.grow),
            await bus.serve(command("unload"), UnloadModel, commands.unload),
            await bus.serve(command("reset"), ResetModel, commands.reset),
            await bus.serve(command("cancel-load"), CancelLoad, commands.cancel_load),
            await bus.serve(command("reload"), ReloadConfiguration, self.reloading.answer),
            await bus.serve(command("drain"), DrainNode, self.maintenance.answer),
            await bus.serve(command("whois"), Whois, whois),
        ]

    async def _serve_files(self) -> list[Served]:
        bus, command = self.service.bus, partial(self.subjects.command, "supervisor", node=self.node)
        files = FileCommands(
            self.at,
            owners_of=self.commands.owners_of,
            is_pulling=self.pulls.is_pulling,
            looking=self.folder.looking,
            gone=self.folder.record_deletion,
        )
        return [
            await bus.serve(command("describe"), DescribeModel, files.describe, concurrency=2),
            await bus.serve(command("delete"), DeleteModel, files.delete),
            await bus.serve(command("pull"), PullModel, self.pulls.pull),
            await bus.serve(command("pull-cancel"), CancelPull, self.pulls.cancel),
            await bus.serve(command("parameters"), DescribeParameters, Program(self.at).parameters),
        ]

    async def _leave(
        self,
        served: list[Served],
        slow: list[Served],
        watching: "asyncio.Task[None]",
        journaling: "asyncio.Task[None]",
    ) -> None:
        """Commands first, then the instances, then the word that we are gone."""
        self.service.ready(False)
        self.service.stopping.set()
        for each in served:
            await each.drain()
        # Their answers may wait for a hub, or for requests in flight: as long as the instances take to stop.
        draining = asyncio.gather(*(each.drain() for each in slow))
        watching.cancel()
        await self.entries.close()
        await self.pulls.close()
        wanted = Wanted(wanted=False, cause="shutdown", asked_ns=time.time_ns())
        for owner in self.owners.values():
            owner.ask(wanted)
        limits = self.settings.limits()
        timeout_s = limits.drain_timeout_s + limits.stop_timeout_s + _STOP_MARGIN_S
        waiting = [asyncio.create_task(owner.settled.wait()) for owner in self.owners.values()]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout_s)
            for task in late:
                task.cancel()
        await self.router.stop(limits.stop_timeout_s + _STOP_MARGIN_S)
        await self._leftovers.end_all()
        draining.cancel()
        self.journal.record(
            self.subjects.node(self.node), NodeLeft(node=self.node, at_ns=time.time_ns(), cause="shutdown")
        )
        if not journaling.done() and not await self.journal.flush(_FLUSH_S):
            self.service.log.warning("the bus is away: the last facts could not be stored")

    def _preload(self) -> None:
        """Load what is to be loaded from the start, each once: what somebody unloads later stays unloaded."""
        if not self._joined or self.maintenance.drained:
            return
        for name in self.models.keys() - self._preloaded:
            if not self.at.offers.spec(name).preload or not isinstance(self.models[name], ModelFound):
                continue
            self._preloaded.add(name)
            try:
                load = self.commands.decide(LoadModel(model=name))
            except HerdError as error:
                self.service.log.warning("a model cannot be loaded from the start", model=name, why=error.message)
            else:
                # It takes what room there is: of several that do not fit together the first ones stay.
                self.commands.start(name, msgspec.structs.replace(load, may_evict=False))

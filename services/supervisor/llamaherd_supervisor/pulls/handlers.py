"""The commands that begin and cancel pulls."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from llamaherd_shared.commands import LISTING_TIMEOUT_S, CancelPull, PullAccepted, PullCancelled, PullModel
from llamaherd_shared.errors import Conflict, NotFound, Rejected, Unavailable
from llamaherd_shared.events.model import ModelRejected, ModelRemoved
from llamaherd_shared.repository import parse_repository
from llamaherd_supervisor import store
from llamaherd_supervisor.pulls import pace
from llamaherd_supervisor.pulls.fetch import Fetch, measure
from llamaherd_supervisor.pulls.plan import Plan, plan_choice, plan_url
from llamaherd_supervisor.pulls.repository import check_revision, choose
from llamaherd_supervisor.settings import read_reference
from llamaherd_supervisor.workplace import Workplace

if TYPE_CHECKING:
    from llamaherd_supervisor.pulls.hub import Hub, Listing

_ANSWER_S: Final = LISTING_TIMEOUT_S - 5.0
"""How long the hub may take for its list of files: the caller of `pull` waits for it."""


class Pulls:
    """Every pull of this node."""

    def __init__(self, at: Workplace, take_in: Callable[[Collection[str]], Awaitable[None]]) -> None:
        """`take_in` announces files that are new in the models folder."""
        self._at, self._take_in = at, take_in
        self._running: dict[str, Fetch] = {}
        """By model: one pull at a time writes its files."""
        self._shared: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By target: a projector is of all quantizations of a model, and each brings it."""

    def is_pulling(self, model: str) -> bool:
        return model in self._running

    async def pull(self, command: PullModel) -> PullAccepted:
        """Begin, or join the pull that brings the same. Raises why not."""
        fetch, joined = await self.begin(command)
        sequence = await self._at.journal.sequence(fetch.subject)
        return PullAccepted(
            node=self._at.node,
            pull=fetch.id,
            model=fetch.plan.model,
            total_bytes=fetch.total_bytes,
            done_bytes=fetch.done_bytes,
            joined=joined,
            present=fetch.present,
            sequence=sequence,
        )

    async def begin(self, command: PullModel) -> tuple[Fetch, bool]:
        """(the pull, whether it had been running). Raises why it cannot be."""
        if bool(command.repository) == bool(command.url):
            raise Rejected("name what to pull: a repository (OWNER/NAME), or the URL of a file")
        hub = await self._open_hub(command)
        try:
            plan = self._settle_place(plan_url(command) if command.url else await self._ask_hub(hub, command))
            fetch, joined = await self._begin(hub, plan)
        except BaseException:
            await hub.close()
            raise
        if joined:
            await hub.close()
        return fetch, joined

    async def cancel(self, command: CancelPull) -> PullCancelled:
        """End a pull; returns once it has ended."""
        fetch = next((fetch for fetch in self._running.values() if fetch.id == command.pull), None)
        if fetch is None:
            raise NotFound(f"{self._at.node} has no pull {command.pull!r} under way")
        await fetch.cancel("cancelled", discard=command.discard)
        return PullCancelled(node=self._at.node, pull=fetch.id, model=fetch.plan.model)

    async def close(self) -> None:
        """End every pull: the supervisor stops."""
        await asyncio.gather(*(fetch.cancel("shutdown") for fetch in list(self._running.values())))

    async def _open_hub(self, command: PullModel) -> "Hub":
        settings, environment = self._at.settings, self._at.environment
        token = command.token

        def make() -> "Hub":
            from llamaherd_supervisor.pulls.hub import Hub

            own = "" if command.url else read_reference(settings.hub_token, environment, setting="supervisor.hub_token")
            return Hub(command.url or settings.hub_url, token=token or own, timeout_s=settings.pull_timeout_s)

        return await asyncio.to_thread(make)

    async def _ask_hub(self, hub: "Hub", command: PullModel) -> Plan:
        wanted = parse_repository(command.repository)
        listing = await self._list_files(hub, wanted.name, check_revision(command.revision))
        choice = choose(wanted.name, listing.files, command.quantization or wanted.quantization)
        return plan_choice(self._at.settings.hub_url, wanted.name, listing.commit, choice, name=command.name)

    async def _list_files(self, hub: "Hub", repository: str, revision: str) -> "Listing":
        """Asked again while there is time: the caller waits."""
        from llamaherd_supervisor.pulls.hub import Broken

        deadline, attempt = time.monotonic() + _ANSWER_S, 0
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await hub.list_files(repository, revision)
            except TimeoutError:
                raise Unavailable(f"{hub.url} does not answer", retry_after_s=10) from None
            except Broken as error:
                attempt += 1
                base_s, jitter = self._at.settings.pull_backoff_s, random.random()
                delay_s = pace.retry_delay_s(attempt, base_s=base_s, asked_s=error.retry_after_s, jitter=jitter)
                if attempt > self._at.settings.pull_retries or time.monotonic() + delay_s > deadline:
                    raise Unavailable(error.message, retry_after_s=error.retry_after_s) from error
                await asyncio.sleep(delay_s)

    def _settle_place(self, plan: Plan) -> Plan:
        """Where a model of this name is already: it may be the same file, or it is in the way (`Conflict`)."""
        known = self._at.models.get(plan.model)
        if known is None or isinstance(known, ModelRemoved) or (isinstance(known, ModelRejected) and not known.path):
            return plan
        models_dir = self._at.settings.models_dir
        if Path(known.path) == models_dir / plan.files[0].target:
            return plan
        only, *others = plan.parts
        if not others and only.sha256 and store.file_size(Path(known.path)) == only.size_bytes:
            with contextlib.suppress(ValueError):
                return plan.moved(Path(known.path).relative_to(models_dir))
        raise Conflict(
            f"{self._at.node} has another model {plan.model} ({known.path}): pull this one under another name, or"
            " delete that one first"
        )

    async def _begin(self, hub: "Hub", plan: Plan) -> tuple[Fetch, bool]:
        """(the pull, whether it had been running). Raises when it cannot be."""
        models_dir = self._at.settings.models_dir
        there = await asyncio.to_thread(measure, plan, models_dir)
        free_bytes = await asyncio.to_thread(store.free_bytes, models_dir)
        # From here to the end nothing is awaited: of two that ask at once the second finds the first.
        if self._at.service.stopping.is_set():
            raise Unavailable(f"the supervisor of {self._at.node} is stopping", retry_after_s=5)
        running = self._running.get(plan.model)
        if running is not None:
            if running.plan.is_same(plan):
                return running, True
            raise Conflict(
                f"{self._at.node} is pulling {plan.model} from {running.plan.source}: wait for that, cancel it, or"
                " pull this one under another name"
            )
        fetch = Fetch(self._at, hub, plan, there, ended=self._forget, take_in=self._take_in, shared=self._lock)
        others_bytes = sum(other.outstanding_bytes for other in self._running.values())
        shortage = pace.find_shortage(
            needed_bytes=fetch.outstanding_bytes, free_bytes=free_bytes, others_bytes=others_bytes
        )
        if shortage:
            raise Unavailable(f"{plan.model} does not fit on {self._at.node}: {shortage}")
        self._running[plan.model] = fetch
        fetch.start()
        return fetch, False

    def _lock(self, target: str) -> asyncio.Lock:
        return self._shared.setdefault(target, asyncio.Lock())

    def _forget(self, fetch: Fetch) -> None:
        del self._running[fetch.plan.model]

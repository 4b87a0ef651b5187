"""Getting a model loaded while a request waits: ask its supervisor, watch the projection. All waiters share a load.

Every wait is bounded: without an answer from a supervisor by `ask_timeout_s`, without progress by `load_timeout_s`.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec

from llamaherd_gateway.projection import Instance
from llamaherd_gateway.routing.attendance import Attendance
from llamaherd_gateway.routing.placing import Bids, Placing
from llamaherd_gateway.routing.table import pick_instance
from llamaherd_gateway.store import View
from llamaherd_shared.commands import Accepted, CancelLoad, LoadModel, OfferLoad, UnloadModel
from llamaherd_shared.errors import HerdError, NoMemory, Unavailable
from llamaherd_shared.model_options import LoadOptions

ASK_AGAIN_S: Final = 2.0
"""Asked for and still not loading: the supervisor may have been restarted and forgotten. Loading twice is one load."""
ASK_PAUSE_S: Final = 0.25
BEAT_PAUSE_S: Final = 0.5
"""Between two looks whether a supervisor has been heard."""
EXIT_NOTICE_S: Final = 3.0
"""How long the news that an instance has exited may take from its supervisor to here."""
NOTHING: Final = LoadOptions()
LINES_TOLD: Final = 12
"""Lines of an instance's log that an error quotes."""
OUTSIDE_SIGNALS: Final = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"})
"""Sent by somebody else: the model is not to blame, and the supervisor's restart is waited for."""
HEALED_BY_A_RESTART: Final = frozenset({"port_in_use"})
"""Faults (docs/faults.md) of which the next start is free."""

_OWN_FAULT: Final = frozenset({"crash", "unhealthy"})
"""Causes of an exit nobody asked for; after any other one the load is asked for again."""


class Wish(msgspec.Struct, frozen=True):
    """What is waited for."""

    model: str
    options: LoadOptions | None = None
    """That it is to be loaded with; `None`: whatever it is loaded with will do."""
    exactly: bool = False
    """Whether these are somebody's orders, and not what a request needs (`LoadModel.for_request`)."""
    but: frozenset[str] = frozenset()
    """Nodes where it does not count."""


class LoadFailed(Unavailable):
    """The model was asked for and did not become ready."""


class StillThere(Unavailable):
    """An instance broke a connection although it runs."""


class Loader:
    """Loads on demand. Use from one event loop."""

    def __init__(
        self,
        view: View,
        bus: Bids,
        *,
        caught_up: asyncio.Event,
        attendance: Attendance,
        load_timeout_s: float,
        wait_timeout_s: float,
        ask_timeout_s: float,
        by: str,
    ) -> None:
        """`wait_timeout_s`: how long a load may wait for memory. `by` names this gateway to supervisors."""
        self._by = by
        self._attendance = attendance
        self._placing = Placing(view, bus, by=by)
        self._asked: dict[str, str] = {}
        """Model -> node that was asked to load it, while it is not ready."""
        self._cancelling: dict[str, asyncio.Task[None]] = {}
        self._view, self._bus, self._caught_up = view, bus, caught_up
        self._load_timeout_s, self._ask_timeout_s = load_timeout_s, ask_timeout_s
        self._wait_timeout_s = wait_timeout_s
        self._loads: dict[Wish, asyncio.Task[Instance]] = {}
        self._waiting: Counter[Wish] = Counter()

    async def ready(
        self,
        model: str,
        options: LoadOptions | None = None,
        *,
        exactly: bool = False,
        but: frozenset[str] = frozenset(),
    ) -> Instance:
        """A ready instance of `model`, loaded if need be, and anew if it has not what is asked for (`Wish`).

        Raises `HerdError`; other waiters are not disturbed.
        """
        wish = Wish(model, options, exactly, but)
        load = self._loads.get(wish)
        if load is None:
            load = self._loads[wish] = asyncio.create_task(self._load(wish))
            load.add_done_callback(lambda done: self._forget(wish, done))
        self._waiting[wish] += 1
        try:
            return await asyncio.shield(load)
        finally:
            self._waiting[wish] -= 1
            if not self._waiting[wish]:
                del self._waiting[wish]
                if not load.done():
                    load.cancel()
                    if all(other.model != model for other in self._waiting):
                        self._cancel(model)

    async def until_gone(self, lost: Instance, *, another: Callable[[], object]) -> bool:
        """Wait for the news that `lost`, which broke a connection, takes no more work; whether somebody wanted that.

        Or until there is `another` one to ask. Raises `StillThere` when no news comes.
        """
        began = time.monotonic()
        while any(ready.spawn == lost.spawn for ready in self._view.table.ready.get(lost.model, ())):
            if another():
                return False
            if lost.node in self._view.away:
                # The one who would tell is gone as well.
                self._view.write_off(lost)
                return True
            left = began + EXIT_NOTICE_S - time.monotonic()
            # Its host may have vanished with it: that shows when no beat comes any more.
            if left <= 0 and self._attendance.heard_since(lost.node, began):
                raise StillThere(f"the llama-server {lost.name} closed the connection without an answer")
            await self._view.changed(left if left > 0 else BEAT_PAUSE_S)
        now = self._view.fleet.instances.get(lost.key)
        # It may run again by now: then the last process that ended is the one before.
        return now is not None and now.ended_generation == lost.generation and now.ended_by not in _OWN_FAULT

    async def unload(self, model: str, *, nodes: Collection[str] | None = None) -> None:
        """Unload it wherever it is loaded, or only on these nodes; nodes that are not heard any more are left alone.

        Raises `HerdError` when a supervisor refuses or does not answer.
        """
        await self.wait_until_caught_up(model)
        loaded = {
            instance.node
            for instance in self._view.fleet.instances.values()
            if instance.model == model and instance.state not in ("stopped", "failed")
        } - self._view.away
        for node in sorted(loaded if nodes is None else loaded & set(nodes)):
            subject = self._bus.subjects.command("supervisor", "unload", node=node)
            await self._bus.request(subject, UnloadModel(model=model), Accepted)

    def progress(self, model: str) -> str:
        """How far the load is, in a few words."""
        for instance in self._view.fleet.instances.values():
            if instance.model == model and instance.state == "loading":
                return f"loading {model}: {instance.ratio:.0%} ({instance.stage})"
            if instance.model == model and instance.state == "waiting":
                return f"{model} waits for memory: {instance.awaits}"
        return f"loading {model}"

    def _cancel(self, model: str) -> None:
        """Nobody waits any more: tell the supervisor, in the background."""
        node = self._asked.pop(model, None)
        if node is None:
            return

        async def cancel() -> None:
            subject = self._bus.subjects.command("supervisor", "cancel-load", node=node)
            with contextlib.suppress(HerdError):
                await self._bus.request(subject, CancelLoad(model=model, by=self._by), Accepted)

        task = self._cancelling[model] = asyncio.create_task(cancel())
        task.add_done_callback(lambda done: self._cancelling.pop(model, None))

    def _forget(self, wish: Wish, load: "asyncio.Task[Instance]") -> None:
        if self._loads.get(wish) is load:
            del self._loads[wish]
        if not load.cancelled():
            load.exception()  # retrieved by the waiters, if any is left

    async def _load(self, wish: Wish) -> Instance:
        model = wish.model
        if not self._caught_up.is_set():
            await self.wait_until_caught_up(model)
        accepted: Accepted | None = None
        refused: dict[str, NoMemory] = {}
        """By nodes that have no room for it after all."""
        asked_at = progress_at = time.monotonic()
        seen = -1
        while True:
            if ready := self._ready_for(wish, accepted):
                self._asked.pop(model, None)
                return pick_instance(ready, {})
            now = time.monotonic()
            if accepted is not None and accepted.node in self._view.away:
                accepted = None  # it will not go on there
            node = accepted.node if accepted is not None else await self._place(wish, refused)
            instance = self._view.fleet.instances.get((node, model, 0))
            if instance is not None:
                if accepted is not None:
                    _refuse_if_failed(instance, accepted)
                if instance.sequence != seen:
                    seen, progress_at = instance.sequence, now
            forgotten = _is_idle(instance) and now - asked_at >= ASK_AGAIN_S
            if accepted is None or forgotten or _was_unloaded(instance, accepted):
                try:
                    accepted = await self._ask(node, wish)
                except NoMemory as error:
                    if node in refused:
                        raise _without_room(model, error) from error
                    accepted, refused[node] = None, error
                asked_at = time.monotonic()
                continue
            waits = instance is not None and instance.state == "waiting"
            timeout_s = self._wait_timeout_s if waits else self._load_timeout_s
            if now - progress_at > timeout_s:
                raise LoadFailed(_stuck_message(model, node, instance, timeout_s), retry_after_s=10)
            await self._view.changed(ASK_AGAIN_S)

    async def _place(self, wish: Wish, refused: Mapping[str, NoMemory]) -> str:
        """The node to ask; one that has refused already only when there is no other."""
        command = OfferLoad(model=wish.model, options=wish.options or NOTHING, for_request=not wish.exactly)
        try:
            return await self._placing.choose(command, but=refused)
        except NoMemory as error:
            raise _without_room(wish.model, error) from error

    def _ready_for(self, wish: Wish, accepted: Accepted | None) -> tuple[Instance, ...]:
        """Those that have what is asked for; else what the load has led to, for that is all there is to be had."""
        ready = self._view.table.ready_for(wish.model, wish.options)
        if wish.but:
            return tuple(instance for instance in ready if instance.node not in wish.but)
        if ready or accepted is None:
            return ready
        return tuple(
            instance
            for instance in self._view.table.ready.get(wish.model, ())
            if instance.node == accepted.node and instance.generation > accepted.replaces
        )

    async def wait_until_caught_up(self, model: str) -> None:
        """What the gateway knows may be old: a model it does not know may be there all the same."""
        try:
            async with asyncio.timeout(self._ask_timeout_s):
                await self._caught_up.wait()
        except TimeoutError:
            text = f"the gateway is starting and does not know yet where {model!r} is"
            raise Unavailable(text, retry_after_s=2) from None

    async def _ask(self, node: str, wish: Wish) -> Accepted:
        """Ask the node's supervisor to load; one that is being restarted has `ask_timeout_s` to come back."""
        model = wish.model
        command = LoadModel(model=model, by=self._by, options=wish.options or NOTHING, for_request=not wish.exactly)
        if (cancelling := self._cancelling.get(model)) is not None:
            await asyncio.wait({cancelling})  # or the supervisor might hear of it after the new load
        self._asked[model] = node
        subject = self._bus.subjects.command("supervisor", "load", node=node)
        deadline = time.monotonic() + self._ask_timeout_s
        while True:
            left = deadline - time.monotonic()
            try:
                return await self._bus.request(subject, command, Accepted, timeout_s=min(5.0, max(left, 0.1)))
            except NoMemory:
                raise
            except Unavailable as error:
                if time.monotonic() + ASK_PAUSE_S >= deadline:
                    text = f"the model {model!r} cannot be loaded: {error.message}"
                    raise LoadFailed(text, retry_after_s=5) from error
            await asyncio.sleep(ASK_PAUSE_S)


def _without_room(model: str, error: NoMemory) -> LoadFailed:
    return LoadFailed(f"the model {model!r} cannot be loaded: {error.message}", retry_after_s=5)


def _is_idle(instance: Instance | None) -> bool:
    """Nothing moves towards ready by itself."""
    return instance is None or instance.state in ("stopped", "failed", "draining", "stopping")


def _was_unloaded(instance: Instance | None, accepted: Accepted) -> bool:
    """Somebody had it stopped after we had asked for it."""
    return instance is not None and instance.state == "stopped" and instance.sequence > accepted.sequence


def _refuse_if_failed(instance: Instance, accepted: Accepted) -> None:
    """Raises when the load we asked for has ended badly.

    An exit code is llama-server's own verdict on the model. A signal came from outside (an operator, the kernel
    when memory ran out), and how an adopted one ended nobody knows: the supervisor's restart is waited for, and the
    supervisor knows when to give up.
    """
    if instance.sequence <= accepted.sequence:
        return
    if instance.state == "failed":
        raise LoadFailed(_failure_message(instance, instance.reason or "its llama-server gave up"), retry_after_s=30)
    if instance.state in ("backoff", "stopped") and not instance.was_ready and instance.cause in _OWN_FAULT:
        is_verdict = instance.exit_code is not None or instance.signal not in {None, *OUTSIDE_SIGNALS}
        if instance.state == "backoff" and (not is_verdict or instance.fault in HEALED_BY_A_RESTART):
            return
        how = f"signal {instance.signal}" if instance.signal else f"exit code {instance.exit_code}"
        why = f"its llama-server ended ({how}) before it was ready"
        raise LoadFailed(
            _failure_message(instance, f"{why}: {instance.reason}" if instance.reason else why), retry_after_s=10
        )


def _failure_message(instance: Instance, why: str) -> str:
    text = f"the model {instance.model!r} could not be loaded on {instance.node}: {why}"
    if instance.last_lines:
        text += "\nlast lines of its log:\n" + "\n".join(instance.last_lines[-LINES_TOLD:])
    return text


def _stuck_message(model: str, node: str, instance: Instance | None, timeout_s: float) -> str:
    if instance is not None and instance.state == "waiting":
        return f"the model {model!r} waited {timeout_s:g} s for memory on {node}: {instance.awaits}"
    where = f"{instance.state}, stage {instance.stage or '-'}, {instance.ratio:.0%}" if instance else "not started"
    return f"the model {model!r} made no progress towards ready on {node} for {timeout_s:g} s ({where})"

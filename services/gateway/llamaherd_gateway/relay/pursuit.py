"""The way of one request to a llama-server when it takes waiting: a load, a turn in the queue, a new connection."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llamaherd_gateway.access.limits import GOSSIP_S, Refusal, problem_of_refusal
from llamaherd_gateway.problems import Problem, UnknownModel, problem_of
from llamaherd_gateway.projection import Instance
from llamaherd_gateway.relay.asking import ask
from llamaherd_gateway.routing.loading import LoadFailed, StillThere
from llamaherd_gateway.routing.table import ModelUnusable, unknown_model_message
from llamaherd_shared.errors import HerdError, Unavailable
from llamaherd_shared.trace import traceparent

if TYPE_CHECKING:
    from llamaherd_gateway.relay.exchange import Exchange

TELL_S: Final = 0.5
"""How often a client that asked for it is told how the waiting goes."""
ATTEMPTS: Final = 2
"""Fresh connections that may break before a first byte: the second is to the instance's next spawn."""
PUSHED_OUT: Final = 10
"""Those of instances that were unloaded just then do not count, up to so many: two models that do not fit together
may push each other out for a while."""


class QueueTimeout(Unavailable):
    """Its turn did not come within `queue_timeout_s`."""


class OverLimit(Exception):
    """The key has used what it may for now."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.sentence)
        self.refusal = refusal


class Pursuit:
    """One task, ended by `stop` or by the answer it leads to."""

    def __init__(self, exchange: "Exchange", lost: Instance | None) -> None:
        self._exchange, self._relay, self._lost = exchange, exchange.relay, lost
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._has_fallen_back = False

    def start(self) -> None:
        self._relay.pursuits.add(self)
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: self._relay.pursuits.discard(self))

    def stop(self) -> None:
        """The exchange has ended otherwise."""
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def wake(self) -> None:
        """Something has changed: a slot is ours, an instance came or went."""
        self._woken.set()

    async def _run(self) -> None:
        exchange = self._exchange
        traceparent.set(exchange.traceparent)
        try:
            if exchange.has_limits and not exchange.is_counted:
                await self._pass_limits()
            if (memory := exchange.route.memory) is not None and exchange.asked.previous:
                resume = self._relay.conversations.resume
                exchange.asked = await resume(exchange.asked, memory, exchange.key_id)
            await self._settle_name()
            match exchange.asked.action:
                case "call":
                    if givers := self._relay.possible_givers(exchange):
                        await self._ask_each(givers)
                    else:
                        await self._reach()
                case "load":
                    await self._find_instance(None)
                    self._settle()
                case "unload":
                    if await self._relay.unload_unused(exchange.model):
                        # Nothing is left to be done when this request ends.
                        exchange.asked = msgspec.structs.replace(exchange.asked, keep_alive_s=None)
                    self._settle()
        except OverLimit as error:
            exchange.answer_problem(problem_of_refusal(error.refusal))
        except StillThere as error:
            exchange.answer_problem(Problem(status=502, message=error.message, code="upstream_lost"))
        except HerdError as error:
            exchange.answer_problem(problem_of(error))
        except Exception:
            self._relay.log.exception("a request failed unexpectedly", request=exchange.request_id)
            exchange.answer_problem(Problem(status=500, message="the gateway failed; its log has the details"))

    async def _pass_limits(self) -> None:
        """Raises `OverLimit`. What other gateways may leave is waited for, for a moment."""
        exchange, access = self._exchange, self._relay.access
        assert exchange.key is not None
        since = time.monotonic()
        while (refusal := access.admit(exchange.key)) is not None:
            if time.monotonic() - since >= refusal.hold_s:
                raise OverLimit(refusal)
            await asyncio.sleep(GOSSIP_S)
        exchange.is_counted = True

    async def _settle_name(self) -> None:
        """A gateway that has just started may not know the model yet. Raises `UnknownModel`."""
        exchange, relay = self._exchange, self._relay
        if not exchange.has_model:
            since = time.monotonic()
            await relay.loader.wait_until_caught_up(exchange.asked.model)
            exchange.waited_s += time.monotonic() - since
            asked = exchange.asked.model
            model = relay.names.resolve(asked)
            if model is None:
                known = relay.access.visible_names(exchange.key, tuple(relay.known))
                raise UnknownModel(unknown_model_message(asked, known))
            exchange.use_model(model)

    def _settle(self) -> None:
        exchange = self._exchange
        assert exchange.route.settle is not None, f"{exchange.route.path} settles nothing"
        exchange.answer_whole(exchange.route.settle(exchange.asked, exchange.turn()))

    async def _ask_each(self, givers: Sequence[Instance]) -> None:
        """Say a word about an answer to whoever may give it: only the one that does heeds it."""
        exchange = self._exchange
        answer: Any = None
        for instance in givers:
            target = exchange.target_at(instance)
            call, asking = exchange.make_call(target), ask(exchange, target.pool)
            try:
                answer = await asking(call.path, msgspec.json.decode(call.body))
            except HerdError:
                if answer is None and instance is givers[-1]:
                    raise
                continue
            if isinstance(answer, dict) and answer.get("success"):
                break
        exchange.answer_whole(msgspec.json.encode(answer))

    async def _reach(self) -> None:
        exchange, relay = self._exchange, self._relay
        lost = self._lost
        while True:
            instance = relay.choose(exchange, but=lost)
            if instance is None:
                instance = await self._find_instance(lost)
                lost = None
            if not exchange.has_turn:
                await self._wait_for_turn()
                continue  # whoever was least busy then may not be now
            relay.access.check_end(exchange.key)
            if exchange.route.prepare is not None:
                target = exchange.target_at(instance)
                asking = ask(exchange, target.pool)
                exchange.asked = await exchange.route.prepare(exchange.asked, target.facts, asking)
            # It may have another process by now.
            target = exchange.target_at(instance)
            call, pool = exchange.make_call(target), target.pool
            try:
                connection = pool.take() or await pool.dial()
            except OSError as error:
                exchange.broken += 1
                relay.shun(instance)
                if exchange.broken >= ATTEMPTS:
                    text = f"the llama-server {instance.name} cannot be reached: {str(error) or 'timed out'}"
                    raise StillThere(text) from error
                lost = instance
            else:
                exchange.send(connection, pool, call)
                return

    async def _find_instance(self, lost: Instance | None) -> Instance:
        """A ready one, loaded if need be; of the fallback when the model itself cannot be had."""
        exchange, relay = self._exchange, self._relay
        try:
            return await self._wait_for_load(lost)
        except (LoadFailed, ModelUnusable):
            fallback = relay.fallback_of(exchange.model)
            if fallback is None or self._has_fallen_back:
                raise
            self._has_fallen_back = True
            relay.log.warning("a model cannot be had, its fallback answers", model=exchange.model, fallback=fallback)
            exchange.use_model(fallback)
            return relay.choose(exchange) or await self._wait_for_load(None)

    async def _wait_for_load(self, lost: Instance | None) -> Instance:
        exchange, loader = self._exchange, self._relay.loader
        if exchange.route.passive:
            # Looking at a model must not load it.
            raise _not_loaded(exchange.model)
        exchange.has_loaded = True
        since = time.monotonic()
        load = asyncio.ensure_future(self._ready() if lost is None else self._replace(lost))
        try:
            while not load.done():
                await asyncio.wait({load}, timeout=TELL_S if self._tells else None)
                if self._tells and not load.done():
                    exchange.tell(loader.progress(exchange.model))
            return load.result()
        finally:
            load.cancel()
            exchange.waited_s += time.monotonic() - since

    async def _replace(self, lost: Instance) -> Instance:
        """Another instance. An unload is no failure of the one that was lost, and may come again and again."""
        exchange, relay = self._exchange, self._relay
        another = partial(relay.choose, exchange, but=lost)
        if await relay.loader.until_gone(lost, another=another) and exchange.pushed_out < PUSHED_OUT:
            exchange.pushed_out += 1
            exchange.broken = 0
        return another() or await self._ready()

    async def _ready(self) -> Instance:
        exchange, relay = self._exchange, self._relay
        return await relay.loader.ready(exchange.model, relay.demand_of(exchange))

    async def _wait_for_turn(self) -> None:
        """Return when a slot is ours, or when the model has to be loaded anew."""
        exchange, relay = self._exchange, self._relay
        since = time.monotonic()
        deadline = since + relay.settings.queue_timeout_s - exchange.queued_s
        try:
            while not exchange.has_turn and relay.has_ready(exchange.model):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise _queue_timeout(exchange.model, relay.settings.queue_timeout_s)
                if self._tells:
                    exchange.tell(f"queued for {exchange.model}: position {relay.position_of(exchange)}")
                self._woken.clear()
                waiting = asyncio.ensure_future(self._woken.wait())
                await asyncio.wait({waiting}, timeout=min(left, TELL_S) if self._tells else left)
                waiting.cancel()
        finally:
            exchange.queued_s += time.monotonic() - since

    @property
    def _tells(self) -> bool:
        return self._exchange.tells_progress


def _not_loaded(model: str) -> Unavailable:
    return Unavailable(f"the model {model!r} is not loaded, and looking at it does not load it")


def _queue_timeout(model: str, timeout_s: float) -> QueueTimeout:
    text = f"the model {model!r} had no free slot within {timeout_s:g} s (`gateway.queue_timeout_s`)"
    return QueueTimeout(text, retry_after_s=5)

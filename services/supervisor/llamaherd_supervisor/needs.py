"""What loads will need: the arithmetic on their files, and what was measured when they were loaded before."""

import asyncio
from collections.abc import Iterable, Mapping

import msgspec

from llamaherd_supervisor import store
from llamaherd_supervisor.budget import Bytes
from llamaherd_supervisor.estimate import (
    IN_ROUTER,
    Estimate,
    Extra,
    Part,
    Place,
    estimate,
    learn,
    measured,
    of_command,
    plan_digest,
)
from llamaherd_supervisor.gguf_file import UnreadableGguf
from llamaherd_supervisor.launching import Plan
from llamaherd_supervisor.shape import Shape


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """Of one load."""

    estimate: Estimate
    """What counts: as measured before, or else by the formula."""
    formula: Estimate
    plan: str
    """`plan_digest` of all that this is true for."""
    places: tuple[Part, ...] = ()
    """What it needs besides memory, `estimate` included."""


def in_router(need: Need) -> Need:
    """The same load where the router serves it."""
    found = msgspec.structs.replace(need.estimate, parts=(*need.estimate.parts, IN_ROUTER))
    return msgspec.structs.replace(need, estimate=found, places=(IN_ROUTER,))


class Needs:
    """What is known. Use from one event loop."""

    def __init__(self) -> None:
        self._learned: dict[str, Bytes] = {}
        self._shapes: dict[tuple[str, int], Shape | None] = {}
        """By path and size; `None`: it cannot be read, and llama-server will say so."""

    def recall(self, learned: Mapping[str, Bytes]) -> None:
        """What was measured earlier, by plan."""
        self._learned.update(learned)

    async def find(self, plan: Plan, place: Place) -> Need:
        """What a load needs. Its files are read in a thread, once."""
        sizes = await asyncio.to_thread(store.file_sizes, plan.files.values())
        formula = await self._calculate(plan, place, sizes)
        digest = plan_digest(msgspec.to_builtins(plan), sorted(sizes.items()), place.gpus, formula.context_tokens)
        known = self._learned.get(digest)
        found = formula if known is None else msgspec.structs.replace(formula, parts=measured(known).parts)
        return Need(estimate=found, formula=formula, plan=digest)

    def learn(self, need: Need, *, first: Bytes, peak: Bytes) -> dict[str, int]:
        """What the same load will be taken to need from now on."""
        needs = learn(first, peak, need.formula.needs)
        self._learned[need.plan] = needs
        return needs

    async def _calculate(self, plan: Plan, place: Place, sizes: Mapping[str, int]) -> Estimate:
        options = plan.options
        shape = None if plan.command else await self._shape(plan.path, sizes)
        if shape is None:
            return of_command(sum(sizes.values()))
        adapters = [name if isinstance(name, str) else name.path for name in options.lora or ()]
        draft = options.draft_model
        extra = Extra(
            projector_bytes=_sum(sizes, [options.mmproj or ""]),
            adapter_bytes=_sum(sizes, adapters),
            draft=None if draft is None else await self._shape(draft, sizes),
        )
        return estimate(shape, options, place, extra)

    async def _shape(self, path: str, sizes: Mapping[str, int]) -> Shape | None:
        key = (path, sizes.get(path, 0))
        if key not in self._shapes:
            try:
                self._shapes[key] = await asyncio.to_thread(store.read_shape, path)
            except (UnreadableGguf, OSError):
                self._shapes[key] = None
        return self._shapes[key]


def _sum(sizes: Mapping[str, int], paths: Iterable[str]) -> int:
    return sum(sizes.get(path, 0) for path in paths)

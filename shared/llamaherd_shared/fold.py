"""Pure folding of history: a state, a function, the last sequence applied."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec

S = TypeVar("S")
E = TypeVar("E")


class Snapshot(msgspec.Struct, Generic[S], frozen=True):
    """A state and where in the log it stands."""

    state: S
    sequence: int = 0
    """Last stream sequence folded in; 0 before the first."""


class Gap(msgspec.Struct, frozen=True):
    """Sequences that are no longer in the log."""

    first: int
    last: int


def replay(evolve: Callable[[S, E], S], snapshot: Snapshot[S], history: Iterable[tuple[int, E]]) -> Snapshot[S]:
    """Fold what is newer than the snapshot; what is not newer was folded before and is skipped."""
    state, sequence = snapshot.state, snapshot.sequence
    for at, event in history:
        if at > sequence:
            state, sequence = evolve(state, event), at
    return Snapshot(state, sequence)


def find_gap(checkpoint: int, first: int) -> Gap | None:
    """What is missing between the last sequence applied and the next one at hand; `None` when nothing is."""
    return Gap(checkpoint + 1, first - 1) if first > checkpoint + 1 else None

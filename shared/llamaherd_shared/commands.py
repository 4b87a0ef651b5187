"""Imperatives. Each names the service that answers; the answer comes at once: accepted, or refused and why.

A refusal travels as the error's kind and sentence (`errors.py`) and is raised again at the caller.
"""

import msgspec

from llamaherd_shared.events.line import Level, Line


class LoadModel(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.load`). Loading twice is one load."""

    model: str


class UnloadModel(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.unload`). Unloading what is not loaded is accepted."""

    model: str


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The command will be done; follow `ev.instance` from `sequence` to see it happen."""

    node: str
    model: str
    state: str
    """The instance's state now (`supervisor.lifecycle.State`)."""
    sequence: int
    """Last sequence of the instance's subject when the command was accepted; 0 before its first fact."""


class HistoryQuery(msgspec.Struct, frozen=True, kw_only=True):
    """To metrics (`cmd.metrics.history`)."""

    from_ns: int
    to_ns: int
    source: str | None = None
    """`None`: all sources."""
    names: list[str] | None = None
    """`None`: all names."""
    node: str | None = None
    max_points: int = 600
    """Per series. The answer uses the finest resolution that fits."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One named curve. The lists have equal lengths."""

    node: str
    source: str
    name: str
    at_s: list[float]
    """Unix seconds."""
    mean: list[float]
    minimum: list[float]
    maximum: list[float]


class History(msgspec.Struct, frozen=True, kw_only=True):
    resolution_s: float
    """Seconds between points: 1 for raw samples, else the roll-up's bucket."""
    series: list[Series]


class LineQuery(msgspec.Struct, frozen=True, kw_only=True):
    """To logs (`cmd.logs.query`). All conditions hold together; newest first."""

    text: str | None = None
    """Words that all occur; `"a phrase"` in quotes."""
    min_level: Level = "debug"
    service: str | None = None
    unit: str | None = None
    node: str | None = None
    from_ns: int | None = None
    to_ns: int | None = None
    before: int | None = None
    """Only lines with a smaller id: the next page."""
    after: int | None = None
    """Only lines with a larger id; the answer is then the oldest of them first."""
    limit: int = 200


class StoredLine(Line, frozen=True, kw_only=True):
    id: int
    """Grows with time on one herd: (stream sequence << 10) + place in the pack."""
    node: str
    service: str
    unit: str


class Lines(msgspec.Struct, frozen=True, kw_only=True):
    lines: list[StoredLine]
    dropped: int = 0
    """Lines the sources had to give up over all time, as far as known."""

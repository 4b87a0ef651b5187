"""Facts about one download of a model to one node. Written by: supervisor. Read by: gateway, ui.

Every pull has a subject of its own; its last fact is `pull.finished.v1` or `pull.failed.v1`.
"""

from typing import Literal

import msgspec

PullEnd = Literal["failed", "cancelled", "shutdown", "lost"]
"""Why a pull ended without its model: it could not be done, somebody cancelled it, the supervisor was stopped,
the supervisor was killed. What had come stays on disk in every case but a wrong file; the next pull goes on there."""


class PullFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model; a split model has several."""

    name: str
    size_bytes: int = 0
    """0: not known yet."""
    sha256: str = ""
    """64 hexadecimal digits; empty: not known yet."""


class PullBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Fields every pull event carries."""

    node: str
    pull: str
    """Names this pull; no other one has it."""
    model: str
    """The name the model will have."""
    at_ns: int
    """Unix nanoseconds, from the writer's clock."""


class PullStarted(PullBase, frozen=True, kw_only=True, tag="pull.started.v1"):
    """A download has begun, or goes on where an earlier one stopped."""

    source: str
    """The repository (`owner/name`), or the address without credentials and query."""
    revision: str = ""
    """The repository's commit, as far as the hub tells."""
    files: list[PullFile] = []
    """In the order they are fetched."""
    total_bytes: int = 0
    """0: not known yet."""
    done_bytes: int = 0
    """What was there already."""


class PullProgressed(PullBase, frozen=True, kw_only=True, tag="pull.progressed.v1"):
    """More of it has come. At most four times a second."""

    done_bytes: int
    total_bytes: int
    """0: not known yet."""
    file: str = ""
    """The one that is being fetched."""
    note: str = ""
    """What it waits for when nothing comes: one sentence."""


class PullFinished(PullBase, frozen=True, kw_only=True, tag="pull.finished.v1"):
    """The model is in the models folder, whole; `model.found.v1` stands before this fact."""

    path: str
    """Of a split model, its first file."""
    sha256: str
    """Of the file at `path`."""
    size_bytes: int
    """All files together."""
    files: list[PullFile] = []


class PullFailed(PullBase, frozen=True, kw_only=True, tag="pull.failed.v1"):
    """It ended without the model."""

    reason: str
    """One sentence."""
    cause: PullEnd = "failed"
    done_bytes: int = 0
    """What the next pull need not fetch again."""
    kind: str = ""
    """Of a failure (`errors.KINDS`): `rejected` when trying again does not help; empty: not told."""


PullEvent = PullStarted | PullProgressed | PullFinished | PullFailed

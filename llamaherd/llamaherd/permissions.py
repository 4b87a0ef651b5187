"""Who may say and hear what on the embedded nats-server, derived from the table of subjects.

Everything that grants a right is in this file: the rights of a service follow from the rows of
`llamaherd_shared.subjects.TABLE` that name it as writer or reader, and from nothing else. Three exceptions are
written out: the supervisor also speaks for its llama-servers; `admin` (the CLI, your own subscriber) reads
everything and gives commands but writes no facts; and of a private stream, which holds what people wrote, its own
services can ask for single messages and delete them, and nobody can listen.
"""

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from llamaherd_shared.streams import STREAMS, stream_name
from llamaherd_shared.subjects import TABLE, Subject

SERVICES: Final = ("supervisor", "gateway", "metrics", "logs", "ui")
"""In the order they are started."""
ADMIN: Final = "admin"
USERS: Final = (*SERVICES, ADMIN)

_EVERYONE: Final = "every service"
_COMMAND: Final = "cmd"
_PRIVATE: Final = frozenset(stream.kind for stream in STREAMS if stream.private)
_HOLE: Final = re.compile(r"<[a-z]+>")
_SPEAKS_FOR: Final = {"supervisor": ("supervisor", "llama-server")}


class Permissions(msgspec.Struct, frozen=True, kw_only=True):
    """Allow lists of one user. Whatever is not listed is denied."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    responds: bool
    """May answer a request it received, once, on the requester's inbox."""


def inbox_prefix(user: str) -> str:
    """The inbox subjects of a user; nobody else may listen there."""
    return f"_INBOX_{user}"


def permissions_of(user: str, *, prefix: str) -> Permissions:
    """The least rights that work for one of `USERS`; `prefix` is the first token of the herd's subjects."""
    if user == ADMIN:
        return _permissions_of_admin(prefix)
    publish: list[str] = []
    subscribe = [f"{inbox_prefix(user)}.>"]
    kinds: set[str] = set()
    responds = False
    for row in TABLE:
        writes, reads = user in _names(row.writer), user in _names(row.readers)
        if writes:
            publish += [f"{prefix}.{shape}" for shape in _publish_shapes(row, user)]
        if reads and _kind(row) not in _PRIVATE:
            subscribe.append(f"{prefix}.{_heard(row)}")
            responds = responds or _kind(row) == _COMMAND
        if writes or reads:
            kinds.add(_kind(row))
    return Permissions(
        publish=(*_unique(publish), *_stream_rights(kinds, prefix)), subscribe=_unique(subscribe), responds=responds
    )


def _permissions_of_admin(prefix: str) -> Permissions:
    kinds = _kinds(TABLE) - _PRIVATE
    return Permissions(
        publish=(
            f"{prefix}.cmd.>",
            "$JS.API.STREAM.NAMES",
            "$JS.API.STREAM.LIST",
            *_stream_rights(kinds, prefix),
        ),
        subscribe=(f"{inbox_prefix(ADMIN)}.>", *(f"{prefix}.{kind}.>" for kind in sorted(kinds))),
        responds=False,
    )


def _stream_rights(kinds: Iterable[str], prefix: str) -> tuple[str, ...]:
    """JetStream API subjects (ADR-31, ADR-17): ensure every stream, read those that hold one of `kinds`.

    Whoever starts first creates the streams, therefore everybody may. Nobody may delete or purge one.
    A private one is asked for a message by its subject, and the message can be deleted.
    """
    rights = ["$JS.API.INFO"]
    for stream in STREAMS:
        name = stream_name(stream.name, prefix)
        rights += [f"$JS.API.STREAM.{verb}.{name}" for verb in ("INFO", "CREATE", "UPDATE")]
        if stream.kind not in kinds:
            continue
        if stream.private:
            rights += [f"$JS.API.DIRECT.GET.{name}.>", f"$JS.API.STREAM.MSG.DELETE.{name}"]
        else:
            rights += [
                f"$JS.API.STREAM.MSG.GET.{name}",
                f"$JS.API.DIRECT.GET.{name}",
                f"$JS.API.DIRECT.GET.{name}.>",
                f"$JS.API.CONSUMER.CREATE.{name}",
                f"$JS.API.CONSUMER.CREATE.{name}.>",
                f"$JS.API.CONSUMER.INFO.{name}.>",
                f"$JS.API.CONSUMER.MSG.NEXT.{name}.>",
                f"$JS.API.CONSUMER.DELETE.{name}.>",
            ]
    return tuple(rights)


def _publish_shapes(row: Subject, user: str) -> list[str]:
    """The row's shape once for every name the user speaks for, when the shape has a service in it."""
    if "<service>" not in row.shape:
        return [_any(row.shape)]
    speakers = _SPEAKS_FOR.get(user, (user,)) if _kind(row) == "log" else (user,)
    return [_any(row.shape.replace("<service>", speaker)) for speaker in speakers]


def _heard(row: Subject) -> str:
    """A reader hears the whole kind, which is one stream; a command only what is addressed to it."""
    return _any(row.shape) if _kind(row) == _COMMAND else f"{_kind(row)}.>"


def _any(shape: str) -> str:
    return _HOLE.sub("*", shape.replace("<subject>", ">"))


def _names(field: str) -> set[str]:
    names = {name.strip() for name in field.split(",")}
    return names | set(SERVICES) if _EVERYONE in names else names


def _kind(row: Subject) -> str:
    return row.shape.partition(".")[0]


def _kinds(table: Iterable[Subject]) -> set[str]:
    return {_kind(row) for row in table}


def _unique(subjects: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(subjects))

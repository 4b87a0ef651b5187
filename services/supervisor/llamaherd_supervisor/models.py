"""Which models the models folder offers: what changed between two looks at it, and what to say about it."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from llamaherd_shared.events.model import ModelEvent, ModelFound, ModelRejected, ModelRemoved
from llamaherd_supervisor.gguf_file import GgufHead, UnreadableGguf

YOUNG_S: Final = 10.0
"""A file whose end is missing and that changed less long ago than this is taken to be still on its way."""
PART_ENDING: Final = ".part"
"""Behind the name of a file that is being pulled: no model's file ends so."""
_SPLIT: Final = re.compile(r"-(\d{5})-of-(\d{5})$")


class Sighting(msgspec.Struct, frozen=True):
    """One file as the folder lists it."""

    path: str
    size_bytes: int
    modified_ns: int


def model_name(file_name: str) -> str | None:
    """The name clients ask for; `None` for a later part of a split model, and for what is no `.gguf` file."""
    if not file_name.lower().endswith(".gguf") or file_name.startswith("."):
        return None
    stem = file_name[:-5]
    part = _SPLIT.search(stem)
    if part is None:
        return stem
    return stem[: part.start()] if int(part[1]) == 1 else None


def part_paths(path: str) -> list[str]:
    """All files of the model whose first file this is; one, unless it is split."""
    stem, ending = path[:-5], path[-5:]
    part = _SPLIT.search(stem)
    if part is None:
        return [path]
    count = part[2]
    return [f"{stem[: part.start()]}-{number:05}-of-{count}{ending}" for number in range(1, int(count) + 1)]


def name_files(sightings: Iterable[Sighting]) -> dict[str, Sighting]:
    """The files by model name; of two with one name the first by path is taken."""
    named: dict[str, Sighting] = {}
    for sighting in sorted(sightings, key=lambda each: each.path):
        name = model_name(sighting.path.rpartition("/")[2])
        if name:
            named.setdefault(name, sighting)
    return named


def changed_models(before: Mapping[str, Sighting], now: Mapping[str, Sighting]) -> tuple[list[str], list[str]]:
    """(to be read, gone) between two looks."""
    to_read = [name for name, sighting in now.items() if before.get(name) != sighting]
    return to_read, [name for name in before if name not in now]


def judge(
    node: str, model: str, sighting: Sighting, head: GgufHead | UnreadableGguf, *, now_ns: int
) -> ModelFound | ModelRejected | None:
    """The fact about a file that was read; `None` while it seems to be on its way still."""
    if isinstance(head, UnreadableGguf):
        if head.truncated and now_ns - sighting.modified_ns < YOUNG_S * 1e9:
            return None
        return ModelRejected(node=node, model=model, at_ns=now_ns, path=sighting.path, reason=str(head))
    return ModelFound(
        node=node,
        model=model,
        at_ns=now_ns,
        path=sighting.path,
        size_bytes=sighting.size_bytes,
        modified_ns=sighting.modified_ns,
        architecture=head.architecture,
        title=head.title,
        parameters=head.parameters,
        context_tokens=head.context_tokens,
        quantization=head.quantization,
        chat=head.chat,
        embedding=head.embedding,
        capabilities=head.capabilities,
    )


def is_news(last: ModelEvent | None, event: ModelEvent) -> bool:
    """Whether a fact says anything that the last one about this model did not."""
    if last is None:
        return not isinstance(event, ModelRemoved)
    return msgspec.structs.replace(event, at_ns=0) != msgspec.structs.replace(last, at_ns=0)

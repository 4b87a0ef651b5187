"""Which models the models folder offers, told from the files in it, and what of that is news."""

import re
from collections.abc import Collection, Container, Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from llamaherd_shared.events.model import ModelEvent, ModelFound, ModelRejected, ModelRemoved
from llamaherd_supervisor.gguf_file import GgufHead, ProjectorHead, UnreadableGguf
from llamaherd_supervisor.offers import Offers
from llamaherd_supervisor.projectors import ModelFile, Projector, claims_of, explain_unused, projector_of
from llamaherd_supervisor.repositories import Download, explain_absence, find_files

PART_ENDING: Final = ".part"
"""Behind the name of a file that is being pulled: no model's file ends so."""
_SPLIT: Final = re.compile(r"-(\d{5})-of-(\d{5})$")


class Sighting(msgspec.Struct, frozen=True):
    """The file of a model as the folder lists it."""

    path: str
    """Of a split model the first one's, whether it is there or not."""
    size_bytes: int
    """Of all its files."""
    modified_ns: int
    """Of the one that changed last."""


class GgufFile(msgspec.Struct, frozen=True):
    """One file that has been read."""

    seen: Sighting
    head: GgufHead | ProjectorHead | UnreadableGguf


def model_name(file_name: str) -> str | None:
    """The name clients ask for; `None` for a later part of a split model, and for what is no `.gguf` file."""
    if not _is_gguf(file_name):
        return None
    stem = file_name[:-5]
    part = _SPLIT.search(stem)
    if part is None:
        return stem
    return stem[: part.start()] if int(part[1]) == 1 else None


def first_name(file_name: str) -> str | None:
    """Name of the first file of the model that this one belongs to; `None` for what is no `.gguf` file."""
    if not _is_gguf(file_name):
        return None
    stem, ending = file_name[:-5], file_name[-5:]
    part = _SPLIT.search(stem)
    return file_name if part is None else f"{stem[: part.start()]}-00001-of-{part[2]}{ending}"


def _is_gguf(file_name: str) -> bool:
    return file_name.lower().endswith(".gguf") and not file_name.startswith(".")


def part_paths(path: str) -> list[str]:
    """All files of the model whose first file this is; one, unless it is split."""
    stem, ending = path[:-5], path[-5:]
    part = _SPLIT.search(stem)
    if part is None:
        return [path]
    count = part[2]
    return [f"{stem[: part.start()]}-{number:05}-of-{count}{ending}" for number in range(1, int(count) + 1)]


def name_files(files: Iterable[GgufFile]) -> dict[str, GgufFile]:
    """The files that are no projectors by model name; of two with one name one that can be read, the first by path."""
    named: dict[str, GgufFile] = {}
    for file in sorted(files, key=lambda each: (isinstance(each.head, UnreadableGguf), each.seen.path)):
        name = model_name(file.seen.path.rpartition("/")[2])
        if name and not isinstance(file.head, ProjectorHead):
            named.setdefault(name, file)
    return named


def find_projectors(files: Iterable[GgufFile]) -> list[Projector]:
    heads = [(file.seen, file.head) for file in files]
    return [Projector(seen.path, seen.size_bytes, head) for seen, head in heads if isinstance(head, ProjectorHead)]


def take_up(event: ModelEvent) -> GgufFile | None:
    """The file of which an earlier supervisor told this; `None`: it must be read again.

    So must one with a projector or with configured capabilities, which the fact does not tell apart from its own, and
    one of which nobody told the `embedding_length` yet.
    """
    if not isinstance(event, ModelFound) or event.projector or event.configured or not event.embedding_length:
        return None
    head = GgufHead(
        architecture=event.architecture,
        title=event.title,
        parameters=event.parameters,
        context_tokens=event.context_tokens,
        embedding_length=event.embedding_length,
        quantization=event.quantization,
        chat=event.chat,
        embedding=event.embedding,
        capabilities=event.capabilities,
    )
    return GgufFile(Sighting(event.path, event.size_bytes, event.modified_ns), head)


def survey(
    node: str,
    files: Collection[GgufFile],
    offers: Offers,
    *,
    aside: Container[str] = (),
    downloads: Mapping[str, Download] | None = None,
    now_ns: int,
) -> dict[str, ModelFound | ModelRejected]:
    """What is to be said of each model, and of each projector that no model has, by name.

    `aside`: paths of files that are there for an entry of `models` only, and have no name by themselves. `downloads`:
    how it stands with files of entries that name a repository.
    """
    by_path = {file.seen.path: file for file in files}
    files = [file for file in files if file.seen.path not in aside]
    repositories, downloads = offers.repositories, downloads or {}
    paths = offers.paths | _find_pulled(files, repositories, downloads, offers.models_dir)
    placed = {name: by_path[path] for name, path in paths.items() if path in by_path}
    absent = repositories.keys() - placed.keys()
    named = {name: file for name, file in (name_files(files) | placed).items() if name not in absent}
    first_names = _first_names(named)
    models = [
        ModelFile(name, file.seen.path, file.head.embedding_length)
        for name, file in named.items()
        if isinstance(file.head, GgufHead) and first_names[name] == name
    ]
    claims = claims_of(find_projectors(files), models)
    own = {model.name: projector_of(model, claims) for model in models}
    projectors = {name: own.get(first_names[name]) for name in named}
    projectors |= {
        name: _placed_projector(path, by_path.get(path))
        for name in named
        if (path := offers.projector(name)) is not None
    }
    events = {
        name: offers.configure(judge(node, name, file, projectors.get(name), now_ns=now_ns))
        for name, file in named.items()
    }
    events |= offers.commands(node=node, now_ns=now_ns)
    events |= {
        name: explain_absence(node, name, repositories[name], downloads.get(name), now_ns=now_ns)
        for name in sorted(absent)
    }
    for claim in claims:
        path = claim.projector.path
        name = model_name(path.rpartition("/")[2])
        if name and not claim.models:
            reason = explain_unused(claim.projector, models)
            events.setdefault(name, ModelRejected(node=node, model=name, at_ns=now_ns, path=path, reason=reason))
    return events


def _first_names(named: Mapping[str, GgufFile]) -> dict[str, str]:
    """Name -> the one that its file has by itself, if it is offered under that as well: projectors go by it."""
    first = {}
    for name, file in named.items():
        own = model_name(file.seen.path.rpartition("/")[2]) or name
        first[name] = own if named.get(own) is file else name
    return first


def _find_pulled(
    files: Iterable[GgufFile], repositories: Mapping[str, str], downloads: Mapping[str, Download], models_dir: Path
) -> dict[str, str]:
    if not repositories:
        return {}
    quantizations = {file.seen.path: file.head.quantization for file in files if isinstance(file.head, GgufHead)}
    return find_files(repositories, downloads, quantizations, models_dir=models_dir)


def _placed_projector(path: str, file: GgufFile | None) -> Projector | None:
    """The one that an entry names; what is none lets nobody see or hear. `None`: there is to be none."""
    if not path:
        return None
    if file is None or not isinstance(file.head, ProjectorHead):
        return Projector(path, 0, ProjectorHead())
    return Projector(path, file.seen.size_bytes, file.head)


def judge(
    node: str, model: str, file: GgufFile, projector: Projector | None = None, *, now_ns: int
) -> ModelFound | ModelRejected:
    """The fact about a model's file and the projector that goes with it."""
    seen, head = file.seen, file.head
    if not isinstance(head, GgufHead):
        return ModelRejected(node=node, model=model, at_ns=now_ns, path=seen.path, reason=str(head))
    senses = projector.head.senses if projector else []
    return ModelFound(
        node=node,
        model=model,
        at_ns=now_ns,
        path=seen.path,
        size_bytes=seen.size_bytes,
        modified_ns=seen.modified_ns,
        architecture=head.architecture,
        title=head.title,
        parameters=head.parameters,
        context_tokens=head.context_tokens,
        embedding_length=head.embedding_length,
        quantization=head.quantization,
        chat=head.chat,
        embedding=head.embedding,
        capabilities=[*head.capabilities, *(sense for sense in senses if sense not in head.capabilities)],
        projector=projector.path if projector else "",
        projector_bytes=projector.size_bytes if projector else 0,
    )


def is_news(last: ModelEvent | None, event: ModelEvent) -> bool:
    """Whether a fact says anything that the last one about this model did not."""
    if last is None:
        return not isinstance(event, ModelRemoved)
    return msgspec.structs.replace(event, at_ns=0) != msgspec.structs.replace(last, at_ns=0)

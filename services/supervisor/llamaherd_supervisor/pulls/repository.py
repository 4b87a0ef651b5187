"""Which files of a repository make up the model that is wanted. Everything that understands file names is in this file.

A repository holds a model in many quantizations, a file each, or several files `-00001-of-0000N` each; beside them
projectors (`mmproj`), of which one comes along, and importance matrices, which are no models.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from llamaherd_shared.errors import NotFound, Rejected
from llamaherd_shared.events.pull import PullFile
from llamaherd_supervisor.file_names import (
    is_projector,
    kinship,
    precision_rank,
    quantization_of,
    without_quantization,
)

DEFAULT_QUANTIZATIONS: Final = ("Q4_K_M", "Q8_0")
"""In this order, when none is asked for: good enough for most and small, else nearly lossless."""
_MAX_NAME: Final = 180
"""Characters: a file system takes 255 bytes, and `-00001-of-00001.gguf.part` comes behind."""

_REVISION: Final = re.compile(r"[\w][\w./-]{0,200}", re.ASCII)
_SPLIT: Final = re.compile(r"-(\d{5})-of-(\d{5})$")
_NOT_MODELS: Final = re.compile(r"(?:^|[-_.])(?:mmproj|imatrix)(?:$|[-_.])", re.IGNORECASE)
_ILLEGAL: Final = re.compile(r"[\x00-\x1f\x7f/\\:*?\"<>|]")


class HubFile(PullFile, frozen=True, kw_only=True):
    """One file of a repository; `name` is its path there."""


class Choice(msgspec.Struct, frozen=True):
    """One model of a repository."""

    stem: str
    """Its file's name, without folder, part and ending."""
    quantization: str
    """Upper case; empty when the name does not tell."""
    files: tuple[HubFile, ...]
    """In the order of their parts."""
    projector: HubFile | None = None
    """What lets it see or hear."""


def check_revision(revision: str) -> str:
    """The branch, tag or commit. Raises `Rejected` for what can be none."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise Rejected(f"{revision!r} is no branch, tag or commit")
    return revision


def check_name(name: str) -> str:
    """The name a model is saved under. Raises `Rejected` for what is no file name."""
    if not name or name.startswith(".") or len(name) > _MAX_NAME or _ILLEGAL.search(name) or name != name.strip():
        raise Rejected(f"{name!r} cannot be the name of a model: it is the name of a file")
    if _SPLIT.search(name) or name.lower().endswith((".gguf", ".part")):
        raise Rejected(f"{name!r} cannot be the name of a model: leave the ending and the number of the part to us")
    return name


def choose(repository: str, files: Iterable[HubFile], wanted: str) -> Choice:
    """The model that is meant by a quantization or a file name; by nothing, the usual one.

    Raises `NotFound` or `Rejected` with what there is.
    """
    files = list(files)
    choices = group_files(files)
    if not choices:
        raise NotFound(f"{repository} has no model in the GGUF format")
    fitting = fitting_choices(choices, wanted)
    if not fitting:
        raise NotFound(f"{repository} has no {wanted}; it has {_list(choices)}")
    if len(fitting) > 1:
        raise Rejected(f"{repository} has more than one model that fits: name one of {_list(fitting)}")
    choice = _whole(repository, fitting[0])
    return msgspec.structs.replace(choice, projector=find_projector(choice, choices, files))


def fitting_choices(choices: Sequence[Choice], wanted: str) -> Sequence[Choice]:
    """Those that may be meant by a quantization, a file name or nothing."""
    if wanted.lower().endswith(".gguf"):
        return [choice for choice in choices if any(_names(file, wanted) for file in choice.files)]
    if wanted:
        return _with_quantization(choices, wanted)
    preferred = (_with_quantization(choices, each) for each in DEFAULT_QUANTIZATIONS)
    return next((found for found in preferred if found), choices)


def find_projector(choice: Choice, choices: Iterable[Choice], files: Iterable[HubFile]) -> HubFile | None:
    """The projector that goes with a model: not one named for another model, and of its folder or of one above.

    Of several: the nearest, then the one named most like it, then by precision, then by name.
    """
    folder = choice.files[0].name.rpartition("/")[0]
    others = [other.stem for other in choices]

    def rank(file: HubFile) -> tuple[int, int, int, str]:
        stem = stem_of(file.name)
        return -file.name.count("/"), -kinship(choice.stem, stem), precision_rank(quantization_of(stem)), file.name

    def is_its(file: HubFile) -> bool:
        place, stem = file.name.rpartition("/")[0], stem_of(file.name)
        closest = max(kinship(other, stem) for other in others)
        return f"{folder}/".startswith(f"{place}/" if place else "") and kinship(choice.stem, stem) == closest

    projectors = [file for file in files if file.name.lower().endswith(".gguf") and is_projector(stem_of(file.name))]
    return min(filter(is_its, projectors), key=rank, default=None)


def stem_of(path: str) -> str:
    """A file's name without folder and ending."""
    return path.rpartition("/")[2].rpartition(".")[0]


def group_files(files: Iterable[HubFile]) -> list[Choice]:
    """The models among a repository's files, by name, each with its parts."""
    groups: dict[tuple[str, str], list[HubFile]] = {}
    for file in sorted(files, key=lambda each: each.name):
        folder, _, base = file.name.rpartition("/")
        if base.lower().endswith(".gguf") and not base.startswith(".") and not _NOT_MODELS.search(base[:-5]):
            groups.setdefault((folder, _SPLIT.sub("", base[:-5])), []).append(file)
    return [
        Choice(stem, quantization_of(stem) or quantization_of(folder), tuple(group))
        for (folder, stem), group in groups.items()
    ]


def file_names(name: str, count: int) -> list[str]:
    """What the files of a model are called here."""
    if count == 1:
        return [f"{name}.gguf"]
    return [f"{name}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def projector_file(model: str, path: str) -> str:
    """What a model's projector is called here: as in its repository, if that tells whose it is."""
    stem = stem_of(path)
    if kinship(model, stem):
        return f"{stem}.gguf"
    return "-".join(filter(None, ("mmproj", without_quantization(model), quantization_of(stem)))) + ".gguf"


def _names(file: HubFile, wanted: str) -> bool:
    return wanted in (file.name, file.name.rpartition("/")[2])


def _with_quantization(choices: Sequence[Choice], wanted: str) -> list[Choice]:
    """Those named exactly so, else those of that kind from another maker's series (`UD-Q4_K_XL` for `Q4_K_XL`)."""
    label = wanted.upper()
    exact = [choice for choice in choices if choice.quantization == label]
    return exact or [choice for choice in choices if choice.quantization.endswith(f"-{label}")]


def _list(choices: Sequence[Choice]) -> str:
    labels = [choice.quantization for choice in choices]
    distinct = all(labels) and len(set(labels)) == len(labels)
    return ", ".join(labels if distinct else [choice.files[0].name for choice in choices])


def _whole(repository: str, choice: Choice) -> Choice:
    """The choice, if all of its parts are there. Raises `Rejected`."""
    check_name(choice.stem)
    numbered = [_SPLIT.search(file.name[:-5]) for file in choice.files]
    present = [(int(part[1]), int(part[2])) for part in numbered if part is not None]
    if not present and len(choice.files) == 1:
        return choice
    count = present[0][1] if present else 0
    if present != [(number, count) for number in range(1, count + 1)] or len(present) != len(choice.files):
        raise Rejected(f"{repository} has only some parts of {choice.stem}: {len(choice.files)} of {count}")
    return choice

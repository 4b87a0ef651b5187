"""Which projector lets which model see or hear.

A projector is a GGUF file of its own beside its model's. Whose it is its name tells, else its place; in any case the
lengths of embeddings must agree, or llama-server refuses both.
"""

from collections.abc import Collection, Iterable

import msgspec

from llamaherd_supervisor.file_names import are_of_one_name, kinship, precision_rank
from llamaherd_supervisor.gguf_file import ProjectorHead


class Projector(msgspec.Struct, frozen=True):
    """One projector in the models folder."""

    path: str
    size_bytes: int
    head: ProjectorHead


class ModelFile(msgspec.Struct, frozen=True):
    """One model in the models folder, as far as projectors go."""

    name: str
    path: str
    embedding_length: int
    """0 when the file does not say: every projector fits."""


class Claim(msgspec.Struct, frozen=True):
    """A projector and the models it is for."""

    projector: Projector
    models: frozenset[str]
    """Their names; empty: nobody's."""


def claims_of(projectors: Iterable[Projector], models: Collection[ModelFile]) -> list[Claim]:
    """Each is for the models it is named for, else for those it lies beside; in both cases, as far as it fits them.

    Beside models of more than one name, which all fit and have no projector with their name, it is nobody's.
    """
    meant = [(each, _named(each, models)) for each in projectors]
    have_own = {model.name for each, named in meant for model in _fitting(each, named)}
    claims = []
    for projector, named in meant:
        owners = _fitting(projector, named or _beside(projector, models))
        if not named:
            owners = [model for model in owners if model.name not in have_own] or owners
            owners = owners if are_of_one_name([model.name for model in owners]) else []
        claims.append(Claim(projector, frozenset(model.name for model in owners)))
    return claims


def projector_of(model: ModelFile, claims: Iterable[Claim]) -> Projector | None:
    """The projector to start this model with; `None`: there is none for it.

    Of several: one in its own folder, then the one named most like it, then by precision, then by path.
    """
    own = (claim.projector for claim in claims if model.name in claim.models)
    return min(own, key=lambda projector: _rank(model, projector), default=None)


def explain_unused(projector: Projector, models: Collection[ModelFile]) -> str:
    """Why it is nobody's, and what to do: one sentence."""
    what = f"it is no model but a projector ({', '.join(projector.head.senses)})"
    meant = _named(projector, models) or _beside(projector, models)
    if not meant:
        return f"{what}: put it beside its model, or name it mmproj-MODEL.gguf"
    if fitting := [model.name for model in meant if fits(model, projector)]:
        return f"{what}, and fits more than one model here ({', '.join(sorted(fitting))}): name it mmproj-MODEL.gguf"
    lengths = " or ".join(str(length) for length in sorted(projector.head.embedding_lengths))
    theirs = ", ".join(sorted(f"{model.name} with {model.embedding_length}" for model in meant))
    return f"{what} for models with embeddings of length {lengths}, and does not fit {theirs}"


def fits(model: ModelFile, projector: Projector) -> bool:
    """Whether what it puts out is what the model takes in, as far as both files tell."""
    lengths = projector.head.embedding_lengths
    return not lengths or not model.embedding_length or model.embedding_length in lengths


def _fitting(projector: Projector, models: Iterable[ModelFile]) -> list[ModelFile]:
    return [model for model in models if fits(model, projector)]


def _named(projector: Projector, models: Collection[ModelFile]) -> list[ModelFile]:
    """The models whose names are most like the one it bears; none, when it bears none."""
    kinships = [_kinship(model, projector) for model in models]
    closest = max(kinships, default=0)
    return [model for model, words in zip(models, kinships, strict=True) if words == closest > 0]


def _beside(projector: Projector, models: Collection[ModelFile]) -> list[ModelFile]:
    return [model for model in models if _folder(model.path) == _folder(projector.path)]


def _rank(model: ModelFile, projector: Projector) -> tuple[bool, int, int, str]:
    away = _folder(model.path) != _folder(projector.path)
    return away, -_kinship(model, projector), precision_rank(projector.head.quantization), projector.path


def _kinship(model: ModelFile, projector: Projector) -> int:
    return kinship(model.name, projector.path.rpartition("/")[2].rpartition(".")[0])


def _folder(path: str) -> str:
    return path.rpartition("/")[0]

"""What a pull will fetch, from where and to where."""

import re
from pathlib import PurePath
from typing import Final
from urllib.parse import quote, urlsplit

import msgspec

from llamaherd_shared.commands import PullModel
from llamaherd_shared.errors import Rejected
from llamaherd_shared.events.pull import PullFile
from llamaherd_supervisor.pulls.repository import Choice, HubFile, check_name, file_names, projector_file

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class PlannedFile(PullFile, frozen=True, kw_only=True):
    """One file to be fetched; `name` is how its source calls it."""

    url: str
    target: str
    """Path within the models folder."""
    is_projector: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One model to be fetched."""

    model: str
    source: str
    """For people: the repository, or the address without credentials and query."""
    revision: str = ""
    files: tuple[PlannedFile, ...]
    """The parts of the model in their order; then its projector."""
    may_replace: bool
    """Whether another file that has the place of one of ours makes way for it once ours is whole."""

    @property
    def parts(self) -> tuple[PlannedFile, ...]:
        """Without the projector."""
        return tuple(file for file in self.files if not file.is_projector)

    @property
    def total_bytes(self) -> int:
        """0 when the size of a file is not known."""
        sizes = [file.size_bytes for file in self.files]
        return sum(sizes) if all(sizes) else 0

    def moved(self, path: PurePath) -> "Plan":
        """To the place where a model of one file is already, its projector beside it; what is there stays."""
        (only,) = self.parts
        files = tuple(
            msgspec.structs.replace(
                file, target=str(path if file is only else path.with_name(PurePath(file.target).name))
            )
            for file in self.files
        )
        return msgspec.structs.replace(self, files=files, may_replace=False)

    def is_same(self, other: "Plan") -> bool:
        """Whether it brings the same bytes to the same place."""
        return (self.model, self.source, self.revision, _content(self)) == (
            other.model,
            other.source,
            other.revision,
            _content(other),
        )


def _content(plan: Plan) -> list[tuple[str, int, str]]:
    return [(file.target, file.size_bytes, file.sha256) for file in plan.files]


def plan_choice(hub_url: str, repository: str, commit: str, choice: Choice, *, name: str) -> Plan:
    """Fetch one model of a repository into `owner/name/` of the models folder.

    A newer version of the repository takes the place of an older one.
    """
    model = check_name(name or choice.stem)
    base = f"{hub_url.rstrip('/')}/{repository}/resolve/{quote(commit, safe='')}/"

    def plan(file: HubFile, target: str) -> PlannedFile:
        place = f"{repository}/{target}"
        return PlannedFile(
            name=file.name, size_bytes=file.size_bytes, sha256=file.sha256, url=base + quote(file.name), target=place
        )

    files = [plan(*pair) for pair in zip(choice.files, file_names(model, len(choice.files)), strict=True)]
    if (projector := choice.projector) is not None:
        its = plan(projector, projector_file(model, projector.name))
        files.append(msgspec.structs.replace(its, is_projector=True))
    return Plan(model=model, source=repository, revision=commit, files=tuple(files), may_replace=True)


def plan_url(command: PullModel) -> Plan:
    """Fetch one file from a URL into the models folder. Raises `Rejected`."""
    try:
        parts = urlsplit(command.url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise Rejected(f"the URL cannot be read: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise Rejected("the URL must begin with http:// or https://")
    base = parts.path.rpartition("/")[2]
    model = check_name(command.name or base.removesuffix(".gguf"))
    if not command.name and not base.endswith(".gguf"):
        raise Rejected("the URL does not tell the model's name: give one (`name`)")
    sha256 = command.sha256.lower().removeprefix("sha256:")
    if sha256 and not _SHA256.fullmatch(sha256):
        raise Rejected("`sha256` must be 64 hexadecimal digits")
    file = PlannedFile(name=base or model, sha256=sha256, url=command.url, target=f"{model}.gguf")
    return Plan(model=model, source=public_url(command.url), files=(file,), may_replace=command.replace)


def public_url(url: str) -> str:
    """The address without what may be secret in it: user, password, query, fragment."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}"

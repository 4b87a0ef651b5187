"""Entries of `models` that name a repository: which file in the models folder is theirs, and what is said without one.

Nobody is asked over the network for that: what is pulled lies in `owner/name/` of the models folder. Pure.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from llamaherd_shared.events.model import ModelRejected
from llamaherd_shared.repository import parse_repository
from llamaherd_supervisor.pulls.repository import HubFile, fitting_choices, group_files

RETRY_AFTER_S: Final = 10.0
"""Told to whoever asks for a model that is being downloaded."""


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands with the file of one entry."""

    repository: str
    """As the entry names it; of an entry that names another one by now it counts for nothing."""
    path: str = ""
    """Where the file is that was found or came for it; empty: not known."""
    under_way: bool = False
    done_bytes: int = 0
    total_bytes: int = 0
    """0: not known yet."""
    failure: str = ""
    """Why it did not come: one sentence."""
    again_s: float = 0.0
    """From then until it is tried again; 0: not by itself."""
    unfit: str = ""
    """Why this node is not to have it: what the model requires."""

    @property
    def percent(self) -> int | None:
        """How much of it is here, 0 to 100; `None`: nobody knows."""
        return min(100, 100 * self.done_bytes // self.total_bytes) if self.total_bytes else None


def find_files(
    repositories: Mapping[str, str],
    downloads: Mapping[str, Download],
    quantizations: Mapping[str, str],
    *,
    models_dir: Path,
) -> dict[str, str]:
    """Model -> its file, for those whose file is here. `quantizations`: of the files that can be served, by path."""
    found = {}
    for model, repository in repositories.items():
        download = downloads.get(model)
        if download is not None and download.repository == repository and download.path in quantizations:
            found[model] = download.path
        elif path := _find_file(repository, quantizations, models_dir):
            found[model] = path
    return found


def _find_file(repository: str, quantizations: Mapping[str, str], models_dir: Path) -> str:
    """Meant by the same rules as on the hub. Empty: none, or more than one that fits."""
    wanted = parse_repository(repository)
    folder = str(models_dir / wanted.name)
    here = [path for path in quantizations if path.rpartition("/")[0] == folder]
    # A file's name may not tell what the folder told that it was in on the hub.
    choices = [
        msgspec.structs.replace(each, quantization=each.quantization or quantizations[each.files[0].name])
        for each in group_files(HubFile(name=path) for path in here)
    ]
    fitting = fitting_choices(choices, wanted.quantization.rpartition("/")[2])
    return fitting[0].files[0].name if len(fitting) == 1 else ""


def explain_absence(node: str, model: str, repository: str, download: Download | None, *, now_ns: int) -> ModelRejected:
    """The fact about a model whose file is not here."""
    if download is None or download.repository != repository:
        download = Download(repository=repository)
    return ModelRejected(
        node=node,
        model=model,
        at_ns=now_ns,
        path="",
        reason=_reason(model, download),
        retry_after_s=RETRY_AFTER_S if download.under_way else None,
    )


def _reason(model: str, download: Download) -> str:
    if download.unfit:
        return f"{download.repository} is not downloaded to this node: {download.unfit}"
    if download.under_way:
        so_far = "" if download.percent is None else f": {download.percent} %"
        return f"it is being downloaded from {download.repository}{so_far}"
    again = f"`llamaherd load {model}`"
    if download.failure:
        later = f"it is tried again in {download.again_s:g} s, and {again} tries at once"
        when = later if download.again_s else f"{again} tries again"
        return f"it could not be downloaded from {download.repository}: {download.failure}; {when}"
    return f"it is not in the models folder: {again} downloads it from {download.repository}"

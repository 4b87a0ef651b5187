"""Model names as Ollama writes them: `[host/][namespace/]model[:tag]` (reference: api-dialects, 1.6).

Our own names are those of files and may hold characters that Ollama's never do, so fewer names are malformed here.
"""

import re
from typing import Final

import msgspec

from llamaherd_gateway.problems import BadRequest

INVALID: Final = "invalid model name"
CLOUD_OFF: Final = "ollama cloud is disabled: remote model is unavailable"

_HOST: Final = "registry.ollama.ai"
_NAMESPACE: Final = "library"
_TAG: Final = "latest"
_HOST_CHARACTERS: Final = 350
_PART_CHARACTERS: Final = 80
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Name(msgspec.Struct, frozen=True):
    """A name with all its parts."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def display(self) -> str:
        """As lists show it: without the default host and namespace, always with the tag."""
        short = f"{self.model}:{self.tag}"
        if self.host != _HOST:
            return f"{self.host}/{self.namespace}/{short}"
        return short if self.namespace == _NAMESPACE else f"{self.namespace}/{short}"


def split_name(name: str) -> Name:
    """What is missing gets Ollama's defaults. Nothing is refused."""
    path, slash, last = name.rpartition("/")
    model, _, tag = last.partition(":")
    host, _, namespace = path.rpartition("/") if slash else ("", "", _NAMESPACE)
    return Name(host or _HOST, namespace, model, tag or _TAG)


def read_name(name: str) -> str:
    """A name a client typed -> the name to look up. Raises `BadRequest` for what can be no name, or names the cloud.

    `:local` says where to look, and here is nowhere else: it is cut off.
    """
    name = name.strip()
    base, source = _cut_source(name)
    if source:
        if _cut_source(base)[1]:
            raise BadRequest(f"use either :local or :cloud, not both: {quoted(name)}", param="model")
        if source == "cloud":
            raise BadRequest(CLOUD_OFF, status=403, param="model", code="cloud_disabled")
    if not _is_legal(base):
        raise BadRequest(INVALID, param="model", code="invalid_model")
    return base


def quoted(text: str) -> str:
    """In double quotes, as Ollama's messages have names."""
    return msgspec.json.encode(text).decode()


def _cut_source(name: str) -> tuple[str, str]:
    """(the rest, `cloud` or `local` or nothing)"""
    before, colon, tag = name.rpartition(":")
    folded = tag.casefold()
    if not colon or "/" in tag:
        return name, ""
    if folded in ("cloud", "local"):
        return before, folded
    if folded.endswith("-cloud"):
        return f"{before}:{tag[: -len('-cloud')]}", "cloud"
    return name, ""


def _is_legal(name: str) -> bool:
    *path, last = name.split("/")
    parts = [*path[-1:], *last.split(":", 1)]
    host = path[0] if len(path) > 1 else ""
    return (
        len(path) <= 2
        and all(0 < len(part) <= _PART_CHARACTERS for part in parts)
        and (len(path) < 2 or 0 < len(host) <= _HOST_CHARACTERS)
        and not _CONTROL.search(name)
    )

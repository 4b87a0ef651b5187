"""How people name a model of a hub: its repository, and which quantization of it."""

import re
from typing import Final

import msgspec

from llamaherd_shared.errors import Rejected

_PREFIX: Final = re.compile(r"^(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/", re.IGNORECASE)
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


class RepositoryName(msgspec.Struct, frozen=True):
    """What somebody asked for."""

    name: str
    """`owner/name`"""
    quantization: str = ""


def parse_repository(text: str) -> RepositoryName:
    """`owner/name`, `owner/name:Q8_0`, `hf.co/owner/name`. Raises `Rejected`."""
    name, _, quantization = _PREFIX.sub("", text.strip()).partition(":")
    name = name.rstrip("/")
    if not _REPOSITORY.fullmatch(name):
        raise Rejected(f"{text!r} is no repository: write OWNER/NAME, or OWNER/NAME:QUANTIZATION")
    return RepositoryName(name, quantization)

"""Which model a name means: its own, an alias, a pattern, or what a client's habits make of it (api-dialects, 1.6)."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

LATEST: Final = ":latest"
"""The tag that Ollama's clients add to a name without one."""
REMEMBERED: Final = 4096
"""Names whose meaning is remembered: clients may make up millions."""
_PATTERN: Final = frozenset("*?[")
_NOT_IN_FILES: Final = re.compile(r"[\x00-\x1f\x7f/\\:*?\"<>|]+")
"""What no supervisor takes in the name of a model's file."""
_ENDINGS: Final = re.compile(r"(?:\.gguf|\.part|-\d{5}-of-\d{5})+$", re.IGNORECASE)
_FILE_NAME_CHARACTERS: Final = 150


def is_pattern(name: str) -> bool:
    """Whether it would be read as one that stands for many names."""
    return bool(_PATTERN & set(name))


def file_name(name: str) -> str:
    """What the file of a model is called that is to have this name: `mine:v1` -> `mine-v1`."""
    text = _ENDINGS.sub("", _NOT_IN_FILES.sub("-", name).strip())[:_FILE_NAME_CHARACTERS]
    return text.strip(" .-") or "model"


class Names:
    """Names of one herd at one moment. Looking up costs one dictionary access for every name seen before."""

    def __init__(self, known: Iterable[str], aliases: Mapping[str, str], default: str | None) -> None:
        exact = {name: model for name, model in aliases.items() if not is_pattern(name)}
        exact |= {name: name for name in known}
        # What whoever runs the herd has set may lead to a name that a client has made.
        self._exact = {name: exact.get(model, model) for name, model in exact.items()}
        self._patterns = [(name, exact.get(model, model)) for name, model in aliases.items() if is_pattern(name)]
        self._default = None if default is None else exact.get(default, default)
        self._folded = {name.casefold(): name for name in self._exact}
        self._seen: dict[str, str | None] = {}

    @property
    def aliases(self) -> dict[str, str]:
        """Alias -> model, without patterns and without the models themselves."""
        return {name: model for name, model in self._exact.items() if name != model}

    def resolve(self, asked: str) -> str | None:
        """The model's own name; `None` when nothing is meant by it.

        Order: exact name or alias, without or with `:latest`, other case, pattern, default model.
        """
        found = self._seen.get(asked)
        if found is None and asked not in self._seen:
            found = self._look_up(asked)
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            self._seen[asked] = found
        return found

    def spelling(self, asked: str) -> str | None:
        """The name or alias that is meant, as it was made; `None` for what only a pattern or the default answers to."""
        for name in (asked, asked.removesuffix(LATEST), asked + LATEST):
            if name in self._exact:
                return name
        folded = asked.casefold()
        for name in (folded, folded.removesuffix(LATEST), folded + LATEST, folded.removesuffix(".gguf")):
            if (found := self._folded.get(name)) is not None:
                return found
        return None

    def _look_up(self, asked: str) -> str | None:
        if (name := self.spelling(asked)) is not None:
            return self._exact[name]
        for pattern, model in self._patterns:
            if fnmatchcase(asked, pattern):
                return model
        return self._default

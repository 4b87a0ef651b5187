"""Which model a name means: its own, an alias, a pattern, or what a client's habits make of it (api-dialects, 1.6)."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

LATEST: Final = ":latest"
"""The tag that Ollama's clients add to a name without one."""
REMEMBERED: Final = 4096
"""Names whose meaning is remembered: clients may make up millions."""
_PATTERN: Final = frozenset("*?[")


class Names:
    """Names of one herd at one moment. Looking up costs one dictionary access for every name seen before."""

    def __init__(self, known: Iterable[str], aliases: Mapping[str, str], default: str | None) -> None:
        self._default = default
        self._patterns = [(name, model) for name, model in aliases.items() if _PATTERN & set(name)]
        self._exact = {name: model for name, model in aliases.items() if not _PATTERN & set(name)}
        self._exact |= {name: name for name in known}
        self._folded = {name.casefold(): model for name, model in self._exact.items()}
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

    def _look_up(self, asked: str) -> str | None:
        for name in (asked, asked.removesuffix(LATEST), asked + LATEST):
            if (model := self._exact.get(name)) is not None:
                return model
        folded = asked.casefold()
        for name in (folded, folded.removesuffix(LATEST), folded + LATEST, folded.removesuffix(".gguf")):
            if (model := self._folded.get(name)) is not None:
                return model
        for pattern, model in self._patterns:
            if fnmatchcase(asked, pattern):
                return model
        return self._default

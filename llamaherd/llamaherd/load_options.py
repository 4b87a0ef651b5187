"""Options of a load, as they are written on a command line."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import yaml

from llamaherd.failures import Misused
from llamaherd_shared.model_options import LoadOptions


def read_options(named: Mapping[str, Any], others: Iterable[str]) -> LoadOptions:
    """`named`: by their names, `None` where nothing was said; `others`: `NAME=VALUE`. Raises `Misused`."""
    said = {name: _read(value) for name, value in named.items() if value is not None}
    for text in others:
        name, equals, value = text.partition("=")
        if not equals:
            raise Misused(f"--option {text}: write it as NAME=VALUE")
        if name not in LoadOptions.__struct_fields__:
            raise Misused(f"--option {text}: a load has no {name!r}; it has {', '.join(LoadOptions.__struct_fields__)}")
        said[name] = _read(value)
    try:
        return msgspec.convert(said, LoadOptions)
    except msgspec.ValidationError as error:
        sentence, _, path = str(error).partition(" - at `$.")
        raise Misused(f"{path.rstrip('`')}: {sentence[0].lower()}{sentence[1:]}") from error


def _read(value: Any) -> Any:
    """Numbers, `true`, `on`: as they would be read in llamaherd.yaml."""
    return yaml.safe_load(value) if isinstance(value, str) else value

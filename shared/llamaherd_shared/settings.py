"""Settings of every service: one `llamaherd.yaml`, overridden by `LLAMAHERD_*` variables, read once at start.

The file's top level holds `CommonSettings`' keys, one mapping per service, and `models`. An unknown key or a wrong
type is refused with file, line and column.
"""

import argparse
import re
import socket
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import platformdirs
import yaml

from llamaherd_shared import __version__
from llamaherd_shared.errors import Rejected
from llamaherd_shared.model_spec import BadEntry, Models, check_entries, read_entry

T = TypeVar("T", bound=msgspec.Struct)

SECTIONS: Final = ("gateway", "supervisor", "metrics", "logs", "ui")
"""Services that own a mapping in the file."""
MODELS: Final = "models"
"""The key of what is said about models; supervisor and gateway read it."""
_MOVED: Final = {
    ("gateway", "models"): "`models` at the top level of the file (`set`, `default`, `strip`, `clamp` below `rules`)",
    ("supervisor", "slots"): '`models: {"*": {slots: ...}}`',
    ("supervisor", "context_tokens"): '`models: {"*": {context_tokens: ...}}`',
    ("supervisor", "extra_args"): '`models: {"*": {...}}`: options by their names, other words as `args`',
}
"""Settings that were here once -> where they are now."""


class SettingsError(Rejected):
    """The configuration cannot be used as it is."""


class CommonSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every service needs to know."""

    node: str = msgspec.field(default_factory=socket.gethostname)
    """Name of this host in subjects and pages."""
    data_dir: Path = msgspec.field(default_factory=lambda: platformdirs.user_data_path("llamaherd"))
    """Projections, instance logs, the embedded nats-server's store."""
    nats_url: str = "nats://127.0.0.1:4222"
    nats_seed_file: Path | None = None
    """File with this service's nkey seed; unset: connect without credentials."""
    prefix: str = "herd"
    """First token of every subject, for shared NATS accounts."""
    secret_file: Path | None = None
    """File with the herd's secret, from which the API keys of llama-servers derive."""
    otlp_endpoint: str | None = None
    """Where traces go (OTLP over HTTP), e.g. `http://127.0.0.1:4318`; unset: nowhere."""
    log_level: typing.Literal["debug", "info", "warning", "error"] = "info"
    loop_watch_s: typing.Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Whatever holds a service's event loop for longer is logged with its place; 0: nobody looks."""


def load_settings(
    section_type: type[T], section: str, *, config: Path | None, environ: Mapping[str, str]
) -> tuple[CommonSettings, T]:
    """Read the file and the environment into the common settings and one service's section.

    Raises `SettingsError` with one sentence that names file, key, line and column.
    """
    document = _Document.load(config)
    elsewhere = {*SECTIONS, MODELS}
    common: dict[str, Any] = {key: value for key, value in document.content.items() if key not in elsewhere}
    own = document.content.get(section) or {}
    if not isinstance(own, dict):
        raise SettingsError(f"{document.where((section,))}: `{section}` must be a mapping of settings")
    _refuse_moved(section, own, document, environ)
    common |= _from_environment(CommonSettings, "LLAMAHERD_", environ)
    own = own | _from_environment(section_type, f"LLAMAHERD_{section.upper()}_", environ)
    return (
        _convert(common, CommonSettings, document, ()),
        _convert(own, section_type, document, (section,)),
    )


def load_models(*, config: Path | None, environ: Mapping[str, str], text: str | None = None) -> Models:
    """What the file, or the variable `LLAMAHERD_MODELS` (YAML), says about models. Raises `SettingsError`.

    `text`: what the file would say.
    """
    variable = environ.get(f"LLAMAHERD_{MODELS.upper()}")
    if variable is not None:
        document = _Document(None, {MODELS: _read_yaml(variable)}, {})
    elif text is not None and config is not None:
        document = _Document.parse(config, text)
    else:
        document = _Document.load(config)
    content = document.content.get(MODELS) or {}
    if not isinstance(content, dict):
        raise SettingsError(
            f"{document.where((MODELS,))}: `{MODELS}` must be a mapping of models to what holds for them"
        )
    entries: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        try:
            entries[str(key)] = read_entry(str(key), value)
        except msgspec.ValidationError as error:
            raise _at_its_place(error, document, (MODELS, str(key))) from error
        except BadEntry as error:
            raise _bad_entry(error, document, str(key), *error.keys) from error
    try:
        check_entries(entries)
    except BadEntry as error:
        raise _bad_entry(error, document, *error.keys) from error
    return Models(entries)


def _bad_entry(error: BadEntry, document: "_Document", *keys: str) -> SettingsError:
    return SettingsError(f"{document.where((MODELS, *keys))}: `{MODELS}.{keys[0]}`: {error.message}")


def _read_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"environment variable LLAMAHERD_{MODELS.upper()}: not valid YAML: {error}") from error


def _refuse_moved(section: str, own: Mapping[str, Any], document: "_Document", environ: Mapping[str, str]) -> None:
    for (owner, name), place in _MOVED.items():
        if owner != section:
            continue
        variable = f"LLAMAHERD_{section}_{name}".upper()
        if name in own or variable in environ:
            where = document.where((section, name)) if name in own else f"environment variable {variable}"
            raise SettingsError(f"{where}: `{section}.{name}` has moved: write {place}")


def _from_environment(type_: type[msgspec.Struct], prefix: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Variables that name a field of `type_`; lists and mappings are written as YAML."""
    found = {}
    for field in msgspec.structs.fields(type_):
        text = environ.get(prefix + field.name.upper())
        if text is None:
            continue
        found[field.name] = text if _is_text(field.type) else yaml.safe_load(text)
    return found


def _is_text(type_: Any) -> bool:
    """Whether a value of this type is written as it is: text and paths, also where `None` is allowed."""
    choices = typing.get_args(type_) if isinstance(type_, types.UnionType) else (type_,)
    return bool({str, Path} & {choice for choice in choices if isinstance(choice, type)})


def _convert(content: dict[str, Any], type_: type[T], document: "_Document", above: tuple[str, ...]) -> T:
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(type_)}
    known = set(fields)
    for key in content:
        if key not in known:
            names = ", ".join(sorted(known | ({*SECTIONS, MODELS} if not above else set())))
            path = ".".join((*above, str(key)))
            raise SettingsError(f"{document.where((*above, key))}: unknown setting `{path}`; known here: {names}")
    content = {key: _spell(value, fields.get(key)) for key, value in content.items()}
    try:
        return msgspec.convert(content, type_, strict=False, dec_hook=_path_hook)
    except msgspec.ValidationError as error:
        raise _at_its_place(error, document, above) from error


def _at_its_place(error: msgspec.ValidationError, document: "_Document", above: tuple[str, ...]) -> SettingsError:
    """msgspec's sentence: ``Expected `int`, got `str` - at `$.names[0]` ``; of a mapping's values it says `[...]`."""
    message, _, path = str(error).partition(" - at `$")
    keys = (*above, *(key for key in re.findall(r"[^.\[\]`]+", path)))
    return SettingsError(f"{document.where(keys)}: setting `{'.'.join(keys)}`: {message[0].lower()}{message[1:]}")


def _spell(value: Any, type_: Any) -> Any:
    """YAML reads `off` and `on` as booleans; where they are among a setting's words, the words were meant."""
    word = {True: "on", False: "off"}.get(value) if isinstance(value, bool) else None
    return word if word in typing.get_args(type_) else value


def _path_hook(type_: type, value: Any) -> Any:
    if type_ is Path and isinstance(value, str):
        return Path(value).expanduser()
    raise msgspec.ValidationError(f"Expected a {type_.__name__}, got {value!r}")


class _Document:
    """A YAML file and the places of its keys."""

    def __init__(self, path: Path | None, content: dict[str, Any], marks: dict[tuple[str, ...], tuple[int, int]]):
        self.path, self.content, self.marks = path, content, marks

    @classmethod
    def load(cls, path: Path | None) -> "_Document":
        if path is None:
            return cls(None, {}, {})
        try:
            text = path.read_text()
        except OSError as error:
            raise SettingsError(f"cannot read the configuration {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SettingsError(f"{path}: not UTF-8 text (byte {error.start})") from error
        return cls.parse(path, text)

    @classmethod
    def parse(cls, path: Path, text: str) -> "_Document":
        """`path` is what mistakes are told with."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            content = yaml.safe_load(text) or {}
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
            raise SettingsError(f"{place}: not valid YAML: {error.problem}") from error
        if not isinstance(content, dict):
            raise SettingsError(f"{path}:1:1: expected settings as `key: value`, found a {type(content).__name__}")
        marks: dict[tuple[str, ...], tuple[int, int]] = {}
        _collect_marks(path, root, (), marks)
        return cls(path, content, marks)

    def where(self, keys: Sequence[Any]) -> str:
        """`file:line:column` of the deepest of these keys that the file has; else says the environment."""
        names = tuple(str(key) for key in keys)
        setting = names[:2] if names[:1] and names[0] in SECTIONS else names[:1]
        for depth in range(len(names), len(setting) - 1, -1):
            if names[:depth] in self.marks:
                line, column = self.marks[names[:depth]]
                return f"{self.path}:{line}:{column}"
        return f"environment variable LLAMAHERD_{'_'.join(setting).upper()}" if names else str(self.path)


def _collect_marks(
    file: Path, node: yaml.Node | None, above: tuple[str, ...], marks: dict[tuple[str, ...], tuple[int, int]]
) -> None:
    """Line and column of every key and item, from 1. Raises `SettingsError` for a key that stands twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*above, str(key.value))
            if path in marks:
                place = f"{key.start_mark.line + 1}:{key.start_mark.column + 1}"
                raise SettingsError(f"{file}:{place}: `{'.'.join(path)}` stands here twice: put the two together")
            marks[path] = (key.start_mark.line + 1, key.start_mark.column + 1)
            _collect_marks(file, value, path, marks)
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            marks[(*above, str(number))] = (item.start_mark.line + 1, item.start_mark.column + 1)
            _collect_marks(file, item, (*above, str(number)), marks)


def service_arguments(argv: Sequence[str], service: str, description: str) -> Path | None:
    """The command line every service shares; returns the configuration file, if one was named."""
    parser = argparse.ArgumentParser(
        prog=f"python -m llamaherd_{service}",
        description=description,
        epilog=f"Every setting is also read from LLAMAHERD_* (common) and LLAMAHERD_{service.upper()}_*.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="llamaherd.yaml; without it, defaults serve")
    parser.add_argument("--version", action="version", version=f"llamaherd {__version__}")
    config: Path | None = parser.parse_args(argv).config
    return config

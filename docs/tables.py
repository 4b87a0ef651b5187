"""Writes the generated parts of architecture.md and models.md from the code: `just docs`. A test checks them."""

import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from llamaherd_gateway.settings import GatewaySettings
from llamaherd_logs.settings import LogsSettings
from llamaherd_metrics.settings import MetricsSettings
from llamaherd_shared.events import TYPES
from llamaherd_shared.model_options import FLAGS, Adapter, LoadOptions, ModelOptions
from llamaherd_shared.model_spec import ModelEntry, ModelSpec
from llamaherd_shared.settings import CommonSettings
from llamaherd_shared.streams import STREAMS
from llamaherd_shared.subjects import TABLE
from llamaherd_supervisor.settings import SupervisorSettings
from llamaherd_ui.settings import UiSettings

PAGES = [Path(__file__).parent / name for name in ("architecture.md", "models.md")]

SETTINGS: dict[str, type[msgspec.Struct]] = {
    "": CommonSettings,
    "gateway": GatewaySettings,
    "supervisor": SupervisorSettings,
    "metrics": MetricsSettings,
    "logs": LogsSettings,
    "ui": UiSettings,
}
"""Section of llamaherd.yaml -> its type; the empty name is the file's top level."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def subjects() -> str:
    rows = [[f"`herd.{row.shape}`", row.writer, row.readers, row.meaning] for row in TABLE]
    return table(["subject", "the one who writes", "who reads", "what it says"], rows)


def streams() -> str:
    rows = []
    for stream in STREAMS:
        age = f"{stream.max_age_s // 86_400} d" if stream.max_age_s else "until it expires"
        size = f"{stream.max_bytes / 2**30:g} GB" if stream.max_bytes >= 2**30 else f"{stream.max_bytes // 2**20} MB"
        rows.append([f"`{stream.name}`", f"`herd.{stream.kind}.>`", stream.storage, age, size, stream.why])
    return table(["stream", "subjects", "storage", "kept", "at most", "why"], rows)


def events() -> str:
    rows = []
    for name, type_ in TYPES.items():
        fields = ", ".join(f"`{field.name}`" for field in msgspec.structs.fields(type_))
        rows.append([f"`{name}`", first_line(type_), fields])
    return table(["event", "what happened", "fields"], rows)


def settings() -> str:
    parts = []
    for section, type_ in SETTINGS.items():
        variable = f"LLAMAHERD_{section.upper()}_" if section else "LLAMAHERD_"
        docs = attribute_docs(type_)
        rows = [
            [f"`{field.name}`", f"`{variable}{field.name.upper()}`", default(field), docs.get(field.name, "")]
            for field in msgspec.structs.fields(type_)
        ]
        parts.append(f"### `{section or 'top level'}`\n\n" + table(["setting", "variable", "default", "what"], rows))
    return "\n\n".join(parts)


def model_settings() -> str:
    docs = attribute_docs(ModelSpec) | attribute_docs(ModelEntry)
    fields = {field.name: field for field in msgspec.structs.fields(ModelEntry)}
    rows = [[f"`{name}`", values(fields[name].type), docs[name]] for name in sorted(docs)]
    return table(["name", "value", "what"], rows)


def model_options() -> str:
    docs = attribute_docs(LoadOptions) | attribute_docs(ModelOptions)
    fields = {field.name: field for field in msgspec.structs.fields(ModelOptions)}
    rows = []
    for name, flag in FLAGS.items():
        words = (*flag.on[:1], *(flag.off[:1] if flag.bare else ()))
        theirs = ", ".join(f"`{word}`" for word in words)
        asked = "yes" if name in LoadOptions.__struct_fields__ else ""
        rows.append([f"`{name}`", theirs, values(fields[name].type), asked, docs[name]])
    return table(["name", "llama-server's", "value", "in a load", "what"], rows)


def values(type_: Any) -> str:
    """What may be written for a value of this type, in words."""
    return " or ".join(dict.fromkeys(_values(type_)))


_WORDS = {int: "number", float: "number", str: "text", bool: "`true`, `false`", Adapter: "mapping"}


def _values(type_: Any) -> Iterator[str]:
    arguments = get_args(type_)
    match get_origin(type_):
        case origin if origin is Annotated:
            yield from _values(arguments[0])
        case origin if origin is Literal:
            yield ", ".join(f"`{word}`" for word in arguments)
        case origin if origin in (Union, types.UnionType):
            for choice in arguments:
                if choice is not type(None):
                    yield from _values(choice)
        case origin if origin is tuple:
            yield f"list of {values(arguments[0])}"
        case origin if origin is dict:
            yield "mapping"
        case _:
            yield _WORDS.get(type_, "mapping")


def default(field: Any) -> str:
    if field.default is not msgspec.NODEFAULT:
        value = field.default
    elif field.default_factory in (list, dict, tuple):
        value = field.default_factory()
    elif field.default_factory is not msgspec.NODEFAULT:
        return "this machine's"
    else:
        return "required"
    return "unset" if value is None or value == "" else f"`{value}`"


def first_line(type_: type) -> str:
    return (type_.__doc__ or "").strip().splitlines()[0]


def attribute_docs(type_: type) -> dict[str, str]:
    """The docstring under each field, which Python itself throws away: read from the source."""
    import ast
    import inspect

    body = ast.parse(inspect.getsource(type_)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for before, node in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            assert isinstance(before.target, ast.Name)
            docs[before.target.id] = " ".join(str(node.value.value).split())
    return docs


PARTS = {
    "subjects": subjects,
    "streams": streams,
    "events": events,
    "settings": settings,
    "model settings": model_settings,
    "model options": model_options,
}


def render(page: str) -> str:
    """The page with every generated part made anew between its two markers."""
    for name, part in PARTS.items():
        start, end = f"<!-- {name}: generated by docs/tables.py -->", f"<!-- {name}: end -->"
        before, found, rest = page.partition(start)
        if not found:
            continue
        _, _, after = rest.partition(end)
        page = f"{before}{start}\n{part()}\n{end}{after}"
    return page


if __name__ == "__main__":
    pages = {path: path.read_text() for path in PAGES}
    old = [path.name for path, page in pages.items() if render(page) != page]
    if "--check" in sys.argv:
        sys.exit(f"docs/{old[0]} is not current: run `just docs`" if old else 0)
    for path, page in pages.items():
        path.write_text(render(page))

"""The page at `/api/docs`: OpenAPI as plain HTML, from this host alone and without scripts.

Swagger UI, Scalar and Redoc as Litestar brings them load from other hosts; 1.5 MB of script of our own to show
a dozen routes is not worth its weight.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

STYLE: Final = """:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}
body{max-width:60rem;margin:0 auto;padding:1rem}
code,pre{font:.875rem/1.5 ui-monospace,monospace}
pre{padding:.5rem .75rem;overflow:auto;border:1px solid #8886;border-radius:.375rem}
h1{margin-bottom:0}h2{margin:2rem 0 .5rem;border-bottom:1px solid #8886}
details{border:1px solid #8886;border-radius:.375rem;margin:.5rem 0;padding:.25rem .75rem}
summary{cursor:pointer;padding:.25rem 0}
summary b{display:inline-block;min-width:3.5rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #8883}
"""

_HEAD: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><link rel="stylesheet" href="/api/docs/style.css"></head><body><main>
<h1>{title}</h1><p>Version {version}. Machine readable: <a href="/api/v1/openapi.json">/api/v1/openapi.json</a>.
Every error is a JSON object <code>{{"error": {{"message", "kind", "id"}}}}</code>.</p>
"""


def render_docs(schema: Mapping[str, Any]) -> str:
    """The whole page from an OpenAPI 3.1 document."""
    info = schema["info"]
    parts = [_HEAD.format(title=html.escape(info["title"]), version=html.escape(info["version"]))]
    for tag, operations in _by_tag(schema).items():
        parts.append(f"<h2>{html.escape(tag)}</h2>")
        parts.extend(_render_operation(path, method, operation) for path, method, operation in operations)
    parts.append("<h2>Shapes</h2>")
    shapes = schema.get("components", {}).get("schemas", {})
    parts.extend(_render_shape(name, shape) for name, shape in sorted(shapes.items()))
    parts.append("</main></body></html>\n")
    return "\n".join(parts)


def _by_tag(schema: Mapping[str, Any]) -> dict[str, list[tuple[str, str, Mapping[str, Any]]]]:
    grouped: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for path, item in sorted(schema.get("paths", {}).items()):
        for method in ("get", "post", "put", "patch", "delete"):
            if method in item:
                tag = (item[method].get("tags") or ["other"])[0]
                grouped.setdefault(tag, []).append((path, method, item[method]))
    return dict(sorted(grouped.items()))


def _render_operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    anchor = html.escape(operation.get("operationId", f"{method}{path}"))
    rows = [_render_parameter(parameter) for parameter in operation.get("parameters", [])]
    table = f"<table><tr><th>parameter</th><th>in</th><th>type</th><th>meaning</th></tr>{''.join(rows)}</table>"
    flags = {"get": "", "post": "-X POST "}.get(method, f"-X {method.upper()} ")
    flags += "-N " if "event-stream" in json.dumps(operation.get("responses", {})) else ""
    return (
        f'<details id="{anchor}"><summary><b>{method.upper()}</b> <code>{html.escape(path)}</code> '
        f"{html.escape(operation.get('summary', ''))}</summary>"
        f"{_render_text(operation.get('description', ''))}{table if rows else ''}"
        f"<p>Answers: {', '.join(_answers(operation))}</p>"
        f"<pre>curl {flags}http://127.0.0.1:8081{html.escape(path)}</pre></details>"
    )


def _render_parameter(parameter: Mapping[str, Any]) -> str:
    shape = parameter.get("schema", {})
    meaning = parameter.get("description") or shape.get("description") or ""
    return (
        f"<tr><td><code>{html.escape(parameter['name'])}</code></td><td>{html.escape(parameter['in'])}</td>"
        f"<td>{_render_type(shape)}</td><td>{_render_code(meaning)}</td></tr>"
    )


def _answers(operation: Mapping[str, Any]) -> Iterator[str]:
    for status, answer in sorted(operation.get("responses", {}).items()):
        for content in (answer.get("content") or {"": {}}).values():
            yield f"{html.escape(status)} {_render_type(content.get('schema', {}))}".strip()


def _render_shape(name: str, shape: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(field)}</code></td><td>{_render_type(part)}</td></tr>"
        for field, part in shape.get("properties", {}).items()
    )
    return (
        f'<details id="shape-{html.escape(name)}"><summary><code>{html.escape(name)}</code></summary>'
        f"{_render_text(shape.get('description', ''))}<table>{rows}</table></details>"
    )


def _render_text(text: str) -> str:
    """Paragraphs; nothing for nothing."""
    return "".join(f"<p>{_render_code(part)}</p>" for part in text.split("\n\n") if part.strip())


def _render_code(text: str) -> str:
    """Escaped, with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _render_type(shape: Mapping[str, Any]) -> str:
    """A type in few words, with a link to the shape it names."""
    if "$ref" in shape:
        name = html.escape(shape["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#shape-{name}">{name}</a>'
    for union in ("oneOf", "anyOf"):
        if union in shape:
            return " or ".join(_render_type(part) for part in shape[union])
    if "enum" in shape:
        return " or ".join(f"<code>{html.escape(str(value))}</code>" for value in shape["enum"])
    if shape.get("type") == "array":
        return f"list of {_render_type(shape.get('items', {}))}"
    kind = shape.get("type", "")
    return html.escape(" or ".join(kind) if isinstance(kind, list) else str(kind))

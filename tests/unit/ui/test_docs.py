"""The page at /api/docs."""

import re

from llamaherd_ui.docs import STYLE, render_docs

NODE = {
    "name": "node",
    "in": "query",
    "schema": {"oneOf": [{"type": "string"}, {"type": "null"}]},
    "description": "Only `this` node",
}
ACCEPTED = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}}}
LOAD = {
    "tags": ["models"],
    "summary": "Load",
    "operationId": "Load",
    "parameters": [NODE],
    "responses": {"202": ACCEPTED},
}
SCHEMA = {
    "info": {"title": "Herd <1>", "version": "0.1"},
    "paths": {"/api/v1/models/{model}/load": {"post": LOAD}},
    "components": {"schemas": {"Accepted": {"properties": {"lines": {"type": "array", "items": {"type": "string"}}}}}},
}


def test_route_shows_parameters_answers_and_how_to_call_it() -> None:
    page = render_docs(SCHEMA)

    assert "<b>POST</b> <code>/api/v1/models/{model}/load</code> Load" in page
    assert "<td>string or null</td><td>Only <code>this</code> node</td>" in page
    assert '202 <a href="#shape-Accepted">Accepted</a>' in page
    assert "list of string" in page
    assert "curl -X POST " in page


def test_text_is_escaped() -> None:
    assert "Herd &lt;1&gt;" in render_docs(SCHEMA)


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = render_docs(SCHEMA)

    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page)
    assert "url(" not in STYLE
    assert "style=" not in page

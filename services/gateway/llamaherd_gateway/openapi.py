"""This API as an OpenAPI 3.1 document: the tables of routes, and the shapes of their bodies as msgspec knows them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final

import msgspec

from llamaherd_gateway.access.keys import CREDENTIAL_HEADERS
from llamaherd_gateway.blobs import DIGEST
from llamaherd_gateway.dialects import llama
from llamaherd_gateway.dialects.anthropic import ANTHROPIC
from llamaherd_gateway.dialects.dialect import JSON, Dialect, Page, Route
from llamaherd_gateway.dialects.llama import LLAMA
from llamaherd_gateway.dialects.lmstudio import LMSTUDIO
from llamaherd_gateway.dialects.ollama import OLLAMA
from llamaherd_gateway.dialects.openai import OPENAI
from llamaherd_gateway.handlers import GATEWAY, Handler
from llamaherd_gateway.problems import STATUSES, Problem
from llamaherd_gateway.routes import HEALTH, PAGES, ROUTES, UPSTREAM_METHODS
from llamaherd_shared import __version__

DIALECTS: Final = (OPENAI, ANTHROPIC, OLLAMA, LMSTUDIO, LLAMA)
"""Each with errors of a shape of its own."""

TEXT: Final = {"type": "string", "minLength": 1}
DIGEST_TEXT: Final = {"type": "string", "pattern": f"^{DIGEST.pattern}$"}

ANYWHERE: Final = (400, 403, 408, 413, 431)
"""Statuses of refusals on every route."""
KNOWN: Final = (*ANYWHERE, 401, 404, 503)
"""Where a key is asked for, and what there is must be known."""
MANAGED: Final = (*KNOWN, 409)
RELAYED: Final = (*KNOWN, 409, 415, 429, 500, 501, 502, 504)

_HOLE: Final = re.compile(r"\{(\w+)\*?\}")
_MODULES: Final = b"llamaherd_gateway.dialects."
"""Left out of the names of shapes; msgspec tells modules only where names would else be the same."""
_KINDS: Final = {str: "string", int: "integer", type(None): "null"}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One route, of whichever table."""

    method: str
    path: str
    dialect: Dialect
    about: str
    takes: str = ""
    """Content type of the body; empty: it has none."""
    shape: type[msgspec.Struct] | None = None
    needs: tuple[str, ...] = ()
    example: str = ""
    query: tuple[str, ...] = ()
    """Parameters that must be there."""
    gives: tuple[str, ...] = (JSON,)
    answers: tuple[int, ...] = (200,)
    refusals: tuple[int, ...] = KNOWN
    public: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """Path and method, however the holes of the path are called."""
        return _HOLE.sub("{}", self.path), self.method


def render_document(handlers: Iterable[Handler], *, keys_required: bool) -> bytes:
    """The document, as JSON. `handlers`: the one table that is not a constant."""
    operations = sorted(find_operations(handlers), key=lambda operation: operation.place)
    components = _Components(operations)
    paths: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for (shape, method), same in groupby(operations, key=lambda operation: operation.place):
        found = list(same)
        path = names.setdefault(shape, _HOLE.sub(r"{\1}", found[0].path))
        paths.setdefault(path, {})[method.lower()] = _describe(path, found, components)
    schemes = _security_schemes()
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "llamaherd gateway", "version": __version__},
        "paths": paths,
        "security": [{name: []} for name in schemes] + ([] if keys_required else [{}]),
        "components": {
            "schemas": components.schemas,
            "responses": components.responses,
            "securitySchemes": schemes,
        },
    }
    return msgspec.json.encode(document).replace(_MODULES, b"")


def find_operations(handlers: Iterable[Handler]) -> Iterator[Operation]:
    """Every route there is."""
    yield from map(_relayed, ROUTES)
    yield from map(_page, PAGES)
    yield from map(_handled, handlers)
    for path, look in llama.LOOKS.items():
        yield Operation(
            method="GET",
            path=path,
            dialect=LLAMA,
            about=look.about,
            query=("model",),
            gives=(look.gives,),
            refusals=RELAYED,
        )
    for method in UPSTREAM_METHODS:
        yield Operation(
            method=method,
            path="/upstream/{model}/{path*}",
            dialect=LLAMA,
            about=llama.ABOUT_UPSTREAM,
            takes="*/*" if method == "POST" else "",
            gives=("*/*",),
            refusals=RELAYED,
        )
    for path, about in HEALTH.items():
        answers = (200, 503) if path == "/readyz" else (200,)
        yield Operation(
            method="GET", path=path, dialect=GATEWAY, about=about, answers=answers, refusals=ANYWHERE, public=True
        )


def _relayed(route: Route) -> Operation:
    return Operation(
        method=route.method,
        path=route.path,
        dialect=route.dialect,
        about=route.about,
        takes=route.takes,
        shape=route.shape,
        needs=route.needs,
        example=route.example,
        gives=route.gives,
        refusals=RELAYED,
    )


def _page(page: Page) -> Operation:
    return Operation(
        method=page.method,
        path=page.path,
        dialect=page.dialect,
        about=page.about,
        answers=(200,) if page.serves else (),
    )


def _handled(handler: Handler) -> Operation:
    return Operation(
        method=handler.method,
        path=handler.path,
        dialect=handler.dialect,
        about=handler.about,
        takes=handler.takes if handler.shape is not None or handler.takes != JSON else "",
        shape=handler.shape,
        needs=handler.needs,
        example=handler.example,
        gives=handler.gives,
        answers=handler.answers,
        refusals=tuple(status for status in MANAGED if not (handler.public and status == 401)),
        public=handler.public,
    )


class _Components:
    """What operations refer to."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        shapes = {operation.shape: None for operation in operations if operation.shape is not None}
        references, bodies = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
        self._references = dict(zip(shapes, references, strict=True))
        self._errors = {f"{dialect.name}.Error": _error_schema(dialect) for dialect in DIALECTS}
        self.schemas = {**bodies, **self._errors}
        self.responses: dict[str, Any] = {}

    def shape(self, shape: type[msgspec.Struct]) -> dict[str, Any]:
        return self._references[shape]

    def error(self, dialect: Dialect) -> str:
        """The name of a schema, which dialects may share."""
        wanted = _error_schema(dialect)
        return next(name for name, schema in self._errors.items() if schema == wanted)

    def refusal(self, status: int, about: str, errors: Sequence[str]) -> dict[str, Any]:
        """An answer in one of these shapes; in none: without a body."""
        name = "-or-".join(errors) + f".{status}" if errors else str(status)
        response: dict[str, Any] = {"description": about}
        if errors:
            shapes = [{"$ref": f"#/components/schemas/{error}"} for error in errors]
            response["content"] = {JSON: {"schema": {"anyOf": shapes} if len(shapes) > 1 else shapes[0]}}
        self.responses.setdefault(name, response)
        return {"$ref": f"#/components/responses/{name}"}


def _describe(path: str, found: Sequence[Operation], components: _Components) -> dict[str, Any]:
    """One method of one path; `found` are several where dialects share it."""
    first, *others = found
    said: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{first.method.lower()}{path}").strip("_"),
        "tags": list(dict.fromkeys(operation.dialect.name for operation in found)),
        "summary": first.about,
        "responses": _responses(found, components),
    }
    if others:
        said["description"] = "\n".join(operation.about for operation in others)
    if parameters := _parameters(path, found):
        said["parameters"] = parameters
    if first.takes:
        said["requestBody"] = {"required": bool(first.needs), "content": {first.takes: _body(first, components)}}
    if first.public:
        said["security"] = []
    return said


def _parameters(path: str, found: Sequence[Operation]) -> list[dict[str, Any]]:
    places = [("path", name) for name in _HOLE.findall(path)] + [("query", name) for name in found[0].query]
    needed: list[dict[str, Any]] = [
        {"name": name, "in": place, "required": True, "schema": DIGEST_TEXT if name == "digest" else TEXT}
        for place, name in places
    ]
    if len(found) > 1 and any(operation.dialect is ANTHROPIC for operation in found):
        return [*needed, {"name": "anthropic-version", "in": "header", "schema": {"type": "string"}}]
    return needed


def _body(operation: Operation, components: _Components) -> dict[str, Any]:
    """Media type object of a request's body."""
    if not operation.needs:
        return {"schema": {}}
    needed = {name: TEXT if name == "model" else {"not": {"type": "null"}} for name in operation.needs}
    schema: dict[str, Any] = {"type": "object", "required": operation.needs, "properties": needed}
    if operation.shape is not None:
        schema = {"allOf": [components.shape(operation.shape), schema]}
    if not operation.example.startswith("{"):
        return {"schema": schema}
    return {"schema": schema, "example": msgspec.json.decode(operation.example)}


def _responses(found: Sequence[Operation], components: _Components) -> dict[str, Any]:
    """By status: good answers, then refusals in the words of each dialect."""
    first = found[0]
    has_body = first.method != "HEAD"
    responses: dict[str, Any] = {str(status): {"description": first.about} for status in first.answers}
    if has_body and first.gives:
        for response in responses.values():
            response["content"] = {kind: {"schema": {}} for kind in first.gives}
    refusals: dict[int, tuple[str, dict[str, None]]] = {}
    for refusal in sorted(first.refusals):
        for operation in found:
            status = operation.dialect.status_of(Problem(status=refusal, message=""))
            _, errors = refusals.setdefault(status, (STATUSES[refusal], {}))
            if has_body:
                errors[components.error(operation.dialect)] = None
    for status, (about, errors) in refusals.items():
        responses[str(status)] = components.refusal(status, about, tuple(errors))
    return responses


def _error_schema(dialect: Dialect) -> dict[str, Any]:
    """Of the errors that the dialect renders."""
    bare = Problem(status=400, message="a sentence")
    full = msgspec.structs.replace(bare, code="word", param="field")
    return _schema_of([msgspec.json.decode(dialect.render_problem(problem, "id")) for problem in (bare, full)])


def _schema_of(seen: Sequence[Any]) -> dict[str, Any]:
    """Of values that are like these."""
    objects = [value for value in seen if isinstance(value, dict)]
    if not objects:
        kinds = sorted({_KINDS[type(value)] for value in seen})
        return {"type": kinds if len(kinds) > 1 else kinds[0]}
    names = dict.fromkeys(name for value in objects for name in value)
    return {
        "type": "object",
        "properties": {name: _schema_of([value[name] for value in objects if name in value]) for name in names},
        "required": [name for name in names if all(name in value for value in objects)],
    }


def _security_schemes() -> dict[str, Any]:
    """Wherever a client may put its key; any one of them does."""
    others = sorted(name.decode() for name in CREDENTIAL_HEADERS - {b"authorization"})
    return {
        "bearer": {"type": "http", "scheme": "bearer"},
        **{name: {"type": "apiKey", "in": "header", "name": name} for name in others},
    }

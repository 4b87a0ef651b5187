"""The REST routes and the live stream. Each handler reads, asks or commands; the shapes are in `views.py`."""

import asyncio
import secrets
import time
from typing import Annotated, Any, Final

import msgspec
from litestar import Request as HttpRequest
from litestar import Response, delete, get, post
from litestar.params import Parameter
from litestar.response import Stream

from llamaherd_shared.api_key import ID_BYTES, SECRET_BYTES, render_id, render_key, render_secret
from llamaherd_shared.bus import Bus
from llamaherd_shared.commands import (
    HELP_TIMEOUT_S,
    LISTING_TIMEOUT_S,
    Accepted,
    CancelPull,
    DescribeParameters,
    DrainNode,
    History,
    HistoryQuery,
    LineQuery,
    Lines,
    LoadModel,
    ModelReset,
    NodeDrainState,
    Parameters,
    PullAccepted,
    PullCancelled,
    ReloadConfiguration,
    Reloaded,
    ResetModel,
    UnloadModel,
)
from llamaherd_shared.errors import Rejected, Unavailable
from llamaherd_shared.events import event_type
from llamaherd_shared.events.access import AccessEvent
from llamaherd_shared.events.line import Level
from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.projection import Projection
from llamaherd_shared.service import new_id
from llamaherd_shared.streams import EVENTS, LOGS, REQUESTS
from llamaherd_ui.docs import STYLE, render_docs
from llamaherd_ui.keys import NewKey, decide_created, decide_revoked
from llamaherd_ui.parameters import pick_teller, select_parameters
from llamaherd_ui.projection import AccessKey, Node, evolve, known_node, pick_node, select
from llamaherd_ui.pulls import NewPull, nodes_alive, pick_puller, render_command
from llamaherd_ui.resume import parse_topics, pick_position
from llamaherd_ui.settings import UiSettings
from llamaherd_ui.store import FleetStore, query, select_facts, select_requests, select_usage
from llamaherd_ui.tail import Feed, Tail
from llamaherd_ui.views import (
    ApiKey,
    CreatedKey,
    Events,
    Fleet,
    Health,
    KeyUse,
    Model,
    Requests,
    render_api_key,
    render_created,
    render_fact,
    render_models,
    sort_services,
    split_names,
)

STREAM_HEADERS: Final = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
"""Keeps nginx and others from holding back a stream or compressing it."""
DEFAULT_SPAN_S: Final = 300.0
WRITE_TIMEOUT_S: Final = 5.0
"""For nats-server to store a fact."""
SEEN_TIMEOUT_S: Final = 2.0
"""For a fact just stored to be seen here; it holds without that."""

RELOAD_TIMEOUT_S: Final = 15.0
"""For the files that a configuration newly speaks of to be looked at."""

MOST: Final = 2**63 - 1
"""Larger numbers are none to SQLite, nor as nanoseconds."""

Limit = Annotated[int, Parameter(ge=1, le=1000, description="At most so many")]
Nanoseconds = Annotated[int | None, Parameter(ge=-MOST, le=MOST, description="Unix nanoseconds")]
OnNode = Annotated[str | None, Parameter(description="Only this node; without it, the first that fits")]


class Ui(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the handlers work with."""

    bus: Bus
    settings: UiSettings
    fleet: FleetStore
    requests: Projection
    tail: Tail


@get("/api/v1/fleet", tags=["fleet"], summary="Everything the overview shows")
async def show_fleet(ui: Ui) -> Fleet:
    """A snapshot of nodes, models and services; `resume` continues from it as a live stream."""
    position = ui.tail.position
    return Fleet(
        at={EVENTS: position.events, REQUESTS: position.requests, LOGS: position.line},
        stream_id=position.stream_id,
        resume=str(position),
        gateway_url=ui.settings.gateway_url,
        nodes=select(ui.fleet.entities, Node),
        models=render_models(ui.fleet.entities),
        services=sort_services(ui.tail.services.values()),
    )


@get("/api/v1/models", tags=["models"], summary="All models of all nodes")
async def list_models(ui: Ui) -> list[Model]:
    return render_models(ui.fleet.entities)


@post("/api/v1/models/{model:str}/load", tags=["models"], summary="Load a model", status_code=202)
async def load_model(ui: Ui, model: str, node: OnNode = None, data: LoadOptions | None = None) -> Accepted:
    """Answered at once; the live stream shows the loading. Loading twice is one load.

    A body of options is for this load: what runs with other ones is drained and started again, unless it has as much
    context and as many slots or more. Where it says nothing, `models` in llamaherd.yaml counts.
    """
    node = pick_node(ui.fleet.entities, model, node=node)
    command = LoadModel(model=model, options=data or LoadOptions())
    return await ui.bus.request(ui.bus.subjects.command("supervisor", "load", node=node), command, Accepted)


@post("/api/v1/models/{model:str}/unload", tags=["models"], summary="Unload a model", status_code=202)
async def unload_model(ui: Ui, model: str, node: OnNode = None) -> Accepted:
    """Answered at once; requests in flight finish first. Unloading what is not loaded is accepted."""
    node = pick_node(ui.fleet.entities, model, node=node)
    return await ui.bus.request(
        ui.bus.subjects.command("supervisor", "unload", node=node), UnloadModel(model=model), Accepted
    )


@post("/api/v1/models/{model:str}/reset", tags=["models"], summary="Forget a model's crashes", status_code=202)
async def reset_model(ui: Ui, model: str, node: OnNode = None) -> ModelReset:
    """One that has failed, or waits to be started again after a crash, starts at once if it is still wanted."""
    node = pick_node(ui.fleet.entities, model, node=node)
    return await ui.bus.request(
        ui.bus.subjects.command("supervisor", "reset", node=node), ResetModel(model=model), ModelReset
    )


@post("/api/v1/models/pull", tags=["models"], summary="Pull a model from the hub", status_code=202)
async def pull_model(ui: Ui, data: NewPull) -> PullAccepted:
    """Answered once the hub has listed its files; the live stream shows the rest as `pull.` facts with this id."""
    node = pick_puller(ui.fleet.entities, data.node)
    subject = ui.bus.subjects.command("supervisor", "pull", node=node)
    return await ui.bus.request(subject, render_command(data), PullAccepted, timeout_s=LISTING_TIMEOUT_S)


@post("/api/v1/models/pull/{pull:str}/cancel", tags=["models"], summary="Stop pulling a model", status_code=200)
async def cancel_pull(
    ui: Ui,
    pull: str,
    node: Annotated[str | None, Parameter(description="Where it is pulled; needed when there are several")] = None,
    discard: Annotated[bool, Parameter(description="Delete what has come")] = False,
) -> PullCancelled:
    """Without `discard`, the next pull goes on where this one stopped."""
    subject = ui.bus.subjects.command("supervisor", "pull-cancel", node=pick_puller(ui.fleet.entities, node))
    return await ui.bus.request(subject, CancelPull(pull=pull, discard=discard), PullCancelled)


@get("/api/v1/parameters", tags=["models"], summary="What llama-server can be told")
async def list_parameters(
    ui: Ui,
    category: Annotated[str | None, Parameter(description="e.g. `sampling`; all without it")] = None,
    search: Annotated[str | None, Parameter(description="Words that all occur in what is told of a parameter")] = None,
    node: Annotated[str | None, Parameter(description="Whose llama-server; without it, the first there is")] = None,
) -> Parameters:
    """Read from the help of the node's own llama-server; `option` and `owned` say who sets a parameter."""
    subject = ui.bus.subjects.command("supervisor", "parameters", node=pick_teller(ui.fleet.entities, node))
    told = await ui.bus.request(subject, DescribeParameters(), Parameters, timeout_s=HELP_TIMEOUT_S)
    return select_parameters(told, category=category, search=search)


@post("/api/v1/configuration/reload", tags=["configuration"], summary="Read llamaherd.yaml again", status_code=200)
async def reload_configuration(ui: Ui, data: ReloadConfiguration | None = None) -> list[Reloaded]:
    """What that leads to on every node, or with `dry_run` would: each reads its own file. They follow it by themselves.

    Refused as a whole with the place of the mistake when the file of one node cannot be used.
    """
    command = data or ReloadConfiguration()
    if command.text is not None and not command.dry_run:
        raise Rejected("`text` is only for `dry_run`: change the file itself")
    subjects = [ui.bus.subjects.command("supervisor", "reload", node=node) for node in nodes_alive(ui.fleet.entities)]
    asking = (ui.bus.request(subject, command, Reloaded, timeout_s=RELOAD_TIMEOUT_S) for subject in subjects)
    return list(await asyncio.gather(*asking))


@post("/api/v1/nodes/{node:str}/drain", tags=["nodes"], summary="Drain a node for maintenance", status_code=202)
async def drain_node(ui: Ui, node: str) -> NodeDrainState:
    """It takes no loads any more; what runs there finishes its answers and is unloaded. Models with `failover` are
    loaded elsewhere. Answered at once; it holds until `resume`, also across restarts."""
    return await _say_drained(ui, node, DrainNode())


@post("/api/v1/nodes/{node:str}/resume", tags=["nodes"], summary="End a node's maintenance", status_code=202)
async def resume_node(ui: Ui, node: str) -> NodeDrainState:
    """It takes loads again, and loads what is to be loaded from the start."""
    return await _say_drained(ui, node, DrainNode(drained=False))


async def _say_drained(ui: Ui, node: str, command: DrainNode) -> NodeDrainState:
    subject = ui.bus.subjects.command("supervisor", "drain", node=known_node(ui.fleet.entities, node))
    return await ui.bus.request(subject, command, NodeDrainState)


@get("/api/v1/keys", tags=["keys"], summary="API keys and what they have used")
async def list_keys(ui: Ui) -> list[ApiKey]:
    """All there ever were, oldest first; `state` tells which ones are good."""
    now_ns = time.time_ns()
    usage = await query(ui.requests, select_usage, now_ns=now_ns)
    keys = sorted(select(ui.fleet.entities, AccessKey), key=lambda key: (key.created_ns, key.key))
    return [render_api_key(key, usage.get(key.key, KeyUse()), now_ns=now_ns) for key in keys]


@post("/api/v1/keys", tags=["keys"], summary="Make an API key")
async def create_key(ui: Ui, data: NewKey) -> Response[CreatedKey]:
    """The only answer that holds the key: nobody can look it up again. Gateways accept it at once."""
    key_id, secret = render_id(secrets.token_bytes(ID_BYTES)), render_secret(secrets.token_bytes(SECRET_BYTES))
    created = decide_created(data, key_id=key_id, secret=secret, now_ns=time.time_ns())
    await _append(ui, created, msg_id=new_id(), expected=0)
    key = evolve(None, created)
    assert isinstance(key, AccessKey)
    body = render_created(key, render_key(key_id, secret), now_ns=created.at_ns)
    return Response(body, headers={"Cache-Control": "no-store"})


@delete("/api/v1/keys/{key_id:str}", tags=["keys"], summary="Revoke an API key", status_code=200)
async def revoke_key(ui: Ui, key_id: str) -> ApiKey:
    """Gateways refuse it within a second; requests that were let in are finished. Twice is as good as once."""
    now_ns = time.time_ns()
    key, revoked = decide_revoked(ui.fleet.entities, key_id, now_ns=now_ns)
    if revoked is not None:
        # The same from every ui: two that revoke at once write one fact.
        await _append(ui, revoked, msg_id=f"{event_type(revoked)}:{key.key}")
        after = evolve(key, revoked)
        assert isinstance(after, AccessKey)
        key = after
    usage = await query(ui.requests, select_usage, now_ns=now_ns)
    return render_api_key(key, usage.get(key.key, KeyUse()), now_ns=now_ns)


async def _append(ui: Ui, event: AccessEvent, *, msg_id: str, expected: int | None = None) -> None:
    """Store a fact about a key and wait until it is seen here."""
    if not ui.bus.connected:
        raise Unavailable("the bus is away; it reconnects by itself", retry_after_s=2)
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            subject = ui.bus.subjects.access(event.key)
            sequence = await ui.bus.append(subject, event, msg_id=msg_id, expected=expected)
    except TimeoutError as error:
        raise Unavailable("nats-server did not store it in time; see whether it did, and try again") from error
    await ui.fleet.reached(sequence, SEEN_TIMEOUT_S)


@get("/api/v1/requests", tags=["requests"], summary="Requests that were served, newest first")
async def list_requests(
    ui: Ui,
    limit: Limit = 100,
    before: Annotated[int | None, Parameter(ge=0, le=MOST, description="`next` of the page before")] = None,
    model: str | None = None,
    outcome: Annotated[str | None, Parameter(description="`ok`, `error` or `cancelled`")] = None,
    key: Annotated[str | None, Parameter(description="Id of an API key")] = None,
) -> Requests:
    found = await query(ui.requests, select_requests, before=before, model=model, outcome=outcome, key=key, limit=limit)
    return Requests(requests=found, next=found[-1].id if len(found) == limit else None)


@get("/api/v1/events", tags=["events"], summary="Facts as they were written, oldest first")
async def list_events(
    ui: Ui,
    limit: Limit = 100,
    after: Annotated[int, Parameter(ge=0, le=MOST, description="`next` of the page before")] = 0,
) -> Events:
    rows = await query(ui.fleet.projection, select_facts, after=after, limit=limit)
    events = [render_fact(row.sequence, row.at_ns, row.subject, row.data) for row in rows]
    return Events(events=events, next=rows[-1].sequence if len(rows) == limit else None)


@get("/api/v1/logs", tags=["logs"], summary="Search the lines of all services and instances")
async def search_logs(
    ui: Ui,
    text: Annotated[str | None, Parameter(description='Words that all occur; `"a phrase"` in quotes')] = None,
    min_level: Level = "debug",
    service: str | None = None,
    unit: str | None = None,
    node: str | None = None,
    from_ns: Nanoseconds = None,
    to_ns: Nanoseconds = None,
    before: Annotated[int | None, Parameter(ge=0, le=MOST, description="Only lines with a smaller id")] = None,
    after: Annotated[
        int | None, Parameter(ge=0, le=MOST, description="Only lines with a larger id, oldest first")
    ] = None,
    limit: Limit = 200,
) -> Lines:
    """Newest first. Answered by the service `logs`; 503 while it is not running."""
    wanted = LineQuery(
        text=text or None, min_level=min_level, service=service, unit=unit, node=node,
        from_ns=from_ns, to_ns=to_ns, before=before, after=after, limit=limit,
    )  # fmt: skip
    return await ui.bus.request(ui.bus.subjects.command("logs", "query"), wanted, Lines)


@get("/api/v1/metrics", tags=["metrics"], summary="History of samples")
async def show_history(
    ui: Ui,
    from_s: Annotated[
        float | None, Parameter(ge=0, le=9e9, description="Unix seconds; 300 s before `to_s` without it")
    ] = None,
    to_s: Annotated[float | None, Parameter(ge=0, le=9e9, description="Unix seconds; now without it")] = None,
    source: Annotated[str | None, Parameter(description="e.g. `host` or `instance/<model>/<index>`")] = None,
    names: Annotated[str | None, Parameter(description="e.g. `cpu_pct,memory_used_bytes`; all without it")] = None,
    node: str | None = None,
    max_points: Annotated[int, Parameter(ge=1, le=10_000, description="Per series")] = 600,
) -> History:
    """Answered by the service `metrics`; 503 while it is not running."""
    until_s = time.time() if to_s is None else to_s
    since_s = until_s - DEFAULT_SPAN_S if from_s is None else from_s
    wanted = HistoryQuery(
        from_ns=int(since_s * 1e9), to_ns=int(until_s * 1e9), source=source, names=split_names(names),
        node=node, max_points=max_points,
    )  # fmt: skip
    return await ui.bus.request(ui.bus.subjects.command("metrics", "history"), wanted, History)


@get(
    "/api/v1/stream",
    tags=["live"],
    summary="Everything as it happens (server-sent events)",
    media_type="text/event-stream",
)
async def open_stream(
    ui: Ui,
    after: Annotated[
        str | None, Parameter(description="The id of the last message seen, or `resume` of a snapshot")
    ] = None,
    last_event_id: Annotated[str | None, Parameter(header="Last-Event-ID", description="Sent by browsers")] = None,
    topics: Annotated[str | None, Parameter(description="Of `fleet,requests,logs,metrics`; all without it")] = None,
) -> Stream:
    """Messages: `fact`, `request`, `line`, `sample`, `service`, `gap`, `reset` (reload the snapshot), `restarting`."""
    if ui.tail.streams_open >= ui.settings.max_streams:
        raise Unavailable(f"{ui.settings.max_streams} live streams are open: close one (`ui.max_streams`)")
    position = pick_position(ui.tail.stream_id, (after, last_event_id))
    feed = Feed(ui.tail, position, parse_topics(topics), comment_interval_s=ui.settings.comment_interval_s)
    return Stream(feed.messages(), media_type="text/event-stream", headers=STREAM_HEADERS)


@get("/api/docs", include_in_schema=False, media_type="text/html")
async def show_docs(request: HttpRequest[Any, Any, Any]) -> str:
    return render_docs(request.app.openapi_schema.to_schema())


@get("/api/docs/style.css", include_in_schema=False, media_type="text/css")
async def show_docs_style() -> str:
    return STYLE


@get("/healthz", tags=["health"], summary="Is it alive?")
async def show_health() -> Health:
    return Health(ready=True)


@get("/readyz", tags=["health"], summary="May it serve?")
async def show_readiness(ui: Ui) -> Response[Health]:
    """503 while it catches up with the streams or has lost the bus; what it knows is served all the same."""
    note = ""
    if not ui.bus.connected:
        note = "the bus is away"
    elif not ui.tail.settled():
        note = "catching up with the streams"
    return Response(Health(ready=not note, note=note), status_code=503 if note else 200)


HANDLERS: Final = [
    show_fleet,
    list_models,
    load_model,
    unload_model,
    reset_model,
    drain_node,
    resume_node,
    pull_model,
    cancel_pull,
    reload_configuration,
    list_parameters,
    list_keys,
    create_key,
    revoke_key,
    list_requests,
    list_events,
    search_logs,
    show_history,
    open_stream,
    show_docs,
    show_docs_style,
    show_health,
    show_readiness,
]
"""Every route but the web app's files."""

"""Sentences and tables that the command line shows. Pure: rich renderables in, nothing read from outside."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from llamaherd.checks import Check
from llamaherd.fleet import ApiKey, Fleet, Model, Node, Service
from llamaherd.units import render_bytes, render_count, render_duration
from llamaherd_shared.commands import ModelReset, Parameter, ParameterCategory, Reloaded, StoredLine
from llamaherd_shared.events.line import Level

_STATE_STYLE: Final = {
    "ready": "green",
    "loading": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "backoff": "red",
    "failed": "red",
    "rejected": "red",
}
_TROUBLES: Final = {
    "failed": "has failed",
    "backoff": "has crashed and is started again",
    "rejected": "cannot be served",
}
"""What is said of a model in such a state."""
_LEVEL_STYLE: Final[dict[Level, str]] = {"debug": "dim", "info": "", "warning": "yellow", "error": "red"}

_SHOWN: Final = {"sequence", "at_ns", "type", "node", "model", "index", "subject"}
"""Fields of a fact that have a place of their own in its line."""


def render_state(model: Model) -> Text:
    """A model's state in words, with what it waits for."""
    text = Text(model.state, style=_STATE_STYLE.get(model.state, ""))
    instance = model.instance
    if instance is not None and model.state == "loading" and instance.ratio is not None:
        text.append(f" {instance.ratio:.0%} {instance.stage or ''}".rstrip())
    return text


def describe_progress(model: Model, *, now_ns: int) -> str:
    """State and stage of a load, and about how long it will still take, if anything tells."""
    instance = model.instance
    if instance is None or instance.stage is None:
        return model.state
    left_s = (instance.ready_at_ns - now_ns) / 1e9 if instance.ready_at_ns is not None else 0.0
    left = f", about {render_duration(left_s)} left" if left_s >= 1 else ""
    return f"{model.state} {instance.stage}{left}"


def models_table(models: Sequence[Model], *, with_node: bool) -> Table:
    """Every model file, one row each."""
    table = _table(
        "MODEL",
        *(("NODE",) if with_node else ()),
        "STATE",
        "SIZE",
        "PARAMETERS",
        "CONTEXT",
        "QUANTIZATION",
        "CAPABILITIES",
        "",
    )
    for model in models:
        table.add_row(
            model.model,
            *((model.node,) if with_node else ()),
            render_state(model),
            render_bytes(model.size_bytes),
            render_count(model.parameters) if model.parameters else "",
            str(model.context_tokens or ""),
            model.quantization,
            ", ".join(model.capabilities),
            reason_of(model),
        )
    return table


def instances_table(models: Sequence[Model], *, now_ns: int, with_node: bool) -> Table:
    """Every llama-server that is wanted or running, one row each."""
    with_options = any(model.instance is not None and render_options(model.instance.options) for model in models)
    table = _table(
        "MODEL",
        *(("NODE",) if with_node else ()),
        "STATE",
        "SINCE",
        "PID",
        "ADDRESS",
        "SLOTS",
        "CONTEXT",
        *(("OPTIONS",) if with_options else ()),
        "RESTARTS",
        "",
    )
    for model in itertools.chain.from_iterable(model.rows for model in models):
        instance = model.instance
        assert instance is not None
        table.add_row(
            f"{model.model}/{instance.index}" if instance.index else model.model,
            *((model.node,) if with_node else ()),
            render_state(model),
            render_duration((now_ns - instance.since_ns) / 1e9) if instance.since_ns else "",
            str(instance.pid or ""),
            f"{instance.host}:{instance.port}" if instance.port else "",
            str(instance.slots or ""),
            str(instance.context_tokens or ""),
            *((render_options(instance.options),) if with_options else ()),
            str(instance.restarts or ""),
            reason_of(model),
        )
    return table


def render_options(options: Mapping[str, Any]) -> str:
    """What llama-server was told beyond slots and context, which have columns of their own."""
    told = {name: value for name, value in options.items() if name not in ("slots", "context_tokens")}
    return ", ".join(f"{name} {_spell(value)}" for name, value in told.items())


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).rpartition("/")[2] if isinstance(value, str) else str(value)


def describe_reset(reset: ModelReset) -> str:
    """What becomes of a model whose crashes are forgotten."""
    if not reset.forgotten:
        return f"{reset.model} is {reset.state}: there is nothing to forget"
    if reset.starts:
        return f"{reset.model} is started again; see `llamaherd ps`"
    return f"{reset.model} is stopped now; `llamaherd load {reset.model}` loads it"


def describe_reload(reloaded: Sequence[Reloaded], *, dry_run: bool) -> list[str]:
    """A line for all that a configuration leads to, on every node that has something to tell."""
    would = "would start" if dry_run else "starts"
    lines = []
    for node in reloaded:
        on = f" on {node.node}" if len(reloaded) > 1 else ""
        lines += [f"{one.model}/{one.index}{on} {would} again: {'; '.join(one.why)}" for one in node.restarts]
        lines += [f"{model} can be loaded{on}" for model in node.offered]
        lines += [f"{model} {'would be' if dry_run else 'is being'} downloaded{on}" for model in node.coming]
        lines += [f"{model} cannot be loaded any more{on}" for model in node.gone]
        lines += [f"{setting} counts when the supervisor{on} is started again" for setting in node.later]
    if not any(node.restarts for node in reloaded):
        lines.insert(0, "nothing would have to start again" if dry_run else "nothing has to start again")
    return lines


def services_table(services: Sequence[Service], *, now_ns: int) -> Table:
    """Every service that is alive, one row each."""
    table = _table("SERVICE", "NODE", "STATE", "UP", "PID", "VERSION", "")
    for service in sorted(services, key=lambda one: (one.node, one.service)):
        state = Text("ready", "green") if service.ready else Text("not ready", "yellow")
        up = render_duration((now_ns - service.started_ns) / 1e9) if service.started_ns else ""
        table.add_row(service.service, service.node, state, up, str(service.pid), service.version, service.note)
    return table


def nodes_table(fleet: Fleet) -> Table:
    """Every host there ever was, one row each."""
    table = _table("NODE", "STATE", "CPUS", "MEMORY", "LOADED", "VERSION")
    heard = {service.node for service in fleet.services if service.service == "supervisor"}
    for node in fleet.nodes:
        loaded = [model.model for model in fleet.models if model.node == node.node and model.has_process]
        state = _state_of_node(node, heard=node.node in heard)
        memory = render_bytes(node.memory_bytes)
        table.add_row(node.node, state, str(node.cpus), memory, ", ".join(loaded), node.version)
    return table


def _state_of_node(node: Node, *, heard: bool) -> Text:
    if node.left_ns is not None:
        return Text("left", "dim")
    if not heard:
        return Text("silent", "red")
    return Text("drained", "yellow") if node.drained else Text("ready", "green")


def parameters_table(categories: Sequence[ParameterCategory]) -> Table:
    """Every parameter of llama-server, one row each, below the name of its category."""
    table = _table("FLAG", "NAME", "WHAT")
    for number, category in enumerate(categories):
        if number:
            table.add_row()
        table.add_row(Text(category.name, "bold"))
        for parameter in category.parameters:
            name = Text("supervisor", "dim") if parameter.owned else Text(parameter.option, "green")
            table.add_row(_render_flags(parameter), name, Text(parameter.description))
    return table


def _render_flags(parameter: Parameter) -> Text:
    text = Text(", ".join(parameter.flags))
    if parameter.value:
        text.append(f" {parameter.value}", "cyan")
    for extra in (", ".join(parameter.off), parameter.variable):
        if extra:
            text.append(f"\n  {extra}", "dim")
    return text


def keys_table(keys: Sequence[ApiKey], *, now_ns: int) -> Table:
    """Every API key, one row each."""
    table = _table("ID", "NAME", "STATE", "FOR", "LIMITS", "EXPIRES", "LAST USED", "REQUESTS", "TOKENS")
    for key in keys:
        used = key.usage
        table.add_row(
            key.id,
            key.name,
            Text(key.state, "green" if key.state == "active" else "dim"),
            ", ".join([*key.models, *key.dialects]) or "everything",
            render_limits(key),
            _from_now(key.expires_ns, now_ns) if key.expires_ns is not None else "never",
            f"{render_duration((now_ns - used.last_used_ns) / 1e9)} ago" if used.last_used_ns is not None else "",
            str(used.requests or ""),
            str(used.prompt_tokens + used.completion_tokens or ""),
        )
    return table


def describe_key(key: ApiKey, *, now_ns: int) -> str:
    """What a key is good for, in one part of a sentence."""
    models = f"models {', '.join(key.models)}" if key.models else "all models"
    dialects = f"in {', '.join(key.dialects)}" if key.dialects else "in all dialects"
    end = f"expires {_from_now(key.expires_ns, now_ns)}" if key.expires_ns is not None else "does not expire"
    return "; ".join(part for part in (f"{models} {dialects}", render_limits(key), end) if part)


def render_limits(key: ApiKey) -> str:
    """`60 requests/min, 4 at once`; empty without limits."""
    limits = key.limits
    parts = [
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.concurrency, "at once"),
    ]
    return ", ".join(f"{count} {unit}" for count, unit in parts if count)


def _from_now(at_ns: int, now_ns: int) -> str:
    # Half a second more: 30 days from now are not 29 d 23 h because a request took a moment.
    return f"in {render_duration((at_ns - now_ns) / 1e9 + 0.5)}" if at_ns > now_ns else "(over)"


def describe_troubles(models: Sequence[Model], *, with_node: bool) -> list[str]:
    """A sentence for each model that is not as it should be."""
    return [
        f"{model.model}{f' on {model.node}' if with_node else ''} {_TROUBLES[model.state]}: {reason}"
        for model in models
        if model.state in _TROUBLES and (reason := reason_of(model))
    ]


def reason_of(model: Model) -> str:
    """Why it is not served, one sentence; empty when there is nothing to tell."""
    instance = model.instance
    if instance is not None and instance.waits_for:
        return f"waits for memory: {instance.waits_for}"
    return model.rejected or (instance.reason if instance else None) or ""


def render_line(line: StoredLine, *, clock: str) -> Text:
    """One log line; `clock` is its time as text."""
    text = Text()
    text.append(clock, "dim")
    text.append(f" {line.level:<7}", _LEVEL_STYLE[line.level])
    text.append(f" {source_of(line)} ", "cyan")
    text.append(line.text, _LEVEL_STYLE[line.level])
    return text


def source_of(line: StoredLine) -> str:
    """The service; for a llama-server's line, the instance."""
    return line.unit if line.service == "llama-server" else line.service


def addresses_table(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and addresses, one below the other."""
    table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def render_event(fact: Mapping[str, Any], *, clock: str) -> Text:
    """One fact: sequence, time, type, what it is about, and the rest as `name=value`."""
    text = Text()
    text.append(f"{fact.get('sequence', 0):>7} ", "dim")
    text.append(f"{clock} ", "dim")
    text.append(f"{fact.get('type', '?')} ", "bold")
    about = "/".join(str(fact[name]) for name in ("node", "model", "index") if fact.get(name) not in (None, ""))
    text.append(f"{about} ", "cyan")
    rest = {name: value for name, value in fact.items() if name not in _SHOWN and value not in (None, "", [])}
    text.append(" ".join(f"{name}={_brief(name, value)}" for name, value in rest.items()))
    return text


def _brief(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if not isinstance(value, list):
        return str(value)
    if name.endswith("lines"):
        return f"({len(value)} lines)"
    words = all(isinstance(item, str) for item in value)
    return ",".join(value) if words else f"({len(value)} of them)"


def render_pull_progress(done_bytes: int, total_bytes: int, bytes_per_s: float, note: str) -> str:
    """How far a download is: `120 MiB of 278 MiB, 12 MiB/s`, or what it waits for."""
    text = render_bytes(done_bytes)
    if total_bytes:
        text += f" of {render_bytes(total_bytes)}"
    return f"{text}; {note}" if note else f"{text}, {render_bytes(bytes_per_s)}/s"


def checks_table(checks: Sequence[Check]) -> Table:
    """One row per check; the fix stands below what failed."""
    table = _table("", "CHECK", "FOUND")
    for check in checks:
        mark = Text("ok", "green") if check.ok else Text("no", "bold red")
        found = Text(check.found)
        if not check.ok:
            found.append(f"\n-> {check.fix}", "yellow")
        table.add_row(mark, check.name, found)
    return table

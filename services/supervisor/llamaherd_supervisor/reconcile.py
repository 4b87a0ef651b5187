"""What is wanted meets what is: commands are decided, and a restarted supervisor finds its work, in this file."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from llamaherd_shared.commands import LoadModel
from llamaherd_shared.errors import Conflict, NotFound, Rejected, Unavailable
from llamaherd_shared.events.model import ModelEvent, ModelFound, ModelRejected
from llamaherd_shared.model_options import LoadOptions, overlay, satisfies
from llamaherd_shared.model_spec import ModelSpec, at_least, within
from llamaherd_supervisor.adoption import Adopt, Found, Record
from llamaherd_supervisor.lifecycle import ALIVE, Instance, State, Wanted

NO_LLAMA_SERVER = "no llama-server is known on {node}: run `llamaherd install llama-server`, or name one with"
NO_LLAMA_SERVER += " LLAMAHERD_LLAMA_SERVER"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A load that was accepted."""

    options: LoadOptions = LoadOptions()
    for_request: bool = False
    """As in `LoadModel`."""
    may_evict: bool = True
    """Whether other models are unloaded for it, where memory is short."""
    asked_ns: int


def decide_load(
    command: LoadModel,
    *,
    node: str,
    models: Mapping[str, ModelEvent],
    spec: ModelSpec,
    llama_server: str,
    labels: Mapping[str, str],
    stopping: bool,
    drained: bool,
    now_ns: int,
) -> Load:
    """What is to be loaded after a `load`, with options that make sense. Raises why it is refused."""
    model = command.model
    if stopping:
        raise Unavailable(f"the supervisor of {node} is stopping", retry_after_s=5)
    if drained:
        raise Unavailable(f"{node} is drained for maintenance: `llamaherd resume {node}` ends that", retry_after_s=60)
    match models.get(model):
        case ModelFound(context_tokens=training_tokens):
            pass
        case ModelRejected(reason=reason, retry_after_s=float() as retry_after_s):
            raise Unavailable(f"{model} cannot be loaded yet: {reason}", retry_after_s=retry_after_s)
        case ModelRejected(path=path, reason=reason):
            raise Rejected(f"{model} cannot be loaded: {f'{path}: ' if path else ''}{reason}")
        case _:
            raise NotFound(unknown_model(model, node=node, models=models))
    if unmet := unmet_requirements(spec, labels):
        raise Rejected(f"{model} cannot be loaded on {node}: it requires {', '.join(unmet)} (`supervisor.labels`)")
    if not llama_server and not spec.command:
        raise Unavailable(NO_LLAMA_SERVER.format(node=node))
    options = within(command.options, spec, training_tokens=training_tokens)
    if command.for_request:
        options = at_least(options, spec)
    return Load(options=options, for_request=command.for_request, asked_ns=now_ns)


def next_replica(model: str, wanted: Collection[int], spec: ModelSpec, *, node: str, beside: int | None = None) -> int:
    """Index of the instance to start beside those that are wanted.

    Raises `Conflict` where there are as many as there may be, or more than somebody who asks for one knows of.
    """
    if beside is not None and len(wanted) > beside:
        raise Conflict(f"{node} has {len(wanted)} instances of {model} already, and {beside} were known")
    if len(wanted) >= spec.most_replicas:
        most = f"as many as there may be ({len(wanted)}, `max_replicas`)"
        raise Conflict(f"{node} has {most} instances of {model}")
    return next(index for index in range(spec.most_replicas) if index not in wanted)


def unmet_requirements(spec: ModelSpec, labels: Mapping[str, str]) -> list[str]:
    """What a model requires of its node and the node is not."""
    return [f"{name}: {value}" for name, value in spec.requires.items() if labels.get(name) != value]


def heed(before: Wanted, load: Load, instance: Instance, *, told: Mapping[str, Any]) -> Wanted:
    """What to want after an accepted load. `told`: what the process is told that runs, or will.

    One that has what is asked for stays. Of one that has not, a request changes nothing but its context, and never to
    less than others have asked for.
    """
    if not before.wanted or instance.state in (State.STOPPED, State.FAILED):
        return Wanted(wanted=True, asked_ns=load.asked_ns, options=load.options, may_evict=load.may_evict)
    asked = LoadOptions(context_tokens=load.options.context_tokens) if load.for_request else load.options
    going = before.replaces == instance.generation
    if satisfies(
        asked,
        told,
        context_tokens=0 if going else instance.context_tokens,
        slots=0 if going else instance.slots,
    ):
        return msgspec.structs.replace(before, asked_ns=load.asked_ns)
    options = overlay(before.options, asked) if load.for_request else load.options
    return Wanted(wanted=True, cause="reload", asked_ns=load.asked_ns, options=options, replaces=instance.generation)


def decide_unload(model: str, *, node: str, models: Mapping[str, ModelEvent], known: bool, now_ns: int) -> Wanted:
    """What to want after an `unload`. A model whose file is gone can still be unloaded."""
    refuse_unknown(model, node=node, models=models, known=known)
    return Wanted(wanted=False, cause="unload", asked_ns=now_ns)


def refuse_unknown(model: str, *, node: str, models: Mapping[str, ModelEvent], known: bool) -> None:
    """Raises `NotFound` for a model without a file, of which there never was an instance (`known`) either."""
    if not known and not isinstance(models.get(model), ModelFound | ModelRejected):
        raise NotFound(unknown_model(model, node=node, models=models))


def unknown_model(model: str, *, node: str, models: Mapping[str, ModelEvent]) -> str:
    """The sentence that names what is there, the likeliest first."""
    known = sorted(name for name, event in models.items() if isinstance(event, ModelFound))
    if not known:
        return f"{node} has no model {model!r}: its models folder is empty"
    close = difflib.get_close_matches(model, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{node} has no model {model!r}{hint}; it has {', '.join(known)}"


def wanted_after_restart(instance: Instance, found: Found | None, record: Record | None) -> Wanted:
    """What the supervisor before us wanted: what it ran, was about to restart, or had started and not told."""
    running = instance.state in {State.LOADING, State.READY, State.BACKOFF}
    # One that was on its way to another start was not to stay away.
    running = running or (instance.state in ALIVE and instance.cause == "reload")
    waiting = instance.state is State.WAITING
    return Wanted(
        wanted=running or waiting or (isinstance(found, Adopt) and bool(found.untold)),
        cause=instance.cause or "unload",
        asked_ns=instance.since_ns if waiting else 0,
        options=record.asked if record is not None else LoadOptions(),
    )

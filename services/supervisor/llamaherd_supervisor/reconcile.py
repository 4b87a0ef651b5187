"""What is wanted meets what is: commands are decided, and a restarted supervisor finds its work, in this file."""

import difflib
from collections.abc import Mapping

from llamaherd_shared.errors import NotFound, Rejected, Unavailable
from llamaherd_shared.events.model import ModelEvent, ModelFound, ModelRejected
from llamaherd_supervisor.adoption import Adopt, Found
from llamaherd_supervisor.lifecycle import Instance, State, Wanted

NO_LLAMA_SERVER = "no llama-server is known on {node}: run `llamaherd install llama-server`, or name one with"
NO_LLAMA_SERVER += " LLAMAHERD_LLAMA_SERVER"


def decide_load(
    model: str, *, node: str, models: Mapping[str, ModelEvent], llama_server: str, stopping: bool, now_ns: int
) -> Wanted:
    """What to want after a `load`. Raises why it is refused."""
    if stopping:
        raise Unavailable(f"the supervisor of {node} is stopping", retry_after_s=5)
    match models.get(model):
        case ModelFound():
            pass
        case ModelRejected(path=path, reason=reason):
            raise Rejected(f"{model} cannot be loaded: {path}: {reason}")
        case _:
            raise NotFound(unknown_model(model, node=node, models=models))
    if not llama_server:
        raise Unavailable(NO_LLAMA_SERVER.format(node=node))
    return Wanted(wanted=True, asked_ns=now_ns)


def decide_unload(model: str, *, node: str, models: Mapping[str, ModelEvent], known: bool, now_ns: int) -> Wanted:
    """What to want after an `unload`. A model whose file is gone can still be unloaded."""
    if not known and not isinstance(models.get(model), ModelFound | ModelRejected):
        raise NotFound(unknown_model(model, node=node, models=models))
    return Wanted(wanted=False, cause="unload", asked_ns=now_ns)


def unknown_model(model: str, *, node: str, models: Mapping[str, ModelEvent]) -> str:
    """The sentence that names what is there, the likeliest first."""
    known = sorted(name for name, event in models.items() if isinstance(event, ModelFound))
    if not known:
        return f"{node} has no model {model!r}: its models folder is empty"
    close = difflib.get_close_matches(model, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{node} has no model {model!r}{hint}; it has {', '.join(known)}"


def wanted_after_restart(instance: Instance, found: Found | None) -> Wanted:
    """What the supervisor before us wanted: what it ran, was about to restart, or had started and not told."""
    running = instance.state in {State.LOADING, State.READY, State.BACKOFF}
    return Wanted(wanted=running or (isinstance(found, Adopt) and bool(found.untold)), asked_ns=0)

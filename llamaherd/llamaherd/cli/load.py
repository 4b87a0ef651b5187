"""`llamaherd load` and `llamaherd unload`."""

import time
from collections.abc import Sequence
from typing import Annotated, Final

from cyclopts import Parameter

from llamaherd.cli.options import Json, Node, Url, open_client
from llamaherd.client import Client
from llamaherd.console import Screen, print_json
from llamaherd.failures import FAILED, OK
from llamaherd.fleet import Model
from llamaherd.load_options import read_options
from llamaherd.words import describe_progress, reason_of
from llamaherd_shared.commands import Accepted

POLL_S: Final = 0.1

Wait = Annotated[
    bool, Parameter(negative="--no-wait", help="Return only when it is done; --no-wait: when it is accepted.")
]
Option = Annotated[
    tuple[str, ...],
    Parameter(name="--option", negative="", consume_multiple=False, help="Any other one: NAME=VALUE (docs/models.md)."),
]
Timeout = Annotated[float, Parameter(help="Seconds to wait; loading goes on after that.")]


def load(
    model: str,
    /,
    *,
    node: Node = None,
    context: Annotated[int | None, Parameter(help="Context of each slot, in tokens.")] = None,
    slots: Annotated[int | None, Parameter(help="Requests worked on at once.")] = None,
    gpu_layers: Annotated[str | None, Parameter(help="Layers kept in VRAM: a number, all, auto.")] = None,
    threads: Annotated[int | None, Parameter(help="CPU threads.")] = None,
    flash_attention: Annotated[str | None, Parameter(help="on, off, auto.")] = None,
    option: Option = (),
    wait: Wait = True,
    timeout: Timeout = 600.0,
    url: Url = None,
    json: Json = False,
) -> int:
    """Load a model and wait until it is ready.

    Not needed before use: a request for a model that is not loaded loads it. The names are those of `llamaherd models`.
    A model that is loaded with other options than you ask for is loaded anew; as much context and as many slots, or
    more, are good enough. Without options, `models` in llamaherd.yaml counts.
    """
    given = {
        "context_tokens": context,
        "slots": slots,
        "gpu_layers": gpu_layers,
        "threads": threads,
        "flash_attention": flash_attention,
    }
    options = read_options(given, option)
    with open_client(url) as client:
        before = client.models()
        accepted = client.load(model, node=node, options=options.said)
        return _follow(client, accepted, "ready", "loading", before, wait=wait, timeout_s=timeout, json=json)


def unload(
    model: str,
    /,
    *,
    node: Node = None,
    wait: Wait = True,
    timeout: Timeout = 60.0,
    url: Url = None,
    json: Json = False,
) -> int:
    """Unload a model and free its memory. What it is answering right now is finished first."""
    with open_client(url) as client:
        accepted = client.unload(model, node=node)
        return _follow(client, accepted, "stopped", "unloading", (), wait=wait, timeout_s=timeout, json=json)


def _follow(
    client: Client,
    accepted: Accepted,
    goal: str,
    doing: str,
    before: Sequence[Model],
    *,
    wait: bool,
    timeout_s: float,
    json: bool,
) -> int:
    """Show how it goes until the model is in the state that was asked for. `before`: all models before that."""
    screen = Screen(quiet=json)
    if not wait:
        if json:
            print_json(accepted)
        screen.say(f"{accepted.model}: {doing}; see `llamaherd ps`")
        return OK
    deadline, born = time.monotonic() + timeout_s, time.monotonic()
    seen: Model | None = None
    first = 0
    moved = accepted.state not in ("failed", "stopped") or goal == "stopped"
    past = _find(before, accepted)
    with screen.bar(f"{doing} {accepted.model}") as bar:
        while time.monotonic() < deadline:
            seen = _find(client.models(), accepted)
            state = seen.state if seen else "stopped"
            # The page behind the answer may still show the state from before the command.
            instance = seen.instance if seen else None
            moved = moved or state not in ("failed", "stopped") or _since_ns(seen) != _since_ns(past)
            first = first or (instance.generation if instance else 0)
            if goal == "stopped" and instance is not None and instance.generation > first:
                if json:
                    print_json(seen)
                screen.say(f"{accepted.model} was unloaded, and is {state} again: requests ask for it")
                return OK
            replaced = instance is not None and instance.generation <= accepted.replaces
            if not replaced and (state == goal or (moved and state in ("failed", "rejected"))):
                break
            note = describe_progress(seen, now_ns=time.time_ns()) if seen else state
            bar.update(instance.ratio if instance else None, note)
            time.sleep(POLL_S)
    if json and seen is not None:
        print_json(seen)
    if (seen is not None and seen.state == goal) or (seen is None and goal == "stopped"):
        screen.say(f"{accepted.model} is {goal} after {time.monotonic() - born:.1f} s")
        return OK
    screen.fail(_what_went_wrong(accepted, seen, timeout_s))
    return FAILED


def _find(models: Sequence[Model], accepted: Accepted) -> Model | None:
    return next((one for one in models if (one.model, one.node) == (accepted.model, accepted.node)), None)


def _since_ns(model: Model | None) -> int:
    """When it got into its state; one that fails at once is never seen in any other."""
    return model.instance.since_ns if model is not None and model.instance is not None else 0


def _what_went_wrong(accepted: Accepted, seen: Model | None, timeout_s: float) -> str:
    if seen is None:
        return f"{accepted.model} is not in the models folder any more"
    if seen.state not in ("failed", "rejected"):
        return f"{accepted.model} is still {seen.state} after {timeout_s:g} s; it goes on, see `llamaherd ps`"
    lines = [f"{accepted.model} is {seen.state}: {reason_of(seen) or 'its log tells why'}"]
    lines += [f"  {line}" for line in (seen.instance.last_lines if seen.instance else [])]
    return "\n".join(lines)

"""`llamaherd nodes`, `llamaherd drain` and `llamaherd resume`."""

import time
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from llamaherd.cli.options import Json, Url, open_client
from llamaherd.client import Client
from llamaherd.console import Screen, print_json
from llamaherd.failures import FAILED, OK
from llamaherd.words import nodes_table

POLL_S: Final = 0.25


def nodes(*, url: Url = None, json: Json = False) -> int:
    """List the hosts of the herd, and what is loaded on each."""
    with open_client(url) as client:
        fleet = client.fleet()
    if json:
        print_json(fleet.nodes)
    else:
        Screen().show(nodes_table(fleet))
    return OK


def drain(
    node: str,
    /,
    *,
    wait: Annotated[bool, Parameter(help="Wait until nothing is loaded there any more. Default.")] = True,
    timeout: Annotated[
        float, Parameter(help="Seconds to wait. Default: an hour, as long as an answer may take.")
    ] = 3600,
    url: Url = None,
    json: Json = False,
) -> int:
    """Take a host out of service for maintenance: it loads nothing any more, finishes its answers, and unloads all.

    Requests for its models go to other hosts that have them; those with `failover` are loaded there at once. It holds,
    also over a restart, until `llamaherd resume`.
    """
    with open_client(url) as client:
        state = client.drain(node)
        screen = Screen(quiet=json)
        left = _wait_until_empty(client, node, timeout, screen) if wait else state.loaded
        if json:
            print_json(msgspec.structs.replace(state, loaded=left))
    if not wait:
        screen.say(f"{node} takes no loads any more" + (f"; still loaded: {', '.join(left)}" if left else ""))
        return OK
    if left:
        screen.fail(f"after {timeout:g} s {node} still has {', '.join(left)}; it goes on, see `llamaherd ps`")
        return FAILED
    screen.say(f"{node} is drained: nothing is loaded there; `llamaherd resume {node}` ends that")
    return OK


def resume(node: str, /, *, url: Url = None, json: Json = False) -> int:
    """End a host's maintenance: it takes loads again, and loads what is to be loaded from the start."""
    with open_client(url) as client:
        state = client.resume(node)
    if json:
        print_json(state)
    else:
        Screen().say(f"{node} takes loads again")
    return OK


def _wait_until_empty(client: Client, node: str, timeout_s: float, screen: Screen) -> list[str]:
    """Models that are still there in the end."""
    deadline = time.monotonic() + timeout_s
    with screen.bar(f"draining {node}") as bar:
        while True:
            left = sorted(model.model for model in client.models() if model.node == node and model.has_process)
            if not left or time.monotonic() > deadline:
                return left
            bar.update(None, f"{len(left)} loaded")
            time.sleep(POLL_S)

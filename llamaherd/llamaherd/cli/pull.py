"""`llamaherd pull`."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from llamaherd.cli.options import Json, Url, open_client
from llamaherd.client import Client
from llamaherd.console import Screen, print_json
from llamaherd.failures import FAILED, INTERRUPTED, OK
from llamaherd.fleet import Fleet, stream_position
from llamaherd.units import render_bytes
from llamaherd.words import render_pull_progress
from llamaherd_shared.commands import PullAccepted

PAGE = 500


def pull(
    repository: str,
    /,
    *,
    revision: Annotated[str, Parameter(help="Branch, tag or commit of the repository.")] = "main",
    name: Annotated[str, Parameter(help="What to call the model here. Default: its file's name.")] = "",
    node: Annotated[str | None, Parameter(help="The host that gets it; needed when there are several.")] = None,
    wait: Annotated[
        bool, Parameter(negative="--no-wait", help="Return only when it is there; --no-wait: when it has begun.")
    ] = True,
    url: Url = None,
    json: Json = False,
) -> int:
    """Get a model from Hugging Face: REPOSITORY is OWNER/NAME, or OWNER/NAME:QUANTIZATION.

    Without a quantization: Q4_K_M, else Q8_0, else the only one there is. Ctrl-C stops; the same command goes on where
    it stopped. For another hub or a token, see `hub_url` and `hub_token` in the settings.
    """
    screen = Screen(quiet=json)
    with open_client(url) as client:
        fleet = client.fleet()
        accepted = client.pull({"repository": repository, "revision": revision, "name": name, "node": node})
        if not wait:
            if json:
                print_json(accepted)
            screen.say(f"{accepted.model}: pulling; see `llamaherd events -f`")
            return OK
        if accepted.joined:
            screen.note(f"{accepted.model} is being pulled already")
        try:
            end = _watch(client, fleet, accepted, screen)
        except KeyboardInterrupt:
            return _stop(client, accepted, screen)
    if json:
        print_json(end)
    if end["type"] == "pull.finished.v1":
        screen.say(
            f"{accepted.model} is there ({render_bytes(end['size_bytes'])}); try `llamaherd run {accepted.model}`"
        )
        return OK
    screen.fail(f"{accepted.model} was not pulled: {end['reason']}")
    return FAILED


def _watch(client: Client, fleet: Fleet, accepted: PullAccepted, screen: Screen) -> dict[str, Any]:
    """Show how it goes until it ends; returns the last fact."""
    born, before = time.monotonic(), accepted.done_bytes
    with screen.bar(f"pulling {accepted.model}") as bar:
        for fact in _facts(client, fleet):
            if fact.get("pull") != accepted.pull:
                continue
            if fact["type"] in ("pull.finished.v1", "pull.failed.v1"):
                return fact
            done, total = fact["done_bytes"], fact["total_bytes"]
            rate = max(0, done - before) / max(time.monotonic() - born, 0.001)
            note = render_pull_progress(done, total, rate, fact.get("note", ""))
            bar.update(done / total if total else None, note)
    raise AssertionError("the stream of facts has no end")


def _facts(client: Client, fleet: Fleet) -> Iterator[dict[str, Any]]:
    """Every fact behind an answer, in order, however often the connection breaks."""
    after = fleet.at.get("HERD_EVENTS", 0)
    for event in client.stream(topics="fleet", after=stream_position(fleet)):
        if event.event == "fact":
            fact = msgspec.json.decode(event.data)
            if fact["sequence"] > after:
                after = fact["sequence"]
                yield fact["event"]
        elif event.event == "reset":
            # The ui goes on from now: what lies between is in its list.
            while facts := client.events(after=after, limit=PAGE)[0]:
                for fact in facts:
                    after = fact["sequence"]
                    yield fact


def _stop(client: Client, accepted: PullAccepted, screen: Screen) -> int:
    if accepted.joined:
        screen.note(f"{accepted.model} is still being pulled: somebody else asked for it first")
    else:
        client.cancel_pull(accepted.pull, node=accepted.node)
        screen.note("stopped; the same command goes on where it stopped")
    return INTERRUPTED

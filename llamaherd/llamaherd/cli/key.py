"""`llamaherd key create`, `key list` and `key revoke`."""

import time
from typing import Annotated

from cyclopts import Parameter

from llamaherd.cli.options import Json, Url, open_client
from llamaherd.console import Screen, print_json, print_raw_json
from llamaherd.failures import OK, Misused
from llamaherd.units import parse_duration
from llamaherd.words import describe_key, keys_table
from llamaherd_shared.api_key import parse_id


def create(
    name: Annotated[str, Parameter(help="What you will know it by: who or what uses it.")],
    /,
    *,
    model: Annotated[
        list[str] | None, Parameter(negative="", help="Only this model; may be a pattern like `llama-*`, and repeated.")
    ] = None,
    dialect: Annotated[
        list[str] | None,
        Parameter(negative="", help="Only openai, anthropic, ollama, lmstudio or llama; may be repeated."),
    ] = None,
    expires: Annotated[str | None, Parameter(help="How long it is good, like 12h or 30d. Default: for ever.")] = None,
    requests_per_minute: Annotated[int, Parameter(help="At most so many; over all gateways. Default: no limit.")] = 0,
    tokens_per_minute: Annotated[int, Parameter(help="Of prompts and answers together. Default: no limit.")] = 0,
    concurrency: Annotated[int, Parameter(help="At most so many requests at once. Default: no limit.")] = 0,
    url: Url = None,
    json: Json = False,
) -> int:
    """Make an API key and print it, once: it cannot be looked up again.

    The key alone goes to standard output, so that `KEY=$(llamaherd key create NAME)` works.
    """
    asked = {
        "name": name,
        "models": model or [],
        "dialects": dialect or [],
        "expires_s": parse_duration(expires) if expires is not None else None,
        "limits": {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "concurrency": concurrency,
        },
    }
    with open_client(url) as client:
        made = client.create_key(asked)
    if json:
        print_json(made)
        return OK
    screen = Screen()
    screen.note(f"Made the API key {made.name!r} ({made.id}): {describe_key(made, now_ns=time.time_ns())}.")
    screen.note("Copy it now: only its hash is kept, and it is not shown again.")
    screen.say(made.key)
    screen.note("Clients send it as `Authorization: Bearer KEY`; `llamaherd run` takes it from LLAMAHERD_API_KEY.")
    return OK


def list_keys(
    *,
    all: Annotated[bool, Parameter(alias="-a", negative="", help="Show revoked and expired ones, too.")] = False,
    url: Url = None,
    json: Json = False,
) -> int:
    """List the API keys with what they may use and what they used in the last 30 days."""
    with open_client(url) as client:
        if json:
            print_raw_json(client.get("/keys"))
            return OK
        keys = client.keys()
    shown = [key for key in keys if all or key.state == "active"]
    screen = Screen()
    if shown:
        screen.show(keys_table(shown, now_ns=time.time_ns()))
    else:
        screen.say("No API keys yet. Make one with: llamaherd key create NAME")
    if len(shown) < len(keys):
        screen.say(f"{len(keys) - len(shown)} revoked or expired; --all shows them", "dim")
    return OK


def revoke(
    key: Annotated[str, Parameter(help="Its id, or how it begins (`llh_...`).")],
    /,
    *,
    url: Url = None,
    json: Json = False,
) -> int:
    """Revoke an API key. Every gateway refuses it within a second; there is no way back."""
    key_id = parse_id(key)
    if key_id is None:
        # Not repeated: a mistyped key is nearly a key.
        raise Misused("that is no id of an API key; `llamaherd key list` shows them")
    with open_client(url) as client:
        revoked = client.revoke_key(key_id)
    if json:
        print_json(revoked)
    else:
        Screen().say(f"revoked the API key {revoked.name!r} ({revoked.id})")
    return OK

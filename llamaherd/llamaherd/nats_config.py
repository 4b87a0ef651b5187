"""The embedded nats-server's configuration file, as text."""

import json
from collections.abc import Mapping
from pathlib import Path

from llamaherd.permissions import Permissions, permissions_of
from llamaherd_shared.streams import STREAMS


def render_nats_config(*, port: int, store_dir: Path, public_keys: Mapping[str, str], prefix: str) -> str:
    """Loopback only, JetStream that syncs every write, and one nkey user per entry of `public_keys`.

    `sync_interval: always`: with the default of two minutes a power loss loses acknowledged facts.
    There is no monitoring port: it has no authentication.
    """
    users = ",\n".join(
        _render_user(key, permissions_of(user, prefix=prefix)) for user, key in sorted(public_keys.items())
    )
    return (
        "# Written by `llamaherd up` at every start; changes made here are lost.\n"
        'server_name: "llamaherd"\n'
        f'listen: "127.0.0.1:{port}"\n'
        "jetstream {\n"
        f"  store_dir: {json.dumps(str(store_dir))}\n"
        f"  max_file_store: {_room('file')}\n"
        f"  max_memory_store: {_room('memory')}\n"
        "  sync_interval: always\n"
        "}\n"
        f"authorization {{\n  users: [\n{users}\n  ]\n}}\n"
    )


def _room(storage: str) -> int:
    """Bytes the server may use: every stream's limit is reserved when it is created, and a quarter more."""
    return sum(stream.max_bytes for stream in STREAMS if stream.storage == storage) * 5 // 4


def _render_user(public_key: str, permissions: Permissions) -> str:
    answers = '\n      allow_responses: {max: 1, expires: "60s"}' if permissions.responds else ""
    return (
        f"    {{ nkey: {public_key}\n"
        "      permissions: {\n"
        f"      publish: {{allow: {json.dumps(permissions.publish)}}}\n"
        f"      subscribe: {{allow: {json.dumps(permissions.subscribe)}}}{answers}\n"
        "    } }"
    )

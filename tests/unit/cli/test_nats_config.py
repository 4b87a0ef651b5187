"""The embedded nats-server's configuration: who may do what is in `tests/cases/cli/test_permissions.py`."""

from pathlib import Path

import pytest

from harness.nkey import make_public_nkey
from llamaherd.nats_config import render_nats_config
from llamaherd.permissions import USERS
from llamaherd_shared.streams import STREAMS


@pytest.fixture
def text(tmp_path: Path) -> str:
    store_dir = tmp_path / 'a "quoted" folder'
    return render_nats_config(
        port=4222, store_dir=store_dir, public_keys=dict.fromkeys(USERS, make_public_nkey()), prefix="herd"
    )


def test_it_listens_on_loopback_and_syncs_every_write(text: str) -> None:
    assert 'listen: "127.0.0.1:4222"' in text
    assert "sync_interval: always" in text
    assert "http" not in text


def test_there_is_room_for_every_stream(text: str) -> None:
    room = int(text.partition("max_file_store: ")[2].split()[0])

    assert room >= sum(stream.max_bytes for stream in STREAMS if stream.storage == "file")


def test_everybody_has_one_entry(text: str) -> None:
    assert text.count("nkey: U") == len(USERS)

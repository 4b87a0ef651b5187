"""API keys from the command line and the API to the log, against a real nats-server."""

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from harness.deadline import until, wait_until
from harness.nats import NatsServer
from harness.ui import UiProcess
from llamaherd_gateway.access.keys import Keyring, NoKey, evolve_keys, identify
from llamaherd_gateway.access.limits import Limiter
from llamaherd_shared.api_key import parse_key
from llamaherd_shared.bus import Bus, Recorded
from llamaherd_shared.events import decode_event, encode_event
from llamaherd_shared.events.access import KeyCreated, KeyRevoked
from llamaherd_shared.events.request import RequestFinished
from llamaherd_shared.events.usage import GatewayUsage, decode_usage, encode_usage
from llamaherd_shared.streams import EVENTS


@pytest.fixture
def ui(nats_server: NatsServer, tmp_path: Path) -> Iterator[UiProcess]:
    process = UiProcess(nats_server, tmp_path / "ui").start()
    yield process
    process.stop()


def with_bus(server: NatsServer, body: Callable[[Bus], Awaitable[None]], service: str = "test") -> None:
    async def run() -> None:
        bus = await Bus.connect(server.url, service=service, timeout_s=10)
        await bus.ensure_streams()
        try:
            await body(bus)
        finally:
            await bus.close()

    uvloop.run(run())


async def read_access(bus: Bus) -> list[Recorded]:
    """The facts about keys that are stored now."""
    last = (await bus.stream_head(EVENTS)).last
    found: list[Recorded] = []
    if last:
        async for batch in bus.read(EVENTS, after=0):
            found += [recorded for recorded in batch if ".ev.access." in recorded.subject]
            if batch and batch[-1].sequence >= last:
                break
    return found


def create(ui: UiProcess, **fields: Any) -> dict[str, Any]:
    answer = httpx.post(f"{ui.address}/api/v1/keys", json={"name": "laptop"} | fields)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    made: dict[str, Any] = answer.json()
    return made


def revoke(ui: UiProcess, key: str) -> httpx.Response:
    return httpx.delete(f"{ui.address}/api/v1/keys/{key}")


def cli(ui: UiProcess, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMAHERD_")}
    environ = kept | {"LLAMAHERD_URL": ui.address, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "llamaherd", "key", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)


def test_a_key_is_shown_once_and_kept_as_its_hash(nats_server: NatsServer, ui: UiProcess) -> None:
    made = create(
        ui, models=["cria", "llama-*"], dialects=["openai"], expires_s=3600, limits={"requests_per_minute": 60}
    )

    parsed = parse_key(made["key"])
    assert parsed is not None
    (shown,) = ui.get("/api/v1/keys")
    assert shown == {name: value for name, value in made.items() if name != "key"}
    assert (shown["state"], shown["limits"]["requests_per_minute"]) == ("active", 60)
    assert shown["expires_ns"] - shown["created_ns"] == 3600 * 10**9

    async def body(bus: Bus) -> None:
        (recorded,) = await read_access(bus)
        event = decode_event(recorded.data)
        assert isinstance(event, KeyCreated)
        assert recorded.subject == f"herd.ev.access.{made['id']}"
        assert (event.name, event.models, event.dialects) == ("laptop", ["cria", "llama-*"], ["openai"])

    with_bus(nats_server, body)
    for file in [ui.log, *ui.folder.rglob("*.sqlite*"), *(nats_server.folder / "store").rglob("*")]:
        assert not file.is_file() or parsed[1].encode() not in file.read_bytes(), file


def test_a_gateways_view_of_the_log_knows_the_key_until_it_is_revoked(nats_server: NatsServer, ui: UiProcess) -> None:
    made = create(ui)

    async def body(bus: Bus) -> None:
        async def keyring() -> Keyring:
            ring = Keyring()
            for recorded in await read_access(bus):
                ring = evolve_keys(ring, decode_event(recorded.data))
            return ring

        key = identify(await keyring(), made["key"], 0, required=True)
        assert key is not None
        assert key.key == made["id"]
        assert revoke(ui, made["id"]).json()["state"] == "revoked"
        with pytest.raises(NoKey, match="revoked"):
            identify(await keyring(), made["key"], 0, required=True)

    with_bus(nats_server, body)


def test_revoking_twice_writes_one_fact_and_a_stranger_is_a_404(nats_server: NatsServer, ui: UiProcess) -> None:
    made = create(ui)

    answers = [revoke(ui, made["id"]), revoke(ui, made["prefix"])]
    unknown = revoke(ui, "aaaaaaaa")

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["revoked_ns"] == answers[1].json()["revoked_ns"] is not None
    assert (unknown.status_code, unknown.json()["error"]["kind"]) == (404, "not_found")

    async def body(bus: Bus) -> None:
        types = [type(decode_event(recorded.data)) for recorded in await read_access(bus)]
        assert types == [KeyCreated, KeyRevoked]

    with_bus(nats_server, body)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": ""}, "`name`"),
        ({"dialects": ["openia"]}, "openia"),
        ({"limits": {"request_per_minute": 5}}, "request_per_minute"),
        ({"limits": {"concurrency": -1}}, "limits.concurrency"),
        ({"expires_s": -1}, "`expires_s`"),
        ({"models": "cria"}, "models"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused_with_a_sentence(ui: UiProcess, fields: dict[str, Any], said: str) -> None:
    answer = httpx.post(f"{ui.address}/api/v1/keys", json={"name": "laptop"} | fields)

    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]
    assert ui.get("/api/v1/keys") == []


def test_a_page_of_another_site_makes_no_key(ui: UiProcess) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}

    answer = httpx.post(f"{ui.address}/api/v1/keys", json={"name": "x"}, headers=headers)

    assert answer.status_code == 403


def test_usage_and_last_use_are_those_of_the_keys_requests(nats_server: NatsServer, ui: UiProcess) -> None:
    made = create(ui)

    async def body(bus: Bus) -> None:
        for number, key in enumerate([made["id"], "", made["id"]], start=1):
            request = RequestFinished(
                request_id=f"r{number}", at_ns=number, node="n1", model="cria", route="/v1/chat/completions",
                status=200, outcome="ok", prompt_tokens=10, completion_tokens=2, key_id=key,
            )  # fmt: skip
            await bus.publish(bus.subjects.request("n1", "cria", "ok"), encode_event(request), msg_id=f"r{number}")

        def usage() -> dict[str, Any]:
            found: dict[str, Any] = ui.get("/api/v1/keys")[0]["usage"]
            return found

        await until(lambda: usage()["requests"] == 2, what="both requests of the key are counted")
        told = {"requests": 2, "prompt_tokens": 20, "completion_tokens": 4, "last_used_ns": 3}
        assert usage() == told
        found = ui.get(f"/api/v1/requests?key={made['id']}")["requests"]
        assert [request["request_id"] for request in found] == ["r3", "r1"]
        ui.stop()
        ui.forget()
        ui.start()
        assert usage() == told

    with_bus(nats_server, body)


def test_without_the_bus_no_key_is_made_and_the_answer_comes_soon(nats_server: NatsServer, ui: UiProcess) -> None:
    nats_server.stop()
    wait_until(lambda: ui.ask("/readyz").status_code == 503, what="the ui has noticed")

    answer = httpx.post(f"{ui.address}/api/v1/keys", json={"name": "laptop"}, timeout=10)

    assert answer.status_code == 503
    nats_server.start()
    wait_until(lambda: ui.ask("/readyz").status_code == 200, what="the ui is back")
    assert ui.get("/api/v1/keys") == []


def test_the_command_line_makes_lists_and_revokes(ui: UiProcess) -> None:
    made = cli(
        ui, "create", "ci", "--model", "cria", "--model", "llama-*", "--expires", "30d",
        "--requests-per-minute", "60", "--concurrency", "2",
    )  # fmt: skip

    assert made.returncode == 0, made.stderr
    parsed = parse_key(made.stdout.strip())
    assert parsed is not None, made.stdout
    assert "not shown again" in made.stderr
    assert "models cria, llama-* in all dialects; 60 requests/min, 2 at once; expires in 30 d" in made.stderr
    listed = cli(ui, "list")
    assert f"{parsed[0]} ci active" in " ".join(listed.stdout.split())
    assert parsed[1] not in listed.stdout
    revoked = cli(ui, "revoke", made.stdout.strip())
    assert revoked.stdout == f"revoked the API key 'ci' ({parsed[0]})\n"
    assert "--all" in cli(ui, "list").stdout
    assert "revoked" in cli(ui, "list", "--all").stdout


def test_the_command_line_speaks_json_and_tells_failures_by_exit_code(ui: UiProcess) -> None:
    made = json.loads(cli(ui, "create", "ci", "--dialect", "ollama", "--json").stdout)

    assert parse_key(made["key"]) is not None
    assert [key["id"] for key in json.loads(cli(ui, "list", "--json").stdout)] == [made["id"]]
    assert json.loads(cli(ui, "revoke", made["id"], "--json").stdout)["state"] == "revoked"
    for words, code in [
        (("revoke", "aaaaaaaa"), 3),
        (("revoke", "what?"), 2),
        (("create", "x", "--expires", "soon"), 2),
        (("create", "x", "--dialect", "openia"), 1),
    ]:
        done = cli(ui, *words)
        assert done.returncode == code, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_gateways_tell_each_other_what_keys_used_and_nothing_is_kept(nats_server: NatsServer) -> None:
    async def body(bus: Bus) -> None:
        heard: list[GatewayUsage] = []
        before = {stream: (await bus.stream_head(stream)).last for stream in ("HERD_EVENTS", "HERD_REQUESTS")}
        watch = await bus.watch(bus.subjects.all("usage"), lambda recorded: heard.append(decode_usage(recorded.data)))
        usage = Limiter("g1", 0.0).gossip(0.0)
        assert usage is not None

        await bus.say(bus.subjects.usage("g1"), encode_usage(usage))

        await until(lambda: heard == [usage], what="the message is heard")
        assert {stream: (await bus.stream_head(stream)).last for stream in before} == before
        await watch.close()

    with_bus(nats_server, body)

"""Two gateways that ask for API keys, one that does not, and keys as the ui makes them."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from harness.deadline import wait_until
from harness.gateway import GatewayProcess, Herd, open_herd
from harness.nats import NatsServer
from llamaherd_shared.api_key import ID_BYTES, SECRET_BYTES, parse_key, render_id, render_key, render_secret
from llamaherd_shared.events import decode_event
from llamaherd_shared.events.access import KeyRevoked
from llamaherd_shared.events.request import RequestFinished, requests_of
from llamaherd_shared.service import new_id
from llamaherd_shared.streams import REQUESTS
from llamaherd_ui.keys import NewKey, NewLimits, decide_created

MODEL, OTHER, SLOW = "cria-1b", "default-7b", "slow-70b"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}

HOT = (
    ("openai", "/v1/chat/completions", CHAT),
    ("openai", "/v1/embeddings", {"model": MODEL, "input": "x"}),
    ("anthropic", "/v1/messages", CHAT | {"max_tokens": 5}),
    ("ollama", "/api/chat", CHAT),
    ("lmstudio", "/api/v1/chat", {"model": MODEL, "input": "x"}),
    ("lmstudio-v0", "/api/v0/chat/completions", CHAT),
    ("llama", "/tokenize", {"model": MODEL, "content": "x"}),
    ("llama", f"/upstream/{MODEL}/tokenize", {"content": "x"}),
)
"""(in whose words it is refused, path, body)"""

Scenario = Callable[[], Awaitable[None]]


class Made:
    """A key as whoever made it sees it."""

    def __init__(self, key: str) -> None:
        self.key = key
        found = parse_key(key)
        assert found is not None
        self.id, self.secret = found

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


class World:
    """Two gateways that ask for keys, a third that does not, and their herd."""

    def __init__(self, herd: Herd, gateways: list[GatewayProcess], runner: asyncio.Runner, nats: NatsServer) -> None:
        self.herd, self.gateways, self.nats, self._runner = herd, gateways, nats, runner
        self.here, self.there, self.open = gateways

    def run(self, scenario: Scenario) -> None:
        """The herd lives in a loop of its own, as long as the module's tests run."""

        async def bounded() -> None:
            await asyncio.wait_for(scenario(), 30)

        self._runner.run(bounded())

    async def make_key(
        self,
        *,
        models: list[str] | None = None,
        dialects: list[str] | None = None,
        expires_s: float | None = None,
        **limits: int,
    ) -> Made:
        """As the ui makes it; returns when every gateway knows it."""
        key_id, secret = render_id(secrets.token_bytes(ID_BYTES)), render_secret(secrets.token_bytes(SECRET_BYTES))
        asked = NewKey(
            name="test", models=models or [], dialects=dialects or [], expires_s=expires_s, limits=NewLimits(**limits)
        )
        fact = decide_created(asked, key_id=key_id, secret=secret, now_ns=time.time_ns())
        await self.append(key_id, fact)
        made = Made(render_key(key_id, secret))
        await self.until_status(made, lambda status: status != 401)
        return made

    async def revoke(self, made: Made) -> None:
        await self.append(made.id, KeyRevoked(key=made.id, at_ns=time.time_ns()))

    async def append(self, key_id: str, fact: Any) -> None:
        bus = self.herd.bus
        await bus.append(bus.subjects.access(key_id), fact, msg_id=new_id())

    async def until_status(self, made: Made, holds: Callable[[int], bool]) -> None:
        """Until all that ask for keys answer so."""
        deadline = time.monotonic() + 10

        async def wait(gateway: GatewayProcess) -> None:
            async with client_of(gateway, made) as client:
                while not holds((await client.get("/api/version")).status_code):
                    assert time.monotonic() < deadline, "a gateway does not hear of the key"
                    await asyncio.sleep(0.005)

        await asyncio.gather(wait(self.here), wait(self.there))

    async def events_of(self, made: Made, count: int) -> list[RequestFinished]:
        """The first facts about its requests."""
        found: list[RequestFinished] = []

        async def collect() -> None:
            async for batch in self.herd.bus.read(REQUESTS, after=0):
                events = [event for recorded in batch for event in requests_of(decode_event(recorded.data))]
                found.extend(event for event in events if event.key_id == made.id)
                if len(found) >= count:
                    return

        await asyncio.wait_for(collect(), 10)
        return found


def is_ready(gateway: GatewayProcess) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{gateway.url}/readyz", verify=False).status_code == 200
    return False


ASKS_FOR_KEYS = {
    "keys": "required",
    "aliases": {"chat": MODEL, "claude-*": MODEL},
    "default_model": OTHER,
    "models": {"slow-*": {"concurrency": 1}},
}


@contextlib.contextmanager
def open_world(folder_of: Callable[[str], Path]) -> Iterator[World]:
    """`folder_of` makes a folder for each party."""
    with contextlib.ExitStack() as stack:
        nats = NatsServer(folder_of("nats")).start()
        stack.callback(nats.stop)
        runner = stack.enter_context(asyncio.Runner())
        gateways = [
            GatewayProcess(folder_of(name), nats.url, load_timeout_s=5, ask_timeout_s=2, **settings)
            for name, settings in (
                ("here", ASKS_FOR_KEYS),
                ("there", ASKS_FOR_KEYS),
                ("open", {"models": ASKS_FOR_KEYS["models"]}),
            )
        ]
        for gateway in gateways:
            gateway.start(wait_ready=False)
            stack.callback(gateway.stop)
        for gateway in gateways:
            wait_until(partial(is_ready, gateway), within_s=20, what="a gateway is ready")
        opened = open_herd(nats.url, gateways[2])
        herd = runner.run(opened.__aenter__())
        stack.callback(lambda: runner.run(opened.__aexit__(None, None, None)))
        runner.run(herd.add_ready_model(MODEL, slots=8, tokens=20))
        runner.run(herd.add_ready_model(OTHER, slots=8))
        yield World(herd, gateways, runner, nats)


@contextlib.asynccontextmanager
async def client_of(gateway: GatewayProcess, made: Made | None = None) -> AsyncIterator[httpx.AsyncClient]:
    headers = made.headers if made is not None else {}
    # `verify`: reading the certificates that nobody needs here takes longer than most of these tests.
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None), verify=False)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20, headers=headers, transport=transport) as client:
        yield client


def said(dialect: str, answer: httpx.Response) -> str:
    """The sentence of a refusal, which must be in the dialect's words."""
    body = answer.json()
    status = answer.status_code
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}[status]
    match dialect:
        case "openai" | "lmstudio-v0":
            assert (body["error"]["type"], set(body["error"])) == (kind, {"message", "type", "param", "code"})
        case "anthropic":
            assert (body["type"], body["error"]["type"]) == ("error", kind)
            assert body["request_id"] == answer.headers["request-id"]
        case "ollama":
            assert set(body) == {"error"}
            return str(body["error"])
        case "lmstudio":
            assert (body["error"]["type"], set(body["error"])) == ("invalid_request", {"type", "message", "code"})
        case "llama":
            assert (body["error"]["type"], body["error"]["code"]) == (kind, status)
    return str(body["error"]["message"])


async def active(herd: Herd, model: str, count: int) -> None:
    deadline = time.monotonic() + 10
    while (await herd.state(model))["active"] != count:
        assert time.monotonic() < deadline, f"{model} does not work on {count}"
        await asyncio.sleep(0.01)

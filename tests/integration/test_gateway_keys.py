"""API keys on real gateways: who is let in, to what, and how much; and that several gateways are one in this."""

import asyncio
import base64
import contextlib
import json
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

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

pytestmark = pytest.mark.integration

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
PAGES = (
    ("openai", "GET", "/v1/models", None),
    ("openai", "GET", f"/v1/models/{MODEL}", None),
    ("openai", "DELETE", f"/v1/models/{MODEL}", None),
    ("ollama", "GET", "/api/tags", None),
    ("ollama", "GET", "/api/ps", None),
    ("ollama", "GET", "/api/version", None),
    ("ollama", "POST", "/api/show", {"model": MODEL}),
    ("ollama", "POST", "/api/pull", {"model": "hf.co/a/b"}),
    ("ollama", "POST", "/api/create", {"model": "x", "from": MODEL}),
    ("ollama", "POST", "/api/copy", {"source": MODEL, "destination": "x"}),
    ("ollama", "DELETE", "/api/delete", {"model": MODEL}),
    ("ollama", "POST", "/api/blobs/sha256:" + 64 * "0", None),
    ("lmstudio", "GET", "/api/v1/models", None),
    ("lmstudio", "POST", "/api/v1/models/load", {"model": MODEL}),
    ("lmstudio", "POST", "/api/v1/models/unload", {"instance_id": MODEL}),
    ("lmstudio", "POST", "/api/v1/models/download", {"model": "a/b"}),
    ("lmstudio", "GET", "/api/v1/models/download/status/x", None),
    ("lmstudio-v0", "GET", "/api/v0/models", None),
    ("llama", "GET", f"/slots?model={MODEL}", None),
    ("llama", "GET", f"/upstream/{MODEL}/props", None),
)

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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        nats = NatsServer(tmp_path_factory.mktemp("nats")).start()
        stack.callback(nats.stop)
        runner = stack.enter_context(asyncio.Runner())
        gateways = [
            GatewayProcess(tmp_path_factory.mktemp(name), nats.url, load_timeout_s=5, ask_timeout_s=2, **settings)
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


ASKS_FOR_KEYS = {
    "keys": "required",
    "aliases": {"chat": MODEL, "claude-*": MODEL},
    "default_model": OTHER,
    "models": {"slow-*": {"concurrency": 1}},
}


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


# Who is let in.


@pytest.mark.parametrize(("dialect", "path", "body"), HOT, ids=lambda value: value if isinstance(value, str) else "")
def test_without_a_key_the_relay_answers_401_in_the_dialects_words(
    world: World, dialect: str, path: str, body: Any
) -> None:
    for headers in ({}, {"authorization": "Bearer sk-made-up"}, {"x-api-key": f"llh_{'a' * 8}_{'b' * 43}"}):
        answer = httpx.post(world.here.url + path, json=body, headers=headers, verify=False)

        assert answer.status_code == 401, answer.text
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "API key" in said(dialect, answer)


@pytest.mark.parametrize(
    ("dialect", "method", "path", "body"), PAGES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_without_a_key_pages_and_management_answer_401_in_the_dialects_words(
    world: World, dialect: str, method: str, path: str, body: Any
) -> None:
    answer = httpx.request(method, world.here.url + path, json=body, verify=False)

    assert answer.status_code == 401, answer.text
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "needs an API key" in said(dialect, answer)


def test_anthropics_clients_get_their_own_401_for_the_list_they_share(world: World) -> None:
    answer = httpx.get(f"{world.here.url}/v1/models", headers={"anthropic-version": "2023-06-01"})

    assert answer.status_code == 401
    assert "needs an API key" in said("anthropic", answer)


def test_health_the_home_page_and_preflights_need_no_key(world: World) -> None:
    with httpx.Client(base_url=world.here.url) as client:
        for method, path in (
            ("GET", "/healthz"),
            ("GET", "/readyz"),
            ("GET", "/"),
            ("HEAD", "/"),
            ("HEAD", "/healthz"),
        ):
            assert client.request(method, path).status_code == 200, (method, path)
        asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
        for path in ("/v1/chat/completions", "/api/pull", "/v1/models"):
            assert client.options(path, headers=asked).status_code == 204, path
        page = client.post("/v1/chat/completions", json=CHAT, headers={"origin": "http://localhost:3000"})

    assert page.status_code == 401
    assert page.headers["access-control-allow-origin"] == "http://localhost:3000", "a page may read why"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_a_key_is_taken_wherever_a_client_puts_it_and_goes_no_further(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key()
        places = (
            {"authorization": f"Bearer {made.key}"},
            {"authorization": f"bearer {made.key}"},
            {"authorization": made.key},
            {"authorization": basic(f"user:{made.key}")},
            {"authorization": basic(f"{made.key}:")},
            {"x-api-key": made.key},
            {"X-Api-Key": made.key, "Authorization": "Bearer dummy"},
            {"x-api-key": "dummy", "authorization": f"Bearer {made.key}"},
            {"api-key": made.key},
            {"x-goog-api-key": made.key},
        )
        async with client_of(world.here) as client:
            for headers in places:
                answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
                assert answer.status_code == 200, (headers, answer.text)
                assert (await client.get("/api/tags", headers=headers)).status_code == 200, headers
                seen = json.dumps((await world.herd.state(MODEL))["headers"])
                assert made.secret not in seen
                assert "dummy" not in seen
                assert not {"x-api-key", "api-key", "x-goog-api-key"} & set(json.loads(seen))
        for path in (f"/upstream/{MODEL}/v1/chat/completions", "/api/chat", "/v1/messages"):
            async with client_of(world.here, made) as client:
                answer = await client.post(path, json=CHAT | {"max_tokens": 5})
                assert answer.status_code == 200, (path, answer.text)
            assert made.secret not in json.dumps((await world.herd.state(MODEL))["headers"])

    world.run(scenario)


def test_a_key_that_has_ended_is_a_401_that_says_so(world: World) -> None:
    async def scenario() -> None:
        brief, revoked = await world.make_key(expires_s=0.7), await world.make_key()
        await world.revoke(revoked)
        await world.until_status(revoked, lambda status: status == 401)
        await world.until_status(brief, lambda status: status == 401)
        for made, why in ((brief, "has expired"), (revoked, "was revoked")):
            async with client_of(world.here, made) as client:
                for dialect, path, body in HOT:
                    assert why in said(dialect, await client.post(path, json=body))

    world.run(scenario)


def test_revoking_takes_effect_everywhere_in_less_than_a_second(world: World) -> None:
    async def scenario() -> None:
        took = []
        for _ in range(10):
            made = await world.make_key()
            began = time.monotonic()
            await world.revoke(made)
            await world.until_status(made, lambda status: status == 401)
            took.append(time.monotonic() - began)
        print(f"revocation heeded by two gateways after {max(took) * 1e3:.0f} ms at most")
        assert max(took) < 1.0

    world.run(scenario)


def test_a_request_that_still_waits_when_its_key_is_revoked_is_not_served(world: World) -> None:
    async def scenario() -> None:
        await world.herd.add_ready_model(SLOW, slots=1, tokens=1, delay_first_token_s=0.6)
        made, good = await world.make_key(), await world.make_key()
        body = CHAT | {"model": SLOW}
        async with client_of(world.here, made) as client, client_of(world.here, good) as other:
            served = asyncio.create_task(other.post("/v1/chat/completions", json=body))
            await active(world.herd, SLOW, 1)
            plain = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            request = client.build_request("POST", "/v1/chat/completions", json=body | {"stream": True})
            request.headers["x-llamaherd-progress"] = "1"
            stream = await client.send(request, stream=True)
            texts = stream.aiter_text()
            assert "queued" in await anext(texts)
            await world.revoke(made)
            also_served = asyncio.create_task(other.post("/v1/chat/completions", json=body))
            assert "was revoked" in said("openai", await plain)
            rest = [text async for text in texts]
            assert "was revoked" in rest[-1]
            assert [(await task).status_code for task in (served, also_served)] == [200, 200]
        assert (await world.herd.state(SLOW))["requests"] == 2

    world.run(scenario)


async def active(herd: Herd, model: str, count: int) -> None:
    deadline = time.monotonic() + 10
    while (await herd.state(model))["active"] != count:
        assert time.monotonic() < deadline, f"{model} does not work on {count}"
        await asyncio.sleep(0.01)


# To what.


def test_what_is_outside_of_its_scope_is_a_403_in_the_dialects_words(world: World) -> None:
    async def scenario() -> None:
        narrow = await world.make_key(models=[OTHER])
        async with client_of(world.here, narrow) as client:
            for dialect, path, body in HOT:
                answer = await client.post(path, json=body)
                assert answer.status_code == 403, (path, answer.text)
                assert f"may not use the model {MODEL!r}; it is for {OTHER}" in said(dialect, answer)
            answer = await client.post("/api/show", json={"model": MODEL})
            assert f"may not use the model {MODEL!r}" in said("ollama", answer)
            assert (await client.post("/tokenize", json={"model": OTHER, "content": "x"})).status_code == 200
            for dialect, method, path, body in PAGES:
                if method != "GET" and path != "/api/show":
                    assert "cannot manage" in said(dialect, await client.request(method, path, json=body)), path

    world.run(scenario)


def test_a_key_for_a_dialect_opens_its_paths_alone(world: World) -> None:
    async def scenario() -> None:
        for own in ("openai", "anthropic", "ollama", "lmstudio", "llama"):
            made = await world.make_key(dialects=[own])
            async with client_of(world.here, made) as client:
                for dialect, path, body in HOT:
                    answer = await client.post(path, json=body)
                    if dialect.removesuffix("-v0") == own:
                        assert answer.status_code in (200, 501), (own, path, answer.text)
                    else:
                        assert f"for {own}, not for" in said(dialect, answer), (own, path)
                for dialect, method, path, body in PAGES:
                    if dialect.removesuffix("-v0") != own:
                        answer = await client.request(method, path, json=body)
                        assert f"for {own}, not for" in said(dialect, answer), (own, method, path)

    world.run(scenario)


@pytest.mark.parametrize(
    ("scope", "may", "may_not"),
    [
        (["chat"], ["chat", "chat:latest", "CHAT"], [MODEL, OTHER, "claude-3", "unheard-of"]),
        (["claude-*"], ["claude-3", "claude-3:latest"], ["chat", MODEL, "unheard-of"]),
        (["claude-3"], ["claude-3"], ["claude-4", MODEL]),
        (["cria-*"], [MODEL, "chat", "claude-3", MODEL.upper(), f"{MODEL}:latest"], [OTHER, "cria-unheard-of"]),
        ([MODEL], [MODEL, "chat", "claude-3"], [OTHER, "unheard-of"]),
        ([OTHER], [OTHER, "unheard-of"], [MODEL, "chat"]),
    ],
    ids=lambda value: value[0],
)
def test_models_are_in_scope_by_name_alias_and_pattern(
    world: World, scope: list[str], may: list[str], may_not: list[str]
) -> None:
    async def scenario() -> None:
        made = await world.make_key(models=scope)
        async with client_of(world.here, made) as client:
            for name in may:
                answer = await client.post("/tokenize", json={"model": name, "content": "x"})
                assert answer.status_code == 200, (name, answer.text)
            for name in may_not:
                answer = await client.post("/tokenize", json={"model": name, "content": "x"})
                assert answer.status_code == 403, (name, answer.text)

    world.run(scenario)


def test_lists_and_errors_name_only_what_the_key_may_use(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key(models=[MODEL])
        async with client_of(world.here, made) as client:
            shown = {path: (await client.get(path)).text for path in ("/v1/models", "/api/tags", "/api/ps")}
            shown |= {path: (await client.get(path)).text for path in ("/api/v0/models", "/api/v1/models")}
            for path, text in shown.items():
                assert MODEL in text, path
                assert OTHER not in text, path
            assert (await client.get(f"/v1/models/{OTHER}")).status_code == 404
            assert (await client.get(f"/v1/models/{MODEL}")).status_code == 200
        async with client_of(world.open, made) as client:
            for path, body in (("/v1/chat/completions", CHAT | {"model": "x"}), ("/api/show", {"model": "x"})):
                answer = await client.post(path, json=body)
                assert OTHER not in answer.text, path
                assert answer.status_code in (403, 404), path

    world.run(scenario)


def test_what_all_users_share_needs_a_key_for_llama(world: World) -> None:
    async def scenario() -> None:
        plain, llama = await world.make_key(), await world.make_key(dialects=["llama", "openai"])
        looks = (f"/upstream/{MODEL}/slots", f"/slots?model={MODEL}", f"/upstream/{MODEL}/metrics")
        async with client_of(world.here, plain) as client, client_of(world.here, llama) as admin:
            for path in looks:
                assert "--dialect llama" in said("llama", await client.get(path)), path
                assert (await admin.get(path)).status_code != 403, path
            assert (await admin.get(looks[0])).json()[0]["id"] == 0
            answer = await client.post(f"/upstream/{MODEL}/lora-adapters", json=[])
            assert "--dialect llama" in said("llama", answer)
            assert (await client.get(f"/props?model={MODEL}")).status_code == 200

    world.run(scenario)


def test_a_page_that_is_asked_with_too_much_is_a_413(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key()
        async with client_of(world.here) as stranger, client_of(world.here, made) as client:
            body = json.dumps({"model": "x" * 2**21}).encode()
            assert (await stranger.post("/api/show", content=body)).status_code == 401
            assert (await client.post("/api/show", content=body)).status_code == 413

    world.run(scenario)


# How much.


async def hammer(client: httpx.AsyncClient, count: int, *, at_once: int = 8) -> list[httpx.Response]:
    """So many cheap requests."""
    left, answers = iter(range(count)), []

    async def work() -> None:
        for _ in left:
            answers.append(await client.post("/tokenize", json={"model": MODEL, "content": "x"}))

    await asyncio.gather(*[work() for _ in range(at_once)])
    return answers


def admitted(answers: list[httpx.Response]) -> int:
    assert {answer.status_code for answer in answers} <= {200, 429}, {answer.text for answer in answers}
    return sum(answer.status_code == 200 for answer in answers)


def test_a_lone_client_gets_its_requests_per_minute_exactly(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key(requests_per_minute=40)
        async with client_of(world.here, made) as client:
            answers = await hammer(client, 60)
        assert admitted(answers) == 40
        assert all(50 <= int(answer.headers["retry-after"]) <= 60 for answer in answers if answer.status_code == 429)

    world.run(scenario)


def test_two_gateways_together_keep_to_the_requests_per_minute(world: World) -> None:
    async def scenario() -> None:
        limit = 100
        made = await world.make_key(requests_per_minute=limit)
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:
            answers = await asyncio.gather(hammer(here, 90), hammer(there, 90))
        found = [admitted(some) for some in answers]
        print(f"{sum(found)} of {limit} requests a minute were let in by two gateways: {found}")
        assert limit * 0.9 <= sum(found) <= limit * 1.1

    world.run(scenario)


def test_two_gateways_together_keep_to_the_requests_at_once(world: World) -> None:
    async def scenario() -> None:
        await world.herd.add_ready_model("busy-7b", slots=32, tokens=1, delay_first_token_s=2.5)
        made = await world.make_key(concurrency=10)
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:
            ask = [
                client.post("/v1/chat/completions", json=CHAT | {"model": "busy-7b"}) for client in (here, there) * 12
            ]
            answers = await asyncio.gather(*ask)
        print(f"{admitted(answers)} of 10 requests at once were let in by two gateways")
        assert 9 <= admitted(answers) <= 11
        retry = {answer.headers.get("retry-after") for answer in answers if answer.status_code == 429}
        assert retry == {"1"}

    world.run(scenario)


@pytest.mark.parametrize("gateways", [1, 2])
def test_tokens_per_minute_are_those_of_prompts_and_answers(world: World, gateways: int) -> None:
    async def scenario() -> None:
        limit = 1000
        made = await world.make_key(tokens_per_minute=limit)
        used = refused = 0
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:
            clients = (here, there)[:gateways]
            for number in range(60):
                answer = await clients[number % gateways].post("/v1/chat/completions", json=CHAT)
                refused += answer.status_code == 429
                if answer.status_code == 200:
                    used += answer.json()["usage"]["total_tokens"]
                elif refused == gateways:
                    break
        print(f"{used} of {limit} tokens a minute were used over {gateways} gateways")
        assert refused
        assert limit * 0.9 <= used <= limit * 1.1

    world.run(scenario)


def test_a_client_that_leaves_before_the_end_pays_for_what_was_generated(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key(tokens_per_minute=1000)
        async with client_of(world.here, made) as client:
            for _ in range(60):
                request = client.build_request("POST", "/v1/chat/completions", json=CHAT | {"stream": True})
                answer = await client.send(request, stream=True)
                if answer.status_code == 429:
                    await answer.aclose()
                    return
                await anext(answer.aiter_raw())
                await answer.aclose()
        raise AssertionError("streams that are cut off are free")

    world.herd.switch(MODEL, tokens=20, delay_token_s=0.01)
    try:
        world.run(scenario)
    finally:
        world.herd.switch(MODEL, tokens=20)


def test_over_a_limit_is_a_429_with_retry_after_in_the_dialects_words(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key(requests_per_minute=1)
        async with client_of(world.here, made) as client:
            assert (await client.post("/tokenize", json={"model": MODEL, "content": "x"})).status_code == 200
            for dialect, path, body in HOT:
                answer = await client.post(path, json=body)
                assert answer.status_code == 429, (path, answer.text)
                assert f"llh_{made.id} may use 1 requests a minute" in said(dialect, answer)
                assert 50 <= int(answer.headers["retry-after"]) <= 60
                assert made.secret not in answer.text

    world.run(scenario)


def test_whatever_becomes_of_a_request_its_place_is_given_back(world: World) -> None:
    """With one request at once allowed, the first that is not given back stops everything after it."""

    async def scenario() -> None:
        model = "lively-3b"
        await world.herd.add_ready_model(model, slots=1, tokens=5)
        await world.herd.add_model("never-loads")
        made = await world.make_key(concurrency=1)
        body = CHAT | {"model": model}
        outcomes = []

        async def ask(client: httpx.AsyncClient, status: int, outcome: str, **fields: Any) -> None:
            answer = await client.post("/v1/chat/completions", json=body | fields)
            assert answer.status_code == status, answer.text
            outcomes.append(outcome)

        async def fail_to_load(name: str) -> None:
            await world.herd.say_failed(name, "out of memory", [])

        async with client_of(world.here, made) as client:
            await ask(client, 200, "ok")
            await ask(client, 400, "error", messages="broken")
            world.herd.switch(model, error_status=500)
            await ask(client, 500, "error")
            world.herd.switch(model, cut_mid_stream=2)
            await ask(client, 200, "error", stream=True)
            world.herd.switch(model, tokens=50, delay_token_s=0.05)
            async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
                await anext(answer.aiter_raw())
            outcomes.append("cancelled")  # in the middle of the answer
            await active(world.herd, model, 0)
            waiting = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            await active(world.herd, model, 1)
            waiting.cancel()
            outcomes.append("cancelled")  # before its first byte
            await active(world.herd, model, 0)
            world.herd.on_load, quietly = fail_to_load, world.herd.on_load
            await ask(client, 503, "error", model="never-loads")
            world.herd.on_load = quietly
            world.herd.switch(model, tokens=5)
            await ask(client, 200, "ok")
        async with client_of(world.there, made) as client:
            await ask(client, 200, "ok")  # the other gateway has been told
        narrow = await world.make_key(concurrency=1, models=[OTHER])
        async with client_of(world.here, narrow) as client:
            for _ in range(2):
                await ask(client, 403, "refused")

        events = await world.events_of(made, len(outcomes) - 2)
        assert [event.outcome for event in events] == outcomes[:-2]

    world.run(scenario)


def test_clients_that_leave_at_any_moment_hold_no_place(world: World) -> None:
    async def scenario() -> None:
        model, limit, chance = "restless-3b", 4, random.Random(7)
        await world.herd.add_ready_model(model, slots=8, tokens=10, delay_token_s=0.004)
        made = await world.make_key(concurrency=limit)
        body = CHAT | {"model": model}
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:

            async def come_and_go() -> None:
                asking = chance.choice((here, there)).post(
                    "/v1/chat/completions", json=body | {"stream": chance.random() < 0.5}
                )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asking, chance.choice((0.005, 0.02, 0.05, 0.1)))

            for _ in range(10):
                await asyncio.gather(*[come_and_go() for _ in range(12)])
            await active(world.herd, model, 0)
            world.herd.switch(model, tokens=1, delay_first_token_s=20)
            staying = [asyncio.create_task(here.post("/v1/chat/completions", json=body)) for _ in range(limit)]
            await active(world.herd, model, limit)
            for task in staying:
                task.cancel()
            await asyncio.gather(*staying, return_exceptions=True)

    world.run(scenario)


# Together.


def test_every_request_is_recorded_with_its_key(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key(requests_per_minute=2, models=[MODEL])
        async with client_of(world.here, made) as client:
            for model in (MODEL, OTHER, MODEL):
                await client.post("/v1/chat/completions", json=CHAT | {"model": model})
        events = await world.events_of(made, 3)
        assert [(event.outcome, event.status) for event in events] == [("ok", 200), ("error", 403), ("error", 429)]

    world.run(scenario)


def test_on_loopback_any_credential_does_unless_it_is_a_key_that_has_ended(world: World) -> None:
    async def scenario() -> None:
        good, ended = await world.make_key(models=[MODEL]), await world.make_key()
        await world.revoke(ended)
        await world.until_status(ended, lambda status: status == 401)
        async with client_of(world.open) as client:
            for headers in ({}, {"authorization": "Bearer ollama"}, {"x-api-key": "sk-ant-x"}, good.headers):
                for path in ("/v1/chat/completions", "/v1/messages"):
                    answer = await client.post(path, json=CHAT | {"max_tokens": 5}, headers=headers)
                    assert answer.status_code == 200, (headers, answer.text)
                assert (await client.get("/v1/models", headers=headers)).status_code == 200
            assert (await client.get(f"/upstream/{MODEL}/slots")).status_code == 200
            for path in ("/v1/chat/completions", "/v1/messages"):
                answer = await client.post(path, json=CHAT | {"max_tokens": 5}, headers=ended.headers)
                assert answer.status_code == 401, "a key of ours is always looked at"
            answer = await client.post("/tokenize", json={"model": OTHER, "content": "x"}, headers=good.headers)
            assert answer.status_code == 403

    world.run(scenario)


def test_a_model_asked_for_on_two_gateways_at_once_is_loaded_once(world: World) -> None:
    async def scenario() -> None:
        model = "fresh-7b"
        loading = asyncio.Lock()

        async def load(name: str) -> None:
            async with loading:  # a supervisor takes one command about a model after the other
                if name not in world.herd.processes:
                    await world.herd.start(name)

        await world.herd.add_model(model, slow_load_s=0.3)
        world.herd.on_load = load
        world.herd.loads.clear()
        made = await world.make_key()
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:
            await asyncio.gather(*[until_known(client, model) for client in (here, there)])
            ask = [client.post("/v1/chat/completions", json=CHAT | {"model": model}) for client in (here, there) * 5]
            answers = await asyncio.gather(*ask)
        assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
        assert 1 <= world.herd.loads.count(model) <= 2, "each gateway asks once"
        assert (await world.herd.state(model))["starts"] == 1
        assert (await world.herd.state(model))["requests"] == 10

    world.run(scenario)


async def until_known(client: httpx.AsyncClient, model: str) -> None:
    deadline = time.monotonic() + 10
    while (await client.get(f"/v1/models/{model}")).status_code != 200:
        assert time.monotonic() < deadline, f"{model} is not seen"
        await asyncio.sleep(0.01)


def test_no_secret_is_written_or_said_anywhere(world: World) -> None:
    async def scenario() -> None:
        heard: list[bytes] = []
        watch = await world.herd.bus.watch("herd.>", lambda recorded: heard.append(recorded.data))
        made = await world.make_key(requests_per_minute=1)
        async with client_of(world.here, made) as client:
            for path in ("/v1/chat/completions", "/v1/chat/completions", f"/upstream/{MODEL}/nothing", "/nowhere"):
                await client.post(path, json=CHAT)
                await client.post(path, content=b"{")
        await world.events_of(made, 5)
        await watch.close()
        assert sum(made.id.encode() in data for data in heard) >= 3, "the fact about the key, its use, its requests"
        assert not any(made.secret.encode() in data for data in heard)
        written = [gateway.folder for gateway in world.gateways] + [world.herd.folder, world.nats.folder]
        for file in (file for folder in written for file in folder.rglob("*")):
            assert not file.is_file() or made.secret.encode() not in file.read_bytes(), file
        for gateway in world.gateways:
            assert "Traceback" not in gateway.log.read_text(), "nothing that the tests before did was unexpected"

    world.run(scenario)

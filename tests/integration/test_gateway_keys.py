"""API keys on real gateways: who is let in, to what, and how much; and that several gateways are one in this."""

import asyncio
import base64
import json
import time
from typing import Any

import httpx
import pytest

from harness.keyed_gateways import CHAT, HOT, MODEL, OTHER, SLOW, World, active, client_of, said

pytestmark = pytest.mark.integration

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


def test_the_description_of_the_api_is_for_every_key(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key(dialects=["ollama"], models=[OTHER])
        async with client_of(world.here, made) as client:
            described = await client.get("/openapi.json")
        async with client_of(world.open) as client:
            open_to_all = await client.get("/openapi.json")
        async with client_of(world.here) as client:
            refused = await client.get("/openapi.json")

        assert "needs an API key" in said("openai", refused)
        assert {"bearer": []} in described.json()["security"]
        assert {} not in described.json()["security"]
        assert {} in open_to_all.json()["security"], "a key may be left out there"

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


# What is told of it.


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

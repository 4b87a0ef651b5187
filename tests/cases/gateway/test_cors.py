"""Which pages may use the gateway, and how their browsers are told."""

import pytest

from llamaherd_gateway.access.cors import OLLAMA_ORIGINS, REMEMBERED, Cors

OLLAMA = Cors(OLLAMA_ORIGINS)
VARY = (b"vary", b"origin")
HOST = b"127.0.0.1:11434"


def allowed(cors: Cors, origin: bytes) -> bool:
    headers = cors.answer(origin, HOST)
    return headers is not None and dict(headers).get(b"access-control-allow-origin") in (origin, b"*")


@pytest.mark.parametrize(
    "origin",
    [
        b"http://localhost",
        b"https://localhost:3000",
        b"http://127.0.0.1:5173",
        b"http://0.0.0.0:80",
        b"app://obsidian.md",
        b"tauri://localhost",
        b"vscode-webview://1ab2-cd",
        b"file://",
    ],
)
def test_ollamas_own_pages_are_allowed(origin: bytes) -> None:
    assert allowed(OLLAMA, origin)


@pytest.mark.parametrize(
    "origin",
    [
        b"http://evil.example",
        b"http://localhost.evil.example",
        b"http://localhost:3000.evil.example/x",
        b"http://evil.example/http://localhost",
        b"https://127.0.0.10",
        b"null",
        b"",
        b"chrome-extension://abc",
        b"http://localhost:3000\r\nx: y",
    ],
)
def test_other_pages_are_refused(origin: bytes) -> None:
    assert OLLAMA.answer(origin, HOST) is None
    preflight = OLLAMA.preflight(origin, HOST, b"POST", b"content-type")
    assert preflight is not None
    assert (preflight.status, preflight.headers) == (403, (VARY,))


def test_configured_origins_are_added() -> None:
    cors = Cors(("https://*.example.com", "chrome-extension://*", "https://App.example.org/", *OLLAMA_ORIGINS))
    assert allowed(cors, b"https://chat.example.com")
    assert allowed(cors, b"https://app.example.org")
    assert allowed(cors, b"chrome-extension://abc")
    assert allowed(cors, b"http://localhost:1")
    assert not allowed(cors, b"https://example.com")
    assert not allowed(cors, b"https://evil.example/.example.com")


def test_an_answer_has_one_set_of_headers() -> None:
    headers = OLLAMA.answer(b"http://localhost", HOST)
    assert headers is not None
    names = [name for name, _ in headers]
    assert len(names) == len(set(names))
    assert VARY in headers
    assert dict(headers)[b"access-control-allow-origin"] == b"http://localhost"


def test_a_preflight_names_what_may_be_asked() -> None:
    names = b"authorization, content-type, x-stainless-os"
    preflight = OLLAMA.preflight(b"http://localhost", HOST, b"DELETE", names)
    assert preflight is not None
    told = dict(preflight.headers)
    assert len(told) == len(preflight.headers)
    assert preflight.status == 204
    assert b"DELETE" in told[b"access-control-allow-methods"]
    assert told[b"access-control-allow-headers"] == names
    assert told[b"access-control-allow-origin"] == b"http://localhost"


@pytest.mark.parametrize("names", [None, b"", b"x\r\nset-cookie: a", b"x" * 3000, b"a:b"])
def test_only_names_of_headers_are_repeated(names: bytes | None) -> None:
    preflight = OLLAMA.preflight(b"http://localhost", HOST, b"POST", names)
    assert preflight is not None
    assert b"access-control-allow-headers" not in dict(preflight.headers)


def test_an_options_request_that_is_no_preflight_is_left_alone() -> None:
    assert OLLAMA.preflight(None, HOST, b"POST", None) is None
    assert OLLAMA.preflight(b"http://localhost", HOST, None, None) is None


def test_a_request_of_no_page_is_answered() -> None:
    assert OLLAMA.answer(None, HOST) == (VARY,)
    assert Cors(("*",)).answer(None, HOST) == ()


def test_a_page_of_the_gateways_own_address_is_no_other_origin() -> None:
    closed = Cors(())
    assert closed.answer(b"http://herd.lan:8080", b"Herd.lan:8080") == (VARY,)
    assert closed.answer(b"http://herd.lan:8081", b"herd.lan:8080") is None
    assert closed.answer(b"app://herd.lan:8080", b"herd.lan:8080") is None
    assert closed.answer(b"http://herd.lan", None) is None


def test_without_refusing_a_page_is_only_not_allowed() -> None:
    cors = Cors((), refuses=False)
    assert cors.answer(b"http://evil.example", HOST) == (VARY,)
    preflight = cors.preflight(b"http://evil.example", HOST, b"POST", None)
    assert preflight is not None
    assert (preflight.status, preflight.headers) == (204, (VARY,))


def test_a_star_allows_every_page_even_one_without_an_origin() -> None:
    cors = Cors(("*",))
    for origin in (b"http://any.example", b"null"):
        assert dict(cors.answer(origin, HOST) or ())[b"access-control-allow-origin"] == b"*"
    preflight = cors.preflight(b"null", HOST, b"POST", b"authorization")
    assert preflight is not None
    assert dict(preflight.headers)[b"access-control-allow-headers"] == b"authorization"


def test_made_up_origins_take_no_memory() -> None:
    cors = Cors(())
    for number in range(3 * REMEMBERED):
        cors.answer(b"http://%d.example" % number, HOST)
    assert len(cors._seen) <= REMEMBERED

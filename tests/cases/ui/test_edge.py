"""Who may talk to the ui."""

import pytest

from llamaherd_shared.addresses import is_loopback
from llamaherd_ui.edge import HEADERS, find_refusal, host_name, is_host_allowed


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "ui.localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.com", "localhost.example.com", ""])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("header", "name"),
    [("localhost:8081", "localhost"), ("[::1]:8081", "::1"), ("::1", "::1"), ("Herd.Lan", "herd.lan"), ("a:1", "a")],
)
def test_name_in_the_host_header(header: str, name: str) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("header", "bound_to", "allowed", "verdict"),
    [
        ("localhost:8081", "127.0.0.1", [], True),
        ("evil.example", "127.0.0.1", [], False),
        ("192.168.1.4:8081", "127.0.0.1", [], False),
        ("192.168.1.4:8081", "0.0.0.0", [], True),
        ("evil.example", "0.0.0.0", [], False),
        ("herd.lan", "herd.lan", [], True),
        ("herd.lan:443", "127.0.0.1", ["herd.lan"], True),
        ("a.herd.lan", "127.0.0.1", ["*.herd.lan"], True),
        ("evilherd.lan", "127.0.0.1", ["*.herd.lan"], False),
        ("", "127.0.0.1", [], False),
    ],
)
def test_host(header: str, bound_to: str, allowed: list[str], verdict: bool) -> None:
    assert is_host_allowed(header, bound_to=bound_to, allowed=allowed) is verdict


HOST = {"host": "127.0.0.1:8081"}


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {}, None),
        ("POST", {"sec-fetch-site": "same-origin"}, None),
        ("POST", {"sec-fetch-site": "none"}, None),
        ("POST", {"sec-fetch-site": "cross-site"}, 403),
        ("POST", {"sec-fetch-site": "same-site"}, 403),
        ("POST", {"origin": "http://127.0.0.1:8081"}, None),
        ("POST", {"origin": "http://127.0.0.1:3000"}, 403),
        ("POST", {"origin": "null"}, 403),
        ("GET", {"sec-fetch-site": "cross-site"}, None),
        ("GET", {"host": "evil.example"}, 400),
    ],
)
def test_request(method: str, headers: dict[str, str], status: int | None) -> None:
    refusal = find_refusal(method, HOST | headers, bound_to="127.0.0.1", allowed=[])

    assert (refusal and refusal[0]) == status


def test_pages_load_nothing_from_elsewhere() -> None:
    policy = HEADERS["content-security-policy"]

    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "unsafe" not in policy

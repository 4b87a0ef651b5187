"""A listener on loopback answers only to names that a web site cannot have."""

import pytest

from llamaherd_gateway.access.hosts import refuse_host

OWN = frozenset({"workstation", "workstation.example.net", "203.0.113.7", "2001:db8::7"})


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"localhost:8080",
        b"LOCALHOST.",
        b"localhost.:11434",
        b"127.0.0.1:8080",
        b"127.8.9.1",
        b"0.0.0.0:1234",
        b"[::1]",
        b"[::1]:8080",
        b"::1",
        b"[::]",
        b"[::ffff:127.0.0.1]:80",
        b"[fd12::1%25eth0]:80",
        b"10.1.2.3",
        b"172.16.0.1:80",
        b"192.168.1.5:11434",
        b"workstation:8080",
        b"Workstation.Example.NET.",
        b"203.0.113.7",
        b"[2001:DB8::7]:80",
        b"anything.localhost",
        b"nas.local:8080",
        b"host.docker.internal:11434",
        b"localhost:",
        b" localhost ",
    ],
)
def test_names_of_this_machine_pass(host: bytes) -> None:
    assert refuse_host(host, OWN) is None


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:8080",
        b"localhost.evil.example",
        b"127.0.0.1.evil.example",
        b"evillocalhost",
        b"127.1",
        b"2130706433",
        b"8.8.8.8:80",
        b"172.32.0.1",
        b"169.254.169.254",
        b"[2001:db8::8]",
        b"[::ffff:8.8.8.8]",
    ],
)
def test_names_that_anybody_may_have_are_refused_in_a_sentence(host: bytes) -> None:
    said = refuse_host(host, OWN)
    assert said is not None
    assert "localhost" in said


@pytest.mark.parametrize(
    "host",
    [
        b"localhost@evil.example",
        b"localhost/evil",
        b"[::1",
        b"[::1]evil",
        b"[]",
        b"localhost:80:90",
        b"localhost:port",
        b"a b",
        b":80",
        b".",
        b"[localhost]",
        b"\xff",
    ],
)
def test_what_is_no_host_is_refused(host: bytes) -> None:
    assert refuse_host(host, OWN)


def test_a_request_without_a_host_comes_from_no_web_page() -> None:
    assert refuse_host(None, OWN) is None
    assert refuse_host(b"", OWN) is None

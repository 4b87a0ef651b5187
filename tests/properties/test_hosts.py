from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_gateway.access.hosts import refuse_host

OWN = frozenset({"workstation", "workstation.example.net", "203.0.113.7", "2001:db8::7"})


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_in_a_host_header_are_judged(host: bytes) -> None:
    said = refuse_host(host, OWN)
    assert said is None or said.isascii()

"""Packs of requests: what they say is what the requests say one by one."""

import pytest

from llamaherd_shared.events import Undecodable, decode_event, encode_event
from llamaherd_shared.events.node import NodeLeft
from llamaherd_shared.events.request import PLACES, RequestFinished, RequestPack, pack_encoded, requests_of


def finished(number: int) -> RequestFinished:
    return RequestFinished(
        request_id=f"r{number}", at_ns=number, node="n1", model="cria", route="/tokenize", status=200, outcome="ok"
    )


def test_a_pack_of_encoded_requests_is_the_pack_of_the_requests() -> None:
    requests = [finished(number) for number in range(3)]

    packed = pack_encoded([encode_event(request) for request in requests])

    assert packed == encode_event(RequestPack(requests=requests))
    assert decode_event(packed) == RequestPack(requests=requests)


def test_requests_of_an_event_are_one_many_or_none() -> None:
    requests = [finished(1), finished(2)]

    assert requests_of(finished(1)) == [finished(1)]
    assert requests_of(RequestPack(requests=requests)) == requests
    assert requests_of(NodeLeft(node="n1", at_ns=1, cause="shutdown")) == []


def test_fields_from_the_future_are_ignored_in_a_pack_too() -> None:
    packed = encode_event(RequestPack(requests=[finished(1)]))

    assert requests_of(decode_event(packed.replace(b'"r1"', b'"r1","new_field":1'))) == [finished(1)]


def test_a_pack_that_readers_cannot_number_is_no_event() -> None:
    with pytest.raises(Undecodable, match=r"request\.pack\.v1"):
        decode_event(encode_event(RequestPack(requests=[finished(1)] * (PLACES + 1))))

"""Requests to a model of a router, and what the router says when the model's process is gone."""

import json

import pytest

from llamaherd_gateway.dialects.dialect import Call
from llamaherd_gateway.problems import BadRequest
from llamaherd_gateway.projection import Instance
from llamaherd_gateway.relay.heads import Head
from llamaherd_gateway.relay.routed import ThroughRouter, address, hear

ALONE = Instance(node="n", model="my model", generation=1)
ROUTED = Instance(node="n", model="my model", generation=1, router_generation=3)
OK = Head(200, b"", None, False)
STREAM = Head(200, b"", None, True)
FORM = b"--b\r\nContent-Disposition: form-data; name=model\r\n\r\n%b\r\n--b--\r\n"


class Listener:
    """Receives one answer (`upstream.Receiver`)."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.body = b""
        self.ended = False
        self.lost: list[bool] = []
        """Whether nothing had come, each time it was lost."""

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        self.heads += [head] if head is not None else []
        self.body += body
        self.ended |= end

    def upstream_lost(self, *, before_first_byte: bool, reused: bool) -> None:
        self.lost.append(before_first_byte)


def answered(*pieces: tuple[Head | None, bytes]) -> Listener:
    """What is passed on of an answer that comes in these pieces, the last one being its end."""
    listener = Listener()
    through = ThroughRouter(listener)
    for number, (head, body) in enumerate(pieces, 1):
        through.received(head, body, number == len(pieces))
    return listener


def refused(status: int, message: str) -> Listener:
    return answered((Head(status, b"", None, False), json.dumps({"error": {"message": message}}).encode()))


def path_of(path: str, method: str = "GET") -> str:
    return address(Call(path=path, body=b"{}"), ROUTED, method=method).path


def test_nothing_is_changed_for_a_llama_server_of_its_own() -> None:
    call, listener = Call(path="/props", body=b"{}"), Listener()

    assert address(call, ALONE, method="GET") is call
    assert hear(listener, ALONE) is listener


def test_a_body_that_names_the_model_is_left_alone() -> None:
    call = Call(path="/completion", body=b'{"prompt": "x", "model": "my model"}')

    assert address(call, ROUTED, method="POST") is call


@pytest.mark.parametrize(
    "body", [b'{"model": "alias", "n": 1}', b'{"n": 1}', b'{"n": 1, "model": "my model", "model": "x"}']
)
def test_any_other_name_becomes_the_models_own(body: bytes) -> None:
    call = address(Call(path="/completion", body=body), ROUTED, method="POST")

    assert json.loads(call.body) == {"n": 1, "model": "my model"}


def test_a_form_gets_the_models_own_name() -> None:
    call = Call(path="/x", body=FORM % b"alias", content_type=b"multipart/form-data; boundary=b")

    assert address(call, ROUTED, method="POST").body == FORM % b"my model"


def test_a_look_names_the_model_in_its_query() -> None:
    assert path_of("/props") == "/props?model=my+model"
    assert path_of("/slots?fail_on_no_slot=1") == "/slots?fail_on_no_slot=1&model=my+model"


def test_what_a_client_says_to_the_router_does_not_reach_it() -> None:
    assert path_of("/props?model=other&autoload=true&%6dodel=x") == "/props?model=my+model"
    assert path_of("/slots/0?action=save&model=other&autoload=1", "POST") == "/slots/0?action=save"


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/%6dodels?x=1"])
def test_the_list_of_all_models_of_a_router_is_not_shown(path: str) -> None:
    with pytest.raises(BadRequest, match="which would list all of its models"):
        path_of(path)


def test_a_body_that_cannot_name_a_model_is_refused() -> None:
    with pytest.raises(BadRequest, match="my model is served by a llama-server router"):
        address(Call(path="/lora-adapters", body=b"[]"), ROUTED, method="POST")


@pytest.mark.parametrize(
    "message", ["model is not loaded", "model name=my model is not running", "model 'my model' not found"]
)
def test_a_model_that_is_gone_is_a_lost_connection(message: str) -> None:
    listener = answered((Head(400, b"", None, False), b'{"error":{"code":400,"message":"%b"}}' % message.encode()))

    assert listener.lost == [True]
    assert not listener.heads


def test_a_process_that_ended_before_it_answered_is_a_lost_connection() -> None:
    listener = answered((Head(500, b"", None, False), b"proxy err"), (None, b"or: Failed to read connection"))

    assert listener.lost == [True]
    assert not listener.heads


def test_an_error_of_the_model_itself_is_passed_on_whole() -> None:
    listener = refused(400, "the request exceeds the available context size")

    assert [head.status for head in listener.heads] == [400]
    assert listener.ended
    assert b"exceeds the available" in listener.body
    assert not listener.lost


def test_a_process_that_ended_in_the_middle_is_a_broken_connection() -> None:
    listener = answered((STREAM, b"data: 1\n\n"), (None, b"data: 2\n\nproxy error: Failed to read connection"))
    alone = answered((STREAM, b"data: 1\n\n"), (None, b"proxy error: Failed to read connection"), (None, b""))

    assert (listener.body, alone.body) == (b"data: 1\n\ndata: 2\n\n", b"data: 1\n\n")
    assert (listener.lost, alone.lost) == ([False], [False])
    assert not listener.ended


def test_a_model_may_talk_about_proxy_errors() -> None:
    pieces = [b'data: {"content":"proxy error: ', b'x"}\n\n', b"data: [DONE]\n\n"]
    listener = answered((STREAM, pieces[0]), (None, pieces[1]), (None, pieces[2]))

    assert listener.body == b"".join(pieces)
    assert listener.ended
    assert not listener.lost


def test_a_plain_answer_is_passed_on_as_it_comes() -> None:
    listener = answered((OK, b'{"a":'), (None, b"1}"), (None, b""))

    assert (listener.heads, listener.body, listener.ended) == ([OK], b'{"a":1}', True)

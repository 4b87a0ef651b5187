"""What is different about a model that a llama-server router serves (`InstanceStarted.router_generation`). Pure.

The router finds the model by its name: in the body of a POST, in the query of a GET. And when the model's process is
gone it says so in an answer, where the process itself would have closed the connection.
"""

import re
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode

import msgspec

from llamaherd_gateway.dialects.dialect import Call
from llamaherd_gateway.dialects.openai.fields import change_fields
from llamaherd_gateway.dialects.openai.forms import find_fields
from llamaherd_gateway.problems import ERROR_BODY_BYTES, BadRequest
from llamaherd_gateway.projection import Instance
from llamaherd_gateway.relay.heads import Head
from llamaherd_gateway.relay.upstream import Receiver

_LISTINGS: Final = ("/models", "/v1/models")
_FOR_ROUTER: Final = frozenset({"model", "autoload"})
"""Names of query parameters."""
_LAST_WORDS: Final = re.compile(rb'proxy error: [^\n"{}]*\Z')
"""Behind whatever of an answer had come. No JSON and no event ends like that."""
_GONE: Final = re.compile(
    rb"""proxy error: |"message":\s*"model (?:is not loaded|name=[^"]* is not running|'[^"]*' not found)\""""
)
"""In the body of an error."""


class _Named(msgspec.Struct):
    model: Any = None


_NAMED: Final = msgspec.json.Decoder(_Named)


def address(call: Call, instance: Instance, *, method: str) -> Call:
    """The call as the router understands it. Raises `BadRequest` for what it cannot pass on."""
    if not instance.router_generation:
        return call
    path, mark, query = call.path.partition("?")
    if unquote(path) in _LISTINGS:
        raise _refusal(instance, "which would list all of its models")
    if method in ("GET", "HEAD"):
        return msgspec.structs.replace(call, path=f"{path}?{_query(query, model=instance.model)}")
    is_form = call.content_type.startswith(b"multipart/")
    body = _name_in_form(call, instance) if is_form else _name_in_body(call.body, instance)
    if body is call.body and not mark:
        return call
    return msgspec.structs.replace(call, path=f"{path}?{_query(query)}" if mark else path, body=body)


def _query(query: str, **ours: str) -> str:
    """Without what a client may have put there for the router."""
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    kept = [(name, value) for name, value in pairs if name not in _FOR_ROUTER]
    return urlencode([*kept, *ours.items()], errors="surrogateescape")


def _name_in_body(body: bytes, instance: Instance) -> bytes:
    """A JSON body with the model's own name in it. Raises `BadRequest`."""
    try:
        if _NAMED.decode(body).model == instance.model:
            return body
        return change_fields(body, {"model": instance.model})
    except msgspec.MsgspecError as error:
        raise _refusal(instance, "which finds the model by `model` in a JSON object") from error


def hear(receiver: Receiver, instance: Instance) -> Receiver:
    """Who is to receive what this instance answers."""
    return ThroughRouter(receiver) if instance.router_generation else receiver


class ThroughRouter:
    """Passes an answer on (`upstream.Receiver`), but for the router's word that the model's process is gone."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._error: Head | None = None
        """Head of an error whose body is still to come."""
        self._held = b""
        """The body of the error, or what may be the router's last words."""

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        if head is not None and head.status in (400, 500):
            self._error = head
        if self._error is not None:
            self._take_error(self._error, body, end)
            return
        body = self._held + body
        last_words = _LAST_WORDS.search(body)
        self._held = body[last_words.start() :] if last_words else b""
        if last_words and end:
            if said := body[: last_words.start()]:
                self._receiver.received(head, said, False)
            self._receiver.upstream_lost(before_first_byte=False, reused=False)
        elif head is not None or end or len(body) > len(self._held):
            self._receiver.received(head, body[: len(body) - len(self._held)], end)

    def _take_error(self, head: Head, body: bytes, end: bool) -> None:
        self._held += body
        if not end and len(self._held) < ERROR_BODY_BYTES:
            return
        self._error, said, self._held = None, self._held, b""
        if _GONE.search(said):
            self._receiver.upstream_lost(before_first_byte=True, reused=False)
        else:
            self._receiver.received(head, said, end)

    def upstream_lost(self, *, before_first_byte: bool, reused: bool) -> None:
        self._receiver.upstream_lost(before_first_byte=before_first_byte, reused=reused)


def _name_in_form(call: Call, instance: Instance) -> bytes:
    name, fields = instance.model.encode(), find_fields(call.body, call.content_type)
    if "model" not in fields:
        raise _refusal(instance, "which finds the model by the form's `model`")
    place = fields["model"]
    return call.body if call.body[place] == name else call.body[: place.start] + name + call.body[place.stop :]


def _refusal(instance: Instance, why: str) -> BadRequest:
    return BadRequest(f"{instance.model} is served by a llama-server router, {why}", code="not_supported")

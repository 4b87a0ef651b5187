"""A question to a llama-server on the way to a request's own call: what a dialect's `prepare` needs to know."""

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from llamaherd_gateway.dialects.dialect import Ask, Call
from llamaherd_gateway.problems import BadRequest, read_error
from llamaherd_gateway.relay.heads import Head, render_request_end
from llamaherd_gateway.relay.routed import address, hear
from llamaherd_gateway.relay.upstream import Pool
from llamaherd_shared.errors import HerdError, Unavailable

if TYPE_CHECKING:
    from llamaherd_gateway.relay.exchange import Exchange


class _Question:
    """Receives one plain answer (`upstream.Receiver`)."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._parts: list[bytes] = []

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        if head is not None:
            self._status = head.status
        self._parts.append(body)
        if end and not self.answered.done():
            self.answered.set_result((self._status, b"".join(self._parts)))

    def upstream_lost(self, *, before_first_byte: bool, reused: bool) -> None:
        if not self.answered.done():
            self.answered.set_exception(ConnectionError("llama-server closed the connection"))


def ask(exchange: "Exchange", pool: Pool) -> Ask:
    """A function that asks the instance of `pool` on behalf of `exchange`."""

    async def put(path: str, content: Any) -> Any:
        call = Call(path=path, body=msgspec.json.encode(content))
        body = address(call, pool.instance, method="POST").body
        head = render_request_end(b"", b"application/json", exchange.traceparent.encode(), len(body))
        question = _Question()
        try:
            connection = await pool.dial()
            connection.send(hear(question, pool.instance), pool.request_start("POST", path) + head, body)
            try:
                status, answer = await question.answered
            finally:
                if not question.answered.done() or question.answered.cancelled():
                    connection.abandon()
        except OSError as error:
            raise Unavailable(f"the llama-server {pool.instance.name} cannot be asked: {error}") from error
        if status >= 400:
            raise _refused(status, answer, pool.instance.name)
        return msgspec.json.decode(answer)

    return put


def _refused(status: int, body: bytes, instance: str) -> HerdError:
    problem = read_error(status, body, instance)
    if problem.status < 500:
        return BadRequest(problem.message, status=problem.status, code=problem.code, param=problem.param)
    return Unavailable(problem.message, retry_after_s=problem.retry_after_s)

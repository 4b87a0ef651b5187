"""The end of an answer that is kept: it is stored first, so that whoever reads the end can go on from it at once."""

import asyncio
from typing import TYPE_CHECKING

from llamaherd_gateway.problems import Problem
from llamaherd_shared.events.turn import TurnKept

if TYPE_CHECKING:
    from llamaherd_gateway.relay.exchange import Exchange


class Keeping:
    """One task, ended by `stop` or by the end of the answer."""

    def __init__(self, exchange: "Exchange", turn: TurnKept) -> None:
        self._exchange, self._turn = exchange, turn
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """The exchange has ended otherwise."""
        if self._task is not asyncio.current_task():
            self._task.cancel()

    async def _run(self) -> None:
        exchange = self._exchange
        try:
            kept = await exchange.relay.conversations.keep(exchange.key_id, self._turn)
            exchange.tell_end(self._turn.at_ns, kept=kept)
        except Exception:
            exchange.relay.log.exception("an answer could not be ended", request=exchange.request_id)
            exchange.answer_problem(Problem(status=500, message="the gateway failed; its log has the details"))

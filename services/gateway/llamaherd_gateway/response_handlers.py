"""OpenAI's routes for responses that were kept."""

from collections.abc import AsyncIterator
from typing import Final

from llamaherd_gateway.conversations import Conversations
from llamaherd_gateway.dialects.dialect import PageRequest, Reply
from llamaherd_gateway.dialects.openai import OPENAI, kept_responses
from llamaherd_gateway.dialects.openai.kept_responses import response_missing
from llamaherd_gateway.handlers import Handler

Body = AsyncIterator[bytes]

_PATH: Final = "/v1/responses/{id}"
_KEPT: Final = "/v1/responses/RESPONSE_ID"


class ResponseHandlers:
    """Whoever knows a response's id, and comes with the key that it was given to, may see and delete it."""

    def __init__(self, conversations: Conversations) -> None:
        self._conversations = conversations

    def table(self) -> tuple[Handler, ...]:
        return (
            Handler(
                method="GET",
                path=_PATH,
                dialect=OPENAI,
                answer=self.show,
                manages=False,
                about="A response that was kept",
                example=_KEPT,
            ),
            Handler(
                method="DELETE",
                path=_PATH,
                dialect=OPENAI,
                answer=self.delete,
                manages=False,
                about="Forget a response; responses that go on from it cannot be gone on from any more",
                example=_KEPT,
            ),
            Handler(
                method="GET",
                path=f"{_PATH}/input_items",
                dialect=OPENAI,
                answer=self.list_input,
                manages=False,
                about="All that a response answers to, earlier turns too; newest first, or `?order=asc`",
                example=f"{_KEPT}/input_items?limit=2",
            ),
            Handler(
                method="POST",
                path=f"{_PATH}/cancel",
                dialect=OPENAI,
                answer=self.cancel,
                manages=False,
                answers=(),
                about="Refused: only responses in the background can be cancelled, and there are none",
                example=f"{_KEPT}/cancel",
                example_status=400,
            ),
        )

    async def show(self, request: PageRequest, body: Body) -> Reply:
        response = request.parameters["id"]
        turn = await self._conversations.turn(request.key, response)
        if turn is None:
            raise response_missing(response)
        return Reply(body=kept_responses.show_response(turn, request.query))

    async def delete(self, request: PageRequest, body: Body) -> Reply:
        response = request.parameters["id"]
        if not await self._conversations.delete(request.key, response):
            raise response_missing(response)
        return Reply(body=kept_responses.show_deleted(response))

    async def list_input(self, request: PageRequest, body: Body) -> Reply:
        turns = await self._conversations.turns(request.key, request.parameters["id"], response_missing)
        return Reply(body=kept_responses.list_input(turns, request.query))

    async def cancel(self, request: PageRequest, body: Body) -> Reply:
        response = request.parameters["id"]
        if await self._conversations.turn(request.key, response) is None:
            raise response_missing(response)
        raise kept_responses.not_in_background()

"""Anthropic's dialect: messages, their tokens, and the list of models (reference: api-dialects, 1.5 and 4)."""

from typing import Final

from llamaherd_gateway.dialects.anthropic.catalog import list_models, show_model
from llamaherd_gateway.dialects.anthropic.problem import ANTHROPIC
from llamaherd_gateway.dialects.anthropic.request import MessagesBody, call_chat, call_count, read_count, read_messages
from llamaherd_gateway.dialects.dialect import EVENTS, JSON, Page, Route

__all__ = ["ANTHROPIC", "PAGES", "ROUTES"]

ROUTES: Final = (
    Route(
        path="/v1/messages",
        dialect=ANTHROPIC,
        read=read_messages,
        call=call_chat,
        shape=MessagesBody,
        needs=("model", "messages", "max_tokens"),
        gives=(JSON, EVENTS),
        about="A message: text, images, tools, thinking; streamed with `stream`",
        example='{"model": "cria", "max_tokens": 32, "messages": [{"role": "user", "content": "Who are you?"}]}',
    ),
    Route(
        path="/v1/messages/count_tokens",
        dialect=ANTHROPIC,
        read=read_count,
        call=call_count,
        shape=MessagesBody,
        needs=("model", "messages"),
        generates=False,
        about="How many tokens the prompt of a message has",
        example='{"model": "cria", "messages": [{"role": "user", "content": "Who are you?"}]}',
    ),
)

PAGES: Final = (
    Page(
        method="GET",
        path="/v1/models",
        dialect=ANTHROPIC,
        answer=list_models,
        about="The models, in Anthropic's shape for clients that send `anthropic-version`",
        example="/v1/models -H 'anthropic-version: 2023-06-01'",
    ),
    Page(
        method="GET",
        path="/v1/models/{model*}",
        dialect=ANTHROPIC,
        answer=show_model,
        about="One model, in Anthropic's shape for clients that send `anthropic-version`",
        example="/v1/models/cria -H 'anthropic-version: 2023-06-01'",
    ),
)
"""To be answered when a request has the header `anthropic-version`: OpenAI's clients use the same paths."""

"""LM Studio's REST API, v1 and v0 (reference: api-dialects, 6.1 to 6.6).

Not here: the routes under /api/v1/models that load, unload and download wait for other services, so the shell calls
their readers and renderers (`residency`, `downloads`) itself.
"""

from typing import Final

from llamaherd_gateway.dialects.dialect import EVENTS, JSON, Page, Route
from llamaherd_gateway.dialects.lmstudio.catalog import list_v0, list_v1, show_v0
from llamaherd_gateway.dialects.lmstudio.chat import MEMORY, ChatRequest, call_chat, read_chat
from llamaherd_gateway.dialects.lmstudio.completions import call_with_figures, read_with_ttl
from llamaherd_gateway.dialects.lmstudio.errors import LMSTUDIO, LMSTUDIO_V0
from llamaherd_gateway.dialects.openai.chat import ChatBody
from llamaherd_gateway.dialects.openai.chat import call_chat as call_openai_chat
from llamaherd_gateway.dialects.openai.chat import read_chat as read_openai_chat
from llamaherd_gateway.dialects.openai.completions import CompletionBody, call_completion, read_completion
from llamaherd_gateway.dialects.openai.embeddings import EmbeddingsBody, call_embeddings, read_embeddings

__all__ = ["LMSTUDIO", "LMSTUDIO_V0", "PAGES", "ROUTES"]

ROUTES: Final = (
    Route(
        path="/api/v1/chat",
        dialect=LMSTUDIO,
        read=read_chat,
        call=call_chat,
        memory=MEMORY,
        shape=ChatRequest,
        needs=("model", "input"),
        gives=(JSON, EVENTS),
        about="LM Studio's chat: one answer, or a stream of events from `chat.start` to `chat.end`",
        example='{"model": "cria", "input": "Who are you?", "max_output_tokens": 8, "stream": true}',
    ),
    Route(
        path="/api/v0/chat/completions",
        dialect=LMSTUDIO_V0,
        read=read_with_ttl(read_openai_chat),
        call=call_with_figures(call_openai_chat),
        shape=ChatBody,
        needs=("model", "messages"),
        gives=(JSON, EVENTS),
        about="OpenAI's chat completion with LM Studio's `stats`, `model_info` and `runtime`",
        example='{"model": "cria", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}',
    ),
    Route(
        path="/api/v0/completions",
        dialect=LMSTUDIO_V0,
        read=read_with_ttl(read_completion),
        call=call_with_figures(call_completion),
        shape=CompletionBody,
        needs=("model", "prompt"),
        gives=(JSON, EVENTS),
        about="OpenAI's text completion with LM Studio's `stats`, `model_info` and `runtime`",
        example='{"model": "cria", "prompt": "Llamas are", "max_tokens": 8}',
    ),
    Route(
        path="/api/v0/embeddings",
        dialect=LMSTUDIO_V0,
        read=read_with_ttl(read_embeddings),
        call=call_embeddings,
        shape=EmbeddingsBody,
        needs=("model", "input"),
        about="OpenAI's embeddings, for a model that was loaded for embedding",
        example='{"model": "embedder", "input": "llamas"}',
    ),
)

PAGES: Final = (
    Page(
        method="GET",
        path="/api/v1/models",
        dialect=LMSTUDIO,
        answer=list_v1,
        about="LM Studio's list of models, with the instances that are in memory",
    ),
    Page(
        method="GET",
        path="/api/v0/models",
        dialect=LMSTUDIO_V0,
        answer=list_v0,
        about="The older list: one `state` for each model",
    ),
    Page(
        method="GET",
        path="/api/v0/models/{id*}",
        dialect=LMSTUDIO_V0,
        answer=show_v0,
        about="One model of the older list; its name may hold slashes",
        example="/api/v0/models/cria",
    ),
)

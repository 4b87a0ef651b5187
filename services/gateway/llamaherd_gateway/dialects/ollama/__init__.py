"""Ollama's API: the routes that need a model, the pages that do not (reference: api-dialects, 5)."""

from typing import Final

from llamaherd_gateway.dialects.dialect import JSON, LINES, Asked, Route, Turn
from llamaherd_gateway.dialects.ollama import backend, embedding
from llamaherd_gateway.dialects.ollama.answer import render_settled
from llamaherd_gateway.dialects.ollama.catalog import OLLAMA_VERSION, PAGES, RUNNING
from llamaherd_gateway.dialects.ollama.error import OLLAMA, OLLAMA_EMBEDDING
from llamaherd_gateway.dialects.ollama.management import (
    PARSING,
    PULLING_MANIFEST,
    REMOVING_UNUSED,
    SUCCESS,
    VERIFYING,
    WRITING_MANIFEST,
    Copy,
    CopyBody,
    Create,
    CreateBody,
    Delete,
    DeleteBody,
    Pull,
    PullBody,
    creating,
    no_source,
    pulling,
    read_copy,
    read_create,
    read_delete,
    read_pull,
    render_progress,
    using,
)
from llamaherd_gateway.dialects.ollama.request import ChatBody, GenerateBody, read_chat, read_generate
from llamaherd_gateway.dialects.ollama.show import ShowBody, read_show, render_show

__all__ = [
    "OLLAMA",
    "OLLAMA_EMBEDDING",
    "OLLAMA_VERSION",
    "PAGES",
    "PARSING",
    "PULLING_MANIFEST",
    "REMOVING_UNUSED",
    "ROUTES",
    "RUNNING",
    "SUCCESS",
    "VERIFYING",
    "WRITING_MANIFEST",
    "Copy",
    "CopyBody",
    "Create",
    "CreateBody",
    "Delete",
    "DeleteBody",
    "Pull",
    "PullBody",
    "ShowBody",
    "creating",
    "no_source",
    "pulling",
    "read_copy",
    "read_create",
    "read_delete",
    "read_pull",
    "read_show",
    "render_progress",
    "render_show",
    "using",
]


def _settle(asked: Asked, turn: Turn) -> bytes:
    return render_settled(asked.content.wanted, asked.action, turn.received_ns + turn.load_ns)


ROUTES: Final = (
    Route(
        path="/api/chat",
        dialect=OLLAMA,
        read=read_chat,
        prepare=backend.prepare,
        call=backend.call,
        settle=_settle,
        shape=ChatBody,
        gives=(JSON, LINES),
        about="A conversation is answered; without messages the model is only loaded or unloaded",
        example='{"model": "cria", "messages": [{"role": "user", "content": "Hello"}], "stream": false}',
    ),
    Route(
        path="/api/generate",
        dialect=OLLAMA,
        read=read_generate,
        prepare=backend.prepare,
        call=backend.call,
        settle=_settle,
        shape=GenerateBody,
        gives=(JSON, LINES),
        about="A prompt is answered, continued (`raw`) or filled (`suffix`)",
        example='{"model": "cria", "prompt": "Hello"}',
    ),
    Route(
        path="/api/embed",
        dialect=OLLAMA_EMBEDDING,
        read=embedding.read_embed,
        prepare=embedding.prepare,
        call=embedding.call,
        settle=embedding.settle,
        shape=embedding.EmbedBody,
        about="Texts become vectors",
        example='{"model": "embedder", "input": ["llamas", "alpacas"]}',
    ),
    Route(
        path="/api/embeddings",
        dialect=OLLAMA_EMBEDDING,
        read=embedding.read_embeddings,
        prepare=embedding.prepare,
        call=embedding.call,
        settle=embedding.settle,
        shape=embedding.EmbeddingsBody,
        about="One text becomes a vector; /api/embed does more",
        example='{"model": "embedder", "prompt": "llamas"}',
    ),
)

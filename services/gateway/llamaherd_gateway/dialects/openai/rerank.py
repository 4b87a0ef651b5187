"""Reranking: llama-server answers in Jina's shape, or in TEI's when asked with `texts`. Passed through."""

from typing import Final

from llamaherd_gateway.dialects.dialect import Route
from llamaherd_gateway.dialects.openai.errors import OPENAI
from llamaherd_gateway.dialects.openai.fields import read_model

ROUTES: Final = tuple(
    Route(
        path=path,
        dialect=OPENAI,
        read=read_model,
        about="Documents sorted by how well they answer a query",
        example='{"model": "reranker", "query": "llamas", "documents": ["a herd of llamas", "Paris"]}',
    )
    for path in ("/v1/rerank", "/v1/reranking", "/rerank", "/reranking")
)

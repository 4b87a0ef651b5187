"""OpenAI's dialect (reference: api-dialects, sections 1.5 and 3).

Chat, completions and embeddings pass through as they are: llama-server speaks the same. Only what it would get
wrong is mended, and only then is anything parsed or written anew.
"""

from typing import Final

from llamaherd_gateway.dialects.dialect import Page, Route
from llamaherd_gateway.dialects.openai import (
    chat,
    completions,
    embeddings,
    listing,
    rerank,
    responses,
    transcriptions,
)
from llamaherd_gateway.dialects.openai.errors import OPENAI, render_problem, render_stream_error
from llamaherd_gateway.dialects.openai.fields import read_model
from llamaherd_gateway.dialects.openai.media import refuse_remote_media
from llamaherd_gateway.dialects.openai.renaming import Renamed

__all__ = [
    "OPENAI",
    "PAGES",
    "ROUTES",
    "Renamed",
    "read_model",
    "refuse_remote_media",
    "render_problem",
    "render_stream_error",
]

ROUTES: Final[tuple[Route, ...]] = (
    *chat.ROUTES,
    *completions.ROUTES,
    *embeddings.ROUTES,
    *responses.ROUTES,
    *transcriptions.ROUTES,
    *rerank.ROUTES,
)
PAGES: Final[tuple[Page, ...]] = listing.PAGES

"""The list of models in OpenAI's shape."""

from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Card, Herd, Page, PageRequest, Reply
from llamaherd_gateway.dialects.openai.errors import OPENAI
from llamaherd_gateway.problems import UnknownModel
from llamaherd_gateway.routing.table import unknown_model_message

_INPUTS: Final = {"vision": "image", "audio": "audio"}
"""Capability -> what llama-server and others call the input."""


def render_card(card: Card) -> dict[str, Any]:
    """One model. OpenAI tells nothing of capabilities: `architecture` is as llama-server has it."""
    inputs = ["text", *(modality for capability, modality in _INPUTS.items() if capability in card.capabilities)]
    return {
        "id": card.name,
        "object": "model",
        "created": card.modified_ns // 1_000_000_000,
        "owned_by": "llamaherd",
        "architecture": {"input_modalities": inputs, "output_modalities": ["text"]},
        "capabilities": sorted(card.capabilities),
    }


def answer_list(request: PageRequest, herd: Herd) -> Reply:
    models = [render_card(card) for card in herd.cards]
    return Reply(body=msgspec.json.encode({"object": "list", "data": models}))


def answer_model(request: PageRequest, herd: Herd) -> Reply:
    """Raises `UnknownModel`."""
    name = request.parameters["id"]
    for card in herd.cards:
        if card.name == name:
            return Reply(body=msgspec.json.encode(render_card(card)))
    raise UnknownModel(unknown_model_message(name, tuple(card.name for card in herd.cards)))


PAGES: Final = (
    Page(
        method="GET",
        path="/v1/models",
        dialect=OPENAI,
        answer=answer_list,
        about="Models that can be asked for, loaded or not, and whether they take images and sounds",
    ),
    Page(
        method="GET",
        path="/v1/models/{id*}",
        dialect=OPENAI,
        answer=answer_model,
        about="One model",
        example="/v1/models/cria",
    ),
)

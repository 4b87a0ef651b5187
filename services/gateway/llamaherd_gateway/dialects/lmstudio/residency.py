"""Bodies of `/api/v1/models/load` and `/api/v1/models/unload` (api-dialects, 6.5)."""

from typing import Annotated, Any, Final

import msgspec

from llamaherd_gateway.bodies import decode_body, model_of
from llamaherd_gateway.dialects.dialect import Card, Herd, Loaded
from llamaherd_gateway.dialects.lmstudio.catalog import OPTIONS, describe_config, in_memory, instance_id, type_v1
from llamaherd_gateway.dialects.lmstudio.fields import refuse_unknown_fields
from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.model_options import LoadOptions

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`None`: the herd's settings decide."""

    model: Any = None
    context_length: AtLeastOne | None = None
    eval_batch_size: AtLeastOne | None = None
    flash_attention: bool | None = None
    num_experts: AtLeastOne | None = None
    offload_kv_cache_to_gpu: bool | None = None
    parallel: AtLeastOne | None = None
    echo_load_config: bool | None = None

    @property
    def options(self) -> LoadOptions | None:
        """What was asked for, by our names; `None`: nothing."""
        said = {ours: value for name, ours in OPTIONS.items() if (value := getattr(self, name)) is not None}
        return LoadOptions(**said) if said else None


class UnloadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instance_id: str | None = None


_LOAD: Final = msgspec.json.Decoder(LoadRequest)
_UNLOAD: Final = msgspec.json.Decoder(UnloadRequest)


def read_load(body: bytes) -> LoadRequest:
    """`model` is a string. Raises `BadRequest`."""
    refuse_unknown_fields(body, LoadRequest)
    request = decode_body(_LOAD, body)
    model_of(request.model)
    return request


def render_loaded(card: Card, loaded: Loaded, request: LoadRequest, *, load_ns: int) -> bytes:
    """The answer once `loaded` is ready."""
    content: dict[str, Any] = {
        "type": type_v1(card),
        "instance_id": instance_id(card, loaded),
        "load_time_seconds": load_ns / 1e9,
        "status": "loaded",
    }
    if request.echo_load_config:
        content["load_config"] = describe_config(card, loaded)
    return msgspec.json.encode(content)


def read_unload(body: bytes) -> str:
    """The instance's id. Raises `BadRequest`."""
    refuse_unknown_fields(body, UnloadRequest)
    wanted = decode_body(_UNLOAD, body).instance_id
    if not wanted:
        raise BadRequest("`instance_id` is required", code="missing_required_parameter", param="instance_id")
    return wanted


def find_instances(herd: Herd, wanted: str) -> tuple[str, tuple[Loaded, ...]]:
    """Model and instances that an `instance_id` means: one by its own name, all of a model by the model's or an alias.

    Raises `BadRequest` (404) when nothing of that name is in memory.
    """
    for card in herd.cards:
        instances = in_memory(card)
        found = [loaded for loaded in instances if loaded.name == wanted]
        if wanted in (card.name, card.model):
            found = instances
        if found:
            return card.model, tuple(found)
    held = sorted({instance_id(card, loaded) for card in herd.cards for loaded in in_memory(card)})
    text = f"no instance {wanted!r} is loaded; " + (f"loaded: {', '.join(held)}" if held else "nothing is")
    raise BadRequest(text, status=404, code="model_not_found", param="instance_id")


def render_unloaded(wanted: str) -> bytes:
    return msgspec.json.encode({"instance_id": wanted})

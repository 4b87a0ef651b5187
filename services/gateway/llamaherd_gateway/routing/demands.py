"""What a request needs its model to be loaded with."""

from llamaherd_gateway.dialects.ollama.options import load_options
from llamaherd_gateway.projection import Alias
from llamaherd_shared.model_options import LoadOptions, overlay
from llamaherd_shared.model_spec import ModelSpec, within


def demand(
    asked: LoadOptions | None, alias: Alias | None, spec: ModelSpec, *, training_tokens: int
) -> LoadOptions | None:
    """What the request says, on top of what its alias brings; `None`: any instance will do.

    `training_tokens`: the longest context that makes sense; 0: not known.
    """
    if alias is not None and (brought := load_options(alias.options)) is not None:
        asked = brought if asked is None else overlay(brought, asked)
    if asked is None or not spec.client_options or spec.command:
        return None
    return within(asked, spec, training_tokens=training_tokens)

"""What a llama-server can be told: of whom it is asked, and which part of the answer is wanted."""

import difflib

import msgspec

from llamaherd_shared.commands import Parameter, ParameterCategory, Parameters
from llamaherd_shared.errors import NotFound, Unavailable
from llamaherd_ui.projection import Entities, Node, select


def pick_teller(entities: Entities, node: str | None) -> str:
    """The node whose llama-server is asked: the one that is named, else the first that has one. Raises why none is."""
    alive = [host for host in select(entities, Node) if host.left_ns is None]
    names = [host.node for host in alive]
    if node is not None and node not in names:
        raise NotFound(f"there is no node {node}; there are: {', '.join(names) or 'none'}")
    if not alive:
        raise Unavailable("no supervisor is running: start one with `llamaherd up`", retry_after_s=2)
    return node or next((host.node for host in alive if host.llama_server), names[0])


def select_parameters(told: Parameters, *, category: str | None, search: str | None) -> Parameters:
    """Those of one category, with all of some words in any of what is told of them. `None`, or no word: all.

    Raises `NotFound` for a category that there is not.
    """
    categories = told.categories
    if category:
        names = [each.name for each in categories]
        if category not in names:
            raise NotFound(_unknown_category(category, names))
        categories = [each for each in categories if each.name == category]
    words = _normal(search or "").split()
    found = [_matching(each, words) for each in categories]
    return msgspec.structs.replace(told, categories=[each for each in found if each.parameters])


def _unknown_category(category: str, names: list[str]) -> str:
    close = difflib.get_close_matches(category.lower(), names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"llama-server has no category {category} of parameters{hint}; it has {', '.join(names)}"


def _matching(category: ParameterCategory, words: list[str]) -> ParameterCategory:
    parameters = [each for each in category.parameters if all(word in _text(each) for word in words)]
    return ParameterCategory(name=category.name, parameters=parameters)


def _text(parameter: Parameter) -> str:
    fields = (*parameter.flags, *parameter.off, parameter.option, parameter.variable, parameter.description)
    return _normal("\n".join(fields))


def _normal(text: str) -> str:
    """`ctx_size`, `CTX-SIZE` and `ctx-size` are one word."""
    return text.lower().replace("_", "-")

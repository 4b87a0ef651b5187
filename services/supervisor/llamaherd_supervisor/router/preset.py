"""The file that tells a router which models there are and how to start each (`--models-preset`, an INI file). Pure.

Not `--models-dir`: with that, llama-server names models its own way, looks one folder deep, and starts all alike.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

from llamaherd_shared.model_options import render_words
from llamaherd_supervisor.launching import Plan

_COMMENT: Final = ";#"
"""They end a value wherever they stand, and nothing takes that from them."""
_RESERVED: Final = frozenset({"*", "default"})
"""Sections that are no models."""


def find_obstacle(model: str, plan: Plan) -> str:
    """Why a router cannot serve this model like that, as the end of a sentence; empty when it can."""
    for name in ("command", "args", "env"):
        if getattr(plan, name):
            return f"`{name}` is for a process of its own"
    # What stands behind a colon is taken for a quantization, and written in capitals.
    if model in _RESERVED or model != model.strip() or any(sign in model for sign in ":]\n\r"):
        return "its name cannot stand in a preset"
    for name, value in _options(plan).items():
        if value != value.strip() or any(sign in value for sign in (*_COMMENT, "\n", "\r")):
            return f"`{name}` cannot be written into a preset: {value}"
    return ""


def render_preset(plans: Mapping[str, Plan], *, stop_timeout_s: float) -> str:
    """`plans` by model; none of them has an obstacle. The router gives a process that is to end a second more than we
    do."""
    sections = [_section("*", {"stop-timeout": str(math.ceil(stop_timeout_s) + 1)})]
    return "\n".join(sections + [_section(model, _options(plan)) for model, plan in sorted(plans.items())])


def _section(name: str, options: Mapping[str, str]) -> str:
    return "".join([f"[{name}]\n", *(f"{option} = {value}\n" for option, value in options.items())])


def _options(plan: Plan) -> dict[str, str]:
    """llama-server's words without their dashes -> their values."""
    return {"model": plan.path, **dict(_pairs(render_words(plan.options, architecture=plan.architecture)))}


def _pairs(words: Iterable[str]) -> Iterable[tuple[str, str]]:
    """A word that is followed by another flag, or by nothing, is switched on by itself."""
    flag = ""
    for word in words:
        if word.startswith("--"):
            if flag:
                yield flag, "true"
            flag = word[2:]
        else:
            yield flag, word
            flag = ""
    if flag:
        yield flag, "true"

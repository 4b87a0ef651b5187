"""What a model can be asked for, told from the key-values of its file and the text of its chat template.

llama-server would tell more exactly, but only once the model is loaded (`GET /props`). The template is not run: it is
a program of somebody else, and its words tell enough.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

POOLED: Final = frozenset({1, 2, 3})
"""Mean, first token, last token (`enum llama_pooling_type`): made for embeddings; 0 is none."""
_RANKING: Final = 4
"""A head that scores pairs of texts."""

_TEMPLATE: Final = "tokenizer.chat_template"
"""Further templates have this and a dot before their name, e.g. `tokenizer.chat_template.tool_use`."""
_JINJA: Final = re.compile(r"\{%(?:(?!\{%).)*?%\}|\{\{(?:(?!\{\{).)*?\}\}", re.DOTALL)
"""What is code in a template; all else is text it writes. No code holds a second beginning: so it stays linear."""
_LITERAL: Final = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
_TOOLS: Final = re.compile(r"\b(?:\w+_)?tools\b")
_THINKING: Final = re.compile(
    r"\b(?:enable_thinking|thinking_mode|reasoning_effort|reasoning_content|thinking_budget)\b"
    r"|</?(?:seed:)?(?:think|thinking|thought|reasoning)>|\[/?THINK\]|<\|(?:START|END)_THINKING\|>|<\|channel\|>"
)
_FILLING: Final = (
    ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"),
    ("prefix_token_id", "suffix_token_id", "middle_token_id"),
)
"""Keys behind `tokenizer.ggml.` that name the tokens around a hole; the second set is the older one."""


def find_capabilities(pairs: Mapping[str, Any], architecture: str) -> list[str]:
    """Capabilities of a file with these key-values, in a fixed order.

    `rerank` is ours; the other names are Ollama's.
    """
    pooling = pairs.get(f"{architecture}.pooling_type")
    generates = pooling not in (*POOLED, _RANKING) and pairs.get(f"{architecture}.attention.causal") is not False
    templates = "\n".join(str(value) for key, value in pairs.items() if _is_template(key) and value)
    found = {
        "completion": generates,
        "embedding": pooling in POOLED,
        "rerank": pooling == _RANKING,
        "tools": generates and knows_tools(templates),
        "thinking": generates and knows_thinking(templates),
        "insert": generates and any(_has_all(pairs, names) for names in _FILLING),
        "vision": _counts(pairs, f"{architecture}.vision.block_count"),
        "audio": _counts(pairs, f"{architecture}.audio.block_count"),
    }
    return [name for name, there in found.items() if there]


def find_senses(pairs: Mapping[str, Any]) -> list[str]:
    """What a projector with these key-values adds to its model's capabilities, in their order."""
    found = {"vision": pairs.get("clip.has_vision_encoder"), "audio": pairs.get("clip.has_audio_encoder")}
    return [name for name, there in found.items() if there is True]


def knows_tools(template: str) -> bool:
    """Whether the template's code looks at `tools`, or a kind of them (`xml_tools`)."""
    return any(_TOOLS.search(_LITERAL.sub("''", code[0])) for code in _JINJA.finditer(template))


def knows_thinking(template: str) -> bool:
    """Whether the template can be told to let the model think, or writes the marks around thoughts."""
    return _THINKING.search(template) is not None


def _is_template(key: str) -> bool:
    return key == _TEMPLATE or key.startswith(_TEMPLATE + ".")


def _has_all(pairs: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return all(isinstance(pairs.get(f"tokenizer.ggml.{name}"), int) for name in names)


def _counts(pairs: Mapping[str, Any], key: str) -> bool:
    value = pairs.get(key)
    return isinstance(value, int) and value > 0

"""What a model can do, told from its key-values and template."""

from typing import Any

import pytest

from llamaherd_supervisor.capabilities import find_capabilities, knows_thinking, knows_tools

TEMPLATE = "tokenizer.chat_template"
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
TOOLS = "{%- if tools %}{{ tools | tojson }}{%- endif %}" + PLAIN
FIM = {f"tokenizer.ggml.fim_{part}_token_id": number for number, part in enumerate(("pre", "suf", "mid"))}
OLD_FIM = {f"tokenizer.ggml.{part}_token_id": number for number, part in enumerate(("prefix", "suffix", "middle"))}


@pytest.mark.parametrize(
    ("pairs", "capabilities"),
    [
        ({}, ["completion"]),
        ({TEMPLATE: PLAIN}, ["completion"]),
        ({TEMPLATE: TOOLS}, ["completion", "tools"]),
        ({TEMPLATE: PLAIN, f"{TEMPLATE}.tool_use": TOOLS}, ["completion", "tools"]),
        ({TEMPLATE: TOOLS + "{% if enable_thinking %}<think>{% endif %}"}, ["completion", "tools", "thinking"]),
        (FIM, ["completion", "insert"]),
        (OLD_FIM, ["completion", "insert"]),
        (dict(list(FIM.items())[:2]), ["completion"]),
        ({"llama.pooling_type": 0}, ["completion"]),
        ({"llama.pooling_type": 1}, ["embedding"]),
        ({"llama.pooling_type": 3, TEMPLATE: TOOLS, **FIM}, ["embedding"]),
        ({"llama.pooling_type": 4}, ["rerank"]),
        ({"llama.attention.causal": False}, []),
        ({"llama.vision.block_count": 27}, ["completion", "vision"]),
        ({"llama.audio.block_count": 12, "llama.vision.block_count": 0}, ["completion", "audio"]),
        ({"bert.pooling_type": 1}, ["completion"]),
        ({TEMPLATE: None, "llama.pooling_type": "1", "llama.vision.block_count": None}, ["completion"]),
    ],
)
def test_capabilities_follow_from_the_file(pairs: dict[str, Any], capabilities: list[str]) -> None:
    assert find_capabilities(pairs, "llama") == capabilities


@pytest.mark.parametrize(
    ("template", "knows"),
    [
        ("{% if tools is not none %}{% endif %}", True),
        ("{%- for tool in xml_tools %}{% endfor %}", True),
        ("{{ builtin_tools | join }}", True),
        ("You have tools. {{ content }}", False),
        ("{{ 'You have no tools' }}", False),
        ('{{ "it\'s for tools" }}', False),
        ("{% set x = {'a': {'b': 1}} %}{{ tools }}", True),
        ("{{ tools", False),
        ("", False),
    ],
)
def test_only_what_the_template_looks_at_counts_as_tools(template: str, knows: bool) -> None:
    assert knows_tools(template) is knows


@pytest.mark.parametrize(
    ("template", "knows"),
    [
        ("{% if enable_thinking %}{% endif %}", True),
        ("{{ '<think>\n' }}", True),
        ("{{ message.reasoning_content }}", True),
        ("<|channel|>analysis", True),
        ("[THINK]", True),
        ("{{ 'think about it' }}", False),
    ],
)
def test_thinking_is_told_by_its_switch_or_its_marks(template: str, knows: bool) -> None:
    assert knows_thinking(template) is knows


def test_template_made_to_be_slow_is_read_in_no_time() -> None:
    assert not knows_tools("{{" * 50_000)
    assert not knows_tools("{% '" * 50_000)
    assert not knows_tools("{{ '" + "\\" * 50_000)

"""A GGUF that makes the real llama-server say given texts: thoughts, tool calls and fillings on command.

Every token leads to exactly one next token: embeddings are one-hot, attention and feed-forward are zero, and the
output matrix says what follows. So what is said depends only on the last token of the prompt, its cue. The chat
template, which knows `tools` and `<think>`, ends the prompt with a cue chosen by the last message:

- `weather` in it, and tools given: a call of `get_weather`; `twice`: two of them
- `think`: a thought, then an answer
- `json`: an object
- anything else: `Hello there, friend.`

`python tests/harness/scripted_gguf.py FILE` writes one.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'

SAID = {
    "hello": "Hello there, friend.",
    "call": CALL % "Paris",
    "calls": CALL % "Paris" + "\n" + CALL % "Oslo",
    "thought": "<think>\nTwo and two are four.\n</think>\n\nIt is 4.",
    "object": '{"city": "Rome", "inhabitants": 2800000}',
    "filling": "    return a + b",
}
"""Cue -> text."""

TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- 'Tools, one in a line:\\n' }}
{%- for tool in tools %}{{- (tool | tojson) + '\\n' }}{%- endfor %}
{{- 'To call: <tool_call>{"name": NAME, "arguments": OBJECT}</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}
{%- if message.content %}{{- message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{%- if not loop.first or message.content %}{{- '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{%- if call.function.arguments is string %}{{- call.function.arguments }}
{%- else %}{{- call.function.arguments | tojson }}{%- endif %}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
{{- '\\n</tool_response><|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- set said = messages[-1].content or '' %}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- if tools and messages[-1].role == 'user' and 'weather' in said %}
{%- if 'twice' in said %}{{- '<|say calls|>' }}{%- else %}{{- '<|say call|>' }}{%- endif %}
{%- elif 'think' in said and not (enable_thinking is defined and enable_thinking is false) %}{{- '<|say thought|>' }}
{%- elif 'json' in said %}{{- '<|say object|>' }}
{%- endif %}
{%- endif %}"""

_UNKNOWN, _BEGIN, _END = 0, 1, 2
_BYTES = range(3, 259)


def write_scripted_gguf(path: Path, *, title: str = "Scripted", context_tokens: int = 1024) -> Path:
    """Write the model; under 2 MB. The same arguments give the same bytes."""
    kind = gguf.TokenType
    tokens = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    kinds = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, *[kind.BYTE] * 256, kind.NORMAL]
    follows: dict[int, int] = {}
    cues: dict[str, int] = {}
    for cue, text in SAID.items():
        cues[cue] = before = len(tokens)
        tokens.append(f"<|say {cue}|>")
        kinds.append(kind.CONTROL)
        for piece in _pieces(text, set(tokens)):
            follows[before] = before = len(tokens)
            tokens.append(piece)
            kinds.append(kind.NORMAL)
        follows[before] = _END
    for fim in ("fim_prefix", "fim_suffix"):
        cues[fim] = len(tokens)
        tokens.append(f"<|{fim}|>")
        kinds.append(kind.CONTROL)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(title)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    width = -(-len(tokens) // 16) * 16
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(width // 16)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(_BEGIN)
    writer.add_eos_token_id(_END)
    writer.add_unk_token_id(_UNKNOWN)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_uint32("tokenizer.ggml.fim_pre_token_id", cues["fim_prefix"])
    writer.add_uint32("tokenizer.ggml.fim_suf_token_id", cues["fim_suffix"])
    writer.add_uint32("tokenizer.ggml.fim_mid_token_id", cues["filling"])
    writer.add_chat_template(TEMPLATE)

    known = np.eye(len(tokens), width, dtype=np.float32)
    said = np.zeros((len(tokens), width), np.float32)
    for token in range(len(tokens)):
        said[follows.get(token, follows[cues["hello"]]), token] = 1
    writer.add_tensor("token_embd.weight", known)
    for part, rows in (("attn_q", width), ("attn_k", 16), ("attn_v", 16), ("ffn_gate", 16), ("ffn_up", 16)):
        writer.add_tensor(f"blk.0.{part}.weight", np.zeros((rows, width), np.float32))
    writer.add_tensor("blk.0.attn_output.weight", np.zeros((width, width), np.float32))
    writer.add_tensor("blk.0.ffn_down.weight", np.zeros((width, 16), np.float32))
    for norm in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(norm, np.ones(width, np.float32))
    writer.add_tensor("output.weight", said)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _pieces(text: str, used: set[str]) -> list[str]:
    """The text in tokens that stand nowhere else, so that each has one successor: as short as that allows."""
    text = text.replace(" ", "\u2581")
    pieces: list[str] = []
    while rest := text[sum(map(len, pieces)) :]:
        size = next((size for size in range(3, len(rest) + 1) if rest[:size] not in used | set(pieces)), 0)
        pieces = [*pieces, rest[:size]] if size else [*pieces[:-1], pieces[-1] + rest]
    return pieces


if __name__ == "__main__":
    print(write_scripted_gguf(Path(sys.argv[1])))

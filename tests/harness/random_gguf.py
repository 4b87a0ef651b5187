"""A small Llama GGUF with random weights that the real llama-server loads, and spoilt copies of it.

Its tokenizer is SentencePiece-like: three control tokens, the 256 bytes and a space, so any text tokenizes.
`python tests/harness/random_gguf.py FILE` writes one.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write_random_gguf(
    path: Path,
    *,
    seed: int = 1,
    title: str = "Random",
    layers: int = 2,
    width: int = 64,
    context_tokens: int = 512,
    kv_heads: int | None = None,
    chat: bool = True,
    pooling: gguf.PoolingType | None = None,
    tensors_per_file: int = 0,
) -> Path:
    """Write the model; about 0.4 MB with the default sizes. The same arguments give the same bytes.

    With `tensors_per_file` it is split (`write_split_gguf`).
    """
    random = np.random.default_rng(seed)
    heads, feed_forward = width // 16, width * 2
    kv_width = width if kv_heads is None else kv_heads * 16
    tokens = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256)), "\u2581".encode()]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL]

    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tensors_per_file)
    writer.add_name(title)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_width // 16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    if chat:
        writer.add_chat_template(CHAT_TEMPLATE)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.2, shape).astype(np.float32))

    def add_ones(name: str) -> None:
        writer.add_tensor(name, np.ones(width, np.float32))

    add("token_embd.weight", len(tokens), width)
    for layer in range(layers):
        add_ones(f"blk.{layer}.attn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", kv_width if part in ("attn_k", "attn_v") else width, width)
        add_ones(f"blk.{layer}.ffn_norm.weight")
        add(f"blk.{layer}.ffn_gate.weight", feed_forward, width)
        add(f"blk.{layer}.ffn_up.weight", feed_forward, width)
        add(f"blk.{layer}.ffn_down.weight", width, feed_forward)
    add_ones("output_norm.weight")
    add("output.weight", len(tokens), width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_split_gguf(folder: Path, name: str) -> list[Path]:
    """A model in three files, its first one first; 12 tensors."""
    write_random_gguf(folder / f"{name}.gguf", layers=1, width=16, tensors_per_file=4)
    return [folder / f"{name}-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def write_truncated_gguf(path: Path, *, keep_bytes: int | None = None) -> Path:
    """A model whose end is missing, as after an interrupted download: by default the last quarter."""
    write_random_gguf(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size * 3 // 4 if keep_bytes is None else keep_bytes)
    return path


def write_garbage(path: Path, *, size_bytes: int = 4096, seed: int = 1) -> Path:
    """Random bytes under a `.gguf` name: the magic is wrong."""
    path.write_bytes(np.random.default_rng(seed).bytes(size_bytes))
    return path


def write_garbage_gguf(path: Path, *, seed: int = 1) -> Path:
    """The right magic and version, then random bytes: counts and lengths make no sense."""
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + np.random.default_rng(seed).bytes(4096))
    return path


def write_unloadable_gguf(path: Path) -> Path:
    """A well-formed file that llama-server refuses: an architecture that does not exist."""
    writer = gguf.GGUFWriter(path, "alpaca_that_is_not")
    writer.add_name("Unloadable")
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


if __name__ == "__main__":
    print(write_random_gguf(Path(sys.argv[1])))

"""Dimensions of a model, from the tables of its files."""

from pathlib import Path
from typing import Any

from harness.random_gguf import write_random_gguf
from llamaherd_supervisor.gguf_file import Tensor, read_tables
from llamaherd_supervisor.shape import SHORT_ITEMS, Shape, shape_of

F32 = 0


def shape(architecture: str = "llama", *tensors: Tensor, **said: Any) -> Shape:
    """Of a model with these keys behind its architecture's name; `__` stands for a dot."""
    pairs = {f"{architecture}.{name.replace('__', '.')}": value for name, value in said.items()}
    return shape_of([({"general.architecture": architecture, **pairs}, tensors)], file_bytes=0)


def test_random_model_is_weighed_by_layers_input_and_output(tmp_path: Path) -> None:
    path = write_random_gguf(tmp_path / "m.gguf", layers=2, width=64)
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        found = shape_of([read_tables(file, size_bytes=size_bytes, max_items=SHORT_ITEMS)], file_bytes=size_bytes)

    layer_bytes = 4 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)
    assert found.layer_bytes == (layer_bytes, layer_bytes)
    assert (found.input_bytes, found.output_bytes, found.tied) == (4 * 260 * 64, 4 * (260 * 64 + 64), False)
    assert (found.layers, found.heads, found.kv_heads, found.key_length) == (2, 4, (4, 4), 16)
    assert (found.embedding_length, found.feed_forward_length, found.vocabulary) == (64, 128, 260)
    assert (found.context_tokens, found.file_bytes, found.window) == (512, size_bytes, 0)


def test_all_files_of_a_split_model_count() -> None:
    pairs = {"general.architecture": "llama", "llama.block_count": 2}
    first, second = Tensor("blk.0.a", (8,), F32, 0), Tensor("blk.1.a", (16,), F32, 0)

    assert shape_of([(pairs, [first]), ({}, [second])], file_bytes=0).layer_bytes == (32, 64)


def test_table_of_embeddings_is_the_output_too_where_there_is_no_other() -> None:
    found = shape("llama", Tensor("token_embd.weight", (4, 100), F32, 0), block_count=0)

    assert (found.tied, found.input_bytes, found.vocabulary) == (True, 1600, 100)


def test_tensor_of_an_unknown_type_reaches_to_the_next_one() -> None:
    unknown, known = Tensor("blk.0.a", (8,), 999, 0), Tensor("blk.0.b", (8,), F32, 640)

    assert shape("llama", unknown, known, block_count=1).layer_bytes == (640 + 32,)


def test_heads_may_differ_from_layer_to_layer() -> None:
    found = shape("llama", block_count=3, attention__head_count=[8, 16, 8], attention__head_count_kv=[4, 0, 2])

    assert (found.heads, found.kv_heads) == (16, (4, 0, 2))


def test_layers_without_attention_have_no_cache_but_a_state() -> None:
    hybrid = shape(
        "qwen3next",
        block_count=4,
        embedding_length=64,
        attention__head_count=4,
        attention__head_count_kv=2,
        full_attention_interval=4,
        ssm__inner_size=10,
        ssm__state_size=5,
        ssm__conv_kernel=4,
    )
    rwkv = shape("rwkv7", block_count=2, embedding_length=64, attention__head_count=0, wkv__head_size=64)

    assert (hybrid.kv_heads, hybrid.state_bytes) == ((0, 0, 0, 2), 4 * 4 * (10 * 5 + 3 * (10 + 2 * 5)))
    assert (rwkv.kv_heads, rwkv.state_bytes) == ((0, 0), 4 * 2 * 64 * 66)
    assert shape("bert", block_count=1, attention__head_count=4, attention__causal=False).kv_heads == (0,)


def test_sliding_layers_are_told_by_the_file_or_known_by_the_architecture() -> None:
    by_period = shape("other", block_count=4, attention__sliding_window=8, attention__sliding_window_pattern=2)
    by_layer = shape("other", block_count=4, attention__sliding_window=8, attention__sliding_window_pattern=[1, 1, 0])
    known = shape("gemma3", block_count=7, attention__sliding_window=8)
    unknown = shape("other", block_count=2, attention__sliding_window=8)
    without = shape("gemma3", block_count=2)

    assert by_period.sliding == (True, False, True, False)
    assert by_layer.sliding == (True, True, False, True)
    assert known.sliding == (True, True, True, True, True, False, True)
    assert unknown.sliding == without.sliding == (False, False)


def test_experts_count_as_far_as_they_work_together() -> None:
    found = shape(
        "qwen3moe", block_count=1, feed_forward_length=100, expert_feed_forward_length=30, expert_used_count=8
    )

    assert found.feed_forward_length == 240

"""What a load will need: the arithmetic, and what it is made of where memory is short."""

import msgspec

from llamaherd_shared.model_options import ModelOptions
from llamaherd_supervisor.budget import RAM
from llamaherd_supervisor.estimate import Extra, Place, estimate, learn, measured, of_command, plan_digest, render_need
from llamaherd_supervisor.shape import Shape

MIB = 2**20
GIB = 2**30
TWO_GPUS = Place(room={RAM: 64 * GIB, "gpu0": 8 * GIB, "gpu1": 24 * GIB}, gpus=("gpu0", "gpu1"))
IN_RAM = Place(room={RAM: 64 * GIB})
SHAPE = Shape(
    file_bytes=4400 * MIB,
    layer_bytes=(128 * MIB,) * 32,
    input_bytes=100 * MIB,
    output_bytes=200 * MIB,
    context_tokens=32768,
    embedding_length=4096,
    feed_forward_length=11008,
    vocabulary=32000,
    heads=32,
    kv_heads=(8,) * 32,
    key_length=128,
    value_length=128,
    sliding=(False,) * 32,
)
"""A model of seven billion weights."""


def takes(options: ModelOptions, what: str, *, place: Place = IN_RAM, shape: Shape = SHAPE) -> dict[str, int]:
    """MiB of one part, by device."""
    parts = {part.what: part.takes for part in estimate(shape, options, place).parts}
    return {device: round(count / MIB) for device, count in parts[what].items() if count}


def test_sum_is_told_in_words() -> None:
    found = estimate(SHAPE, ModelOptions(context_tokens=2048, slots=4), IN_RAM)

    assert found.render(RAM) == (
        "model 4.3 GiB + KV 1.0 GiB (4 x 2048 tokens, f16) + compute 107 MiB + llama-server 30 MiB"
    )
    assert found.needs[RAM] == sum(part.takes[RAM] for part in found.parts)
    assert found.context_tokens is None


def test_cache_grows_with_context_and_slots_that_do_not_share_it() -> None:
    assert takes(ModelOptions(context_tokens=8192), "KV") == {RAM: 1024}
    assert takes(ModelOptions(context_tokens=8192, slots=4), "KV") == {RAM: 4096}
    assert takes(ModelOptions(), "KV") == {RAM: 4096}
    assert takes(ModelOptions(slots=2), "KV") == {RAM: 4096}
    assert takes(ModelOptions(context_tokens=1), "KV") == {RAM: 32}


def test_cache_shrinks_with_its_type() -> None:
    assert takes(ModelOptions(context_tokens=8192, cache_type_k="q8_0"), "KV") == {RAM: 784}
    assert takes(ModelOptions(context_tokens=8192, cache_type_k="q8_0", cache_type_v="q8_0"), "KV") == {RAM: 544}


def test_sliding_layers_keep_their_window_only() -> None:
    half = msgspec.structs.replace(SHAPE, window=1024, sliding=(True, False) * 16)

    # Four slots that share a cache need four windows, and room for one batch.
    assert takes(ModelOptions(context_tokens=32768), "KV", shape=half) == {RAM: 2048 + 16 * 4608 // 256}
    assert takes(ModelOptions(context_tokens=1024), "KV", shape=half) == {RAM: 128}


def test_without_flash_attention_all_scores_exist_at_once() -> None:
    flash = takes(ModelOptions(context_tokens=8192), "compute")[RAM]
    plain = takes(ModelOptions(context_tokens=8192, flash_attention=False), "compute")[RAM]

    assert plain - flash == 512 * 8192 * (4 * 33 - 2) // MIB
    assert takes(ModelOptions(context_tokens=8192, ubatch_tokens=2048), "compute")[RAM] == 450


def test_all_layers_go_to_gpus_in_proportion_to_their_room() -> None:
    options = ModelOptions(context_tokens=8192)

    # The table of embeddings and the file's head stay.
    assert takes(options, "model", place=TWO_GPUS) == {"gpu0": 1074, "gpu1": 3222, RAM: 104}
    assert takes(options, "KV", place=TWO_GPUS) == {"gpu0": 256, "gpu1": 768}


def test_split_is_as_it_was_asked_for() -> None:
    tenth = ModelOptions(context_tokens=8192, tensor_split=(1.0, 9.0))
    one = ModelOptions(context_tokens=8192, split_mode="none", main_gpu=1)
    some = ModelOptions(context_tokens=8192, gpu_layers=16, split_mode="none")
    none = ModelOptions(context_tokens=8192, gpu_layers=0)

    assert takes(tenth, "KV", place=TWO_GPUS) == {"gpu0": 102, "gpu1": 922}
    assert takes(one, "model", place=TWO_GPUS) == {"gpu1": 4296, RAM: 104}
    assert takes(some, "model", place=TWO_GPUS) == {"gpu0": 2048, RAM: 2352}
    assert takes(none, "llama-server", place=TWO_GPUS) == takes(none, "llama-server")


def test_table_of_embeddings_is_copied_to_the_gpu_where_it_is_the_output() -> None:
    tied = msgspec.structs.replace(SHAPE, tied=True)
    place = Place(room={RAM: 64 * GIB, "gpu0": 24 * GIB}, gpus=("gpu0",))

    assert takes(ModelOptions(context_tokens=512), "model", place=place, shape=tied) == {"gpu0": 4396, RAM: 104}


def test_cache_stays_in_ram_where_that_was_asked_for() -> None:
    assert takes(ModelOptions(context_tokens=8192, kv_offload=False), "KV", place=TWO_GPUS) == {RAM: 1024}


def test_projector_adapters_and_draft_model_count() -> None:
    small = msgspec.structs.replace(SHAPE, file_bytes=100 * MIB, layer_bytes=(), kv_heads=(), sliding=())
    extra = Extra(projector_bytes=800 * MIB, adapter_bytes=50 * MIB, draft=small)

    plain = estimate(SHAPE, ModelOptions(context_tokens=512), IN_RAM).needs[RAM]
    whole = estimate(SHAPE, ModelOptions(context_tokens=512), IN_RAM, extra).needs[RAM]

    assert whole - plain >= (800 + 50 + 100) * MIB


def test_context_that_nobody_asked_for_shrinks_to_what_fits() -> None:
    tight = Place(room={RAM: 6 * GIB})

    found = estimate(SHAPE, ModelOptions(), tight)
    one_more = msgspec.structs.replace(ModelOptions(), context_tokens=(found.context_tokens or 0) + 256)

    assert found.context_tokens == 12544
    assert found.needs[RAM] <= 6 * GIB < estimate(SHAPE, one_more, tight).needs[RAM]


def test_what_cannot_fit_is_told_as_it_was_asked_for() -> None:
    tiny = Place(room={RAM: 1 * GIB})

    assert estimate(SHAPE, ModelOptions(), tiny) == estimate(SHAPE, ModelOptions(), IN_RAM)
    asked = estimate(SHAPE, ModelOptions(context_tokens=8192), tiny)
    assert render_need("m", asked, tiny.room) == (
        "m needs 5.4 GiB of RAM (model 4.3 GiB + KV 1.0 GiB (8192 tokens, f16) + compute 113 MiB"
        " + llama-server 30 MiB), and 1.0 GiB are free"
    )


def test_gpu_that_is_too_small_gets_a_shorter_context_and_then_fewer_layers() -> None:
    roomy = Place(room={RAM: 64 * GIB, "gpu0": 7 * GIB}, gpus=("gpu0",))
    small = Place(room={RAM: 64 * GIB, "gpu0": 3 * GIB}, gpus=("gpu0",))

    shorter, fewer = estimate(SHAPE, ModelOptions(), roomy), estimate(SHAPE, ModelOptions(), small)

    assert 4096 < (shorter.context_tokens or 0) < 32768
    assert shorter.needs["gpu0"] <= 7 * GIB
    assert fewer.context_tokens == 4096
    assert 2 * GIB < fewer.needs["gpu0"] <= 3 * GIB
    assert fewer.needs[RAM] > 2 * GIB


def test_model_that_was_measured_needs_what_it_used() -> None:
    assert measured({RAM: 5 * GIB}).render(RAM) == "as measured before 5.0 GiB"
    assert of_command(GIB).needs == {RAM: GIB + 256 * MIB}


def test_growth_is_learned_up_to_what_the_arithmetic_says() -> None:
    formula = {RAM: 100, "gpu0": 50}

    assert learn({RAM: 60}, {RAM: 80}, formula) == {RAM: 80}
    assert learn({RAM: 60}, {RAM: 500}, formula) == {RAM: 100}
    assert learn({RAM: 120}, {RAM: 500}, formula) == {RAM: 120}
    assert learn({"gpu0": 40}, {RAM: 10, "gpu0": 60}, formula) == {RAM: 10, "gpu0": 50}


def test_plans_are_told_apart_by_all_their_parts() -> None:
    digest = plan_digest("m.gguf", 1, {"a": 1, "b": 2})

    assert digest == plan_digest("m.gguf", 1, {"b": 2, "a": 1})
    assert len({digest, plan_digest("m.gguf", 2, {"a": 1, "b": 2}), plan_digest("m.gguf", 1, {"a": 1})}) == 3

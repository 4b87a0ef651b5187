"""Options of llama-server by their names, and as its words."""

import msgspec
import pytest

from llamaherd_shared.model_options import (
    FLAGS,
    Adapter,
    LoadOptions,
    ModelOptions,
    find_conflict,
    overlay,
    render_words,
    satisfies,
)


def test_every_option_has_its_words() -> None:
    assert set(FLAGS) == set(ModelOptions.__struct_fields__)


def test_no_word_means_two_options() -> None:
    words = [word for flag in FLAGS.values() for word in (*flag.on, *flag.off)]

    assert len(words) == len(set(words))


def test_nothing_is_written_of_what_nothing_was_said() -> None:
    assert render_words(ModelOptions()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ModelOptions(context_tokens=2048), "--ctx-size 2048"),
        (ModelOptions(context_tokens=2048, slots=4), "--ctx-size 8192 --parallel 4"),
        (ModelOptions(gpu_layers="all", main_gpu=0), "--n-gpu-layers all --main-gpu 0"),
        (ModelOptions(flash_attention=True), "--flash-attn on"),
        (ModelOptions(flash_attention=False), "--flash-attn off"),
        (ModelOptions(flash_attention="auto"), "--flash-attn auto"),
        (ModelOptions(kv_offload=True, jinja=False), "--kv-offload --no-jinja"),
        (ModelOptions(kv_offload=False, embeddings=True), "--no-kv-offload --embedding"),
        (ModelOptions(embeddings=False, reranking=False), ""),
        (ModelOptions(rope_freq_base=1234567.0, rope_scale=1.5), "--rope-scale 1.5 --rope-freq-base 1234567"),
        (ModelOptions(tensor_split=(3, 1.5)), "--tensor-split 3,1.5"),
        (ModelOptions(lora=("/a", Adapter(path="/b", scale=0.5))), "--lora-scaled /a:1,/b:0.5"),
        (ModelOptions(lora=()), ""),
        (ModelOptions(mmproj="/p.gguf"), "--mmproj /p.gguf"),
        (ModelOptions(mmproj="none"), ""),
        (ModelOptions(chat_template="chatml"), "--chat-template chatml"),
        (ModelOptions(chat_template="/own.txt"), "--chat-template-file /own.txt"),
        (ModelOptions(chat_template="own.jinja"), "--chat-template-file own.jinja"),
        (ModelOptions(override_kv=("a=int:1", "b=int:2")), "--override-kv a=int:1,b=int:2"),
        (ModelOptions(override_kv=("a=int:1",), experts=2), "--override-kv a=int:1,mixtral.expert_used_count=int:2"),
    ],
)
def test_options_are_written_in_llama_servers_words(options: ModelOptions, words: str) -> None:
    assert " ".join(render_words(options, architecture="mixtral")) == words


@pytest.mark.parametrize("word", ["-c", "--ctx-size", "--ctx_size", "--ctx-size=5"])
def test_a_word_with_a_name_of_its_own_is_found(word: str) -> None:
    conflict = find_conflict(word)

    assert conflict is not None
    assert conflict[1] == "context_tokens"


def test_words_that_are_the_supervisors_are_found_and_others_are_not() -> None:
    assert find_conflict("--port") == ("--port", None)
    assert find_conflict("--api_key") == ("--api-key", None)
    for word in ("--keep", "64", "-1", "c", "ctx-size", ""):
        assert find_conflict(word) is None


def test_what_is_said_above_counts_and_the_rest_stays() -> None:
    below = ModelOptions(context_tokens=1, slots=2, mmproj="none")

    assert overlay(below, LoadOptions(context_tokens=5, kv_offload=False)) == ModelOptions(
        context_tokens=5, slots=2, kv_offload=False, mmproj="none"
    )
    assert overlay(below, LoadOptions()) == below


@pytest.mark.parametrize(
    ("asked", "enough"),
    [
        (LoadOptions(), True),
        (LoadOptions(context_tokens=4096), True),
        (LoadOptions(context_tokens=8192), True),
        (LoadOptions(context_tokens=8193), False),
        (LoadOptions(slots=2), True),
        (LoadOptions(slots=5), False),
        (LoadOptions(flash_attention=True, slots=4), True),
        (LoadOptions(flash_attention=False), False),
        (LoadOptions(threads=2), False),
    ],
)
def test_what_runs_is_enough_or_not(asked: LoadOptions, enough: bool) -> None:
    running = {"context_tokens": 8192, "flash_attention": True}

    assert satisfies(asked, running, context_tokens=4096, slots=4) is enough


def test_what_was_told_is_enough_when_llama_server_gave_less() -> None:
    """It cuts a context to what the model was trained with: asking again would lead nowhere."""
    assert satisfies(LoadOptions(context_tokens=9), {"context_tokens": 9}, context_tokens=5, slots=1)
    assert not satisfies(LoadOptions(context_tokens=9), {}, context_tokens=0, slots=0)


def test_options_travel_as_json_with_what_was_said_only() -> None:
    options = ModelOptions(slots=2, lora=(Adapter(path="/a"),), jinja=False)

    assert options.said == {"slots": 2, "lora": ({"path": "/a", "scale": 1.0},), "jinja": False}
    assert msgspec.json.decode(msgspec.json.encode(options), type=ModelOptions) == options

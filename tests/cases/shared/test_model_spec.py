"""What `models` says about one model: which entries fit, in which order, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.model_spec import BadEntry, ModelSpec, Rules, at_least, read_entry, within
from llamaherd_shared.settings import SettingsError, load_models

FILE = """
models:
  qwen3-*:
    context_tokens: 8192
    args: [--keep, 64, --fit, off]
    env: {HOME_OF: patterns, ONLY: here}
    rules: {default: {temperature: 0.6, top_k: 20}}
  "*-8b":
    slots: 2
    env: {HOME_OF: sizes}
  large: {context_tokens: 32768, slots: 1, ttl_s: 600, aliases: [big]}
  qwen3-8b:
    extends: large
    slots: 3
    aliases: [claude-*]
    rules: {default: {temperature: null}, set: {top_p: 1}}
  "*":
    context_tokens: 4096
    slots: 4
    gpu_layers: all
"""


def spec(tmp_path: Path, model: str, text: str = FILE, environ: dict[str, str] | None = None) -> ModelSpec:
    config = tmp_path / "llamaherd.yaml"
    config.write_text(text)
    return load_models(config=config, environ=environ or {}).spec(model)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        spec(tmp_path, "m", text)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def test_without_a_file_nothing_is_said() -> None:
    assert load_models(config=None, environ={}).spec("m") == ModelSpec()


def test_the_defaults_hold_for_every_model_wherever_they_stand(tmp_path: Path) -> None:
    assert spec(tmp_path, "llama") == ModelSpec(context_tokens=4096, slots=4, gpu_layers="all")


def test_patterns_stand_above_the_defaults_in_their_order(tmp_path: Path) -> None:
    found = spec(tmp_path, "qwen3-14b")
    assert (found.context_tokens, found.slots) == (8192, 4)

    both = spec(tmp_path, "qwen3-4-8b")
    assert (both.context_tokens, both.slots) == (8192, 2)
    assert both.env == {"HOME_OF": "sizes", "ONLY": "here"}


def test_the_entry_of_the_name_itself_stands_above_all(tmp_path: Path) -> None:
    found = spec(tmp_path, "qwen3-8b")

    assert (found.context_tokens, found.slots, found.gpu_layers, found.ttl_s) == (32768, 3, "all", 600)


def test_mappings_are_merged_and_null_takes_back(tmp_path: Path) -> None:
    assert spec(tmp_path, "qwen3-8b").rules == Rules(default={"top_k": 20}, set={"top_p": 1})


def test_lists_are_replaced(tmp_path: Path) -> None:
    text = 'models: {"*": {args: [--keep, 1]}, m: {args: [--no-warmup]}, n: {args: null}}'

    assert spec(tmp_path, "m", text).args == ("--no-warmup",)
    assert spec(tmp_path, "n", text).args == ()


def test_aliases_are_not_inherited(tmp_path: Path) -> None:
    assert spec(tmp_path, "qwen3-8b").aliases == ("claude-*",)
    assert load_models(config=tmp_path / "llamaherd.yaml", environ={}).aliases == {
        "big": "large",
        "claude-*": "qwen3-8b",
    }


def test_words_that_yaml_takes_for_something_else_stay_words(tmp_path: Path) -> None:
    assert spec(tmp_path, "qwen3-14b").args == ("--keep", "64", "--fit", "off")
    text = "models: {m: {command: 'serve --port ${PORT} \"a b\"'}}"
    assert spec(tmp_path, "m", text).command == ("serve", "--port", "${PORT}", "a b")


def test_several_entries_are_extended_the_last_one_counts_most(tmp_path: Path) -> None:
    text = "models: {a: {slots: 1, threads: 1}, b: {extends: a, slots: 2}, m: {extends: [a, b], threads: 3}}"

    found = spec(tmp_path, "m", text)

    assert (found.slots, found.threads) == (2, 3)


def test_the_variable_replaces_what_the_file_says(tmp_path: Path) -> None:
    found = spec(tmp_path, "qwen3-8b", environ={"LLAMAHERD_MODELS": '{"*": {slots: 9}}'})

    assert found == ModelSpec(slots=9)


def test_options_are_those_of_llama_server(tmp_path: Path) -> None:
    assert spec(tmp_path, "qwen3-8b").options.said == {"context_tokens": 32768, "slots": 3, "gpu_layers": "all"}


REFUSED = {
    "models: [m]": "llamaherd.yaml:1:1: `models` must be a mapping",
    "models: {m: 5}": "llamaherd.yaml:1:10: `models.m`: must be a mapping",
    "models:\n  m:\n    contxt: 5": "llamaherd.yaml:3:5: `models.m`: unknown setting `contxt`; known here: aliases,",
    "models:\n  m:\n    slots: 0": "llamaherd.yaml:3:5: setting `models.m.slots`: expected `int` >= 1",
    "models:\n  m:\n    env: {A: 5}": "llamaherd.yaml:3:5: setting `models.m.env`: expected `str`, got `int`",
    "models:\n  m:\n    tensor_split: [1, -1]": "llamaherd.yaml:3:23: setting `models.m.tensor_split.1`: expected",
    "models:\n  m:\n    args: [--keep, 1, -c, 9]": (
        "llamaherd.yaml:3:23: `models.m`: `-c` has a name of its own: set `context_tokens`"
    ),
    "models:\n  m:\n    args:\n      - --port": (
        "llamaherd.yaml:4:9: `models.m`: `--port` is the supervisor's to decide: leave it out"
    ),
    "models:\n  m:\n    args: 'a \"'": "llamaherd.yaml:3:5: `models.m`: `args` cannot be split into words",
    "models:\n  m:\n    env: {LLAMA_API_KEY: a}": (
        "llamaherd.yaml:3:11: `models.m`: the variable LLAMA_API_KEY is the supervisor's to decide"
    ),
    "models:\n  m:\n    env: {LLAMA_ARG_CTX_SIZE: '1'}": (
        "llamaherd.yaml:3:11: `models.m`: LLAMA_ARG_CTX_SIZE is an option of llama-server"
    ),
    "models:\n  m*:\n    aliases: [a]": "llamaherd.yaml:3:5: `models.m*`: `aliases` is about one model",
    "models:\n  m:\n    extends: n": "llamaherd.yaml:3:5: `models.m`: extends 'n', and `models` has no such key",
    "models:\n  m: {extends: n}\n  n: {extends: m}": (
        "llamaherd.yaml:3:7: `models.n`: m extends n extends m: an entry cannot build on itself"
    ),
    "models:\n  m: {aliases: [a]}\n  n: {aliases: [a]}": (
        "llamaherd.yaml:3:7: `models.n`: the alias 'a' belongs to `models.m` already"
    ),
    "models:\n  m: {command: [a], args: [b]}": "llamaherd.yaml:2:21: `models.m`: `args` are llama-server's",
    "models:\n  m: {command: [a], threads: 3}": "llamaherd.yaml:2:21: `models.m`: `threads` is an option of",
    "models:\n  m:\n    repository: gemma": (
        "llamaherd.yaml:3:5: `models.m`: 'gemma' is no repository: write OWNER/NAME, or OWNER/NAME:QUANTIZATION"
    ),
    "models:\n  m*:\n    repository: a/b": "llamaherd.yaml:3:5: `models.m*`: `repository` is about one model",
    "models:\n  m: {path: m.gguf, repository: a/b}": (
        "llamaherd.yaml:2:21: `models.m`: `repository` and `path` both say what is served under this name: leave one"
    ),
    "models:\n  m: {repository: a/b, command: [a]}": "llamaherd.yaml:2:7: `models.m`: `repository` and `command` both",
    "models:\n  a: {path: m.gguf}\n  m: {extends: a, repository: a/b}": (
        "llamaherd.yaml:3:19: `models.m`: `repository` and `path` both say"
    ),
    "models:\n  m: {slots: 1}\n  m: {slots: 2}": "llamaherd.yaml:3:3: `models.m` stands here twice",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).startswith(REFUSED[text])


def test_a_repository_takes_the_place_of_a_path_that_is_taken_back(tmp_path: Path) -> None:
    text = "models: {a: {path: m.gguf}, m: {extends: a, path: null, repository: hf.co/a/b:Q8_0}}"

    assert (spec(tmp_path, "m", text).path, spec(tmp_path, "m", text).repository) == (None, "hf.co/a/b:Q8_0")


def test_a_mistake_in_the_variable_is_told() -> None:
    for text, sentence in (
        ("{m: {slots: 0}}", "environment variable LLAMAHERD_MODELS: setting `models.m.slots`"),
        ("{", "environment variable LLAMAHERD_MODELS: not valid YAML"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            load_models(config=None, environ={"LLAMAHERD_MODELS": text})


def test_any_server_may_have_slots_and_a_context(tmp_path: Path) -> None:
    entry: dict[str, Any] = {"slots": 2, "context_tokens": 512}
    found = spec(tmp_path, "m", "models: {m: {command: [a], slots: 2, context_tokens: 512}}")

    assert {name: getattr(found, name) for name in entry} == entry


def test_no_more_context_than_the_model_was_trained_with_is_asked_for() -> None:
    asked = LoadOptions(context_tokens=10**9, threads=2)

    assert within(asked, ModelSpec(), training_tokens=40960) == LoadOptions(context_tokens=40960, threads=2)
    assert within(asked, ModelSpec(rope_scale=4.0), training_tokens=40960) == asked
    assert within(asked, ModelSpec(), training_tokens=0) == asked
    assert within(LoadOptions(threads=1), ModelSpec(), training_tokens=5) == LoadOptions(threads=1)


def test_a_request_gets_at_least_what_is_configured() -> None:
    spec = ModelSpec(context_tokens=8192)

    assert at_least(LoadOptions(context_tokens=2048), spec) == LoadOptions(context_tokens=8192)
    assert at_least(LoadOptions(context_tokens=16384), spec) == LoadOptions(context_tokens=16384)
    assert at_least(LoadOptions(), spec) == LoadOptions()
    assert at_least(LoadOptions(context_tokens=1), ModelSpec()) == LoadOptions(context_tokens=1)


def test_an_instance_has_its_number_where_the_entry_says_so() -> None:
    spec = ModelSpec(env={"CUDA_VISIBLE_DEVICES": "${INDEX}", "A": "b"}, args=("--log-file", "/tmp/${INDEX}.log"))

    second = spec.of_instance(1)

    assert second.env == {"CUDA_VISIBLE_DEVICES": "1", "A": "b"}
    assert second.args == ("--log-file", "/tmp/1.log")
    assert ModelSpec(env={"A": "b"}).of_instance(1) == ModelSpec(env={"A": "b"})


def test_fewer_instances_than_there_have_to_be_are_a_mistake() -> None:
    with pytest.raises(BadEntry, match="`max_replicas` is 1, and `replicas` 2"):
        read_entry("m", {"replicas": 2, "max_replicas": 1})

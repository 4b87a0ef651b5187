"""What a process is started with, and what a change of that is."""

from pathlib import Path
from typing import Any

import msgspec

from llamaherd_shared.events.model import ModelFound
from llamaherd_shared.model_options import Adapter, LoadOptions, ModelOptions
from llamaherd_shared.model_spec import ModelSpec
from llamaherd_supervisor.launching import Plan, differences, fill_macros, make_plan

FOUND = ModelFound(
    node="n", model="m", at_ns=0, path="/models/m.gguf", size_bytes=1, modified_ns=1, architecture="qwen3",
    context_tokens=40960, capabilities=["completion"],
)  # fmt: skip
EMBEDDER = msgspec.structs.replace(FOUND, embedding=True, capabilities=["embedding"], context_tokens=512)
FOLDER = Path("/models")
PLAIN, NOTHING = ModelSpec(), LoadOptions()


def plan(spec: ModelSpec = PLAIN, asked: LoadOptions = NOTHING, found: ModelFound = FOUND) -> Plan:
    return make_plan(spec, found, asked, models_dir=FOLDER, secret=b"s")


def test_nothing_is_said_of_a_plain_model_but_its_file() -> None:
    assert plan() == Plan(path="/models/m.gguf", architecture="qwen3")


def test_what_a_load_asks_for_counts_more_than_what_is_configured() -> None:
    spec = ModelSpec(context_tokens=8192, slots=2, args=("--keep", "1"))

    found = plan(spec, LoadOptions(context_tokens=4096, flash_attention=True))

    assert found.options == ModelOptions(context_tokens=4096, slots=2, flash_attention=True)
    assert found.args == ("--keep", "1")


def test_context_is_as_long_as_memory_lets_it_be() -> None:
    found = plan(ModelSpec(slots=2))

    assert found.fitted(None) == found
    assert found.fitted(4096).options == ModelOptions(slots=2, context_tokens=4096)


def test_files_are_looked_for_in_the_models_folder() -> None:
    spec = ModelSpec(
        draft_model="small.gguf", lora=("a.gguf", Adapter(path="/b.gguf", scale=0.5)), chat_template="own.jinja"
    )

    found = plan(spec)

    assert found.options.draft_model == "/models/small.gguf"
    assert found.options.lora == ("/models/a.gguf", Adapter(path="/b.gguf", scale=0.5))
    assert found.options.chat_template == "/models/own.jinja"
    assert found.files == {
        "path": "/models/m.gguf",
        "draft_model": "/models/small.gguf",
        "chat_template": "/models/own.jinja",
        "lora.0": "/models/a.gguf",
        "lora.1": "/b.gguf",
    }
    assert plan(ModelSpec(chat_template="chatml")).options.chat_template == "chatml"
    assert plan(ModelSpec(draft_model="~/small.gguf")).options.draft_model == str(Path("~/small.gguf").expanduser())


def test_the_projector_that_was_found_goes_with_its_model() -> None:
    found = msgspec.structs.replace(FOUND, projector="/models/mm.gguf")

    assert plan(found=found).options == ModelOptions(mmproj="/models/mm.gguf")


def test_a_model_made_for_embeddings_serves_them_in_one_batch() -> None:
    wanted = ModelOptions(embeddings=True, batch_tokens=512, ubatch_tokens=512)

    assert plan(found=EMBEDDER).options == wanted
    assert plan(ModelSpec(ubatch_tokens=64), found=EMBEDDER).options.batch_tokens == 64
    long = msgspec.structs.replace(EMBEDDER, context_tokens=131072)
    assert plan(found=long).options.ubatch_tokens == 8192
    assert plan(ModelSpec(embeddings=False), found=EMBEDDER).options == ModelOptions(embeddings=False)
    ranker = msgspec.structs.replace(EMBEDDER, embedding=False, capabilities=["rerank"])
    assert plan(found=ranker).options == ModelOptions(reranking=True, batch_tokens=512, ubatch_tokens=512)


def test_another_server_is_told_nothing_of_llama_servers_options() -> None:
    spec = ModelSpec(
        command=("serve", "${PORT}"), health_path="/ready", slots=2, gpu_layers="all", env={"A": "file:/a"}, args=()
    )

    found = plan(spec, LoadOptions(threads=1))

    assert (found.command, found.health_path) == (("serve", "${PORT}"), "/ready")
    assert found.options == ModelOptions(slots=2)
    assert found.files == {"path": "/models/m.gguf"}


def test_a_value_of_the_environment_is_nowhere_in_the_plan() -> None:
    found = plan(ModelSpec(env={"TOKEN": "very-secret"}))

    assert b"very-secret" not in msgspec.json.encode(found)
    other = make_plan(ModelSpec(env={"TOKEN": "very-secret"}), FOUND, NOTHING, models_dir=FOLDER, secret=b"t")
    assert found.env != other.env, "keyed"


def test_what_differs_is_told_by_its_name_old_and_new() -> None:
    before = ModelSpec(context_tokens=8192, slots=2, args=("--keep", "1"), env={"A": "1", "B": "2"})
    after = ModelSpec(context_tokens=16384, flash_attention=True, env={"A": "other", "B": "2"})

    assert differences(plan(before), plan(after)) == [
        "context_tokens: 8192 -> 16384",
        "slots: 2 -> unset",
        'args: ["--keep","1"] -> unset',
        "flash_attention: unset -> true",
        "env.A: changed",
    ]
    assert differences(plan(before), plan(before)) == []


def test_what_does_not_change_the_process_is_no_difference() -> None:
    others: dict[str, Any] = {"ttl_s": 5.0, "aliases": ("a",), "preload": True, "fallback": "x", "health_path": "/h"}

    assert differences(plan(), plan(ModelSpec(**others))) == []


def test_another_server_is_a_difference() -> None:
    told = differences(plan(), plan(ModelSpec(command=("serve",))))

    assert told == ['command: unset -> ["serve"]', "health_path: unset -> /health"]


def test_macros_are_filled_in_and_other_dollars_stay() -> None:
    assert fill_macros({"PORT": "8", "MODEL": "m"}, "http://x:${PORT}/${MODEL}?${OTHER}$HOME") == (
        "http://x:8/m?${OTHER}$HOME"
    )

"""Words and environment of a llama-server."""

import msgspec

from llamaherd_shared.model_options import ModelOptions
from llamaherd_supervisor.command_line import (
    Launch,
    is_marked,
    matches,
    render_command,
    render_environment,
    render_mark,
)
from llamaherd_supervisor.launching import Plan

LAUNCH = Launch(program="llama-server", model="cria", plan=Plan(path="/m/cria.gguf"), host="127.0.0.1", port=4711)


def test_command_line_by_default_leaves_the_sizes_to_llama_server() -> None:
    assert render_command(LAUNCH) == [
        *("llama-server", "--model", "/m/cria.gguf", "--alias", "cria", "--host", "127.0.0.1", "--port", "4711"),
        *("--metrics", "--slots", "--no-webui"),
    ]


def test_options_and_further_words_stand_where_they_count() -> None:
    options = ModelOptions(slots=4, context_tokens=2048, experts=2)
    plan = Plan(path="/m.gguf", options=options, args=("--keep", "64"), architecture="mixtral")

    words = " ".join(render_command(msgspec.structs.replace(LAUNCH, plan=plan)))

    assert " --ctx-size 8192 --parallel 4 --override-kv mixtral.expert_used_count=int:2 --metrics " in words
    assert words.endswith(" --keep 64")


def test_another_server_is_told_where_to_listen() -> None:
    command = ("serve", "--at", "${HOST}:${PORT}", "--name=${MODEL}", "${MODEL_PATH}", "${HOME}")
    launch = msgspec.structs.replace(LAUNCH, plan=Plan(path="/w.bin", command=command))

    assert render_command(launch) == ["serve", "--at", "127.0.0.1:4711", "--name=cria", "/w.bin", "${HOME}"]


def test_variables_of_the_entry_are_set_and_may_hold_the_key() -> None:
    configured = {"VLLM_API_KEY": "${API_KEY}", "PATH": "/own", "LLAMA_API_KEY": "mine"}

    environment = render_environment({"PATH": "/bin"}, configured, api_key="k3y", mark="here")

    assert environment == {
        "PATH": "/own",
        "VLLM_API_KEY": "k3y",
        "LLAMA_API_KEY": "k3y",
        "LLAMAHERD_INSTANCE": "here",
    }


def test_key_is_in_the_environment_and_not_on_the_command_line() -> None:
    inherited = {
        "PATH": "/bin",
        "LLAMAHERD_SECRET_FILE": "/secret",
        "LLAMA_SERVER_ROUTER_PORT": "1",
        "LLAMA_ARG_MODELS_DIR": "/models",
        "LLAMA_API_KEY": "somebody else's",
    }

    environment = render_environment(inherited, api_key="k3y", mark="here")

    assert environment == {"PATH": "/bin", "LLAMA_API_KEY": "k3y", "LLAMAHERD_INSTANCE": "here"}
    assert "k3y" not in " ".join(render_command(LAUNCH))


def test_mark_tells_ours_from_those_of_other_nodes_and_data_folders() -> None:
    mark = render_mark("/data", node="here", model="cria", index=0, generation=3)

    assert is_marked(mark, "/data", node="here")
    assert not is_marked(mark, "/data", node="her")
    assert not is_marked(mark, "/dat", node="here")
    assert not is_marked("", "/data", node="here")


def test_command_line_of_a_recorded_process_is_recognised() -> None:
    words = ["/usr/bin/llama-server", *render_command(LAUNCH)[1:]]

    assert matches(words, path="/m/cria.gguf", port=4711)
    assert not matches(words, path="/m/cria.gguf", port=4712)
    assert not matches(words, path="/m/other.gguf", port=4711)
    assert not matches(["vim", "/m/cria.gguf"], path="/m/cria.gguf", port=4711)

"""Words and environment of a llama-server."""

import msgspec

from llamaherd_supervisor.command_line import (
    Launch,
    is_marked,
    matches,
    render_arguments,
    render_environment,
    render_mark,
)

LAUNCH = Launch(program="llama-server", model="cria", path="/m/cria.gguf", host="127.0.0.1", port=4711)


def test_command_line_by_default_leaves_the_sizes_to_llama_server() -> None:
    assert render_arguments(LAUNCH) == [
        *("--model", "/m/cria.gguf", "--alias", "cria", "--host", "127.0.0.1", "--port", "4711"),
        *("--metrics", "--slots", "--no-webui"),
    ]


def test_context_is_given_for_all_slots_together() -> None:
    launch = Launch(
        program="llama-server",
        model="m",
        path="/m.gguf",
        host="127.0.0.1",
        port=1,
        slots=4,
        context_tokens=2048,
        extra_args=["--n-gpu-layers", "99"],
    )

    words = render_arguments(launch)

    assert words[words.index("--ctx-size") + 1] == "8192"
    assert words[words.index("--parallel") + 1] == "4"
    assert words[-2:] == ["--n-gpu-layers", "99"]


def test_a_model_made_for_embeddings_serves_them() -> None:
    launch = Launch(program="llama-server", model="e", path="/e.gguf", host="127.0.0.1", port=1, embedding=True)

    assert "--embedding" in render_arguments(launch)
    assert "--embedding" not in render_arguments(LAUNCH)


def test_a_projector_is_named() -> None:
    words = render_arguments(msgspec.structs.replace(LAUNCH, projector="/m/mmproj.gguf"))

    assert words[words.index("--mmproj") + 1] == "/m/mmproj.gguf"


def test_a_long_text_is_embedded_in_one_batch() -> None:
    launch = msgspec.structs.replace(LAUNCH, batch_tokens=8192)

    assert "--ubatch-size" not in render_arguments(launch), "a chat model reads its prompt in pieces"
    words = render_arguments(msgspec.structs.replace(launch, embedding=True))
    assert (words[words.index("--batch-size") + 1], words[words.index("--ubatch-size") + 1]) == ("8192", "8192")


def test_a_model_made_for_reranking_serves_that() -> None:
    launch = msgspec.structs.replace(LAUNCH, reranking=True)

    assert "--reranking" in render_arguments(launch)
    assert "--reranking" not in render_arguments(LAUNCH)


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
    assert "k3y" not in " ".join(render_arguments(LAUNCH))


def test_mark_tells_ours_from_those_of_other_nodes_and_data_folders() -> None:
    mark = render_mark("/data", node="here", model="cria", index=0, generation=3)

    assert is_marked(mark, "/data", node="here")
    assert not is_marked(mark, "/data", node="her")
    assert not is_marked(mark, "/dat", node="here")
    assert not is_marked("", "/data", node="here")


def test_command_line_of_a_recorded_process_is_recognised() -> None:
    words = ["/usr/bin/llama-server", *render_arguments(LAUNCH)]

    assert matches(words, path="/m/cria.gguf", port=4711)
    assert not matches(words, path="/m/cria.gguf", port=4712)
    assert not matches(words, path="/m/other.gguf", port=4711)
    assert not matches(["vim", "/m/cria.gguf"], path="/m/cria.gguf", port=4711)

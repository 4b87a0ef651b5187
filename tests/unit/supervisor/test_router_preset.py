import pytest

from llamaherd_shared.model_options import ModelOptions
from llamaherd_supervisor.launching import Plan
from llamaherd_supervisor.router.preset import find_obstacle, render_preset


def test_a_preset_says_for_each_model_what_its_command_line_would() -> None:
    options = ModelOptions(slots=2, context_tokens=1024, kv_offload=False, jinja=True, reasoning_budget_tokens=-1)
    plans = {"b": Plan(path="/m/b.gguf"), "a (x)": Plan(path="/m/a b.gguf", options=options)}

    assert render_preset(plans, stop_timeout_s=9.5) == (
        "[*]\n"
        "stop-timeout = 11\n"
        "\n"
        "[a (x)]\n"
        "model = /m/a b.gguf\n"
        "ctx-size = 2048\n"
        "parallel = 2\n"
        "no-kv-offload = true\n"
        "jinja = true\n"
        "reasoning-budget = -1\n"
        "\n"
        "[b]\n"
        "model = /m/b.gguf\n"
    )


def test_a_plain_model_has_no_obstacle() -> None:
    assert find_obstacle("qwen3-8b.Q4_K_M", Plan(path="/models/my models/qwen3.gguf")) == ""


@pytest.mark.parametrize("model", ["*", "default", "a]b", "m:q4", " m", "a\nb"])
def test_a_name_that_a_preset_cannot_hold_is_an_obstacle(model: str) -> None:
    assert find_obstacle(model, Plan(path="/m.gguf")) == "its name cannot stand in a preset"


@pytest.mark.parametrize("path", ["/a;b.gguf", "/a#b.gguf", "/a .gguf ", "/a\nb.gguf"])
def test_a_file_that_a_preset_cannot_hold_is_an_obstacle(path: str) -> None:
    assert find_obstacle("m", Plan(path=path)) == f"`model` cannot be written into a preset: {path}"


def test_what_is_for_a_process_of_its_own_is_an_obstacle() -> None:
    for plan in (Plan(path="/m", args=("--keep",)), Plan(path="/m", env={"A": "1"}), Plan(path="", command=("x",))):
        assert find_obstacle("m", plan).endswith("is for a process of its own")

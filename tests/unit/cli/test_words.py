"""Tables and lines as they are printed."""

from typing import Any

from rich.console import Console

from llamaherd.checks import Check
from llamaherd.fleet import Instance, Model, Service
from llamaherd.words import checks_table, instances_table, models_table, render_event, render_line, services_table
from llamaherd_shared.commands import StoredLine

MODELS = [
    Model(
        model="cria", node="box", size_bytes=3_500_000, parameters=3_200_000, context_tokens=2048, quantization="Q8_0",
        instance=Instance(state="ready", since_ns=1_000_000_000, pid=17, host="127.0.0.1", port=40001, slots=4),
    ),
    Model(model="slow", node="box", instance=Instance(state="loading", ratio=0.41, stage="weights")),
    Model(model="torn", node="box", rejected="the file ends inside the tensor table"),
]  # fmt: skip


def printed(renderable: Any) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_models_show_state_size_and_why_one_cannot_be_served() -> None:
    text = printed(models_table(MODELS, with_node=False))

    assert "3.3 MiB" in text
    assert "loading 41% weights" in text
    assert "the file ends inside the tensor table" in text
    assert "NODE" not in text


def test_instances_show_only_what_runs() -> None:
    text = printed(instances_table(MODELS, now_ns=61_000_000_000, with_node=True))

    assert "127.0.0.1:40001" in text
    assert "1 min" in text
    assert "torn" not in text


def test_services_show_what_troubles_them() -> None:
    service = Service(node="box", service="logs", pid=3, started_ns=0, note="rebuilding")

    assert "not ready" in printed(services_table([service], now_ns=1))
    assert "rebuilding" in printed(services_table([service], now_ns=1))


def test_a_failed_check_says_what_to_do() -> None:
    checks = [Check(name="a", ok=True, found="there"), Check(name="b", ok=False, found="gone", fix="bring it back")]

    text = printed(checks_table(checks))

    assert "-> bring it back" in text
    assert text.count("->") == 1


def test_a_line_names_its_source() -> None:
    line = StoredLine(id=1, node="box", service="llama-server", unit="cria/0", at_ns=0, level="error", text="[red]x[/]")

    assert printed(render_line(line, clock="12:00:00.000")) == "12:00:00.000 error   cria/0 [red]x[/]\n"


def test_a_fact_is_one_line() -> None:
    fact = {
        "sequence": 7, "at_ns": 1, "subject": "herd.ev", "type": "instance.exited.v1", "node": "box", "model": "cria",
        "index": 0, "cause": "crash", "last_lines": ["a", "b"], "exit_code": None, "load_s": 0.12345,
    }  # fmt: skip

    text = printed(render_event(fact, clock="12:00")).strip()

    assert text == "7 12:00 instance.exited.v1 box/cria/0 cause=crash last_lines=(2 lines) load_s=0.123"

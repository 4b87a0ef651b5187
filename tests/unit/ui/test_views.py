"""Shapes of the API."""

import msgspec

from llamaherd_shared.events.line import Line, LinePack
from llamaherd_ui.projection import InstanceState, ModelFile
from llamaherd_ui.views import number_lines, render_error, render_fact, render_models, split_names

FILE = ModelFile(node="n1", model="cria", path="/m/cria.gguf", parameters=5)
READY = InstanceState(node="n1", model="cria", state="ready", pid=3, port=9000, load_s=0.5)


def test_model_carries_its_instance() -> None:
    (model,) = render_models({"model/n1/cria": FILE, "instance/n1/cria/0": READY})

    assert model.parameters == 5
    assert model.instance is not None
    assert (model.instance.state, model.instance.pid) == ("ready", 3)


def test_model_that_never_ran_has_no_instance() -> None:
    (model,) = render_models({"model/n1/cria": FILE})

    assert model.instance is None


def test_model_whose_file_is_gone_stays_while_it_is_served() -> None:
    stopped = msgspec.structs.replace(READY, state="stopped", pid=None)

    assert [model.model for model in render_models({"instance/n1/cria/0": READY})] == ["cria"]
    assert render_models({"instance/n1/cria/0": stopped}) == []


def test_models_come_by_name_then_node() -> None:
    files = [ModelFile(node=node, model=model, path="") for node, model in [("b", "x"), ("a", "y"), ("a", "x")]]

    shown = render_models({str(place): file for place, file in enumerate(files)})

    assert [(model.model, model.node) for model in shown] == [("x", "a"), ("x", "b"), ("y", "a")]


def test_fact_shows_when_it_happened_and_all_its_fields() -> None:
    row = render_fact(3, 99, "herd.ev.node.n1", b'{"type":"node.left.v1","node":"n1","at_ns":42,"cause":"shutdown"}')

    assert row == {
        "sequence": 3, "at_ns": 42, "subject": "herd.ev.node.n1",
        "type": "node.left.v1", "node": "n1", "cause": "shutdown",
    }  # fmt: skip


def test_lines_of_a_pack_are_numbered_by_its_sequence() -> None:
    lines = [Line(at_ns=1, level="info", text=text) for text in "ab"]
    pack = LinePack(node="n1", service="gateway", unit="7", first=0, lines=lines)

    assert [(line.id, line.text) for line in number_lines(5, pack)] == [(5120, "a"), (5121, "b")]


def test_names_are_split_at_commas() -> None:
    assert split_names("cpu_pct, memory_used_bytes,") == ["cpu_pct", "memory_used_bytes"]
    assert split_names(",") is None
    assert split_names(None) is None


def test_error_kind_follows_the_status() -> None:
    kinds = [render_error(status, "x", error_id="1").error.kind for status in (400, 404, 405, 409, 500, 503)]

    assert kinds == ["rejected", "not_found", "rejected", "conflict", "internal", "unavailable"]

"""Tables and lines as they are printed."""

from typing import Any

import pytest
from rich.console import Console

from llamaherd.checks import Check
from llamaherd.fleet import ApiKey, Instance, KeyUse, Model, Service
from llamaherd.words import (
    checks_table,
    describe_key,
    describe_progress,
    describe_reload,
    describe_reset,
    describe_troubles,
    instances_table,
    keys_table,
    models_table,
    parameters_table,
    render_event,
    render_line,
    render_pull_progress,
    services_table,
)
from llamaherd_shared.commands import ModelReset, Parameter, ParameterCategory, Reloaded, Restart, StoredLine
from llamaherd_shared.events.access import KeyLimits

MODELS = [
    Model(
        model="cria", node="box", size_bytes=3_500_000, parameters=3_200_000, context_tokens=2048, quantization="Q8_0",
        capabilities=["completion", "vision"],
        instance=Instance(state="ready", since_ns=1_000_000_000, pid=17, host="127.0.0.1", port=40001, slots=4,
                          options={"slots": 4, "flash_attention": True, "mmproj": "/m/eyes.gguf"}),
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
    assert "completion, vision" in text
    assert "NODE" not in text


def test_models_that_are_not_as_they_should_be_are_told_with_their_reason() -> None:
    failed = Instance(state="failed", cause="crash", fault="out_of_memory", reason="memory is full: unload another")
    crashed = Instance(state="backoff", cause="crash", reason="it was killed from outside (SIGKILL)")
    unloaded = Instance(state="stopped", cause="unload")
    models = [
        *MODELS,
        Model(model="full", node="box", instance=failed),
        Model(model="shot", node="box", instance=crashed),
        Model(model="gone", node="box", instance=unloaded),
    ]

    assert describe_troubles(models, with_node=False) == [
        "torn cannot be served: the file ends inside the tensor table",
        "full has failed: memory is full: unload another",
        "shot has crashed and is started again: it was killed from outside (SIGKILL)",
    ]
    assert describe_troubles(models, with_node=True)[1].startswith("full on box has failed: ")


def test_parameters_show_what_sets_them_and_what_means_the_opposite() -> None:
    offload = Parameter(
        flags=["-kvo", "--kv-offload"], off=["--no-kv-offload"], variable="LLAMA_ARG_KV", option="kv_offload"
    )
    port = Parameter(flags=["--port"], value="[PORT]", description="port to listen", owned=True)
    categories = [
        ParameterCategory(name="common", parameters=[offload]),
        ParameterCategory(name="server", parameters=[port]),
    ]

    rows = [line.split() for line in printed(parameters_table(categories)).splitlines() if line.strip()]

    assert rows[0] == ["FLAG", "NAME", "WHAT"]
    assert rows[2:] == [
        ["common"],
        ["-kvo,", "--kv-offload", "kv_offload"],
        ["--no-kv-offload"],
        ["LLAMA_ARG_KV"],
        ["server"],
        ["--port", "[PORT]", "supervisor", "port", "to", "listen"],
    ]


def test_instances_show_only_what_runs() -> None:
    text = printed(instances_table(MODELS, now_ns=61_000_000_000, with_node=True))

    assert "127.0.0.1:40001" in text
    assert "1 min" in text
    assert "flash_attention on, mmproj eyes.gguf" in text
    assert "torn" not in text
    assert "OPTIONS" not in printed(instances_table(MODELS[1:], now_ns=0, with_node=False))


def test_services_show_what_troubles_them() -> None:
    service = Service(node="box", service="logs", pid=3, started_ns=0, note="rebuilding")

    assert "not ready" in printed(services_table([service], now_ns=1))
    assert "rebuilding" in printed(services_table([service], now_ns=1))


def test_a_failed_check_says_what_to_do() -> None:
    checks = [Check(name="a", ok=True, found="there"), Check(name="b", ok=False, found="gone", fix="bring it back")]

    text = printed(checks_table(checks))

    assert "-> bring it back" in text
    assert text.count("->") == 1


def test_keys_show_what_they_are_for_and_what_they_used() -> None:
    key = ApiKey(
        id="k7q2mzxa", name="laptop", models=["cria"], dialects=["ollama"], expires_ns=30 * 86_400 * 10**9,
        limits=KeyLimits(requests_per_minute=60, concurrency=4),
        usage=KeyUse(requests=3, prompt_tokens=20, completion_tokens=5, last_used_ns=0),
    )  # fmt: skip

    text = printed(keys_table([key, ApiKey(id="aaaaaaaa", name="other", state="revoked")], now_ns=2 * 10**9))

    row, other = text.splitlines()[-3:-1]
    assert row.split() == (
        "k7q2mzxa laptop active cria, ollama 60 requests/min, 4 at once in 29 d 23 h 2 s ago 3 25".split()
    )
    assert other.split() == "aaaaaaaa other revoked everything never".split()


def test_a_key_is_described_in_words() -> None:
    limited = ApiKey(id="a", name="n", models=["m"], limits=KeyLimits(tokens_per_minute=9), expires_ns=3600 * 10**9)

    assert describe_key(limited, now_ns=10**8) == "models m in all dialects; 9 tokens/min; expires in 1 h"
    assert describe_key(ApiKey(id="a", name="n"), now_ns=0) == "all models in all dialects; does not expire"


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


def test_lists_in_facts_are_shown_when_they_are_words_and_counted_when_not() -> None:
    fact = {"type": "x", "capabilities": ["completion", "tools"], "files": [{"name": "a"}, {"name": "b"}]}

    text = render_event(fact, clock="12:00").plain

    assert text.endswith("capabilities=completion,tools files=(2 of them)")


@pytest.mark.parametrize(
    ("done", "total", "note", "text"),
    [
        (2**20, 2**22, "", "1.0 MiB of 4.0 MiB, 2.0 KiB/s"),
        (2**20, 0, "", "1.0 MiB, 2.0 KiB/s"),
        (0, 2**22, "the hub is busy", "0 B of 4.0 MiB; the hub is busy"),
    ],
)
def test_progress_of_a_pull_is_bytes_and_speed_or_what_it_waits_for(
    done: int, total: int, note: str, text: str
) -> None:
    assert render_pull_progress(done, total, 2048.0, note) == text


def test_what_a_reload_leads_to_is_told_by_instance() -> None:
    restart = Restart(model="cria", index=0, why=["slots: 1 -> 2", "env.TOKEN: changed"])
    quiet = Reloaded(node="box", restarts=[], offered=[], gone=[], later=[])
    busy = Reloaded(node="rack", restarts=[restart], offered=["new"], gone=["old"], later=["supervisor.models_dir"])
    pulling = Reloaded(node="box", restarts=[], offered=[], gone=[], later=[], coming=["big"])

    assert describe_reload([quiet], dry_run=False) == ["nothing has to start again"]
    assert describe_reload([quiet], dry_run=True) == ["nothing would have to start again"]
    assert describe_reload([busy], dry_run=True)[0] == "cria/0 would start again: slots: 1 -> 2; env.TOKEN: changed"
    assert describe_reload([quiet, busy], dry_run=False) == [
        "cria/0 on rack starts again: slots: 1 -> 2; env.TOKEN: changed",
        "new can be loaded on rack",
        "old cannot be loaded any more on rack",
        "supervisor.models_dir counts when the supervisor on rack is started again",
    ]
    assert describe_reload([pulling], dry_run=True)[1] == "big would be downloaded"
    assert describe_reload([pulling], dry_run=False)[1] == "big is being downloaded"


@pytest.mark.parametrize(
    ("ready_at_ns", "text"),
    [
        (None, "loading weights"),
        (75 * 10**9, "loading weights, about 1 min 5 s left"),
        (5 * 10**9, "loading weights"),
    ],
)
def test_progress_of_a_load_tells_how_long_it_still_takes_as_far_as_anybody_knows(
    ready_at_ns: int | None, text: str
) -> None:
    instance = Instance(state="loading", ratio=0.41, stage="weights", ready_at_ns=ready_at_ns)

    assert describe_progress(Model(model="slow", node="box", instance=instance), now_ns=10 * 10**9) == text


def test_progress_of_what_does_not_load_is_its_state() -> None:
    assert describe_progress(Model(model="slow", node="box"), now_ns=0) == "stopped"


@pytest.mark.parametrize(
    ("forgotten", "starts", "text"),
    [
        (True, True, "m is started again; see `llamaherd ps`"),
        (True, False, "m is stopped now; `llamaherd load m` loads it"),
        (False, False, "m is ready: there is nothing to forget"),
    ],
)
def test_a_reset_tells_what_becomes_of_the_model(forgotten: bool, starts: bool, text: str) -> None:
    state = "failed" if forgotten else "ready"
    done = ModelReset(node="box", model="m", state=state, forgotten=forgotten, starts=starts, sequence=1)

    assert describe_reset(done) == text

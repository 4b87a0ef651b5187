"""Commands decided, and the work a restarted supervisor takes over."""

import pytest

from llamaherd_shared.errors import NotFound, Rejected, Unavailable
from llamaherd_shared.events.model import ModelEvent, ModelFound, ModelRejected, ModelRemoved
from llamaherd_supervisor.adoption import Adopt, Found, Gone, Record, Running
from llamaherd_supervisor.lifecycle import Instance, Spawned, State, Wanted
from llamaherd_supervisor.reconcile import decide_load, decide_unload, wanted_after_restart

CRIA = ModelFound(node="n", model="cria", at_ns=0, path="/m/cria.gguf", size_bytes=1, modified_ns=1)
BAD = ModelRejected(node="n", model="bad", at_ns=0, path="/m/bad.gguf", reason="it is not a GGUF file")
GONE = ModelRemoved(node="n", model="gone", at_ns=0)
RECORD = Record(
    node="n",
    model="m",
    index=0,
    generation=1,
    mark="",
    boot_id="",
    host="h",
    port=9,
    path="/m.gguf",
    command=(),
    key_sha256="",
)
RUNNING = Running(pid=7, group=7, started_s=1.0)
MODELS: dict[str, ModelEvent] = {"cria": CRIA, "bad": BAD, "gone": GONE}


def load(
    model: str, *, models: dict[str, ModelEvent] = MODELS, llama_server: str = "/bin/x", stopping: bool = False
) -> Wanted:
    return decide_load(model, node="n", models=models, llama_server=llama_server, stopping=stopping, now_ns=9)


def test_known_model_is_loaded() -> None:
    assert load("cria") == Wanted(wanted=True, asked_ns=9)


def test_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"^n has no model 'crie' \(did you mean 'cria'\?\); it has cria$"):
        load("crie")
    with pytest.raises(NotFound, match=r"^n has no model 'gone'; it has cria$"):
        load("gone")
    with pytest.raises(NotFound, match=r"^n has no model 'x': its models folder is empty$"):
        load("x", models={})


def test_rejected_file_is_refused_with_its_reason() -> None:
    with pytest.raises(Rejected, match=r"^bad cannot be loaded: /m/bad\.gguf: it is not a GGUF file$"):
        load("bad")


def test_without_llama_server_the_way_to_get_one_is_told() -> None:
    with pytest.raises(Unavailable, match="llamaherd install llama-server"):
        load("cria", llama_server="")


def test_stopping_supervisor_takes_no_load() -> None:
    with pytest.raises(Unavailable, match="is stopping"):
        load("cria", stopping=True)


def test_unload_of_what_is_not_loaded_is_accepted_and_of_what_is_not_there_refused() -> None:
    unwanted = Wanted(wanted=False, cause="unload", asked_ns=9)

    assert decide_unload("cria", node="n", models=MODELS, known=False, now_ns=9) == unwanted
    assert decide_unload("gone", node="n", models=MODELS, known=True, now_ns=9) == unwanted
    with pytest.raises(NotFound):
        decide_unload("gone", node="n", models=MODELS, known=False, now_ns=9)


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (State.STOPPED, False),
        (State.LOADING, True),
        (State.READY, True),
        (State.DRAINING, False),
        (State.STOPPING, False),
        (State.BACKOFF, True),
        (State.FAILED, False),
    ],
)
@pytest.mark.parametrize("found", [None, Gone(), Adopt(RECORD, RUNNING)], ids=["idle", "gone", "adopted"])
def test_restarted_supervisor_wants_what_ran_or_was_to_run(state: State, wanted: bool, found: Found | None) -> None:
    assert wanted_after_restart(Instance(node="n", model="m", state=state), found) == Wanted(wanted=wanted)


@pytest.mark.parametrize("state", State)
def test_what_was_started_and_not_told_was_wanted(state: State) -> None:
    spawned = Spawned(pid=7, process_started_s=1.0, host="h", port=9, path="/m.gguf", generation=1)
    adopted = Adopt(RECORD, RUNNING, (spawned,))

    assert wanted_after_restart(Instance(node="n", model="m", state=state), adopted).wanted

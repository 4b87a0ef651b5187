"""Commands decided, and the work a restarted supervisor takes over."""

from typing import Any

import msgspec
import pytest

from llamaherd_shared.commands import LoadModel
from llamaherd_shared.errors import Conflict, NotFound, Rejected, Unavailable
from llamaherd_shared.events.model import ModelEvent, ModelFound, ModelRejected, ModelRemoved
from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.model_spec import ModelSpec
from llamaherd_supervisor.adoption import Adopt, Found, Gone, Record, Running
from llamaherd_supervisor.lifecycle import Instance, State, Wanted
from llamaherd_supervisor.observations import Spawned
from llamaherd_supervisor.reconcile import Load, decide_load, decide_unload, heed, next_replica, wanted_after_restart

CRIA = ModelFound(
    node="n", model="cria", at_ns=0, path="/m/cria.gguf", size_bytes=1, modified_ns=1, context_tokens=2048
)
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
LOST = ModelRejected(node="n", model="lost", at_ns=0, path="", reason="it could not be downloaded")
COMING = ModelRejected(node="n", model="new", at_ns=0, path="", reason="it is being downloaded", retry_after_s=7.0)
MODELS: dict[str, ModelEvent] = {"cria": CRIA, "bad": BAD, "gone": GONE, "lost": LOST, "new": COMING}


NOTHING, LONG = LoadOptions(), LoadOptions(context_tokens=8192)


def load(
    model: str,
    *,
    models: dict[str, ModelEvent] = MODELS,
    llama_server: str = "/bin/x",
    stopping: bool = False,
    drained: bool = False,
    options: LoadOptions = NOTHING,
    for_request: bool = False,
    **said: Any,
) -> Load:
    """`said`: its entry."""
    return decide_load(
        LoadModel(model=model, options=options, for_request=for_request),
        node="n",
        models=models,
        spec=ModelSpec(**said),
        llama_server=llama_server,
        labels={"site": "lab"},
        stopping=stopping,
        drained=drained,
        now_ns=9,
    )


def test_model_that_requires_what_the_node_is_not_is_refused() -> None:
    assert load("cria", requires={"site": "lab"})
    with pytest.raises(Rejected, match=r"it requires gpu: h200, site: home \(`supervisor.labels`\)"):
        load("cria", requires={"gpu": "h200", "site": "home"})


def test_known_model_is_loaded() -> None:
    assert load("cria") == Load(asked_ns=9)


def test_options_that_make_sense_are_asked_for() -> None:
    huge = LoadOptions(context_tokens=10**9, threads=2)

    assert load("cria", options=huge).options == LoadOptions(context_tokens=2048, threads=2)
    assert load("cria", options=huge, rope_scale=2.0).options == huge


def test_a_request_gets_what_is_configured_and_somebodys_orders_may_be_less() -> None:
    short = LoadOptions(context_tokens=512)

    assert load("cria", options=short, for_request=True, context_tokens=1024).options.context_tokens == 1024
    assert load("cria", options=short, context_tokens=1024).options.context_tokens == 512


def test_another_server_needs_no_llama_server() -> None:
    assert load("cria", llama_server="", command=("serve",)) == Load(asked_ns=9)


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
    with pytest.raises(Rejected, match=r"^lost cannot be loaded: it could not be downloaded$"):
        load("lost")


def test_model_that_is_on_its_way_is_worth_asking_for_again() -> None:
    with pytest.raises(Unavailable, match=r"^new cannot be loaded yet: it is being downloaded$") as refused:
        load("new")

    assert refused.value.retry_after_s == 7


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
    assert wanted_after_restart(Instance(node="n", model="m", state=state), found, None) == Wanted(wanted=wanted)


@pytest.mark.parametrize("state", State)
def test_what_was_started_and_not_told_was_wanted(state: State) -> None:
    spawned = Spawned(pid=7, process_started_s=1.0, host="h", port=9, path="/m.gguf", generation=1)
    adopted = Adopt(RECORD, RUNNING, (spawned,))

    assert wanted_after_restart(Instance(node="n", model="m", state=state), adopted, RECORD).wanted


def test_what_a_load_asked_for_outlives_the_supervisor() -> None:
    record = msgspec.structs.replace(RECORD, asked=LONG)
    running = Instance(node="n", model="m", state=State.READY)

    assert wanted_after_restart(running, Gone(), record) == Wanted(wanted=True, options=LONG)


def test_what_was_about_to_start_again_is_started_by_the_next_supervisor() -> None:
    for state in (State.DRAINING, State.STOPPING):
        reloading = Instance(node="n", model="m", state=state, cause="reload")
        assert wanted_after_restart(reloading, Gone(), None).wanted


def test_what_was_making_room_goes_on_making_room() -> None:
    leaving = Instance(node="n", model="m", state=State.DRAINING, cause="evicted for a")

    assert wanted_after_restart(leaving, Gone(), None) == Wanted(wanted=False, cause="evicted for a")


def test_load_that_waited_for_memory_goes_on_waiting_in_its_turn() -> None:
    waiting = Instance(node="n", model="m", state=State.WAITING, since_ns=7)

    assert wanted_after_restart(waiting, None, None) == Wanted(wanted=True, asked_ns=7)


# Loads of what runs already.


def running(state: State = State.READY, *, context_tokens: int = 4096, slots: int = 4) -> Instance:
    return Instance(node="n", model="m", state=state, generation=3, context_tokens=context_tokens, slots=slots)


def asked(*, for_request: bool = True, **options: Any) -> Load:
    return Load(options=LoadOptions(**options), for_request=for_request, asked_ns=9)


RUNS = Wanted(wanted=True, asked_ns=1)


def test_a_load_without_wishes_leaves_what_runs_as_it_is() -> None:
    before = Wanted(wanted=True, asked_ns=1, options=LONG)

    assert heed(before, asked(), running(), told={"context_tokens": 8192}) == Wanted(
        wanted=True, asked_ns=9, options=LONG
    )


@pytest.mark.parametrize("context_tokens", [1, 4095, 4096])
def test_a_context_that_is_long_enough_stays(context_tokens: int) -> None:
    assert heed(RUNS, asked(context_tokens=context_tokens), running(), told={}).replaces == 0


def test_a_context_that_is_too_short_is_a_reason_to_start_again() -> None:
    assert heed(RUNS, asked(context_tokens=4097), running(), told={}) == Wanted(
        wanted=True, cause="reload", asked_ns=9, options=LoadOptions(context_tokens=4097), replaces=3
    )


def test_two_requests_do_not_push_each_other_out() -> None:
    first = heed(RUNS, asked(context_tokens=8192, threads=2), running(), told={})
    then = running(context_tokens=8192)
    told = {"context_tokens": 8192}
    for wish in (
        asked(context_tokens=6000, threads=8),
        asked(context_tokens=8192, gpu_layers=1),
        asked(batch_tokens=7),
    ):
        assert heed(first, wish, then, told=told).options == first.options
    longer = heed(first, asked(context_tokens=9000), then, told=told)
    assert longer.options == LoadOptions(context_tokens=9000)


def test_what_a_load_asked_for_stays_when_a_request_needs_more_context() -> None:
    before = Wanted(wanted=True, options=LoadOptions(context_tokens=4096, flash_attention=True))

    found = heed(before, asked(context_tokens=8192, threads=1), running(), told={"context_tokens": 4096})

    assert found.options == LoadOptions(context_tokens=8192, flash_attention=True)


def test_somebodys_orders_count_as_they_are() -> None:
    told = {"context_tokens": 4096, "flash_attention": True}
    before = Wanted(wanted=True, options=LoadOptions(**told))

    same = heed(before, asked(for_request=False, flash_attention=True, slots=2), running(), told=told)
    other = heed(before, asked(for_request=False, flash_attention=False), running(), told=told)

    assert same.replaces == 0
    assert (other.replaces, other.options) == (3, LoadOptions(flash_attention=False))


def test_what_is_about_to_come_is_asked_for_once() -> None:
    """A second request for the same while the process is still draining."""
    before = heed(RUNS, asked(context_tokens=8192), running(), told={})

    again = heed(before, asked(context_tokens=8192), running(State.DRAINING), told={"context_tokens": 8192})

    assert again == msgspec.structs.replace(before, asked_ns=9)


@pytest.mark.parametrize("state", [State.STOPPED, State.FAILED])
def test_what_was_asked_for_before_is_forgotten_with_its_process(state: State) -> None:
    before = Wanted(wanted=True, asked_ns=1, options=LONG, replaces=2)

    assert heed(before, asked(threads=2), running(state), told={}) == Wanted(
        wanted=True, asked_ns=9, options=LoadOptions(threads=2)
    )


def test_a_load_after_an_unload_is_a_load_of_its_own() -> None:
    before = Wanted(wanted=False, cause="unload", asked_ns=1, options=LONG)

    assert heed(before, asked(), running(State.DRAINING), told={}) == Wanted(wanted=True, asked_ns=9)


@pytest.mark.parametrize(("wanted", "index"), [(set(), 0), ({0}, 1), ({0, 2}, 1), ({1, 2}, 0)])
def test_one_more_instance_takes_the_first_free_index(wanted: set[int], index: int) -> None:
    assert next_replica("m", wanted, ModelSpec(max_replicas=4), node="n") == index


def test_no_more_instances_are_started_than_there_may_be() -> None:
    with pytest.raises(Conflict, match=r"n has as many as there may be \(2, `max_replicas`\) instances of m"):
        next_replica("m", {0, 1}, ModelSpec(max_replicas=2), node="n")
    with pytest.raises(Conflict):
        next_replica("m", {0}, ModelSpec(), node="n")


def test_of_two_who_ask_for_one_more_only_the_first_gets_it() -> None:
    spec = ModelSpec(max_replicas=4)

    assert next_replica("m", {0}, spec, node="n", beside=1) == 1
    with pytest.raises(Conflict, match="n has 2 instances of m already, and 1 were known"):
        next_replica("m", {0, 1}, spec, node="n", beside=1)

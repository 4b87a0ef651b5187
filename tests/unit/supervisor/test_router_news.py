"""What llama-server 11434.0.0 says as a router, recorded, and what is made of it."""

import json
from typing import Any

from llamaherd_supervisor.router.news import (
    Advanced,
    Came,
    News,
    Told,
    Went,
    forget,
    read_event,
    read_line,
    read_listing,
    read_ports,
)

BEGINS = b'{"model":"cria","event":"model_status","data":{"status":"loading"}}'
HALF = (
    b'{"model":"cria","event":"status_change","data":{"status":"loading","progress":'
    b'{"stages":["text_model","mmproj_model"],"current":"mmproj_model","value":0.5}}}'
)
LOADED = (
    b'{"model":"cria","event":"status_change","data":{"status":"loaded","info":{"id":"cria","aliases":["cria"],'
    b'"meta":{"n_ctx":2048,"size":3250944,"ftype":"F16"}}}}'
)
ENDED = b'{"model":"cria","event":"status_change","data":{"status":"unloaded","exit_code":0}}'
KILLED = b'{"model":"cria","event":"status_change","data":{"status":"unloaded","exit_code":1}}'
EVICTING = "0.00.439.334 I srv          tick: evicting idle LRU name=cria for a queued request"
REMOVING = "0.23.664.689 I srv    unload_lru: models_max limit reached, removing LRU name=cria"
NOTHING = Told()
RUNS = Told(running=frozenset({"cria"}))


def read_all(*events: bytes, told: Told = NOTHING) -> tuple[Told, list[News]]:
    news: list[News] = []
    for event in events:
        told, more = read_event(told, event)
        news += more
    return told, news


def listing(**statuses: dict[str, Any]) -> bytes:
    return json.dumps({"data": [{"id": name, "status": status} for name, status in statuses.items()]}).encode()


def test_a_load_is_a_process_that_comes_and_advances() -> None:
    told, news = read_all(BEGINS, HALF, LOADED)

    assert news == [Came("cria"), Advanced("cria", 0.75)]
    assert told == RUNS


def test_a_process_that_sleeps_is_still_there() -> None:
    told, news = read_all(b'{"model":"cria","event":"status_change","data":{"status":"sleeping"}}', LOADED, told=RUNS)

    assert (told, news) == (RUNS, [])


def test_a_process_that_ends_well_was_told_to() -> None:
    assert read_all(ENDED, told=RUNS) == (Told(), [Went("cria", 0, told_to=True)])


def test_a_process_that_ends_badly_was_not_told_to() -> None:
    assert read_all(KILLED, told=RUNS) == (Told(), [Went("cria", 1, told_to=False)])


def test_a_process_that_had_to_be_killed_to_make_room_was_told_to_go() -> None:
    for line in (EVICTING, REMOVING):
        told = read_line(RUNS, line)

        assert told.leaving == {"cria"}
        assert read_all(KILLED, told=told) == (Told(), [Went("cria", 1, told_to=True)])


def test_lines_about_other_things_or_models_without_a_process_change_nothing() -> None:
    for line in (EVICTING, "0.00.001 I srv  load: spawning server instance with name=cria on port 5"):
        assert read_line(Told(), line) == Told()


def test_an_end_of_what_nobody_knew_is_no_news() -> None:
    assert read_all(ENDED) == (Told(), [])


def test_a_listing_tells_what_events_did_not() -> None:
    came, news = read_listing(RUNS, listing(cria={"value": "unloaded", "exit_code": 1}, other={"value": "loaded"}))

    assert news == [Went("cria", 1, told_to=False), Came("other")]
    assert came.running == {"other"}


def test_a_model_that_is_listed_no_more_is_gone() -> None:
    assert read_listing(RUNS, listing()) == (Told(), [Went("cria", None, told_to=False)])


def test_what_was_forgotten_is_told_again() -> None:
    _, news = read_listing(forget(RUNS, "cria"), listing(cria={"value": "loading"}))

    assert news == [Came("cria")]


def test_the_listing_knows_the_ports() -> None:
    args = ["/bin/llama-server", "--host", "127.0.0.1", "--port", "52741", "--alias", "cria"]

    assert read_ports(listing(cria={"value": "loaded", "args": args}, other={"value": "unloaded"})) == {"cria": 52741}


def test_whatever_else_is_said_changes_nothing() -> None:
    others = (
        b'{"model":"*","event":"models_reload"}',
        b'{"model":"m","event":"model_remove"}',
        b'{"model":"m","event":"download_progress","data":{"https://x/m.gguf":{"done":1,"total":2}}}',
        b'{"model":"m","event":"status_change","data":{"status":"of a later version"}}',
        b'{"model":"m","event":"status_change","data":7}',
        b"no JSON",
        b"[]",
    )

    assert read_all(*others, told=RUNS) == (RUNS, [])
    assert read_listing(RUNS, b"no JSON") == (RUNS, [])
    assert read_ports(b"no JSON") == {}

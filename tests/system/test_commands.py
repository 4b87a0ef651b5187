"""The command line against a running herd: every command, its JSON, its exit code."""

import json
import threading

import pytest

from harness.herd import Herd


@pytest.mark.parametrize("command", ["status", "ps", "models", "version"])
def test_commands_that_print_data_print_json_on_request(herd: Herd, command: str) -> None:
    done = herd.cli(command, "--json")

    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


def test_run_answers_in_the_terminal(herd: Herd) -> None:
    done = herd.cli("run", "cria", "Who are you?")

    assert done.returncode == 0, done.stderr
    assert "cria" in done.stdout.lower()


def test_logs_and_events_stream_json_lines(herd: Herd) -> None:
    herd.chat("cria", "hello", max_tokens=1)

    logs = herd.cli("logs", "--json", "--grep", "slot")
    events = herd.cli("events", "--json", "--from-seq", "1")

    assert logs.returncode == events.returncode == 0
    assert all("text" in json.loads(line) for line in logs.stdout.splitlines())
    types = {json.loads(line)["type"] for line in events.stdout.splitlines()}
    assert {"node.joined.v1", "model.found.v1", "instance.started.v1", "instance.ready.v1"} <= types


def test_unloading_a_model_that_is_asked_for_all_the_time_ends(herd: Herd) -> None:
    over = threading.Event()

    def chat() -> None:
        while not over.is_set():
            herd.chat("cria", "hello", max_tokens=1)

    chatting = threading.Thread(target=chat)
    chatting.start()
    try:
        done = herd.cli("unload", "cria", "--timeout", "20")
    finally:
        over.set()
        chatting.join()

    assert done.returncode == 0, done.stderr


def test_a_typo_gets_a_suggestion_and_exit_code_two(herd: Herd) -> None:
    done = herd.cli("laod", "cria")

    assert done.returncode == 2
    assert "load" in done.stderr + done.stdout


def test_an_unknown_model_is_exit_code_three(herd: Herd) -> None:
    done = herd.cli("load", "no-such-model")

    assert done.returncode == 3
    assert "no-such-model" in done.stderr


def test_a_herd_that_does_not_run_is_exit_code_four(herd: Herd) -> None:
    done = herd.cli("ps", "--url", "http://127.0.0.1:1")

    assert done.returncode == 4
    assert "llamaherd up" in done.stderr


def test_doctor_finds_this_machine_fit(herd: Herd) -> None:
    done = herd.cli("doctor", "--data-dir", str(herd.data_dir))

    assert "nats-server" in done.stdout
    assert "llama-server" in done.stdout

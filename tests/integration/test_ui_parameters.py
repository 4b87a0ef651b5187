"""Parameters of llama-server over HTTP and on the command line: a ui and a supervisor on a real nats-server."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvloop

from harness.nats import NatsServer
from harness.supervisor import Node, herd_of
from harness.ui import UiProcess

HELP = Path(__file__).parents[1] / "golden" / "llama_server" / "help.txt"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a ui whose herd has one node."""
    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    node = Node(tmp_path_factory.mktemp("node"), server, name="here.lan")
    program = node.folder / "llama-server"
    program.write_text(f"#!/bin/sh\ncat {HELP}\n")
    program.chmod(0o700)
    node.llama_server = program
    ui = UiProcess(server, tmp_path_factory.mktemp("ui"))

    async def start() -> None:
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()

    try:
        uvloop.run(start())
        yield ui.start().address
    finally:
        ui.stop()
        node.clean_up()
        server.stop()


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llamaherd", "parameters", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_category_is_answered_with_what_sets_each_parameter(url: str) -> None:
    answer = httpx.get(f"{url}/api/v1/parameters", params={"category": "common"}, timeout=30)

    told = answer.raise_for_status().json()
    assert told["node"] == "here.lan"
    (category,) = told["categories"]
    context = next(each for each in category["parameters"] if "--ctx-size" in each["flags"])
    assert (context["option"], context["variable"], context["owned"]) == ("context_tokens", "LLAMA_ARG_CTX_SIZE", False)


def test_a_word_that_is_in_no_parameter_leaves_nothing(url: str) -> None:
    answer = httpx.get(f"{url}/api/v1/parameters", params={"search": "teapot"}, timeout=30)

    assert answer.raise_for_status().json()["categories"] == []


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"category": "samplng"}, "did you mean sampling?"),
        ({"node": "elsewhere"}, "there is no node elsewhere; there are: here.lan"),
    ],
)
def test_what_there_is_not_is_404_with_a_sentence(url: str, query: dict[str, str], sentence: str) -> None:
    answer = httpx.get(f"{url}/api/v1/parameters", params=query, timeout=30)

    assert answer.status_code == 404
    assert sentence in answer.json()["error"]["message"]


def test_the_command_shows_flags_names_and_who_owns_them(url: str) -> None:
    shown = run("server", "--search", "port", "--url", url)

    assert shown.returncode == 0, shown.stderr
    line = next(line for line in shown.stdout.splitlines() if line.strip().startswith("--port PORT"))
    assert "supervisor" in line
    assert "port to listen (default: 8080)" in line
    assert "--ctx-size" not in shown.stdout
    assert "context_tokens" in run("--search", "ctx-size", "--url", url).stdout


def test_the_command_prints_json_and_fails_on_a_typo_with_a_hint(url: str) -> None:
    asked, mistyped = run("sampling", "--json", "--url", url), run("samplng", "--url", url)

    assert [each["name"] for each in json.loads(asked.stdout)["categories"]] == ["sampling"]
    assert mistyped.returncode == 3
    assert "did you mean sampling?" in mistyped.stderr

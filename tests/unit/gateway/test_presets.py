"""What an alias brings with it."""

import json
from typing import Any

import pytest

from llamaherd_gateway.dialects.dialect import Facts, Preset
from llamaherd_gateway.dialects.ollama.options import read_options, render_sampling
from llamaherd_gateway.routing.presets import apply_preset, parameters_of

PIRATE = Preset(system="Be a pirate.", options={"temperature": 0.1})
SYSTEM = {"role": "system", "content": "Be a pirate."}
HELLO = {"role": "user", "content": "hello"}


def sent(preset: Preset, *, context_tokens: int = 0, **body: Any) -> Any:
    facts = Facts(model="m", context_tokens=context_tokens, preset=preset)
    return json.loads(apply_preset(facts, json.dumps(body).encode()))


def test_a_chat_without_a_system_message_gets_the_aliass() -> None:
    assert sent(PIRATE, messages=[HELLO])["messages"] == [SYSTEM, HELLO]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_chat_with_one_keeps_it(role: str) -> None:
    messages = [{"role": role, "content": "Be a monk."}, HELLO]

    assert sent(PIRATE, messages=messages)["messages"] == messages


def test_messages_of_an_alias_stand_behind_the_system_message() -> None:
    example = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Arr."}
    preset = Preset(system="Be a pirate.", messages=example)
    monk = {"role": "system", "content": "Be a monk."}

    assert sent(preset, messages=[HELLO])["messages"] == [SYSTEM, *example, HELLO]
    assert sent(preset, messages=[monk, HELLO])["messages"] == [monk, *example, HELLO]
    assert sent(preset, messages=[])["messages"] == []


def test_parameters_are_given_where_the_request_says_nothing() -> None:
    assert sent(PIRATE, messages=[HELLO], temperature=None)["temperature"] == 0.1
    assert sent(PIRATE, messages=[HELLO], temperature=1)["temperature"] == 1


def test_only_requests_for_text_get_parameters() -> None:
    assert sent(PIRATE, prompt="x") == {"prompt": "x", "temperature": 0.1}
    assert sent(PIRATE, input="x") == {"input": "x"}


@pytest.mark.parametrize("name", ["max_tokens", "n_predict", "max_completion_tokens"])
def test_a_limit_of_the_request_counts_whatever_it_is_called(name: str) -> None:
    preset = Preset(options={"num_predict": 5})

    assert sent(preset, prompt="x") == {"prompt": "x", "max_tokens": 5}
    assert sent(preset, prompt="x", **{name: 7}) == {"prompt": "x", name: 7}


def test_the_whole_context_is_looked_back_at_as_far_as_it_is_known() -> None:
    preset = Preset(options={"repeat_last_n": -1})

    assert sent(preset, prompt="x", context_tokens=512)["repeat_last_n"] == 512
    assert sent(preset, prompt="x")["repeat_last_n"] > 0


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"messages": "x"}', b'{"messages": ["x"]}'])
def test_what_is_no_request_is_passed_on_as_it_is(body: bytes) -> None:
    assert apply_preset(Facts(model="m", preset=PIRATE), body) == body


def test_options_of_ollama_are_parameters_of_llama_server() -> None:
    options = {"num_predict": 5, "num_ctx": 4096, "temperature": 1, "stop": ["x", ""], "stream": True, "top_k": None}

    assert parameters_of(options) == {"max_tokens": 5, "temperature": 1, "stop": ["x"]}
    assert parameters_of({"num_predict": -2}) == {}


def test_defaults_of_ollama_give_way_to_an_alias_and_that_to_a_request() -> None:
    facts = Facts(
        model="m", context_tokens=100, preset=Preset(options={"temperature": 0, "top_k": 3, "num_predict": 9})
    )
    sampling = render_sampling(read_options({"top_k": 7}), facts)

    assert (sampling["temperature"], sampling["top_k"], sampling["n_predict"], sampling["top_p"]) == (0, 7, 9, 0.9)

"""What an alias brings with it."""

import json
from typing import Any

from llamaherd_gateway.projection import Alias
from llamaherd_gateway.routing.presets import apply_preset, parameters_of

PIRATE = Alias(alias="pirate", model="cria", system="Be a pirate.", parameters={"temperature": 0.1})
HELLO = {"role": "user", "content": "hello"}


def preset(alias: Alias, **body: Any) -> Any:
    return json.loads(apply_preset(alias, json.dumps(body).encode()))


def test_a_chat_without_a_system_message_gets_the_aliass() -> None:
    assert preset(PIRATE, messages=[HELLO])["messages"] == [{"role": "system", "content": "Be a pirate."}, HELLO]


def test_a_chat_with_one_keeps_it() -> None:
    messages = [{"role": "system", "content": "Be a monk."}, HELLO]

    assert preset(PIRATE, messages=messages)["messages"] == messages


def test_parameters_are_given_where_the_request_says_nothing() -> None:
    assert preset(PIRATE, messages=[HELLO], temperature=None)["temperature"] == 0.1
    assert preset(PIRATE, messages=[HELLO], temperature=1)["temperature"] == 1


def test_a_body_without_messages_only_gets_parameters() -> None:
    assert preset(PIRATE, prompt="x") == {"prompt": "x", "temperature": 0.1}


def test_options_of_ollama_are_parameters_of_llama_server() -> None:
    options = {"num_predict": 5, "num_ctx": 4096, "temperature": 1, "stop": ["x"]}

    assert parameters_of(options) == {"max_tokens": 5, "temperature": 1, "stop": ["x"]}

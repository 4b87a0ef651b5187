"""Options, times and names as Ollama's clients write them."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_gateway.dialects.dialect import Facts
from llamaherd_gateway.dialects.ollama.durations import read_keep_alive, render_time
from llamaherd_gateway.dialects.ollama.names import read_name, split_name
from llamaherd_gateway.dialects.ollama.options import load_options, read_options, render_sampling
from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.model_options import LoadOptions

FACTS = Facts(model="m", context_tokens=2048)


def sampling(facts: Facts = FACTS, **given: Any) -> dict[str, Any]:
    return render_sampling(read_options(given), facts)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"repeat_last_n": -1}, {"repeat_last_n": 2048}),
        ({"repeat_last_n": 10**9}, {"repeat_last_n": 2048}),
        ({"repeat_last_n": 0}, {"repeat_last_n": 0}),
        ({"num_predict": -1}, {"n_predict": 20480}),
        ({"num_predict": -2}, {"n_predict": 20480}),
        ({"num_predict": 10**12}, {"n_predict": 20480}),
        ({"num_predict": 7}, {"n_predict": 7}),
        ({"num_predict": 7.9}, {"n_predict": 7}),
        ({"num_keep": -5}, {"n_keep": -1}),
        ({"stop": ["a", "", "b"]}, {"stop": ["a", "b"]}),
        ({"stop": None, "top_k": None}, {"stop": [], "top_k": 40}),
        ({"mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.2}, {"mirostat": 2, "mirostat_tau": 4}),
        ({"seed": 42, "temperature": 0, "top_p": 1}, {"seed": 42, "temperature": 0, "top_p": 1}),
    ],
)
def test_options_become_what_llama_server_takes(given: dict[str, Any], sent: dict[str, Any]) -> None:
    assert sent.items() <= sampling(**given).items()


def test_without_a_known_context_no_limit_stays_no_limit() -> None:
    unknown = Facts(model="m")
    assert sampling(unknown, num_predict=-2)["n_predict"] == -1
    assert sampling(unknown, num_predict=10**12)["n_predict"] == 2**31 - 1
    assert sampling(unknown, repeat_last_n=-1)["repeat_last_n"] > 0


def test_options_of_loading_and_unknown_ones_are_left_out() -> None:
    plain = sampling()
    assert "mirostat" not in plain
    assert sampling(num_ctx=4096, num_gpu=99, use_mmap=True, tfs_z=1, penalize_newline=True, whatever=[]) == plain


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": "x"}, 'option "top_k" must be of type integer'),
        ({"seed": True}, 'option "seed" must be of type integer'),
        ({"num_ctx": "8k"}, 'option "num_ctx" must be of type integer'),
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"stop": "x"}, 'option "stop" must be of type array'),
        ({"stop": [1]}, 'option "stop" must be of an array of strings'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
    ],
)
def test_options_of_the_wrong_type_are_refused_in_ollamas_words(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_options(given)
    assert caught.value.message == message


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(sorted(sampling())), st.integers() | st.floats(allow_nan=False)))
def test_any_numbers_give_a_request_that_llama_server_can_read(given: dict[str, Any]) -> None:
    try:
        sent = sampling(**given)
    except BadRequest:
        return
    json.dumps(sent, allow_nan=False)
    assert -1 <= sent["n_predict"] <= 2**31 - 1
    assert 0 <= sent["repeat_last_n"] <= 2048


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (300, 300),
        (1.5, 1.5),
        (0, 0),
        ("0", 0),
        ("0s", 0),
        ("5m", 300),
        ("1h30m", 5400),
        ("300ms", 0.3),
        ("1.5h", 5400),
        ("+2s", 2),
        (".5s", 0.5),
        ("1500\u00b5s", 0.0015),
        (-1, -1),
        (-0.5, -1),
        ("-1m", -1),
        ("-1", BadRequest),
        (10**400, -1),
        (-(10**400), -1),
        ("9" * 400 + "h", -1),
        ("5", BadRequest),
        ("5d", BadRequest),
        ("", BadRequest),
        ("s", BadRequest),
        ("5m ", BadRequest),
        ("- 5m", BadRequest),
        ("\u0665m", BadRequest),
        (True, BadRequest),
        ([], BadRequest),
        ({}, BadRequest),
    ],
)
def test_keep_alive_is_seconds_or_a_duration_of_go(value: Any, seconds: Any) -> None:
    if seconds is BadRequest:
        with pytest.raises(BadRequest):
            read_keep_alive(value)
    else:
        assert read_keep_alive(value) == seconds


def test_a_bad_duration_is_refused_in_gos_words() -> None:
    def refusal(value: str) -> str:
        with pytest.raises(BadRequest) as caught:
            read_keep_alive(value)
        return caught.value.message

    assert refusal("5") == 'time: missing unit in duration "5"'
    assert refusal("5d") == 'time: unknown unit "d" in duration "5d"'
    assert refusal("x") == 'time: invalid duration "x"'


@given(st.text(max_size=8) | st.integers() | st.floats() | st.booleans())
@settings(max_examples=30)
def test_any_keep_alive_is_read_or_refused(value: Any) -> None:
    try:
        seconds = read_keep_alive(value)
    except BadRequest:
        return
    assert seconds is not None
    assert seconds == -1 or 0 <= seconds < 1e10


def test_times_have_nine_digits_after_the_point() -> None:
    assert render_time(0) == "1970-01-01T00:00:00.000000000Z"
    assert render_time(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"


@pytest.mark.parametrize(
    ("name", "display", "full"),
    [
        ("m", "m:latest", "registry.ollama.ai/library/m:latest"),
        ("m:8b", "m:8b", "registry.ollama.ai/library/m:8b"),
        ("me/m", "me/m:latest", "registry.ollama.ai/me/m:latest"),
        ("library/m", "m:latest", "registry.ollama.ai/library/m:latest"),
        ("hf.co/me/m:Q4", "hf.co/me/m:Q4", "hf.co/me/m:Q4"),
        ("host:5000/me/m", "host:5000/me/m:latest", "host:5000/me/m:latest"),
    ],
)
def test_names_are_shown_short_with_their_tag(name: str, display: str, full: str) -> None:
    assert split_name(name).display == display
    assert split_name(name).full == full
    assert read_name(name) == name


@pytest.mark.parametrize("name", ["", " ", "/m", "m/", ":tag", "m:", "a/b/c/d", "a//b", "m\nn", "m" * 81])
def test_malformed_names_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="invalid model name"):
        read_name(name)


def test_what_is_decided_when_a_model_is_loaded_is_told_apart() -> None:
    given = {"num_ctx": 8192, "num_batch": 256.9, "num_gpu": 0, "main_gpu": 1, "num_thread": 4, "temperature": 1}
    assert load_options(given | {"use_mmap": False, "draft_num_predict": 0}) == LoadOptions(
        context_tokens=8192,
        batch_tokens=256,
        gpu_layers=0,
        main_gpu=1,
        threads=4,
        load_mode="none",
        draft_max_tokens=0,
    )
    assert load_options({"use_mmap": True}) == LoadOptions(load_mode="mmap")


@pytest.mark.parametrize(
    "given",
    [None, {}, {"temperature": 1}, {"num_ctx": 0}, {"num_ctx": -1, "num_gpu": -1, "num_thread": 0}, {"num_ctx": None}],
)
def test_what_leaves_it_to_ollama_asks_for_nothing(given: dict[str, Any] | None) -> None:
    assert load_options(given) is None

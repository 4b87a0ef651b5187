"""What whoever runs the herd decides about parameters."""

import json
from typing import Any

import pytest

from llamaherd_gateway.problems import BadRequest
from llamaherd_gateway.routing.rules import apply_rules
from llamaherd_shared.model_spec import Rules


def applied(rules: Rules, **body: Any) -> Any:
    return json.loads(apply_rules(rules, json.dumps(body).encode()))


def test_set_wins_over_the_client_and_default_does_not() -> None:
    rules = Rules(set={"seed": 7}, default={"temperature": 0.2, "top_k": 5})

    assert applied(rules, seed=1, temperature=1.5, top_k=None) == {"seed": 7, "temperature": 1.5, "top_k": 5}


def test_stripped_parameters_are_gone_before_defaults_are_given() -> None:
    assert applied(Rules(strip=("logit_bias", "x"), default={"x": 1}), logit_bias={}, x=2, y=3) == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("value", "kept"), [(0.5, 0.5), (-1, 0), (9, 2.0), ("hot", "hot"), (True, True), (None, None), ([9], [9])]
)
def test_numbers_are_moved_into_bounds_and_the_rest_is_left_alone(value: Any, kept: Any) -> None:
    assert applied(Rules(clamp={"temperature": (0, 2.0)}), temperature=value) == {"temperature": kept}


def test_an_open_side_does_not_bind() -> None:
    assert applied(Rules(clamp={"max_tokens": (None, 100)}), max_tokens=-1) == {"max_tokens": -1}
    assert applied(Rules(clamp={"max_tokens": (None, 100)}), n=1) == {"n": 1}


def test_what_is_not_touched_stays_as_it_was_written() -> None:
    assert (
        apply_rules(Rules(set={"b": 1}), b'{"a": 1.50, "c": {"d": [1,  2]}}') == b'{"a":1.50,"c":{"d": [1,  2]},"b":1}'
    )


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(BadRequest):
        apply_rules(Rules(set={"a": 1}), b"[]")

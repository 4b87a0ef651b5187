"""What a request needs its model to be loaded with."""

from llamaherd_gateway.projection import Alias
from llamaherd_gateway.routing.demands import demand
from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.model_spec import ModelSpec

PLAIN = ModelSpec()
ASKED = LoadOptions(context_tokens=8192)
LONG = Alias(alias="long", model="m", options={"num_ctx": 4096, "num_batch": 64, "temperature": 1})


def test_a_request_that_says_nothing_needs_nothing() -> None:
    assert demand(None, None, PLAIN, training_tokens=0) is None
    assert demand(None, Alias(alias="a", model="m", options={"temperature": 1}), PLAIN, training_tokens=0) is None


def test_what_the_request_says_counts_more_than_what_its_alias_brings() -> None:
    assert demand(None, LONG, PLAIN, training_tokens=0) == LoadOptions(context_tokens=4096, batch_tokens=64)
    assert demand(ASKED, LONG, PLAIN, training_tokens=0) == LoadOptions(context_tokens=8192, batch_tokens=64)


def test_no_more_is_needed_than_the_model_was_trained_with() -> None:
    assert demand(ASKED, None, PLAIN, training_tokens=2048) == LoadOptions(context_tokens=2048)
    assert demand(ASKED, None, ModelSpec(rope_scale=2.0), training_tokens=2048) == ASKED


def test_clients_have_no_say_where_that_is_switched_off_or_another_server_runs() -> None:
    assert demand(ASKED, LONG, ModelSpec(client_options=False), training_tokens=0) is None
    assert demand(ASKED, LONG, ModelSpec(command=("serve",)), training_tokens=0) is None

from llamaherd_gateway.relay.spans import span_attributes, span_name
from llamaherd_shared.events.request import RequestFinished

CHAT = RequestFinished(
    request_id="1",
    at_ns=1,
    node="n",
    model="cria",
    instance="n/cria/0",
    route="/v1/chat/completions",
    status=200,
    outcome="ok",
    prompt_tokens=12,
    completion_tokens=3,
)


def test_a_chat_is_described_in_the_conventions_terms() -> None:
    attributes = span_attributes(CHAT)

    assert span_name(CHAT) == "chat cria"
    assert attributes["gen_ai.usage.input_tokens"] == 12
    assert attributes["gen_ai.usage.output_tokens"] == 3
    assert "error.type" not in attributes


def test_what_llama_server_did_not_tell_is_left_out() -> None:
    failed = RequestFinished(
        request_id="1", at_ns=1, node="n", model="m", route="/tokenize", status=503, outcome="error"
    )

    attributes = span_attributes(failed)

    assert "gen_ai.usage.input_tokens" not in attributes
    assert attributes["error.type"] == "503"
    assert attributes["gen_ai.operation.name"] == "other"

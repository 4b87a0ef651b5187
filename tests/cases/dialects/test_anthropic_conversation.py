"""A conversation keeps what was said, shown, thought, called and answered, in the order chat templates expect."""

import json
from typing import Any

import pytest

from llamaherd_gateway.dialects.anthropic.request import read_messages
from llamaherd_gateway.problems import BadRequest

PIXEL: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0="}}
PIXEL_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}}


def messages(*said: tuple[str, Any], system: Any = None) -> Any:
    """The messages of the chat completion."""
    turns = [{"role": role, "content": content} for role, content in said]
    asked = read_messages(json.dumps({"model": "m", "max_tokens": 9, "system": system, "messages": turns}).encode())
    return json.loads(bytes(asked.content.fields["messages"]))


def text(said: str) -> Any:
    return {"type": "text", "text": said}


def test_the_system_prompt_is_text_or_blocks() -> None:
    blocks = [
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        text("Be kind."),
    ]

    assert messages(("user", "a"), system="Be brief.")[0] == {"role": "system", "content": "Be brief."}
    assert messages(("user", "a"), system=blocks)[0] == {"role": "system", "content": "Be brief.\n\nBe kind."}
    assert messages(("user", "a"), system="")[0]["role"] == "user"


@pytest.mark.parametrize("apart", [True, False])
def test_what_changes_with_every_request_does_not_stand_before_the_prompt(apart: bool) -> None:
    header = "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch=%s;"
    rest = "You are a coding agent; be careful: x=1;"

    def system(cch: str) -> Any:
        said = [header % cch, rest] if apart else [header % cch + rest]
        return [text(part) for part in said]

    for prompt in (system("a5145"), system("00fff"), header % "b" + rest):
        assert messages(("user", "a"), system=prompt)[0]["content"] == rest


def test_a_later_system_message_is_marked_text_of_the_user() -> None:
    said = messages(
        ("system", "First."), ("user", "a"), ("assistant", "b"), ("system", "Then."), ("user", "c"), system="Top."
    )

    assert said[0] == {"role": "system", "content": "Top.\n\nFirst."}
    assert said[-1] == {"role": "user", "content": "<system>\nThen.\n</system>\nc"}
    assert [message["role"] for message in said] == ["system", "user", "assistant", "user"]


def test_turns_of_one_side_are_joined() -> None:
    assert messages(("user", "a"), ("user", [text("b")]), ("assistant", "c"), ("user", "d")) == [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]


def test_images_are_parts_in_their_place() -> None:
    (message,) = messages(("user", [text("Before."), PIXEL, text("After.")]))

    assert message["content"] == [text("Before."), PIXEL_PART, text("After.")]


def test_calls_and_results_keep_their_ids_and_results_come_first() -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
    second = {"type": "tool_use", "id": "2", "name": "get_time", "input": {}}
    results = [
        text("Here."),
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"},
        {"type": "tool_result", "tool_use_id": "2", "content": [text("broken")], "is_error": True},
    ]

    assert messages(("user", "Go"), ("assistant", [text("I look."), call, second]), ("user", results))[1:] == [
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
                },
                {"id": "2", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "2", "content": "Error: broken"},
        {"role": "user", "content": "Here."},
    ]


@pytest.mark.parametrize(
    ("content", "is_error", "said"),
    [
        (None, False, ""),
        ("", True, "Error"),
        ([PIXEL], False, [PIXEL_PART]),
        ([PIXEL], True, [text("Error"), PIXEL_PART]),
        ([text("a"), text("b")], True, "Error: a\nb"),
    ],
)
def test_results_keep_their_images_and_their_failure(content: Any, is_error: bool, said: Any) -> None:
    result = {"type": "tool_result", "tool_use_id": "1", "content": content, "is_error": is_error}

    assert messages(("user", [result])) == [{"role": "tool", "tool_call_id": "1", "content": said}]


def test_thoughts_go_back_as_reasoning_and_sealed_ones_are_dropped() -> None:
    turn = [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "redacted_thinking", "data": "abc"},
        text("Yes."),
    ]

    assert messages(("user", "a"), ("assistant", turn), ("user", "b"))[1] == {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_content": "Hm.",
    }


def test_documents_of_text_and_search_results_are_read_to_the_model() -> None:
    plain = {"type": "document", "title": "Log", "source": {"type": "text", "media_type": "text/plain", "data": "one"}}
    nested = {"type": "document", "source": {"type": "content", "content": [text("two")]}}
    found = {
        "type": "search_result",
        "source": "https://x",
        "title": "X",
        "content": [text("three")],
    }

    (message,) = messages(("user", [plain, nested, found]))
    assert message["content"] == (
        "<document>\n<title>Log</title>\none\n</document>\n"
        "<document>\ntwo\n</document>\n"
        "<search_result>\n<source>https://x</source>\n<title>X</title>\nthree\n</search_result>"
    )


URL = {"type": "url", "url": "http://a/b"}
PAGE = PIXEL["source"] | {"media_type": "text/html"}
PDF = {"type": "base64", "media_type": "application/pdf", "data": ""}
CALL = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "tool_reference"}]}


@pytest.mark.parametrize(
    ("content", "place", "said"),
    [
        ([{"type": "image", "source": URL}], ".0.source", "base64"),
        ([{"type": "image", "source": PAGE}], ".0.source.media_type", "text/html"),
        ([{"type": "document", "source": PDF}], ".0.source", "application/pdf"),
        ([{"type": "document", "source": URL}], ".0.source", "url"),
        ([text("a"), {"type": "container_upload"}], ".1", "container_upload"),
        ([RESULT], ".0.content.0", "tool_reference"),
        ([CALL], ".0", "role `assistant`"),
        ([{"type": "text", "text": 5}], ".0.text", "expected `str`"),
        ([5], ".0", "expected `object`"),
    ],
)
def test_content_that_cannot_be_served_is_named_with_its_place(content: Any, place: str, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        messages(("user", content))

    assert caught.value.message.startswith(f"messages.0.content{place}: ")
    assert said in caught.value.message

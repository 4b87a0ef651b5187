from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_shared.subjects import decode_token, encode_token


@settings(max_examples=500, deadline=None)
@given(st.text())
def test_any_text_becomes_one_legal_token_and_comes_back(text: str) -> None:
    encodable = text.encode("utf-8", "ignore").decode()

    token = encode_token(encodable)

    assert decode_token(token) == encodable
    assert token
    assert not set(token) & set(". *>\t\r\n")

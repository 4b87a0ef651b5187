import pytest

from llamaherd_shared.trace import trace_id_of

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def test_the_trace_id_is_read_from_the_header() -> None:
    assert trace_id_of(f"00-{TRACE_ID}-b7ad6b7169203331-01") == TRACE_ID


@pytest.mark.parametrize(
    "header",
    [None, "", "00-xyz", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "g" * 32 + "-" + "1" * 16 + "-01"],
)
def test_a_malformed_header_carries_no_trace(header: str | None) -> None:
    assert trace_id_of(header) is None

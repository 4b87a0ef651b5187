import pytest

from llamaherd_shared.telemetry import make_traceparent, new_trace_id, trace_id_of


def test_a_trace_id_survives_the_header() -> None:
    trace_id = new_trace_id()

    assert trace_id_of(make_traceparent(trace_id)) == trace_id


@pytest.mark.parametrize(
    "header",
    [None, "", "00-xyz", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "g" * 32 + "-" + "1" * 16 + "-01"],
)
def test_a_malformed_header_carries_no_trace(header: str | None) -> None:
    assert trace_id_of(header) is None

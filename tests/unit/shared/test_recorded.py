from llamaherd_shared.bus.recorded import parse_ack_reply


def test_both_forms_of_the_reply_subject_are_read() -> None:
    assert parse_ack_reply("$JS.ACK.HERD_EVENTS.reader.1.42.7.1795180292867205413.3") == (42, 1795180292867205413, 3)
    long = "$JS.ACK.hub.ACCHASH.HERD_EVENTS.reader.1.42.7.1795180292867205413.3.token"
    assert parse_ack_reply(long) == (42, 1795180292867205413, 3)

"""The newest messages of a topic, bounded."""

from llamaherd_ui.tail import Message, Ring


def ring_of(*keys: int, max_bytes: int = 100) -> Ring:
    ring = Ring(max_bytes)
    for key in keys:
        ring.push(Message(key, "fact", b"0123456789"))
    return ring


def keys(ring: Ring, after: int, limit: int = 10) -> list[int] | None:
    found = ring.after(after, limit)
    return None if found is None else [message.key for message in found]


def test_page_behind_a_position_comes_in_order() -> None:
    ring = ring_of(1, 2, 5, 6)

    assert keys(ring, 0) == [1, 2, 5, 6]
    assert keys(ring, 2) == [5, 6]
    assert keys(ring, 0, limit=2) == [1, 2]
    assert keys(ring, 6) == []


def test_the_oldest_give_way_to_the_bound() -> None:
    ring = ring_of(*range(1, 16))

    assert ring.floor == 5
    assert keys(ring, 5, limit=3) == [6, 7, 8]
    assert keys(ring, 4) is None


def test_a_message_larger_than_the_bound_leaves_an_empty_ring() -> None:
    ring = ring_of(1, 2, max_bytes=5)

    assert ring.floor == ring.last == 2
    assert keys(ring, 1) is None
    assert keys(ring, 2) == []


def test_restart_forgets_all() -> None:
    ring = ring_of(1, 2)

    ring.restart(9)

    assert ring.last == 9
    assert keys(ring, 2) is None
    assert keys(ring, 9) == []

"""What the gateway remembers of conversations is bounded, however many and long they are."""

from llamaherd_gateway.routing.affinity import BLOCK_BYTES, BLOCKS, REMEMBERED, Affinity, blocks_of


def test_memory_is_bounded() -> None:
    affinity = Affinity()
    for number in range(REMEMBERED // BLOCKS + 2):
        affinity.note(blocks_of(b"%08d" % number + bytes(2 * BLOCKS * BLOCK_BYTES)), ("n", "m", 0))

    assert len(affinity._places) == REMEMBERED
    assert blocks_of(b"short") == []

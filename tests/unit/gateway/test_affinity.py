"""Which instance has a conversation's beginning in its cache."""

from llamaherd_gateway.projection import Instance
from llamaherd_gateway.routing.affinity import BLOCK_BYTES, Affinity, blocks_of
from llamaherd_gateway.routing.table import pick_instance

A, B = ("n", "m", 0), ("n", "m", 1)
INSTANCES = tuple(Instance(node="n", model="m", index=index, state="ready", slots=2) for index in (0, 1))
FIRST = b"system prompt " * 60
GOES_ON = FIRST + b"answer and next question " * 40


def test_a_conversation_that_goes_on_finds_the_instance_of_its_beginning() -> None:
    affinity = Affinity()
    affinity.note(blocks_of(FIRST), B)

    found = affinity.find(blocks_of(GOES_ON))

    assert found == {B: len(FIRST) // BLOCK_BYTES}
    assert pick_instance(INSTANCES, {A: 0, B: 1}, found).key == B


def test_a_cache_behind_busy_slots_is_not_waited_for() -> None:
    affinity = Affinity()
    affinity.note(blocks_of(FIRST), B)

    assert pick_instance(INSTANCES, {A: 1, B: 2}, affinity.find(blocks_of(GOES_ON))).key == A


def test_another_conversation_goes_to_the_least_busy() -> None:
    affinity = Affinity()
    affinity.note(blocks_of(FIRST), B)

    assert affinity.find(blocks_of(b"other" + GOES_ON)) == {}
    assert pick_instance(INSTANCES, {A: 0, B: 0}, {}).key == A
    assert pick_instance(INSTANCES, {A: 1, B: 0}, {}).key == B


def test_the_longest_common_beginning_wins() -> None:
    affinity = Affinity()
    affinity.note(blocks_of(GOES_ON), A)
    affinity.note(blocks_of(FIRST), B)

    assert pick_instance(INSTANCES, {}, affinity.find(blocks_of(GOES_ON))).key == A

"""How many go on in one turn of the event loop."""

import asyncio
from collections import Counter

from llamaherd_supervisor.turns import Turns


def test_few_go_on_in_one_turn_of_the_loop_and_all_do_in_the_end() -> None:
    went = asyncio.run(crowd(100, Turns(8)))

    assert sum(went.values()) == 100
    assert max(went.values()) == 8


def test_who_comes_alone_does_not_wait() -> None:
    async def alone() -> bool:
        turns, waited = Turns(1), []
        asyncio.get_running_loop().call_soon(waited.append, True)
        await turns.take()
        return bool(waited)

    assert not asyncio.run(alone())


async def crowd(size: int, turns: Turns) -> Counter[int]:
    """Turn of the loop -> how many went on in it."""
    turn = 0
    went: Counter[int] = Counter()

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def come() -> None:
        await turns.take()
        went[turn] += 1

    counting = asyncio.create_task(count_turns())
    await asyncio.gather(*(come() for _ in range(size)))
    counting.cancel()
    return went

"""Turns of links that dial."""

import asyncio

from llx.agent.dial_turns import DialTurns


async def is_let(turns: DialTurns, link: object) -> bool:
    try:
        async with asyncio.timeout(0.02):
            await turns.take(link)
    except TimeoutError:
        return False
    return True


def test_so_many_at_a_time_and_the_next_when_one_has_its_session() -> None:
    async def play() -> None:
        turns = DialTurns(at_a_time=2, held_s=60)
        assert await is_let(turns, "a")
        assert await is_let(turns, "b")
        assert not await is_let(turns, "c")
        turns.give_back("a")
        turns.give_back("a")  # its session ends later: that frees nothing
        assert await is_let(turns, "c")
        assert not await is_let(turns, "d")

    asyncio.run(play())


def test_one_that_gets_no_session_holds_up_nobody_for_long() -> None:
    async def play() -> None:
        turns = DialTurns(at_a_time=1, held_s=0.5)
        assert await is_let(turns, "dead")
        turns._held_s = 60  # of b: it must not be over before all has been looked at
        await asyncio.wait_for(turns.take("b"), 20)
        assert not await is_let(turns, "c")
        turns.give_back("dead")  # its turn was over: that of b is not
        assert not await is_let(turns, "c")

    asyncio.run(play())

"""Reading sockets without a future for each message."""

import asyncio
import itertools
from collections.abc import Callable

import pytest
import zmq
import zmq.asyncio

from llx.agent.socket_reader import Conversation, ReadSocket, SocketReader, read_all

Make = Callable[[], ReadSocket]


@pytest.fixture(params=["alone", "together"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes what reads, on a running loop."""
    return (lambda: read_all) if request.param == "alone" else lambda: SocketReader().read_all


async def reading(
    make: Make,
    take: Callable[[list[bytes]], None],
    play: "Callable[[zmq.asyncio.Socket], object]",
    is_done: Callable[[], bool],
) -> "asyncio.Task[None]":
    """A task that reads until `is_done`, or it ends; `play` gets the other end meanwhile."""
    context = zmq.asyncio.Context()
    try:
        near, far = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        near.bind("inproc://x")
        far.connect("inproc://x")
        await far.send(b"early")
        task = asyncio.create_task(make()(near, take))
        await asyncio.sleep(0)
        await play(far)  # type: ignore[misc]
        async with asyncio.timeout(20):
            while not (is_done() or task.done()):
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        await far.send(b"late")
        await asyncio.sleep(0.05)
        return task
    finally:
        context.destroy(linger=0)


def test_every_message_comes_once_and_in_order(make: Make) -> None:
    found: list[bytes] = []

    async def play(far: zmq.asyncio.Socket) -> None:
        for number in range(500):
            await far.send(b"%d" % number)
            if number % 100 == 0:
                await asyncio.sleep(0.01)

    asyncio.run(reading(make, lambda frames: found.extend(frames), play, lambda: len(found) >= 501))
    assert found == [b"early", *(b"%d" % number for number in range(500))]


def test_others_have_their_turns_while_much_comes(make: Make) -> None:
    turns: list[str] = []

    async def play(far: zmq.asyncio.Socket) -> None:
        for _ in range(300):
            far.send(b"x")
        for _ in range(6):
            await asyncio.sleep(0)
            turns.append("other")

    asyncio.run(
        reading(
            make, lambda _: turns.append("message"), play, lambda: turns.count("message") == 301
        )
    )
    first = turns.index("other")
    assert "message" in turns[first:], "all was read before anybody else had a turn"


def test_what_the_taker_raises_ends_it(make: Make) -> None:
    found: list[bytes] = []

    def take(frames: list[bytes]) -> None:
        found.extend(frames)
        if frames == [b"bad"]:
            raise ValueError("bad")

    async def play(far: zmq.asyncio.Socket) -> None:
        for each in (b"bad", b"after"):
            await far.send(each)

    task = asyncio.run(reading(make, take, play, lambda: False))
    with pytest.raises(ValueError, match="bad"):
        task.result()
    assert found == [b"early", b"bad"]


class Pairs:
    """Sockets that a reader reads, what has come on each, and their other ends."""

    def __init__(self, count: int) -> None:
        self._context = zmq.asyncio.Context()
        self.reader = SocketReader()
        self.found: list[list[bytes]] = [[] for _ in range(count)]
        self.far = [self._context.socket(zmq.PAIR) for _ in range(count)]
        self.tasks: list[asyncio.Task[None]] = []
        for number, far in enumerate(self.far):
            near = self._context.socket(zmq.PAIR)
            near.bind(f"inproc://{number}")
            far.connect(f"inproc://{number}")
            self.tasks.append(asyncio.create_task(self.reader.read_all(near, self.taker(number))))

    def taker(self, number: int) -> Callable[[list[bytes]], None]:
        def take(frames: list[bytes]) -> None:
            if frames == [b"bad"]:
                raise ValueError("bad")
            if frames == [b"worse"]:
                raise asyncio.CancelledError
            self.found[number] += frames

        return take

    async def until(self, counts: list[int]) -> None:
        async with asyncio.timeout(20):
            while [len(each) for each in self.found] != counts:
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        self.reader.close()
        self._context.destroy(linger=0)


def test_one_reader_reads_many_sockets_when_busy_and_when_quiet() -> None:
    async def play() -> None:
        pairs = Pairs(30)
        try:
            sent = [0] * 30
            # Each with another rhythm, so that some tell of news while others are being read.
            for turn, number in itertools.product(range(40), range(30)):
                if turn % (number + 1) == 0:
                    await pairs.far[number].send(b"%d" % turn)
                    sent[number] += 1
                if number == 29 and turn % 10 == 0:
                    await pairs.until(sent)
                    await asyncio.sleep(0.01)  # all is quiet: the reader waits for news
            await pairs.until(sent)
            assert pairs.found == [
                [b"%d" % turn for turn in range(40) if turn % (number + 1) == 0]
                for number in range(30)
            ]
        finally:
            await pairs.close()

    asyncio.run(play())


def test_who_fails_or_leaves_takes_nobody_along() -> None:
    async def play() -> None:
        pairs = Pairs(3)
        try:
            for far in pairs.far:
                await far.send(b"first")
            await pairs.until([1, 1, 1])
            await pairs.far[0].send(b"bad")
            pairs.tasks[1].cancel()
            await asyncio.wait(pairs.tasks[:2])
            for far in pairs.far:
                await far.send(b"second")
            await pairs.until([1, 1, 2])
            with pytest.raises(ValueError, match="bad"):
                pairs.tasks[0].result()
            assert pairs.tasks[1].cancelled()
            assert not pairs.tasks[2].done()
        finally:
            await pairs.close()

    asyncio.run(play())


def test_others_have_their_turns_while_much_comes_on_many_sockets() -> None:
    async def play() -> None:
        pairs = Pairs(30)
        try:
            for far in pairs.far:
                for _ in range(40):
                    far.send(b"x")
            read = [0]
            while read[-1] < 30 * 40:
                await asyncio.sleep(0)
                read.append(sum(map(len, pairs.found)))
            most = max(after - before for before, after in itertools.pairwise(read))
            assert 30 < most < 600, "some hundreds, then everybody else has a turn"
        finally:
            await pairs.close()

    async def within() -> None:
        async with asyncio.timeout(20):
            await play()

    asyncio.run(within())


def test_it_looks_again_whatever_was_raised() -> None:
    raised = []

    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, about: raised.append(about))
        pairs = Pairs(2)
        try:
            await pairs.far[0].send(b"first")
            await pairs.until([1, 0])
            await asyncio.sleep(0.02)  # all is quiet: what comes is read by the loop's own call
            await pairs.far[0].send(b"worse")
            for far in pairs.far:
                await far.send(b"after")
            await pairs.until([2, 1])
        finally:
            await pairs.close()

    asyncio.run(play())
    assert len(raised) == 1


def test_a_conversation_misses_nothing_while_it_speaks() -> None:
    """What one side sends may take away the notice that something has come for it."""

    async def play() -> tuple[list[bytes], list[bytes]]:
        context = zmq.asyncio.Context()
        heard: tuple[list[bytes], list[bytes]] = ([], [])
        sides = [context.socket(zmq.PAIR), context.socket(zmq.PAIR)]
        for each in sides:
            each.setsockopt(zmq.SNDHWM, 0)
            each.setsockopt(zmq.RCVHWM, 0)
        sides[0].bind("inproc://x")
        sides[1].connect("inproc://x")
        talks = [Conversation(each) for each in sides]
        tasks = [
            asyncio.create_task(talk.read_all(lambda frames, own=own: own.extend(frames)))
            for talk, own in zip(talks, heard, strict=True)
        ]
        try:
            for number in range(2000):
                for talk in talks:
                    assert talk.send(b"%d" % number)
                if number % 7 == 0:
                    await asyncio.sleep(0)
            async with asyncio.timeout(20):
                while min(map(len, heard)) < 2000:
                    await asyncio.sleep(0.01)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            context.destroy(linger=0)
        return heard

    for heard in asyncio.run(play()):
        assert heard == [b"%d" % number for number in range(2000)]

"""A short load from which step times can be told apart: waves of requests of unlike lengths.

    a wave     1, 2, 4 … requests for each instance, at once or one after the other, each prompt of
               a length of its own; the next wave when the last of them has ended
    at last    waves whose requests are moved to and fro, for the link; their steps do not count

Closed loop: an engine of any speed is given no more than it can do.
"""

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Final

from llx.api import MigrateRequest
from llx.bench.generator import Generator, Target
from llx.bench.prompts import Prompts, Segment
from llx.bench.record import Outcome, Record
from llx.bench.schedule import Planned
from llx.bench.step_watch import StepWatch
from llx.client import Cluster
from llx.errors import (
    ConflictError,
    DeadlineError,
    NotFoundError,
    RemoteError,
    UnreachableError,
)

_NAME: Final = "calibrate"
"""Begins every request's id."""
_SHORTEST: Final = 8
_MOST_AT_ONCE: Final = 32
_OUTPUTS: Final = (8, 40)
_OF_MEMORY: Final = 0.7
_MOVES_SHARE: Final = 0.2
_MOVE_EVERY_S: Final = 0.15
_MOVED_OUTPUTS: Final = 400
_OF_DURATION: Final = 0.08
"""No wave has prompts that take longer to compute."""
_FIRST_TOKENS: Final = 256
_LONE: Final = 3
"""Waves at first of a request for each instance: what a gateway takes shows where nobody waits."""


@dataclass(frozen=True, slots=True)
class Wave:
    """Requests: prompt and output tokens of each, and the gap between them."""

    requests: tuple[tuple[int, int], ...]
    gap_s: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What an instance can take.

    Attributes:
        longest: Tokens of a request.
        capacity: Tokens of all of them.
        at_once: Requests at a time.
    """

    longest: int
    capacity: int
    at_once: int


Observe = Callable[[float, int], None]
"""Told the seconds gone by and how many steps were seen."""


def waves(limits: Limits, num_instances: int, pace: Callable[[], "Pace"]) -> Iterator[Wave]:
    """Without end, the same every time but for what `pace` says of the instances by then."""
    draw = random.Random("calibrate")
    batches = [1 << power for power in range(_MOST_AT_ONCE.bit_length())]
    batches = [each for each in batches if each <= min(limits.at_once, _MOST_AT_ONCE)]
    fewest, most_outputs = (min(each, limits.longest // 4) for each in _OUTPUTS)
    for _ in range(_LONE):
        lone = min(_FIRST_TOKENS // 4, limits.longest // 2), fewest
        yield Wave((lone,) * num_instances, 0.0)
    while True:
        for level in (0.25, 0.6, 1.0):
            for batch in draw.sample(batches, len(batches)):
                now = pace()
                count = batch * num_instances
                outputs = [draw.randint(fewest, most_outputs) for _ in range(count)]
                room = int(_OF_MEMORY * limits.capacity / batch) - max(outputs)
                most = min(limits.longest - max(outputs), room, now.prompt_tokens // batch)
                top = max(_SHORTEST, most * level)
                lengths = [round(_SHORTEST * (top / _SHORTEST) ** draw.random()) for _ in outputs]
                lengths[0] = round(top)
                gap_s = draw.choice([0.0, 3 * now.step_s])
                yield Wave(tuple(zip(lengths, outputs, strict=True)), gap_s)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast an instance is: prompt tokens that a wave may have, and the time of a step."""

    prompt_tokens: int
    step_s: float


class CalibrationLoad:
    """Drives a model for `duration_s`, and has `watch` look after each wave.

    Raises:
        RemoteError: No request of a wave came through.
    """

    def __init__(
        self,
        target: Target,
        control: Cluster,
        watch: StepWatch,
        duration_s: float,
        priority_class: str,
        user: str,
    ) -> None:
        size = watch.size
        self._target = target
        self._control = control
        self._watch = watch
        self._duration_s = duration_s
        self._class = priority_class
        self._user = user
        self._limits = Limits(
            size.max_model_len, size.num_blocks * size.block_size, size.max_num_seqs
        )
        self._salt = secrets.token_hex(4)
        self._prompts = Prompts(self._salt, size.max_model_len)
        self._draw = random.Random(self._salt)
        self._num_waves = 0
        self._began = 0.0

    async def run(self, observe: Observe) -> None:
        """All of it. What is under way at the end is cut."""
        self._began = time.monotonic()
        has_moves = len(self._watch.movable) > 1
        end = self._began + self._duration_s * (1 - _MOVES_SHARE * has_moves)
        for wave in waves(self._limits, len(self._watch.instances), self._pace):
            is_whole = await _done_by(end, self._send(wave))
            await self._look(observe)
            if not is_whole:
                break
        if has_moves:
            end = self._began + self._duration_s
            while await _done_by(end, self._send_and_move()):
                pass

    async def _look(self, observe: Observe) -> None:
        await asyncio.to_thread(self._watch.look)
        observe(time.monotonic() - self._began, sum(map(len, self._watch.steps.values())))

    def _pace(self) -> Pace:
        """By the steps so far."""
        samples = self._watch.samples()
        prompts = [each for each in samples if each.num_prefill_tokens]
        if not prompts:
            return Pace(_FIRST_TOKENS, 0.0)
        spent_s = sum(each.duration_ns for each in prompts) / 1e9
        rate = sum(each.num_prefill_tokens for each in prompts) / spent_s
        typical_s = sorted(each.duration_ns for each in samples)[len(samples) // 2] / 1e9
        may = int(rate * self._duration_s * _OF_DURATION)
        return Pace(max(_FIRST_TOKENS, may), typical_s)

    async def _send(self, wave: Wave) -> None:
        number, self._num_waves = self._num_waves, self._num_waves + 1
        records: list[Record] = []
        schedule = [
            Planned(i, i * wave.gap_s, (Segment(f"{number}-{i}", prompt),), outputs, self._class)
            for i, (prompt, outputs) in enumerate(wave.requests)
        ]
        name = f"{_NAME}-{self._salt}-{number}"
        await Generator(self._target, schedule, self._prompts, name, records.append).run()
        failed = [each for each in records if each.outcome is Outcome.FAILED]
        if len(failed) == len(records):
            raise RemoteError(f"no request came through: {failed[0].error}")
        if len({each.instance for each in records}) == len(records):
            times = ((each.num_prompt, each.ttft_s) for each in records)
            lone = ((count, time_s) for count, time_s in times if time_s is not None)
            self._watch.lone.extend(lone)

    async def _send_and_move(self) -> None:
        """A few long requests that go back and forth."""
        room = self._limits.capacity // 8
        outputs = min(_MOVED_OUTPUTS, self._limits.longest // 4)
        most = max(_SHORTEST, min(self._limits.longest, room, self._pace().prompt_tokens) - outputs)
        lengths = [
            round(_SHORTEST * (most / _SHORTEST) ** self._draw.random())
            for _ in range(2 * len(self._watch.movable))
        ]
        sent = asyncio.create_task(self._send(Wave(tuple((n, outputs) for n in lengths), 0.0)))
        try:
            while not sent.done():
                await asyncio.wait([sent], timeout=_MOVE_EVERY_S)
                await asyncio.to_thread(self._move_one)
        finally:
            sent.cancel()
            await asyncio.wait([sent])
        sent.result()

    def _move_one(self) -> None:
        """One of the load's own requests to another instance; perhaps there is none by then.

        Or nobody answers now: the next move may come about.
        """
        source, target = self._draw.sample(self._watch.movable, 2)
        match = f"{_NAME}-{self._salt}"
        with contextlib.suppress(ConflictError, DeadlineError, NotFoundError, UnreachableError):
            found = self._control.requests(instance=source, match=match, state="running").requests
            if found:
                request = self._draw.choice(found).id
                self._control.migrate(
                    MigrateRequest(
                        request=request, target=target, reuse_prefix=False, user=self._user
                    )
                )


async def _done_by(end: float, work: Coroutine[object, object, None]) -> bool:
    """Whether it was done at that time; else it is cut."""
    try:
        async with asyncio.timeout(end - time.monotonic()):
            await work
    except TimeoutError:
        return False
    return True

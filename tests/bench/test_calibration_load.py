"""The waves of `llx calibrate --load`: within what an instance takes, and unlike each other."""

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.api import InstanceState, InstanceSteps
from llx.bench import calibration_load
from llx.bench.calibration_load import CalibrationLoad, Limits, Pace, Wave, waves
from llx.bench.generator import Target
from llx.bench.step_watch import StepWatch
from llx.errors import DeadlineError, LlxError, UnreachableError

LONG_S = 600.0
"""Nothing here takes so long: the test ends when it has seen enough."""


def first(limits: Limits, pace: Pace, count: int = 60, instances: int = 2) -> list[Wave]:
    return list(itertools.islice(waves(limits, instances, lambda: pace), count))


@given(
    st.integers(64, 8192),
    st.integers(1, 64),
    st.integers(1, 16),
    st.integers(256, 20_000),
)
def test_no_wave_is_more_than_an_instance_takes(
    longest: int, at_once: int, times: int, tokens: int
) -> None:
    limits = Limits(longest, longest * times, at_once)
    for wave in first(limits, Pace(tokens, 0.01)):
        assert len(wave.requests) <= 2 * at_once
        for prompt, outputs in wave.requests:
            assert prompt >= 1
            assert prompt + outputs <= longest
        assert sum(prompt for prompt, _ in wave.requests) <= 2 * max(tokens, 8 * at_once)


def test_lengths_and_batches_are_unlike_as_a_fit_needs_them() -> None:
    found = first(Limits(2048, 32_000, 32), Pace(4000, 0.01))
    assert {len(each.requests) // 2 for each in found} == {1, 2, 4, 8, 16, 32}
    lengths = sorted(prompt for each in found for prompt, _ in each.requests)
    assert lengths[len(lengths) // 10] * 8 < lengths[-len(lengths) // 50]
    assert {each.gap_s > 0 for each in found} == {True, False}


class Head:
    """Of two instances, each a step further at every look; away from the first move on."""

    def __init__(self, failure: LlxError) -> None:
        self.failure = failure
        self.num_steps = 0
        self.num_refused = 0

    def status(self) -> Any:
        instances = [
            SimpleNamespace(name=name, model="m", state=InstanceState.READY, cannot_migrate="")
            for name in ("m-0", "m-1")
        ]
        return SimpleNamespace(models=[SimpleNamespace(name="m")], instances=instances)

    def steps(self, name: str, first: int = 0) -> InstanceSteps:
        if self.num_refused:
            raise self.failure
        self.num_steps += 1
        end = self.num_steps
        return InstanceSteps(
            instance=name, model="m", num_blocks=64, block_size=16, max_model_len=64,
            max_num_seqs=1, max_num_batched_tokens=32, first=min(first, end), end=end,
            steps=[(0, 1, 9, 0, 9, 1000)] * (end - min(first, end)),
        )  # fmt: skip

    def requests(self, **_: object) -> Any:
        self.num_refused += 1
        raise self.failure


@pytest.mark.parametrize("failure", [UnreachableError("away"), DeadlineError("late")])
def test_what_was_measured_is_kept_though_the_head_is_away_at_the_end(
    sse_server: str, monkeypatch: pytest.MonkeyPatch, failure: LlxError
) -> None:
    monkeypatch.setattr(calibration_load, "_MOVE_EVERY_S", 0.01)
    monkeypatch.setattr(calibration_load, "_MOVES_SHARE", 1 - 0.3 / LONG_S)
    head: Any = Head(failure)
    watch = StepWatch(head, "m")
    target = Target(sse_server, "m", None, silence_s=LONG_S)
    load = CalibrationLoad(target, head, watch, LONG_S, "batch", "ann")

    async def until_refused_again() -> None:
        running = asyncio.create_task(load.run(lambda _gone, _steps: None))
        while head.num_refused < 2 and not running.done():
            await asyncio.sleep(0.01)
        assert not running.done(), "it goes on"
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(until_refused_again())
    assert len(watch.samples()) >= 2

"""Instances' clocks as this host's: each has a monotonic clock of its own.

vLLM's front end subtracts times of one request from each other. A request that moves gets times of
several hosts, whose clocks began when the hosts did. The offset of a clock is estimated from
below: the smallest delay ever seen between what an output says and when it arrived.
"""

from collections.abc import Iterable

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs


class ClockOffset:
    """One session's. The estimate can only fall."""

    __slots__ = ("_offset_s",)

    def __init__(self) -> None:
        self._offset_s: float | None = None

    def convert(self, outputs: EngineCoreOutputs, received_at: float) -> None:
        """Make the times in `outputs` those of the clock that `received_at` is of."""
        delay = received_at - outputs.timestamp
        if self._offset_s is None or delay < self._offset_s:
            self._offset_s = delay
        outputs.timestamp += self._offset_s
        _shift(outputs.outputs, self._offset_s)


def _shift(outputs: Iterable[EngineCoreOutput], offset_s: float) -> None:
    for output in outputs:
        for event in output.events or ():
            event.timestamp += offset_s

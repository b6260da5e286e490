"""Timing on a GPU, and parts of a section of which one may fail without the others."""

import time
import traceback
from collections.abc import Callable

import torch

from tests.gpu.report import Report

AHEAD_CYCLES = 1_500_000
"""About a millisecond on the GPU: so far the host is ahead, and launching is not what is timed."""


def attempt(report: Report, name: str, part: Callable[[], None]) -> None:
    """Run a part of a section; what it raises is a claim that is not met."""
    try:
        part()
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - told, and the next part runs
        traceback.print_exc()
        report.check(f"{name}: ran to its end", False, f"{type(error).__name__}: {error}"[:300])


def device_ms(
    work: Callable[[], None], stream: torch.cuda.Stream, *, rounds: int = 7, repeats: int = 1
) -> list[float]:
    """What the GPU takes for work on a stream, each time after a run that is not counted."""
    samples = []
    work()
    stream.synchronize()
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            torch.cuda._sleep(AHEAD_CYCLES)
            begin.record(stream)
            for _ in range(repeats):
                work()
            end.record(stream)
        stream.synchronize()
        samples.append(begin.elapsed_time(end) / repeats)
    return samples


def wall_ms(work: Callable[[], None], *, rounds: int = 20) -> list[float]:
    """What a caller waits for work that is done when it returns."""
    samples = []
    work()
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        samples.append(1e3 * (time.perf_counter() - begun))
    return samples


def gigabytes_per_s(size_bytes: int, samples_ms: list[float]) -> list[float]:
    """10^9 bytes a second."""
    return [size_bytes / ms / 1e6 for ms in samples_ms]

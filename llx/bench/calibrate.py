"""`llx calibrate`: a profile of a running model, from what its instances tell of themselves."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llx.bench.step_watch import StepWatch
from llx.core.engine_state import StepTime
from llx.scheduling_settings import StepTimeSettings
from llx.sim.link_fit import fit_links
from llx.sim.live_fit import fit_live, median_error
from llx.sim.profile import Profile, make_profile

_LOOK_EVERY_S: Final = 2.0
"""An instance remembers some thousand steps."""
_UNLIKE: Final = 3.0
_ENOUGH: Final = 20
_LONE: Final = 3


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A profile, and what is to be said about it.

    Attributes:
        profile: To be kept.
        by_instance: Median error of the common model on each instance's own steps.
        unlike: Instances that it does not fit.
        no_link: Why there is no link, or none of some transport.
    """

    profile: Profile
    by_instance: Mapping[str, float]
    unlike: tuple[str, ...]
    no_link: tuple[str, ...]


def watch_for(watch: StepWatch, duration_s: float, observe: Callable[[float, int], None]) -> None:
    """Gather what is remembered, and what happens in the next `duration_s`."""
    watch.recall()
    began = time.monotonic()
    while True:
        watch.look()
        gone = time.monotonic() - began
        observe(gone, sum(map(len, watch.steps.values())))
        if gone >= duration_s:
            return
        time.sleep(min(_LOOK_EVERY_S, duration_s - gone))


def fit(watch: StepWatch) -> Calibrated:
    """What was gathered, as a profile.

    Raises:
        CheckError: It does not cover what a term needs; what is missing is named.
    """
    size = watch.size
    found = fit_live(watch.samples(), size.block_size)
    moves, block_bytes = watch.moves()
    links, no_link = fit_links(moves)
    names = ("num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
    sizes: dict[str, int] = {name: getattr(size, name) for name in names}
    sizes["max_model_len"] = min(size.max_model_len, size.num_blocks * size.block_size)
    if block_bytes:
        sizes["block_bytes"] = block_bytes
    errors = {
        name: median_error(found.step_time, steps)
        for name, steps in watch.steps.items()
        if len(steps) >= _ENOUGH
    }
    unlike = [name for name, each in errors.items() if each > max(0.1, _UNLIKE * found.error)]
    gateway_s = _gateway_s(watch, found.step_time)
    profile = make_profile(size.model, sizes, found, links, gateway_s)
    return Calibrated(profile, errors, tuple(unlike), tuple(no_link))


def _gateway_s(watch: StepWatch, step_time: StepTime) -> float | None:
    """What first tokens took beyond the steps of their prompts; None: too few were alone."""
    if len(watch.lone) < _LONE:
        return None
    budget = watch.size.max_num_batched_tokens
    beyond = [
        seconds
        - sum(
            _chunk_ns(step_time, start, min(count, start + budget))
            for start in range(0, count, budget)
        )
        / 1e9
        for count, seconds in watch.lone
    ]
    return max(0.0, statistics.median(beyond))


def _chunk_ns(step_time: StepTime, start: int, end: int) -> int:
    return step_time.of(end - start, 0, end, end**2 - start**2)


def changes_of(step_time: StepTimeSettings) -> dict[str, str]:
    """As `llx policy set` would say it."""
    return {f"step_time.{name}": repr(value) for name, value in step_time.model_dump().items()}

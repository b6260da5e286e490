"""How much CPU the processes of a host use, from ``/proc``, measured every few seconds.

A process counts with all that it has started: whoever is in the session that its shim has made for
it. The time of one that has ended since the last look is lost with it.
"""

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

EVERY_S = 5.0
"""From one look to the next: one goes through every process of the machine."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CpuUse(msgspec.Struct, frozen=True):
    """Cores in use, averaged between two looks.

    Attributes:
        of_host: Of the cores that llx may use, by whomever; None: not known yet.
        by_process: By name of what llx has started.
    """

    of_host: float | None = None
    by_process: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class Spent:
    """One process at one look. `started` and `used` in ticks, `started` since boot."""

    session: int
    started: int
    used: int


@dataclass(frozen=True, slots=True)
class Look:
    """All processes by pid, and how long the cores have been busy, in ticks; `at` since boot."""

    at: float
    busy: int
    processes: Mapping[int, Spent]


def cpu_use(before: Look, now: Look, sessions: Mapping[str, int]) -> CpuUse:
    """What was used between two looks; `sessions`: of each name. Pure.

    One that runs since before the first look and was not seen then is not known: left out.
    """
    ticks = now.at - before.at
    used: dict[int, int] = {}
    unknown: set[int] = set()
    for pid, each in now.processes.items():
        earlier = before.processes.get(pid)
        if earlier is not None and earlier.started == each.started:
            spent = each.used - earlier.used
        elif each.started >= int(before.at):  # starts are in whole ticks
            spent = each.used
        else:
            unknown.add(each.session)
            continue
        used[each.session] = used.get(each.session, 0) + max(0, spent)
    return CpuUse(
        round(max(0, now.busy - before.busy) / ticks, 2),
        {
            name: round(used[session] / ticks, 2)
            for name, session in sessions.items()
            if session in used and session not in unknown
        },
    )


def look(proc: Path = Path("/proc")) -> Look:
    """The machine now."""
    at = time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS_PER_S
    busy = busy_ticks((proc / "stat").read_text(), os.sched_getaffinity(0))
    found = {}
    for directory in proc.iterdir():
        if not directory.name.isdigit():
            continue
        try:
            fields = (directory / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # it has ended
        used = int(fields[11]) + int(fields[12])
        found[int(directory.name)] = Spent(int(fields[3]), int(fields[19]), used)
    return Look(at, busy, found)


def busy_ticks(stat: str, cores: Collection[int]) -> int:
    """How long those cores have been busy since boot, from ``/proc/stat``. Pure."""
    busy = 0
    for line in stat.splitlines():
        name, *counts = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq = map(int, counts[:7])
            busy += user + nice + system + irq + softirq
    return busy


class CpuMeter:
    """Looks when asked, unless it has lately; any thread."""

    def __init__(self, look: Callable[[], Look] = look) -> None:
        self._look = look
        self._looking = threading.Lock()
        self._last: Look | None = None
        self._use = CpuUse()
        self._next_at = 0.0

    def use(self, sessions: Mapping[str, int], now: float) -> CpuUse:
        """What was used of late; `sessions` by name, `now` on the monotonic clock."""
        if now < self._next_at or not self._looking.acquire(blocking=False):
            return self._use
        try:
            self._next_at = now + EVERY_S
            found = self._look()
            if self._last is not None and found.at > self._last.at:
                self._use = cpu_use(self._last, found, sessions)
            self._last = found
        except (OSError, ValueError, IndexError):
            self._last, self._use = None, CpuUse()  # another kernel's words: nothing is known
        finally:
            self._looking.release()
        return self._use

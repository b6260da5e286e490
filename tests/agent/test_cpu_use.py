"""Cores in use between two looks: pure, and of a process that does nothing but compute."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from llx.agent import cpu_use
from llx.agent.cpu_use import CpuMeter, CpuUse, Look, Spent, busy_ticks

NAMES = {"m-0": 10, "m-1": 20}


def at(time_ticks: float, busy: int = 0, **processes: Spent) -> Look:
    return Look(time_ticks, busy, {int(pid[1:]): each for pid, each in processes.items()})


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"p10": Spent(10, 5, 100)}, {"p10": Spent(10, 5, 350)}, {"m-0": 0.5}),
        # all that is in its session counts, whatever else runs does not
        (
            {"p10": Spent(10, 5, 0), "p11": Spent(10, 6, 100), "p30": Spent(30, 1, 0)},
            {"p10": Spent(10, 5, 100), "p11": Spent(10, 6, 600), "p30": Spent(30, 1, 500)},
            {"m-0": 1.2},
        ),
        # one that has come since counts in full, one that has gone not at all
        (
            {"p10": Spent(10, 5, 0), "p11": Spent(10, 5, 900)},
            {"p10": Spent(10, 5, 50), "p12": Spent(10, 1200, 200)},
            {"m-0": 0.5},
        ),
        # the number of one that ended was given anew
        ({"p10": Spent(10, 5, 900)}, {"p10": Spent(10, 1300, 100)}, {"m-0": 0.2}),
        # it ran before the first look: what it used since is not known
        ({}, {"p20": Spent(20, 5, 9000)}, {}),
        ({"p20": Spent(20, 5, 7)}, {"p20": Spent(20, 5, 7)}, {"m-1": 0.0}),
    ],
)
def test_what_was_used_between_two_looks(
    before: dict[str, Spent], now: dict[str, Spent], expected: dict[str, float]
) -> None:
    found = cpu_use.cpu_use(at(1000, 100, **before), at(1500, 850, **now), NAMES)
    assert found == CpuUse(1.5, expected)


def test_only_the_cores_that_llx_may_use_are_counted() -> None:
    stat = (
        "cpu  900 0 900 900 900 9 9 0 0 0\n"
        "cpu0 100 1 20 5000 70 3 4 50 60 0\ncpu1 7 0 0 1 0 0 0 0 0 0\ncpu2 1000 0 0 0 0 0 0 0 0 0\n"
        "intr 5\n"
    )
    assert busy_ticks(stat, {0, 1}) == 100 + 1 + 20 + 3 + 4 + 7


def test_a_meter_looks_now_and_then() -> None:
    looks: Iterator[Look] = iter(
        [at(1000, p10=Spent(10, 5, 0)), at(1500, p10=Spent(10, 5, 100)), at(2000)]
    )
    meter = CpuMeter(lambda: next(looks))
    assert meter.use(NAMES, 100.0) == CpuUse()
    assert meter.use(NAMES, 104.9) == CpuUse(), "no further look yet"
    assert meter.use(NAMES, 105.0).by_process == {"m-0": 0.2}
    assert meter.use(NAMES, 106.0).by_process == {"m-0": 0.2}
    assert meter.use(NAMES, 110.0).by_process == {}, "it has ended"


def test_what_cannot_be_read_is_not_known() -> None:
    looks: list[Look | OSError] = [
        at(1000, p10=Spent(10, 5, 0)), OSError(), at(2000, p10=Spent(10, 5, 9)),
        at(2500, p10=Spent(10, 5, 59)),
    ]  # fmt: skip

    def look() -> Look:
        found = looks.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    meter = CpuMeter(look)
    uses = [meter.use(NAMES, now) for now in (0.0, 5.0, 10.0, 15.0)]
    assert [each.by_process for each in uses] == [{}, {}, {}, {"m-0": 0.1}]


def test_a_process_that_computes_is_seen_with_its_children() -> None:
    code = "import os\nos.fork()\nwhile True: pass"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        sessions = {"busy": child.pid, "me": os.getsid(0)}
        before = cpu_use.look()
        end = time.monotonic() + 30
        used, in_session = 0.0, []
        while (used <= 0.02 or len(in_session) < 2) and time.monotonic() < end:
            time.sleep(0.2)
            now = cpu_use.look()
            in_session = [each for each in now.processes.values() if each.session == child.pid]
            used = cpu_use.cpu_use(before, now, sessions).by_process.get("busy", 0.0)
        assert used > 0.02
        assert len(in_session) == 2
        assert cpu_use.cpu_use(before, now, sessions).of_host >= used * 0.5
    finally:
        os.killpg(child.pid, 9)
        child.wait()

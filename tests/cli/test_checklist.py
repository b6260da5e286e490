"""The checklist, on a terminal and off it."""

import time
from io import StringIO

import pytest
from rich.console import Console

from llx.bootstrap.local_ports import StepEvent, StepState
from llx.cli.checklist import Checklist

RUNNING, DONE, FAILED = StepState.RUNNING, StepState.DONE, StepState.FAILED

STORY = [
    (0.0, StepEvent("preflight", RUNNING)),
    (0.4, StepEvent("preflight", DONE, "2 cores, 8 GiB free")),
    (0.4, StepEvent("node environment", RUNNING)),
    (3.0, StepEvent("node environment", RUNNING, "installing torch")),
    (3.5, StepEvent("node environment", RUNNING, "installing torch")),
    (61.0, StepEvent("node environment", DONE, "/data/node/bin/python")),
    (61.0, StepEvent("instance tiny-0", RUNNING, "loading the model")),
    (61.0, StepEvent("instance tiny-1", RUNNING, "loading the model")),
    (70.0, StepEvent("instance tiny-1", FAILED, "RuntimeError: out of memory")),
    (72.0, StepEvent("first token", StepState.SKIPPED, "only hashes are known")),
    (72.0, StepEvent("interrupted: taking away what was started", RUNNING)),
    (74.0, StepEvent("interrupted: taking away what was started", DONE, "in /data" + "/x" * 60)),
]


def play(console):
    now = [0.0]
    checklist = Checklist(console, clock=lambda: now[0], wall=lambda: now[0] + 1_800_000_000)
    with checklist.shown() as shown:
        for at, event in STORY:
            now[0] = at
            shown.observe(event)
        now[0] = 75.0
        return shown.render()


@pytest.mark.golden
def test_lines_where_there_is_no_terminal(golden, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    console = Console(file=StringIO(), width=400)
    play(console)
    golden("checklist-lines.txt", console.file.getvalue())


@pytest.mark.golden
@pytest.mark.parametrize("width", [80, 100])
def test_live_on_a_terminal(golden, width):
    terminal = Console(file=StringIO(), force_terminal=True, width=width)
    rows = play(terminal)
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(rows)
    # A spinner's picture is of its moment.
    text = "".join(
        "*" if 0x2800 <= ord(each) < 0x2900 else each for each in console.file.getvalue()
    )
    golden(f"checklist-{width}.txt", text)

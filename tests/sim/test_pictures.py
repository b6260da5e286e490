"""That pictures are made, of what, and that they are stable; how they look is for eyes."""

import sys
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from llx.cli.main import app
from llx.core.model import Blocks, InstanceId, InstanceLoad, Nanos, PoolName, RequestId, Tokens
from llx.core.scheduler.commands import Dispatch, Hold
from llx.core.scheduler.decision import Decision
from llx.core.scheduler.events import (
    InstanceJoined,
    InstanceLeft,
    LoadReported,
    MoveEnded,
    MoveId,
    MoveOutcome,
    Ticked,
)
from llx.recording import Recorder
from llx.sim.timeline import Timeline

pytestmark = pytest.mark.sim

SHORT = ["sim", "run", "--requests", "30", "--instances", "2", "--rate", "2"]
POOL, ONE, TWO = PoolName("m"), InstanceId("m-0"), InstanceId("m-1")
SECOND = 1_000_000_000


def llx(*words):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "80", "LLX_OUTPUT": ""})


def load(used, running=0, waiting=0):
    return InstanceLoad(Blocks(100), Blocks(100 - used), Tokens(16), running, waiting)


class TestTimeline:
    def test_is_what_the_scheduler_knew(self):
        timeline = Timeline()
        a, b = RequestId("a"), RequestId("b")
        story = [
            (0.0, InstanceJoined(POOL, ONE), []),
            (
                0.1,
                LoadReported(ONE, load(40, 3, 1)),
                [Hold(a, "n", 1, None), Hold(b, "n", 2, None)],
            ),
            (0.3, InstanceJoined(POOL, TWO), [Dispatch(a, ONE, Decision("r", "u", None))]),
            (0.4, LoadReported(TWO, load(10, 2)), []),
            (0.6, MoveEnded(POOL, MoveId(1), MoveOutcome.MOVED), []),
            (0.7, MoveEnded(POOL, MoveId(2), MoveOutcome.KEPT), []),
            (0.8, InstanceLeft(ONE), []),
            (1.0, Ticked(), []),
        ]
        for at, event, commands in story:
            timeline.observe(event, Nanos(round((5 + at) * SECOND)), commands)
        seen = []
        for each in timeline.samples:
            counts = (each.num_running, each.num_waiting, each.num_queued, each.num_moved)
            seen.append((each.at_s, dict(each.used), *counts))
        assert seen == [
            (0.0, {}, 0, 0, 0, 0),
            (0.25, {0: 0.4}, 3, 1, 2, 0),
            (0.5, {0: 0.4, 1: 0.1}, 5, 1, 1, 0),
            (0.75, {0: 0.4, 1: 0.1}, 5, 1, 1, 1),
            (1.0, {1: 0.1}, 2, 0, 1, 1),
        ]

    def test_is_bounded_however_long_it_takes(self):
        timeline = Timeline()
        for at in range(20_000):
            timeline.observe(Ticked(), Nanos(at * SECOND), [])
        times = [each.at_s for each in timeline.samples]
        assert 300 < len(times) < 800
        step = times[1] - times[0]
        assert times == pytest.approx([rank * step for rank in range(len(times))])
        assert times[-1] > 19_000


class Parser(HTMLParser):
    VOID = ("meta", "br", "path", "use", "rect", "image")

    def __init__(self):
        super().__init__()
        self.open, self.links, self.pictures = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.pictures += tag == "svg"
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_a_report_is_one_whole_page(tmp_path):
    path = tmp_path / "r.html"
    words = ["--policy", "infaas", "--policy", "llx", "--rate", "3", "--seeds", "0-1"]
    done = llx(*SHORT, *words, "--report", str(path))
    assert done.exit_code == 0, done.stderr
    page = path.read_text()
    parser = Parser()
    parser.feed(page)
    assert parser.open == []
    assert parser.pictures == 4  # by rate, latency, and the course of each policy
    assert not [each for each in parser.links if each.startswith(("http", "/"))]
    assert page.count("<tr>") == 1 + 4
    assert "<td>" in page
    assert "30 requests" in page


def test_equal_runs_are_equal_pictures(tmp_path):
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for each in paths:
        assert llx(*SHORT, "--plot", str(each)).exit_code == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF")])
def test_the_ending_is_the_kind(tmp_path, name, begins):
    path = tmp_path / name
    assert llx(*SHORT, "--plot", str(path)).exit_code == 0
    assert path.read_bytes().startswith(begins)


def test_a_recording_can_be_drawn(tmp_path):
    llx(*SHORT, "--record", str(tmp_path / "r.jsonl"))
    done = llx("sim", "replay", str(tmp_path / "r.jsonl"), "--plot", str(tmp_path / "r.svg"))
    assert done.exit_code == 0, done.stderr
    assert "blocks used" in (tmp_path / "r.svg").read_text()


@pytest.mark.parametrize(
    "words", [["--plot", "a.gif"], ["--plot", "no/a.svg"], ["--report", "no/r"]]
)
def test_where_nothing_can_be_drawn(tmp_path, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for_ever = ["sim", "run", "--requests", "100000000"]
    done = llx(*for_ever, *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_drawn_of_nothing(tmp_path):
    path = tmp_path / "r.jsonl"
    Recorder(path, origin="simulator").close()
    done = llx("sim", "replay", str(path), "--plot", str(tmp_path / "r.svg"))
    assert (done.exit_code, "nothing has happened" in done.stderr) == (2, True)


def test_without_matplotlib_the_remedy_is_said_at_once(tmp_path, monkeypatch):
    for name in [each for each in sys.modules if each.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("llx.sim.pictures", "llx.sim.canvas"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = llx(*SHORT, "--report", str(tmp_path / "r.html"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "error: pictures need matplotlib\nremedy: pip install 'llx[plots]'\n" in done.stderr
    assert llx(*SHORT).exit_code == 0

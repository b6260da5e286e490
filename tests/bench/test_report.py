"""`llx bench report`: a page in one file, and pictures where matplotlib is."""

import re
import sys
from array import array

import pytest

from llx.bench.cluster_watch import FaultNote, InstanceLoad, Move, Sight
from llx.bench.record import Outcome, Record
from llx.bench.run_directory import create, read_results, write_run, write_summary
from llx.bench.scenario import Scenario
from llx.bench.summary import by_class, summarise
from tests.cli.conftest import llx  # noqa: F401 - a fixture

SCENARIO = Scenario.model_validate(
    {
        "name": "a-b",
        "workload": {
            "requests": 8,
            "arrivals": {"rate": 4},
            "lengths": {"prompt": 8, "output": 3},
            "classes": {"high": 0.5},
        },
        "variants": [{"name": "llx-4"}, {"name": "llx-8", "rate": 8}],
        "slo": {"ttft_ms": 300},
    }
)


def sight(at_s, used, *, is_cordoned=False):
    loads = [
        InstanceLoad(
            name=f"tiny-{n}",
            state="ready",
            is_cordoned=is_cordoned,
            blocks_used=used,
            blocks_total=9,
        )
        for n in range(2)
    ]
    return Sight(at_s=at_s, instances=loads)


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "out"
    about = {
        "date": "2026-11-28", "target": {"url": "http://x", "model": "<m>"},
        "machine": {"name": "here", "cpus": 2, "processor": ""},
    }  # fmt: skip
    create(path, SCENARIO, about)
    runs = []
    for variant, rate in (("llx-4", 4.0), ("llx-8", 8.0)):
        records = [
            Record(
                n, n / rate, 8, 3, sent_at=n / rate, first_at=n / rate + 0.1 * (n + 1),
                last_at=n / rate + 0.1 * (n + 1) + 0.02, num_outputs=3,
                gaps_us=array("I", [10_000, 10_000]), outcome=Outcome.OK,
                priority_class="high" if n % 2 else "",
            )
            for n in range(8)
        ]  # fmt: skip
        summary = {
            **summarise(records, 3.0, SCENARIO.slo), "llx_variant": variant, "llx_repetition": 0,
            "llx_is_whole": True, "request_rate": rate, "llx_migrations": 1,
            "llx_errors": {"status 429: full": 3}, "llx_faults_not_done": ["kill m-0: gone"],
            "llx_classes": by_class(records, 3.0, SCENARIO.slo),
        }  # fmt: skip
        move = Move(
            id="m1", begun_s=1.0, ended_s=1.1, source="tiny-0", target="tiny-1", outcome="moved",
            why="", num_tokens=9, num_stages=2, downtime_ms=9.0, stall_ms=1.0,
        )  # fmt: skip
        timeline = [
            sight(0.1, 2),
            FaultNote(at_s=1.0, done_s=1.5, do="drain", instance="tiny-0"),
            sight(1.2, 4, is_cordoned=True),
        ]
        lines = (each.as_line(0.0) for each in records)
        runs.append(write_run(path, summary, lines, timeline, [move]))
    write_summary(path, "a-b", runs)
    return path


@pytest.mark.slow
def test_one_file_with_everything(llx, directory, tmp_path):  # noqa: F811
    done = llx("bench", "report", str(directory), "--picture", "p.png")
    assert done.exit_code == 0, done.stderr
    page = (directory / "report.html").read_text()
    assert page.count("<svg") == 4, "latencies, by rate, a course for each variant"
    assert not re.search(r'(src|href)="(?!#)', page), "nothing is loaded from elsewhere"
    assert "&lt;m&gt; at http://x" in page
    assert "drain tiny-0" in page
    assert page.count('<tr class="part">') == 2
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "6 × status 429: full\n" in done.stderr
    assert "not done: llx-4: kill m-0: gone\n" in done.stderr
    assert "not done: llx-4: kill m-0: gone; llx-8: kill m-0: gone." in page
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["VARIANT", "llx-4", "high", "llx-8", "high"]


def test_the_same_runs_give_the_same_picture(directory):
    from llx.bench import pictures  # matplotlib takes a second

    part = pictures.drawings(read_results(directory))[0]
    assert pictures.as_svg(part) == pictures.as_svg(part)


def test_without_matplotlib(llx, directory, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("llx.bench.pictures", "llx.sim.canvas"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(name, raising=False)
    done = llx("bench", "report", str(directory))
    assert done.exit_code == 0
    assert "no pictures" in done.stderr
    assert "llx[plots]" in done.stderr
    assert "<svg" not in (directory / "report.html").read_text()
    done = llx("bench", "report", str(directory), "--picture", "p.svg")
    assert done.exit_code == 1


def test_a_picture_of_no_kind(llx, directory):  # noqa: F811
    assert llx("bench", "report", str(directory), "--picture", "p.gif").exit_code == 2


def test_what_is_no_run_directory(llx, directory, tmp_path):  # noqa: F811
    assert llx("bench", "report", str(tmp_path)).exit_code == 4
    (directory / "about.json").write_text("{")
    done = llx("bench", "report", str(directory))
    assert done.exit_code == 2
    assert "is damaged" in done.stderr


def test_runs_are_read_as_they_were_written(directory):
    results = read_results(directory)
    (run,) = results.of("llx-8")
    assert [each.at_s for each in run.sights()] == [0.1, 1.2]
    assert [each.do for each in run.faults()] == ["drain"]
    assert run.moves()[0].downtime_ms == 9.0
    assert [each.number for each in run.records()] == list(range(8))

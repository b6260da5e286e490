"""What the standard set makes of what it has measured, and of what it could not measure."""

import subprocess
from array import array

import pytest

from llx.bench.compare import Ratio, figure_names
from llx.bench.record import Outcome, Record
from llx.bench.run_directory import create, read_results, write_run
from llx.bench.scenario import load_scenario
from tests.bench.live_policies import (
    COMPARED,
    DOUBT,
    EXAMPLES,
    FIGURES,
    arguments,
    marked,
    run_all,
    table,
)

PAGE = "".join(f"<!-- bench: {each} -->\nold\n<!-- bench ends -->\n" for each in COMPARED)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


@pytest.fixture
def results(tmp_path):
    """Makes those of a scenario whose variants are all alike; faults that were not done."""

    def make(name, undone=()):
        scenario, path = load_scenario(EXAMPLES / f"{name}.yaml"), tmp_path / name
        create(path, scenario, {})
        for variant in scenario.variants:
            record = Record(
                0, 0.0, 8, 3, sent_at=0.0, first_at=0.1, last_at=0.12, num_outputs=3,
                gaps_us=array("I", [10_000, 10_000]), outcome=Outcome.OK,
            )  # fmt: skip
            summary = {
                "llx_variant": variant.name, "llx_repetition": 0, "llx_seed": 1, "failed": 0,
                "llx_is_whole": True, "completed": 1, "p99_itl_ms": 10.0, "llx_classes": {},
                "llx_faults_not_done": list(undone) if variant.name == "killed" else [],
            }  # fmt: skip
            write_run(path, summary, [record.as_line(0.0)], [], [])
        return read_results(path)

    return make


def test_the_figures_are_those_that_are_compared():
    assert set(FIGURES) <= set(figure_names())


def test_a_ratio_that_says_little_is_marked():
    sure, unsure = (
        Ratio("mean_ttft", 100, 200, 2.0, 1.5, 2.5, is_doubtful=each) for each in (False, True)
    )
    assert "| 2 | 1.50 to 2.50 |" in table("drain", [("a / b", [sure])])
    assert DOUBT not in table("drain", [("a / b", [sure])])
    text = table("drain", [("a / b", [sure, unsure])])
    assert "| 2? | 1.50 to 2.50 |" in text
    assert text.endswith(f"\n\n{DOUBT}")


@pytest.mark.parametrize(
    ("text", "why"), [(None, "No such file"), (PAGE.replace("drain", "other"), "bench: drain")]
)
def test_a_page_that_cannot_be_written_is_refused_before_anything_runs(page, capsys, text, why):
    words = ["--out", "x", "--page", str(page), "kv_bound", "drain"]
    assert arguments(words).scenarios == ["kv_bound", "drain"]
    page.unlink() if text is None else page.write_text(text)
    with pytest.raises(SystemExit):
        arguments(words)
    assert why in capsys.readouterr().err


def test_a_scenario_that_fails_leaves_the_others_theirs(page, results, capsys):
    def measured(name):
        if name == "rollout":
            raise subprocess.CalledProcessError(7, "llx")
        return results(name, ["kill tiny-0: no such instance"] if name == "losses" else [])

    names = ["rollout", "losses", "drain"]
    failed, missed = run_all(arguments(["--out", "x", "--page", str(page), *names]), 20.0, measured)
    assert failed == [
        "rollout: llx ended with 7", "losses: killed: kill tiny-0: no such instance",
    ]  # fmt: skip
    assert missed == []
    text, out = page.read_text(), capsys.readouterr().out
    for name in ("rollout", "losses"):
        assert marked(text, name, "old") == text, "as it was"
    assert marked(text, "drain", "old") != text
    assert "| restarted / calm | p99_itl | 10 | 10 | 1? |" in text
    assert "| losses |" in out

import csv
import json

import pytest
from typer.testing import CliRunner

from llx.cli.main import app
from tests.sim.test_calibration import tables as kernel_tables

pytestmark = pytest.mark.sim

SHORT = ["sim", "run", "--requests", "40", "--instances", "2", "--rate", "2"]


def llx(*words):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "80", "LLX_OUTPUT": ""})


def test_json_has_every_seed():
    words = [*SHORT, "--policy", "infaas", "--policy", "llx", "--seeds", "3-4", "-o", "json"]
    done = llx(*words)
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [each["policy"] for each in rows] == ["infaas", "llx"]
    assert all(len(set(each["trace_hashes"])) == 2 for each in rows)
    assert rows[1]["figures"]["prefill_p99_s"]["ratio"]["low"] > 0
    assert done.stdout == llx(*words).stdout


@pytest.mark.slow
def test_runs_at_a_time_are_the_same_runs(tmp_path):
    words = [*SHORT, "--policy", "infaas", "--policy", "llx", "--seeds", "0-1", "-o", "json"]
    one = llx(*words, "--record", str(tmp_path / "one"))
    two = llx(*words, "--record", str(tmp_path / "two"), "--jobs", "2")
    assert two.exit_code == 0, two.stderr
    assert two.stdout == one.stdout
    for each in (tmp_path / "one").iterdir():
        assert each.read_bytes() == (tmp_path / "two" / each.name).read_bytes()


@pytest.mark.parametrize("words", [["--high", "0.2", "--rate", "3", "--seeds", "0-1"], []])
def test_a_table_fits_a_terminal(words):
    done = llx(*SHORT, *words, "--policy", "llumnix-10")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split()[: 2 if words else 1] == (["RATE", "POLICY"] if words else ["POLICY"])
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "seeds" in done.stderr or "one seed" in done.stderr


def test_who_is_refused_is_said(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("classes: {only: {priority: 0, queue_limit: 1}}")
    words = ["--requests", "60", "--rate", "1000", "--instances", "1"]
    refused = llx("sim", "run", str(path), *words).stdout
    assert "REFUSED" in refused
    assert "REFUSED" not in llx(*SHORT).stdout


def test_csv_has_a_line_for_each_figure():
    done = llx(*SHORT, "--high", "0.2", "-o", "csv")
    lines = list(csv.DictReader(done.stdout.splitlines()))
    assert {each["class"] for each in lines} == {"all", "high", "normal"}
    figures = {each["figure"]: float(each["mean"]) for each in lines if each["class"] == "all"}
    assert 0 < figures["request_p50_s"] <= figures["request_p90_s"] <= figures["request_p99_s"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--policy", "fate"], 2),
        (["--workload", "x-x"], 2),
        (["--seeds", "4-3"], 2),
        (["--trace", "none.csv"], 2),
        (["--scale-rate", "2"], 2),
        (["none.yaml"], 2),
    ],
)
def test_nonsense_is_refused(words, code):
    done = llx(*SHORT, *words)
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")


def test_a_trace_says_what_it_leaves_out(tmp_path):
    path = tmp_path / "trace.jsonl"
    line = '{{"timestamp": {}, "input_length": {}, "output_length": 5}}\n'
    path.write_text("".join(line.format(at, at * 1000) for at in range(1, 21)))
    done = llx("sim", "run", "--trace", str(path), "--instances", "1", "-o", "json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)[0]["requests"] == 12
    assert "left out: 8 requests" in done.stderr


class TestRecordings:
    def test_what_is_recorded_replays(self, tmp_path):
        path = tmp_path / "run.jsonl"
        assert llx(*SHORT, "--record", str(path)).exit_code == 0
        done = llx("sim", "replay", str(path))
        assert (done.exit_code, done.stderr) == (0, "")
        assert "the same commands (40 Dispatch" in done.stdout

    def test_several_runs_are_several_files(self, tmp_path):
        words = ["--policy", "infaas", "--policy", "llx", "--seeds", "0-1"]
        assert llx(*SHORT, *words, "--record", str(tmp_path / "new")).exit_code == 0
        names = sorted(each.name for each in (tmp_path / "new").iterdir())
        assert names == [
            f"{policy}-rate-2-seed-{seed}.jsonl" for policy in ("infaas", "llx") for seed in (0, 1)
        ]
        for each in names:
            assert llx("sim", "replay", str(tmp_path / "new" / each)).exit_code == 0

    @pytest.mark.parametrize("words", [[], ["--jobs", "2"]])
    @pytest.mark.slow
    def test_several_runs_do_not_fit_a_file(self, tmp_path, words):
        (tmp_path / "file").touch()
        done = llx(*SHORT, "--seeds", "0-1", "--record", str(tmp_path / "file"), *words)
        assert (done.exit_code, "need a directory" in done.stderr) == (2, True)

    def test_a_difference_is_shown_and_fails(self, tmp_path):
        path = tmp_path / "run.jsonl"
        llx(*SHORT, "--record", str(path))
        text = path.read_text()
        path.write_text(text.replace('"Dispatch",{"request":"7"', '"Dispatch",{"request":"8"'))
        done = llx("sim", "replay", str(path), "-o", "json")
        assert done.exit_code == 8
        line = json.loads(done.stdout)["difference"]["line"]
        assert f"run.jsonl:{line}: RequestArrived at " in done.stderr
        assert '| expected [["Dispatch",{"request":"8"' in done.stderr
        assert '| got      [["Dispatch",{"request":"7"' in done.stderr

    def test_another_policy_is_compared(self, tmp_path):
        path, rules = tmp_path / "run.jsonl", tmp_path / "rules.yaml"
        llx(*SHORT, "--record", str(path))
        by_name = llx("sim", "replay", str(path), "--policy", "round-robin")
        assert by_name.exit_code == 0, by_name.stderr
        assert by_name.stdout.startswith("40 requests: ")
        assert "round_robin" in by_name.stdout
        rules.write_text("from: round-robin\n")
        assert llx("sim", "replay", str(path), "--config", str(rules)).stdout == by_name.stdout

    @pytest.mark.parametrize(
        "words", [["--policy", "fate"], ["--policy", "llx", "--config", "x.yaml"], []]
    )
    def test_nonsense_is_refused(self, tmp_path, words):
        path = tmp_path / "run.jsonl"
        if words:
            llx(*SHORT, "--record", str(path))
        done = llx("sim", "replay", str(path), *words)
        assert (done.exit_code, done.stdout) == (2, "")


class TestPlan:
    WORDS = (
        "sim", "plan", "--workload", "s-s", "--requests", "60", "--rate", "12", "--seeds", "0-1",
        "--max-instances", "6",
    )  # fmt: skip

    def test_finds_a_number_for_each_policy(self):
        policies = ("--policy", "infaas", "--policy", "llx")
        done = llx(*self.WORDS, *policies, "--slo", "e2e_mean=5.45s", "-o", "json")
        assert done.exit_code == 0, done.stderr
        sizes = json.loads(done.stdout)
        assert [each["policy"] for each in sizes] == ["infaas", "llx"]
        for each in sizes:
            assert each["instances"] >= max(each["by_seed"])
            assert 0 < each["reached"][0]["value"]["mean"] <= 5.45

    def test_table(self):
        done = llx(*self.WORDS, "--slo", "ttft_p99=20s", "--slo", "normal:tpot_p50=500ms")
        assert done.exit_code == 0, done.stderr
        assert done.stdout.split()[:4] == ["POLICY", "INSTANCES", "TTFT_P99", "NORMAL:TPOT_P50"]
        assert "ttft_p99 at most 20 s" in done.stderr

    def test_what_cannot_be_reached_fails(self):
        done = llx(*self.WORDS, "--slo", "ttft_p99=1ms", "--max-instances", "2")
        assert (done.exit_code, "> 2" in done.stdout) == (8, True)
        assert "2 instances are not enough" in done.stderr

    @pytest.mark.parametrize(
        "words",
        [[], ["--slo", "ttft_p99"], ["--slo", "p99=1s"], ["--slo", "ttft_p99=x"],
         ["--slo", "low:ttft_p99=1s"]],
    )  # fmt: skip
    def test_nonsense_is_refused(self, words):
        done = llx(*self.WORDS, *words)
        assert (done.exit_code, done.stdout) == (2, "")


def test_kernels_become_a_scenarios_engine(tmp_path):
    tables = [str(each) for each in kernel_tables(tmp_path)]
    out = tmp_path / "engine.yaml"
    done = llx("sim", "calibrate", *tables, "--layers", "2", "--out", str(out))
    assert done.exit_code == 0, done.stderr
    assert "3 steps; half of them are within" in done.stderr
    assert done.stdout == ""
    shown = llx("sim", "calibrate", *tables, "--layers", "2")
    assert shown.stdout == out.read_text()
    done = llx("sim", "run", str(out), "--requests", "10", "--instances", "1", "--rate", "1")
    assert done.exit_code == 0, done.stderr
    done = llx("sim", "calibrate", *tables, "--layers", "2", "--out", str(tmp_path))
    assert done.exit_code == 2
    assert "cannot be written: Is a directory" in done.stderr


def test_what_is_no_table_is_named(tmp_path):
    dense, attention, per_sequence = (str(each) for each in kernel_tables(tmp_path))
    done = llx("sim", "calibrate", attention, dense, per_sequence, "--layers", "2")
    assert done.exit_code == 2
    assert "attention.csv.gz has no column layer" in done.stderr
    done = llx("sim", "calibrate", dense, attention, "nowhere.csv", "--layers", "2")
    assert done.exit_code == 2

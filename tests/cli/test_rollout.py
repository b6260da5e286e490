"""`llx rollout` against a head that pretends."""

import json

import pytest

from llx.api import RolloutStatus

RUNNING = RolloutStatus(
    model="tiny", revision=1, generation=0, state="running", instances_wanted=2,
    instances_new=1, instances_former=1, instances_leaving=1, moved=3,
)  # fmt: skip
DONE = RUNNING.model_copy(
    update={"state": "done", "instances_new": 2, "instances_former": 0, "instances_leaving": 0}
)
FAILED = RUNNING.model_copy(update={"state": "failed", "reason": "tiny-2: out of memory"})


def test_a_change_is_shown_then_begun(llx, head):
    words = ["--set", "max_num_seqs=16", "--set", "dtype=null", "--deadline", "2m", "-y"]
    done = llx("rollout", "tiny", *words)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.splitlines() == head.rollout_changes
    plan, begun = head.rolled
    assert (plan.is_dry_run, begun.is_dry_run) == (True, False)
    assert begun.changes == {"max_num_seqs": "16", "dtype": "null"}
    assert (begun.deadline_s, begun.steady_s) == (120, 3)
    assert begun.user


@pytest.mark.slow
def test_waiting_tells_how_far_it_is_and_how_it_ended(llx, head):
    head.rollout = [RUNNING, RUNNING, RUNNING, DONE]
    done = llx("rollout", "tiny", "--again", "--wait", "-y")
    assert done.exit_code == 0, done.stderr
    text = "tiny: 1 of 2 new ready; 1 former; 1 being emptied; moved 3, finished 0, cut 0"
    assert done.stderr.splitlines()[2:] == [text]
    assert done.stdout.splitlines()[1].split()[:4] == ["tiny", "1", "done", "2/2"]


def test_one_that_stops_fails_whoever_waits(llx, head):
    head.rollout = [FAILED]
    done = llx("rollout", "tiny", "--wait")
    assert done.exit_code == 1
    assert "tiny-2: out of memory" in done.stderr
    assert "--resume, or --abort" in done.stderr
    assert llx("rollout", "tiny").exit_code == 0, "to look is no failure"


@pytest.mark.slow
def test_whoever_waits_hears_of_it_when_somebody_goes_back(llx, head):
    back = {"begun_at": 2.0, "is_back": True, "user": "bob", "revision": 0}
    head.rollout = [RUNNING, RUNNING, RUNNING, DONE.model_copy(update=back)]
    done = llx("rollout", "tiny", "--again", "--wait", "-y")
    assert done.exit_code == 5
    assert "the rollout of tiny was gone back on by bob" in done.stderr
    head.rollout = [RUNNING, DONE.model_copy(update={"begun_at": 2.0})]
    assert llx("rollout", "tiny", "--wait").exit_code == 5


def test_without_a_change_it_shows(llx, head):
    head.rollout = [RUNNING]
    assert [each["moved"] for each in json.loads(llx("rollout", "-o", "json").stdout)] == [3]
    assert llx("rollout", "other").exit_code == 4
    head.rollout_changes = []
    done = llx("rollout", "tiny", "--set", "seed=1", "-y")
    assert (done.exit_code, done.stderr.strip()) == (0, "nothing changes")
    assert [each.is_dry_run for each in head.rolled] == [True]


def test_it_is_paused_gone_on_with_and_gone_back_on(llx, head):
    head.rollout = [RUNNING]
    for verb in ("pause", "resume", "abort"):
        assert llx("rollout", "tiny", f"--{verb}", "--dry-run").exit_code == 0
        assert llx("rollout", "tiny", f"--{verb}", "-y").exit_code == 0
    assert head.steered == [("tiny", "pause"), ("tiny", "resume"), ("tiny", "abort")]
    head.rollout = [DONE]
    assert llx("rollout", "tiny", "--abort", "--dry-run").exit_code == 5


def test_of_a_file_the_model_counts(llx, head, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "cluster: c\nmodels:\n- {name: tiny, model: /w, engine_args: {max_num_seqs: 9}}\n"
    )
    assert llx("rollout", "tiny", "--file", str(file), "-y").exit_code == 0
    assert head.rolled[1].values["engine_args"] == {"max_num_seqs": 9}
    assert llx("rollout", "small", "--file", str(file), "-y").exit_code == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tiny", "--pause", "--abort"], "one at a time"),
        (["tiny", "--resume", "--again"], "one at a time"),
        (["--again"], "of a MODEL"),
        (["--wait"], "of a MODEL"),
        (["tiny", "--set", "nonsense"], "not KEY=VALUE"),
        (["tiny", "--set", "max_num_seq=3"], 'did you mean "max_num_seqs"?'),
        (["tiny", "--set", "engine_args.scheduler_cls=x.y"], "does not go with llx"),
        (["tiny", "--model", "./nowhere"], "no directory with a model"),
    ],
)
def test_contradictions_are_refused(llx, head, words, says):
    done = llx("rollout", *words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert head.rolled == []

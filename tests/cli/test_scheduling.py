"""`llx queue`, `policy` and `explain` against a head that pretends."""

import json
import re

import pytest

from llx.api import (
    DecisionStatus,
    ExplainedRequest,
    Explanation,
    PolicyList,
    PolicyStatus,
    QueueList,
    QueueStatus,
)
from llx.recording import Recorder
from llx.scheduling_settings import SchedulingSettings
from llx.sim.cluster import Cluster
from llx.sim.presets import paper_cluster
from llx.sim.workload import generated
from tests.cli.servers import NOW

QUEUES = QueueList(
    queues=[
        QueueStatus(
            model="tiny", priority_class="interactive", priority=0, waiting=0, oldest_s=None,
            nominated="", limit=1024, max_wait_s=600,
        ),
        QueueStatus(
            model="tiny", priority_class="batch", priority=20, waiting=7, oldest_s=12.345,
            nominated="tiny-1", limit=64, max_wait_s=600,
        ),
    ]
)  # fmt: skip
POLICIES = PolicyList(
    policies=[
        PolicyStatus(
            model="tiny",
            is_paused=True,
            scheduling={
                "dispatch": "round_robin", "rescheduling": {"steps": ["balance"], "low": 3.0},
            },
            changed={"dispatch": "round_robin"},
        )
    ]
)  # fmt: skip
HELD = DecisionStatus(at=NOW, what="held", instance="tiny-1", why="2 of its class wait")
PLACED = DecisionStatus(at=NOW + 3, what="placed", instance="tiny-0", why="room opened, tiny-0")
EXPLAINED = Explanation(
    requests=[
        ExplainedRequest(
            request="cmpl-a-0", name="llx-a", model="tiny", priority_class="batch",
            decisions=[HELD, PLACED],
        )
    ]
)  # fmt: skip


def test_queues(llx, head):
    head.queues = QUEUES
    lines = llx("queue").stdout.splitlines()
    assert lines[0].split() == [
        "MODEL",
        "CLASS",
        "WAITING",
        "OLDEST",
        "FOR",
        "LIMIT",
        "MAX",
        "WAIT",
    ]
    assert lines[2].split() == ["tiny", "batch", "7", "12.3", "s", "tiny-1", "64", "600", "s"]
    assert llx("queue", "batch", "-o", "name").stdout == "tiny/batch\n"
    found = json.loads(llx("queue", "batch", "-o", "json").stdout)
    assert (found["api_version"], [each["waiting"] for each in found["queues"]]) == ("v1", [7])
    done = llx("queue", "bacth")
    assert done.exit_code == 4
    assert "there are: interactive, batch" in done.stderr


def test_rules_are_shown_with_what_was_changed(llx, head):
    head.policies = POLICIES
    rows = [line.split() for line in llx("policy", "show").stdout.splitlines()]
    assert rows[1:] == [
        ["tiny", "(paused)", "yes", "yes"],
        ["tiny", "dispatch", "round_robin", "yes"],
        ["tiny", "rescheduling.steps", "balance", "-"],
        ["tiny", "rescheduling.low", "3.0", "-"],
    ]
    found = json.loads(llx("policy", "show", "--model", "tiny", "-o", "json").stdout)
    assert found["policies"][0]["changed"] == {"dispatch": "round_robin"}
    assert llx("policy", "show", "--model", "tiyn").exit_code == 4


def test_rules_are_changed_and_reverted(llx, head):
    head.policies = POLICIES
    words = ["set", "--model", "tiny", "dispatch=freest", "rescheduling.steps=[a, b]"]
    assert llx("policy", *words).exit_code == 0
    done = llx("policy", "revert", "--dry-run")
    assert "nothing was changed" in done.stderr
    first, second = head.updates
    assert (first.model, first.is_revert, first.is_dry_run) == ("tiny", False, False)
    assert first.changes == {"dispatch": "freest", "rescheduling.steps": "[a, b]"}
    assert first.user
    assert (second.model, second.changes, second.is_revert, second.is_dry_run) == (
        "", {}, True, True,
    )  # fmt: skip
    assert llx("policy", "set", "dispatch").exit_code == 2
    assert len(head.updates) == 2


def test_what_the_cluster_has_recorded_is_replayed(llx, head, tmp_path):
    lately(head, tmp_path)
    done = llx("sim", "replay", "--from-cluster")
    assert done.exit_code == 0, done.stderr
    assert "recorded by cluster" in done.stdout
    assert "the same commands" in done.stdout
    assert "GET /v1/recording?whole=true" in head.asked
    done = llx("sim", "replay", "--from-cluster", "--policy", "round-robin", "-o", "json")
    assert (done.exit_code, json.loads(done.stdout)["requests"]) == (0, 20), done.stderr
    head.recording = head.recording.replace('"num_tokens":', '"num_tokens":9', 1)
    done = llx("sim", "replay", "--from-cluster")
    assert (done.exit_code, "local.jsonl:" in done.stderr) == (8, True), done.stderr
    for words in ((), ("r.jsonl", "--from-cluster"), ("r.jsonl", "--context", "local")):
        assert llx("sim", "replay", *words).exit_code == 2


def lately(head, tmp_path, **changed):
    """A head that has recorded a run of two instances, and would be scheduled by other rules."""
    path = tmp_path / "r"
    with Recorder(path, origin="cluster") as recorder:
        requests = generated("m-m", 4.0, 20, 3)
        Cluster(paper_cluster("llx", 2), iter(requests), observe=recorder.record).run(3)
    head.recording = path.read_text()
    model = json.loads(head.recording.splitlines()[1])["data"]["config"]["name"]
    now = SchedulingSettings().model_dump(mode="json")
    status = PolicyStatus(model=model, is_paused=False, scheduling=now)
    head.policies = PolicyList(policies=[status])
    other = status.model_copy(update={"scheduling": {**now, **changed}})
    head.wanted_policies = PolicyList(policies=[other])


def test_a_dry_run_says_what_would_have_been_decided_otherwise(llx, head, tmp_path):
    lately(head, tmp_path, dispatch="round_robin", binding="immediate")
    done = llx("policy", "set", "dispatch=round_robin", "--dry-run", "--over", "10m")
    assert done.exit_code == 0, done.stderr
    assert "GET /v1/recording?last_s=600.0" in head.asked
    assert re.search(
        r"these rules would have sent \d+ of 20 requests \(\d+%\) elsewhere", done.stdout
    )
    assert "more is not recorded" in done.stdout
    assert re.search(r"requests dispatched +20 +20 +20", done.stdout)
    assert "An open loop" in done.stdout
    assert "20 of 20 dispatches (100%) come out as they were made" in done.stdout
    assert "nothing was changed" in done.stderr
    found = json.loads(llx("policy", "set", "a=b", "--dry-run", "-o", "json").stdout)
    assert found["policies"][0]["scheduling"]["dispatch"] == "round_robin"
    assert found["comparison"]["elsewhere"] > 0
    assert found["comparison"]["same"] + found["comparison"]["elsewhere"] == 20


def test_a_dry_run_without_anything_to_compare_still_says_the_rules(llx, head, tmp_path):
    head.policies = POLICIES
    done = llx("policy", "set", "dispatch=freest", "--dry-run")
    assert (done.exit_code, "not compared: nothing is recorded yet" in done.stderr) == (0, True)
    assert "round_robin" in done.stdout
    lately(head, tmp_path, dispatch="of_a_package")
    done = llx("policy", "set", "dispatch=of_a_package", "--dry-run")
    assert done.exit_code == 0
    assert "not compared:" in done.stderr
    assert "of_a_package" in done.stderr
    asked = len(head.asked)
    assert llx("policy", "revert", "--dry-run", "--over", "0").exit_code == 0
    assert not any("recording" in each for each in head.asked[asked:])


@pytest.mark.parametrize("verb", ["pause", "resume", "step"])
def test_moves_by_rule_are_steered(llx, head, verb):
    head.policies = POLICIES
    assert llx("policy", verb, "--model", "tiny", "-o", "name").stdout == "tiny\n"
    assert any(each.startswith(f"POST /v1/policies/{verb}?model=tiny&user=") for each in head.asked)


def test_a_request_is_explained(llx, head):
    head.explained = EXPLAINED
    lines = llx("explain", "llx-a").stdout.splitlines()
    assert lines[0] == "llx-a (cmpl-a-0), tiny, batch"
    assert lines[1].endswith("  held tiny-1: 2 of its class wait")
    assert lines[2].endswith("  placed tiny-0: room opened, tiny-0")
    found = json.loads(llx("explain", "llx-a", "-o", "json").stdout)
    assert found["requests"][0]["decisions"][1]["what"] == "placed"
    assert llx("explain", "other").exit_code == 4

"""`llx top --once`: for scripts and pipes. The screen itself: tests/top."""

import json

import yaml

from llx.api import Snapshot
from tests.cli.servers import migration_status


def test_everything_at_one_moment_as_json(llx, head):
    head.moves = [migration_status(1)]
    done = llx("top", "--once", "-o", "json")
    assert done.exit_code == 0
    found = Snapshot.model_validate_json(done.stdout)
    assert (found.status, found.requests, found.migrations) == (
        head.found, head.requests, head.moves,
    )  # fmt: skip
    assert json.loads(done.stdout)["api_version"] == "v1"
    assert yaml.safe_load(llx("top", "-o", "yaml").stdout)["status"]["cluster"] == "local"
    assert [each for each in head.asked if "snapshot" not in each] == []


def test_as_text_where_there_is_no_terminal(llx, head):
    done = llx("top", "--interval", "100ms")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("local  degraded 1/2  up 5m")
    assert "instances 2" in lines
    assert "requests 1" in lines
    assert not any(line.startswith("migrations") for line in lines), "there are none"
    assert "\x1b" not in done.stdout
    assert len(head.asked) == 2, "rates need two looks"


def test_no_cluster(llx):
    done = llx("top")
    assert done.exit_code == 4
    assert "llx up" in done.stderr

"""The state directory and the audit trail: modes, terms, tokens, bounds."""

import json
import os
import stat
from pathlib import Path

import pytest

from llx.agent.processes import Process, spawn
from llx.cluster.events.audit import AuditTrail
from llx.cluster.launch import head_process, stop_everything
from llx.cluster.state_dir import StateDir, TokenFile, write_private
from llx.curve import ClusterKeys
from llx.errors import ConfigError, RemoteError
from llx.secret import Secret


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_the_owners_alone_and_keeps_its_keys(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "a" / "b")
    state.create()
    keys = ClusterKeys.load(state.keys)
    state.path.chmod(0o755)
    state.create()
    assert ClusterKeys.load(state.keys) == keys
    assert [mode(each) for each in (state.path, state.procs, state.head)] == [0o700] * 3


def test_terms_rise_and_survive(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert [state.raise_term(), StateDir(tmp_path).raise_term()] == [1, 2]
    assert mode(state.term) == 0o600
    state.term.write_text("two")
    with pytest.raises(ConfigError, match="not a number"):
        state.raise_term()


def test_tokens_are_long_new_and_hidden(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    one, two = state.new_token(), state.new_token()
    assert one != two
    assert len(two.reveal()) >= 40
    assert state.token.read_text() == two.reveal()
    assert mode(state.token) == 0o600
    assert repr(two) == "***"


def test_private_files_replace_what_is_there_whatever_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), mode(path)) == ("new", 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_audit_trail_is_lines_of_json_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    trail = AuditTrail(path, max_bytes=1000)
    for number in range(100):
        trail.record("instance.failed", user="änn", name=f"m-{number}", reason="a\nb")
    files = sorted(tmp_path.iterdir())
    assert [each.name for each in files] == ["events.jsonl", "events.jsonl.1"]
    assert all(each.stat().st_size <= 1000 for each in files)
    assert [mode(each) for each in files] == [0o600] * 2
    text = "".join(each.read_text() for each in reversed(files))
    events = [json.loads(line) for line in text.splitlines()]
    assert events[-1] | {"at": 0} == {
        "at": 0, "kind": "instance.failed", "user": "änn", "name": "m-99", "reason": "a\nb",
    }  # fmt: skip
    names = [event["name"] for event in events]
    assert names == [f"m-{number}" for number in range(100 - len(names), 100)]


def test_a_cluster_that_never_was_has_nothing_to_stop(tmp_path: Path) -> None:
    assert head_process(tmp_path / "nowhere") is None
    assert stop_everything(tmp_path / "nowhere", 1) == []


def test_what_cannot_be_killed_is_said_when_all_else_has_been_stopped(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"]}
    procs = StateDir(tmp_path).procs
    started = [spawn(procs / name, ["sleep", "60"], environment) for name in ("a", "b", "head")]

    def stop(process: Process, grace_s: float) -> None:
        process.stop(grace_s)
        if process.name != "b":
            raise RemoteError(f"{process.name}: cannot be killed")

    with pytest.raises(RemoteError, match="head: cannot be killed"):
        stop_everything(tmp_path, 5, stop)
    assert not any(each.is_alive() for each in started)


def test_a_trail_that_cannot_be_written_does_not_raise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    AuditTrail(tmp_path / "no" / "such" / "place").record("cluster.stopped")
    assert "audit.not_written" in caplog.text


def test_a_token_that_is_replaced_counts_at_once_and_none_never(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    now = TokenFile(state.token)
    assert now() == Secret("")
    first = state.new_token()
    assert now() == now() == first
    second = state.new_token()
    assert now() == second != first
    write_private(state.token, "\n")
    assert now() == second
    state.token.unlink()
    assert now() == second

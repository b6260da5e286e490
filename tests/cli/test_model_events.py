"""`llx model` and `llx play` on hosts: what they would do, what the audit trail keeps of it."""

import pytest

from llx.cli.model import add_model, pull_to_hosts, remove_from_hosts
from llx.cli.play import perform
from llx.errors import ExitCode, LlxError, NotFoundError

PLAYBOOK = """
name: mark
description: Makes a directory.
parameters: {root: "llx's directory"}
steps:
  - {name: mark, directory: {path: "{root}", mode: "0700"}}
"""


@pytest.fixture
def weights(tmp_path):
    place = tmp_path / "weights"
    place.mkdir()
    (place / "config.json").write_text("{}")
    (place / "a.safetensors").write_bytes(b"x" * 2048)
    return place


def models(hosts, name):
    place = hosts.home(name) / ".llx" / "models"
    return sorted(each.name for each in place.iterdir()) if place.is_dir() else []


class TestAdd:
    def test_leaves_an_event_with_who_and_where(self, hosts, weights):
        with hosts.head() as head:
            add_model(hosts.session(), "m", weights, file=hosts.file)
            (event,) = head.notes
            assert (event["verb"], event["text"]) == ("model add", f"m from {weights}: on h1, h2")
            assert "@" in event["user"]
            add_model(hosts.session(), "m", weights, file=hosts.file)
            assert head.notes == [event], "nothing was changed, nothing is to be told"

    def test_tells_where_it_failed_too(self, hosts, weights, capsys):
        hosts.off = {"h2"}
        with hosts.head() as head, pytest.raises(LlxError) as caught:
            add_model(hosts.session(), "m", weights, file=hosts.file)
        assert caught.value.exit_code is ExitCode.PARTIAL
        assert head.notes[0]["text"] == f"m from {weights}: on h1; failed on h2"

    def test_goes_without_a_head_and_says_so(self, hosts, weights, capsys):
        add_model(hosts.session(), "m", weights, file=hosts.file)
        said = capsys.readouterr()
        assert said.out.startswith("m is on h1, h2\n")
        assert '(no event in the audit trail: cluster "c": its head on h1 is not run' in said.err
        assert models(hosts, "h2") == ["m"]

    def test_dry_says_what_would_be_sent(self, hosts, weights, capsys):
        with hosts.head() as head:
            add_model(hosts.session(), "m", weights, "h1", hosts.file)
            capsys.readouterr()
            (weights / "b.safetensors").write_bytes(b"y" * 3_000_000)
            (weights / "a.safetensors").unlink()
            add_model(hosts.session(), "m", weights, file=hosts.file, is_dry_run=True)
            assert len(head.notes) == 1
        said = capsys.readouterr()
        assert said.out.splitlines() == [
            "h1: 1 file to be copied (3 MB), 1 to be removed",
            "h2: 2 files to be copied (3 MB)",
        ]
        assert said.err.endswith("nothing was changed\n")
        assert models(hosts, "h2") == []

    def test_dry_of_what_is_there(self, hosts, weights, capsys):
        add_model(hosts.session(), "m", weights, "h1", hosts.file)
        capsys.readouterr()
        add_model(hosts.session(), "m", weights, "h1", hosts.file, is_dry_run=True)
        assert capsys.readouterr().out == "h1: there already\n"


class TestPull:
    def test_dry_needs_what_pulling_needs(self, hosts):
        with pytest.raises(LlxError, match="has no node environment yet"):
            pull_to_hosts(hosts.session(), "org/m", file=hosts.file, is_dry_run=True)

    def test_dry_says_what_is_there(self, hosts, capsys):
        for name in ("h1", "h2"):
            python = hosts.layout(name).node_python("cpu")
            hosts.shell(name).run(["mkdir", "-p", str(python.parent)])
            hosts.shell(name).put(b"", str(python))
        (hosts.home("h2") / ".llx/models/org--m").mkdir(parents=True)
        pull_to_hosts(hosts.session(), "org/m", file=hosts.file, is_dry_run=True)
        first, second = capsys.readouterr().out.splitlines()
        assert first == "h1: to be fetched from the hub"
        assert second.startswith("h2: a part of it is there (")


class TestRemove:
    def test_leaves_an_event(self, hosts, weights):
        with hosts.head() as head:
            add_model(hosts.session(), "m", weights, "h2", hosts.file)
            remove_from_hosts(hosts.session(), "m", file=hosts.file, is_yes=True)
        assert [each["verb"] for each in head.notes] == ["model add", "model rm"]
        assert head.notes[1]["text"] == "m: on h2"
        assert models(hosts, "h2") == []

    def test_dry_removes_nothing(self, hosts, weights, capsys):
        add_model(hosts.session(), "m", weights, "h2", hosts.file)
        capsys.readouterr()
        with hosts.head() as head:
            remove_from_hosts(hosts.session(), "m", file=hosts.file, is_dry_run=True)
        first, second = capsys.readouterr().out.splitlines()
        assert first == "h1: is not there"
        assert second.startswith("h2: to be removed (")
        assert models(hosts, "h2") == ["m"]
        assert head.notes == []

    def test_what_is_nowhere_leaves_none(self, hosts):
        with hosts.head() as head, pytest.raises(NotFoundError):
            remove_from_hosts(hosts.session(), "m", file=hosts.file, is_yes=True)
        assert head.notes == []


class TestPlay:
    @pytest.fixture
    def playbook(self, hosts):
        path = hosts.root / "mark.yaml"
        path.write_text(PLAYBOOK)
        return str(path)

    def test_leaves_an_event_if_it_changed_something(self, hosts, playbook):
        with hosts.head() as head:
            perform(hosts.session(), playbook, file=hosts.file, is_yes=True)
            assert [(each["verb"], each["text"]) for each in head.notes] == [
                ("play", "mark: on h1, h2")
            ]
            perform(hosts.session(), playbook, file=hosts.file, is_yes=True)
            assert len(head.notes) == 1

    def test_dry_leaves_none(self, hosts, playbook, capsys):
        with hosts.head() as head:
            perform(hosts.session(), playbook, file=hosts.file, is_dry_run=True)
        assert head.notes == []
        assert "h2: mark\n" in capsys.readouterr().out

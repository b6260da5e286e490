"""`llx lock`, on this machine and on hosts, of whoever started the cluster and of others."""

import json

import pytest

from llx.bootstrap.cluster_dir import cluster_lock
from llx.bootstrap.host_lock import hold
from llx.choices import OutputFormat
from llx.cli.lock import release_lock, show_lock
from llx.errors import ConflictError, NotFoundError


@pytest.fixture
def held(hosts):
    """Ann is at work on the cluster."""
    with hold(hosts.shell("h1"), hosts.layout("h1"), "up", "ann", "laptop", 77) as held:
        yield held


class TestOnHosts:
    @pytest.fixture(autouse=True)
    def quiet(self, capsys):
        self.said = capsys.readouterr

    @pytest.mark.parametrize("is_held", [False, True])
    @pytest.mark.parametrize("how", ["file", "up", "down"])
    def test_is_shown_to_whoever_has_the_file_or_started_it(self, hosts, how, is_held, request):
        if is_held:
            request.getfixturevalue("held")
        if how == "file":
            show_lock(hosts.session(), hosts.file)
        else:
            hosts.know("cluster.yaml" if how == "up" else "down.yaml")
            show_lock(hosts.session(), None)
        said = self.said().out
        if is_held:
            assert said.startswith("llx up of ann@laptop (pid 77, since ")
        else:
            assert said == "nobody holds the lock\n"

    def test_in_every_format(self, hosts, held):
        show_lock(hosts.session(output_name=OutputFormat.JSON), hosts.file)
        found = json.loads(self.said().out)
        holder = found.pop("holder")
        assert found == {"api_version": "v1", "cluster": "c", "host": "h1"}
        assert holder.pop("since") > 1e9
        assert holder.pop("age_s") < 20
        assert holder == {
            "verb": "up", "user": "ann", "machine": "laptop", "pid": 77, "is_stale": False
        }  # fmt: skip
        show_lock(hosts.session(output_name=OutputFormat.NAME), hosts.file)
        assert self.said().out == "ann@laptop\n"
        show_lock(hosts.session(output_name=OutputFormat.YAML), hosts.file)
        assert "verb: up\n" in self.said().out

    def test_nobodys_in_every_format(self, hosts):
        show_lock(hosts.session(output_name=OutputFormat.JSON), hosts.file)
        assert json.loads(self.said().out)["holder"] is None
        show_lock(hosts.session(output_name=OutputFormat.NAME), hosts.file)
        assert self.said().out == ""

    def test_is_taken_away_by_somebody_else(self, hosts, held):
        release_lock(hosts.session(), hosts.file, is_yes=True)
        said = self.said()
        assert said.out.startswith("released; it was held by llx up of ann@laptop")
        assert "(no event in the audit trail: " in said.err
        show_lock(hosts.session(), hosts.file)
        assert self.said().out == "nobody holds the lock\n"
        release_lock(hosts.session(), hosts.file, is_yes=True)
        assert self.said().out == "nobody holds the lock\n"

    def test_that_it_was_taken_away_is_in_the_audit_trail(self, hosts, held):
        with hosts.head() as head:
            release_lock(hosts.session(), hosts.file, is_yes=True)
        (event,) = head.notes
        assert event["verb"] == "lock release"
        assert event["text"].startswith("it was held by llx up of ann@laptop")
        assert "@" in event["user"]
        assert "audit" not in self.said().err

    def test_a_dry_release_takes_nothing(self, hosts, held):
        with hosts.head() as head:
            release_lock(hosts.session(), hosts.file, is_dry_run=True)
        said = self.said()
        assert said.out.startswith("to be taken from llx up of ann@laptop")
        assert said.err == "nothing was changed\n"
        assert head.notes == []
        show_lock(hosts.session(), hosts.file)
        assert self.said().out.startswith("llx up of ann@laptop")

    def test_without_the_file_the_cluster_must_be_known(self, hosts):
        with pytest.raises(NotFoundError):
            show_lock(hosts.session(), None)

    def test_the_conflict_names_what_the_second_one_can_do(self, hosts, held):
        layout = hosts.layout("h1")
        with (
            pytest.raises(ConflictError) as caught,
            hold(hosts.shell("h1"), layout, "up", "bob", "desk", 1),
        ):
            pass
        assert "llx up of ann@laptop" in caught.value.message
        assert "llx lock show --file FILE" in caught.value.remedy
        assert "llx lock release --file FILE" in caught.value.remedy


class TestOnThisMachine:
    def test_is_shown(self, llx, head):
        assert llx("lock", "show").stdout == "nobody holds the lock\n"
        with cluster_lock(llx.environment.cluster_dir("local"), "up"):
            done = llx("lock", "show")
            assert done.stdout.startswith("another llx up is at work (pid ")
            found = json.loads(llx("lock", "show", "-o", "json").stdout)
            assert (found["cluster"], found["host"], found["holder"]["verb"]) == ("local", "", "up")
            done = llx("lock", "release", "-y")
            assert (done.exit_code, "end that process" in done.stderr) == (5, True)
        assert llx("lock", "release").stdout == "nobody holds the lock\n"

    def test_is_shown_before_the_cluster_is_up(self, llx):
        state_dir = llx.environment.cluster_dir("local")
        with cluster_lock(state_dir, "up"):
            assert llx("lock", "show").stdout.startswith("another llx up is at work")

    def test_by_its_file(self, llx):
        (llx.root / "c.yaml").write_text("cluster: d\nmodels: [{name: m, model: /m}]\n")
        assert llx("lock", "show", "--file", "c.yaml").stdout == "nobody holds the lock\n"

    def test_of_no_cluster(self, llx):
        assert llx("lock", "show").exit_code == 4

"""Verbs on hosts while the head is away, or the cluster is down: truth, exit code, remedy, logs."""

import pytest

from llx.cli.logs import show_logs
from llx.cli.status import show_status
from llx.errors import ExitCode, NotFoundError, UnreachableError
from tests.cli.servers import cluster_status


class TestStatus:
    def refused(self, hosts):
        with pytest.raises(UnreachableError) as caught:
            show_status(hosts.session())
        assert caught.value.exit_code is ExitCode.UNREACHABLE
        return caught.value

    def test_of_a_head_that_answers(self, hosts, capsys):
        hosts.know()
        with hosts.head(cluster_status()):
            show_status(hosts.session())
        assert capsys.readouterr().out.startswith("local  degraded")

    def test_of_a_head_that_has_gone(self, hosts):
        hosts.know()
        with hosts.head():
            pass
        error = self.refused(hosts)
        assert error.message.startswith('cluster "c": its head on h1 does not answer (')
        assert "started again within seconds" in error.remedy
        assert "llx logs h1, llx up FILE" in error.remedy

    def test_of_one_that_was_never_there(self, hosts):
        hosts.know()
        error = self.refused(hosts)
        assert error.message == 'cluster "c": its head on h1 is not running'
        assert error.remedy == "llx up FILE"

    def test_of_a_host_out_of_reach(self, hosts):
        hosts.know()
        hosts.off = {"h1"}
        error = self.refused(hosts)
        assert error.message == (
            "cluster c: its head's host is out of reach: h1: connect: no route to host"
        )
        assert "what runs on the other hosts goes on" in error.remedy

    def test_of_a_cluster_that_is_down(self, hosts):
        hosts.know("down.yaml")
        error = self.refused(hosts)
        assert (error.message, error.remedy) == ("cluster c is down", "llx up FILE")


class TestLogs:
    @pytest.fixture(autouse=True)
    def logs(self, hosts, capsys):
        hosts.procs("h1", ray="ray one\n", head="head one\nhead two\n")
        hosts.procs("h2", tiny_1="one\ntwo\nthree\n")

        def show(name, lines=200, **options):
            show_logs(hosts.session(), name, lines, **options)
            return capsys.readouterr()

        self.show = show

    def test_of_a_cluster_that_is_down(self, hosts):
        hosts.know("down.yaml")
        said = self.show("tiny-1", 2)
        assert said.out == "two\nthree\n"
        path = hosts.layout("h2").procs / "tiny-1" / "log"
        assert said.err == f"(cluster c is down: reading {path} on h2)\n"
        assert self.show("head", 1).out == "head two\n"
        assert "ray one" in self.show("h1").out

    def test_following_a_cluster_that_is_down_ends(self, hosts):
        hosts.know("down.yaml")
        said = self.show("tiny-1", is_following=True)
        assert said.out == "one\ntwo\nthree\n"
        assert said.err.startswith("(cluster c is down: nothing will be added)\n")

    def test_of_a_cluster_whose_head_is_away(self, hosts):
        hosts.know()
        said = self.show("tiny-1", 1)
        assert said.out == "three\n"
        assert said.err.startswith('(cluster "c": its head on h1 is not running: reading ')
        hosts.off = {"h1"}
        assert self.show("tiny-1", 1).out == "three\n"

    def test_where_it_wrote_last(self, hosts):
        hosts.know()
        hosts.procs("h1", tiny_1="later\n")
        hosts.shell("h2").run(
            ["touch", "-d", "@1", str(hosts.layout("h2").procs / "tiny-1" / "log")]
        )
        assert self.show("tiny-1").out == "later\n"

    @pytest.mark.parametrize("name", ["nobody", "../x", "x/y"])
    def test_of_nobody(self, hosts, name):
        hosts.know("down.yaml")
        hosts.off = {"h1"}
        with pytest.raises(NotFoundError) as caught:
            self.show(name)
        assert caught.value.message == f'no log of "{name}" on h2; out of reach: h1'
        assert caught.value.remedy == "there are: tiny-1"

    def test_following_goes_on_at_the_host(self, hosts):
        """`tail` there, as long as it can be reached."""
        hosts.know()
        ran = []
        session = hosts.session()
        connect = session.connect

        def recorded(host, ask=None):
            shell = connect(host, ask)
            run = shell.run

            def noted(argv, **options):
                ran.append(list(argv))
                return run([each for each in argv if each != "-F"], **options)

            shell.run = noted
            return shell

        session.connect = recorded
        show_logs(session, "tiny-1", 7, is_following=True)
        path = str(hosts.layout("h2").procs / "tiny-1" / "log")
        assert ran[-1] == ["tail", "-n", "7", "-F", "--", path]

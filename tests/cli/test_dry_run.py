"""``--dry-run`` of what ends or empties something: who, what, and nothing done."""

import json
import os

import pytest

from llx.agent.shim import start_time
from llx.api import HostState, HostStatus, InstanceState
from llx.cli import dry_run
from tests.cli.servers import cluster_status

NOWHERE = "which finish there: no other instance of tiny takes any"
CHANGES = ("POST", "PUT", "DELETE")


@pytest.fixture
def status():
    """tiny-0 and gateway-0 on h1, tiny-1 on h2."""
    found = cluster_status()
    first, second = found.instances
    hosts = [
        HostStatus(
            name="h1", state=HostState.READY, instances=["tiny-0"], gateways=["gateway-0"]
        ),
        HostStatus(name="h2", state=HostState.READY, instances=["tiny-1"]),
    ]  # fmt: skip
    return found.model_copy(
        update={
            "instances": [
                first.model_copy(update={"host": "h1"}),
                second.model_copy(update={"host": "h2"}),
            ],
            "gateways": [found.gateways[0].model_copy(update={"host": "h1"})],
            "hosts": hosts,
        }
    )


def with_host(status, host, **changes):
    hosts = [
        each.model_copy(update=changes) if each.name == host else each for each in status.hosts
    ]
    return status.model_copy(update={"hosts": hosts})


class TestOfHosts:
    def dry(self, llx, head, *words):
        done = llx("host", *words, "--dry-run")
        assert not [each for each in head.asked if each.startswith(CHANGES)]
        assert done.exit_code or done.stderr == "nothing was changed\n"
        return done

    def test_cordon(self, llx, head, status):
        head.found = status
        assert self.dry(llx, head, "cordon", "h1").stdout.splitlines() == [
            "h1 gets nothing new",
            "gateway-0 goes on",
            "tiny-0 goes on",
        ]
        assert self.dry(llx, head, "uncordon", "h1").stdout == "h1 is not cordoned already\n"
        head.found = with_host(status, "h1", is_cordoned=True)
        assert self.dry(llx, head, "cordon", "h1").stdout == "h1 is cordoned already\n"
        assert self.dry(llx, head, "uncordon", "h1").stdout == "h1 is used again\n"

    def test_drain(self, llx, head, status):
        head.found = status
        way = "ends when it has none, after 30 s at most"
        assert self.dry(llx, head, "drain", "h1", "--deadline", "30s").stdout.splitlines() == [
            "h1 gets nothing new",
            "gateway-0: 4 streams going on; ends with them, after 30 s at most",
            f"tiny-0: 3 requests running, 1 waiting, {NOWHERE}; {way}",
            "what there is room for starts on h2",
        ]

    @pytest.mark.parametrize(
        ("name", "change", "code", "words"),
        [
            ("h2", {"is_cordoned": True}, 5, "h1 is the only host in use"),
            ("h2", {"state": HostState.LOST}, 5, "h1 is the only host in use"),
            ("h1", {"state": HostState.DRAINING}, 5, "h1 is being emptied already"),
            ("h1", {"name": "h3"}, 4, 'no host "h1"\nremedy: there are: h3, h2'),
        ],
    )
    def test_what_would_be_refused_is(self, llx, head, status, name, change, code, words):
        head.found = with_host(status, name, **change)
        done = self.dry(llx, head, "drain", "h1")
        assert (done.exit_code, done.stdout) == (code, "")
        assert words in done.stderr


class TestOfInstances:
    def test_restart(self, llx, head):
        done = llx("inst", "restart", "tiny-0", "--dry-run")
        assert done.stdout == (
            "tiny-0 on here: 3 requests running, 1 waiting, which finish there: no other instance "
            "of tiny takes any, cut after 60 s; ends and is started anew\n"
        )
        done = llx("inst", "restart", "tiny-0", "--dry-run", "--deadline", "0")
        assert done.stdout == (
            "tiny-0 on here: 3 requests running, 1 waiting, cut off; ends and is started anew\n"
        )
        assert not [each for each in head.asked if each.startswith("POST")]
        done = llx("inst", "restart", "tiny-1", "--dry-run")
        assert "tiny-1 on here: failed, its requests are not known" in done.stdout
        assert llx("inst", "restart", "nobody", "--dry-run").exit_code == 4
        done = llx("inst", "restart", "gateway-0", "--dry-run")
        assert "streams going on, which finish; ends and is started anew" in done.stdout

    def test_drain(self, llx, head):
        two = [
            each.model_copy(update={"state": InstanceState.READY}) for each in head.found.instances
        ]
        head.found = head.found.model_copy(update={"instances": two})
        done = llx("inst", "drain", "tiny-0", "--dry-run", "--deadline", "30s")
        late = "what is left after 30 s goes on there"
        assert done.stdout.splitlines() == [
            "tiny-0 gets nothing new",
            f"3 requests running, 1 waiting, which move to tiny-1, or finish; {late}",
            "tiny-0 stays up: `llx inst uncordon tiny-0` uses it again",
        ]
        lite = two[0].model_copy(update={"cannot_migrate": "its KV cache is of several kinds"})
        head.found = head.found.model_copy(update={"instances": [lite, two[1]]})
        done = llx("inst", "drain", "tiny-0", "--dry-run")
        assert "cannot move requests (its KV cache is of several kinds)" in done.stdout
        assert not [each for each in head.asked if each.startswith("POST")]

    def test_a_drain_that_would_be_refused_is(self, llx, head):
        done = llx("inst", "drain", "tiny-1", "--dry-run")
        assert (done.exit_code, done.stdout) == (5, "")
        assert "tiny-1 is failed" in done.stderr

    def test_cordon(self, llx, head):
        done = llx("inst", "cordon", "tiny-0", "--dry-run")
        assert done.stdout == (
            "tiny-0 gets nothing new: 3 requests running, 1 waiting, which go on\n"
        )
        done = llx("inst", "uncordon", "tiny-0", "--dry-run")
        assert done.stdout == "tiny-0 is not cordoned already\n"
        assert not [each for each in head.asked if each.startswith("POST")]


class TestDownHere:
    def test_removes_nothing(self, llx):
        logs = llx.environment.cluster_dir("local") / "procs" / "head"
        logs.mkdir(parents=True)
        llx.environment.tiny_model.mkdir(parents=True)
        done = llx("down", "--purge", "--dry-run")
        assert done.exit_code == 0
        assert f"remove     {llx.environment.tiny_model}\n" in done.stdout
        assert done.stderr == "nothing was changed\n"
        assert logs.is_dir()
        assert llx.environment.tiny_model.is_dir()

    def test_of_nothing(self, llx):
        done = llx("down", "--dry-run")
        assert done.stdout == "cluster  local is not running: nothing to stop\n"


@pytest.mark.slow
class TestDownOnHosts:
    @pytest.fixture
    def down(self, hosts, capsys):
        """Rows of the plan, by what."""
        hosts.know()
        settings = hosts.session().cluster()

        def run(**options):
            dry_run.down_on_hosts(hosts.session(), settings, 60.0, **options)
            said = capsys.readouterr()
            assert said.err == "nothing was changed\n"
            return dict(line.split("  ", 1) for line in said.out.splitlines())

        return run

    def start(self, hosts, host, *names):
        """Processes that run there, to whoever looks."""
        for name in names:
            hosts.procs(host, **{name: ""})
            place = hosts.home(host) / ".llx/clusters/c/procs" / name
            alive = {"shim_pid": os.getpid(), "shim_start": start_time(os.getpid()), "mark": "x"}
            (place / "shim.json").write_text(json.dumps(alive))

    def test_says_what_ends_and_what_stays(self, hosts, status, down):
        self.start(hosts, "h1", "ray", "tiny-0")
        with hosts.head(status) as head:
            rows = {what: how.strip() for what, how in down(is_purge=False).items()}
        assert rows == {
            "cluster": "c on h1, h2",
            "streams": "4 going on; cut are those that have not finished in 60 s",
            "host h1": "end ray, tiny-0; remove keys and settings; keep models, the node "
            "environment and logs",
            "host h2": "nothing runs there; remove keys and settings; keep models, the node "
            "environment and logs",
        }
        assert head.asked == ["GET /v1/status"]

    def test_a_purge_names_what_goes(self, hosts, down):
        root = hosts.home("h2") / ".llx"
        (root / "models/big").mkdir(parents=True)
        (root / "models/big/llx-model.json").write_text("{}")
        (root / "host.json").write_text('{"cluster": "c"}')
        hosts.off = {"h1"}
        rows = {what: how.strip() for what, how in down(is_purge=True).items()}
        assert "the head does not answer (h1: connect: no route to host)" in rows["streams"]
        assert rows["host h1"].startswith("left as it is, out of reach: h1: connect: no route")
        assert rows["host h2"] == (
            f"nothing runs there; remove {root} (model big, logs) and {hosts.layout('h2').ray_tmp}"
        )
        assert root.is_dir()

    def test_a_host_of_another_cluster_is_left_to_it(self, hosts, down):
        root = hosts.home("h2") / ".llx"
        root.mkdir()
        (root / "host.json").write_text('{"cluster": "other"}')
        rows = down(is_purge=True)
        state = root / "clusters" / "c"
        assert rows["host h2"] == f"another cluster uses it now: remove {state}, nothing else"

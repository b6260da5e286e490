"""What `llx doctor` finds, with hosts that are told what to say."""

import contextlib
import json
import time
from pathlib import Path

import pytest

from llx.api import ClusterState, HostState, HostStatus, InstanceState, KeysStatus
from llx.bootstrap.doctor import control_checks, examine_cluster, examine_plan
from llx.bootstrap.host_capacity import copy_sizes
from llx.bootstrap.host_checks import report
from llx.bootstrap.host_finding import HostFinding
from llx.bootstrap.hosts_world import HostsWorld
from llx.bootstrap.local_ports import StepState
from llx.bootstrap.shell import ForbiddenError
from llx.environment import Environment
from llx.errors import ExitCode, RemoteError, UnreachableError
from llx.settings import ClusterSettings
from tests.bootstrap.fake_shell import FakeShell, completed
from tests.bootstrap.host_said import CPU_HOST, said
from tests.cli.servers import cluster_status

FRESH = KeysStatus(made_at=time.time(), is_changing=False)

RUNNING = (
    "process\tray\t77\tcafe\tready\t",
    'claim\t{"cluster": "prod", "id": "1"}',
    "listener\t20001\t0700000A\tann\t80\tcafe\traylet",
)


def well():
    """A cluster in which nothing has failed."""
    status = cluster_status()
    ready = {"state": InstanceState.READY, "detail": ""}
    instances = [each.model_copy(update=ready) for each in status.instances]
    return status.model_copy(update={"state": ClusterState.READY, "instances": instances})


class Control:
    def __init__(self, status):
        self._status = status

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def status(self):
        if isinstance(self._status, Exception):
            raise self._status
        return self._status

    def keys(self):
        return FRESH


class Hosts:
    """A world of hosts h1, h2, … that say what a test has them say."""

    def __init__(self, count=2):
        self.environment = Environment({"HOME": "/nowhere"}, Path("/nowhere"))
        self.shells = {}
        self.away = set()
        self.status = well()
        for number in range(1, count + 1):
            name, address = f"h{number}", f"10.0.0.{number}"
            text = CPU_HOST.replace("10.0.0.7", address).replace("f241dcc8", f"boot{number}")
            self.shells[name] = FakeShell(name)
            self.say(name, text)
        self.settings = ClusterSettings.model_validate(
            {
                "cluster": "prod",
                "hosts": list(self.shells),
                "models": [{"name": "m", "model": "x", "engine": "sim"}],
            }
        )
        self.world = HostsWorld(
            connect=self.connect, control=lambda *_: Control(self.status), first_token=None
        )
        self.steps = {}

    def say(self, name, text):
        def probe(argv, stdin):
            places = argv[4:]
            pairs = zip(places[::2], places[1::2], strict=True)
            return completed("".join(f"{a}\t{p}\t0\t\n" for a, p in pairs))

        shell = self.shells[name]
        shell.answer("sh", "-c", by=completed("/home/ann\n1000\n"))
        shell.answer("sh", "-s", "--", "20000", by=completed(text))
        shell.answer("sh", "-s", "--", "3", by=probe)

    def more(self, name, *lines, **changes):
        text = CPU_HOST.replace("10.0.0.7", f"10.0.0.{name[1:]}")
        self.say(name, said(text.replace("f241dcc8", f"boot{name[1:]}"), *lines, **changes))

    def connect(self, host):
        if host.name in self.away:
            raise UnreachableError(f"{host.name}: connect: no answer", remedy="switch it on")
        return self.shells[host.name]

    def observe(self, event):
        self.steps[event.step] = event

    def plan(self):
        return examine_plan(self.settings, self.environment, self.world, self.observe)

    def live(self, ask=lambda _: "answers"):
        return examine_cluster(self.settings, self.world, self.observe, ask)


def checks(found, host):
    return {each.subject: each for each in found.checks if each.host == host}


class Forbidding(FakeShell):
    """A host whose sshd makes no connections for anybody."""

    def dial(self, address, port, *, timeout_s=10.0):
        raise ForbiddenError("h1: prohibited", remedy="set AllowTcpForwarding yes")


class TestPlan:
    def test_what_up_would_refuse_without_a_look_at_hosts(self):
        hosts = Hosts()
        model = {"name": "m", "model": "x", "engine_args": {"max_model_lenn": 5}}
        keys = {"api_keys": [{"tenant": "a", "key_env": "NOT_THERE"}]}
        changes = {"hosts": ["h1", "h2"], "models": [model], "gateway": keys}
        hosts.settings = ClusterSettings.model_validate({"cluster": "prod", **changes})
        found = hosts.plan()
        said = [each.detail for each in found.checks if each.subject == "settings"]
        assert len(said) == 2
        assert "NOT_THERE" in said[0]
        assert "max_model_lenn" in said[1]
        assert not found.is_healthy

    def test_a_head_that_forbids_port_forwarding(self):
        hosts = Hosts()
        plain, hosts.shells["h1"] = hosts.shells["h1"], Forbidding("h1")
        hosts.shells["h1"]._answers = plain._answers
        found = checks(hosts.plan(), "h1")["ssh"]
        assert "the control API" in found.detail
        assert "AllowTcpForwarding" in found.remedy

    def test_good_hosts(self):
        hosts = Hosts()
        found = hosts.plan()
        assert [(e.host, e.subject, e.detail) for e in found.checks if e.state == "fail"] == [
            (name, "clock", checks(found, name)["clock"].detail) for name in ("h1", "h2")
        ]  # the recorded clock stands still
        assert checks(found, "h1")["disk"].detail == "70.0 GiB free at /home/ann/.llx"
        assert checks(found, "h1")["memory"].detail == "50.0 of 62.5 GiB available"
        assert checks(found, "h1")["python"].detail == "3.11.2 at /usr/bin/python3.11"
        assert checks(found, "h1")["ports"].detail == "20000-20999 free"
        assert checks(found, "h2")["reachability"].detail == "reaches h1"
        assert checks(found, "h2")["cluster"].detail == "belongs to none"
        assert all(event.state is StepState.DONE for event in hosts.steps.values())
        assert hosts.steps["reachability"].detail == "8 of 8 routes"
        assert all(shell.is_closed for shell in hosts.shells.values())

    def test_nothing_is_written_anywhere(self):
        hosts = Hosts()
        hosts.plan()
        assert all(shell.files == {} for shell in hosts.shells.values())
        assert {words[:2] for s in hosts.shells.values() for words in s.argvs} == {
            ("sh", "-c"),
            ("sh", "-s"),
        }

    def test_a_finding_takes_the_place_of_the_good_line(self):
        hosts = Hosts()
        hosts.more("h2", without=["clock"], disk="home\t100\t100\t/dev/sda1")
        found = hosts.plan()
        assert [e.state for e in found.checks if (e.host, e.subject) == ("h2", "disk")] == ["fail"]
        assert "node environment" in checks(found, "h2")["disk"].detail
        assert checks(found, "h1")["disk"].state == "ok"
        assert (found.is_healthy, found.exit_code) == (False, ExitCode.CHECK_FAILED)

    def test_a_host_out_of_reach_does_not_keep_the_others_from_being_looked_at(self):
        hosts = Hosts(3)
        for name in ("h1", "h3"):
            hosts.more(name, without=["clock"])
        hosts.away.add("h2")
        found = hosts.plan()
        assert list(checks(found, "h2")) == ["connection"]
        assert checks(found, "h2")["connection"].remedy == "switch it on"
        assert found.exit_code == ExitCode.UNREACHABLE
        assert "system" in checks(found, "h3")

    def test_the_order_is_that_of_the_file_with_the_cluster_last(self):
        hosts = Hosts(3)
        hosts.settings = hosts.settings.model_copy(
            update={"network": hosts.settings.network.model_copy(update={"tls": False})}
        )
        found = hosts.plan()
        assert list(dict.fromkeys(e.host for e in found.checks)) == ["h1", "h2", "h3", "cluster"]
        assert checks(found, "cluster")["tls"].state == "warn"

    def test_sizes_of_models_that_are_here(self, tmp_path):
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "config.json").write_text("{}")
        (tmp_path / "m" / "w.safetensors").write_bytes(b"x" * 998)
        (tmp_path / "m" / ".git" / "lfs").mkdir(parents=True)  # hidden: is not copied
        (tmp_path / "m" / ".git" / "lfs" / "w").write_bytes(b"x" * 998)
        models = [
            {"name": "a", "model": str(tmp_path / "m")},
            {"name": "b", "model": str(tmp_path / "none")},
            {"name": "c", "model": "org/name"},
        ]
        settings = ClusterSettings.model_validate({"hosts": ["h1"], "models": models})
        assert copy_sizes(settings) == {str(tmp_path / "m"): 1000}


class TestLive:
    @pytest.fixture
    def hosts(self):
        hosts = Hosts()
        for name in hosts.shells:
            hosts.more(name, *RUNNING, without=["clock"])
        return hosts

    def test_a_healthy_cluster(self, hosts):
        found = hosts.live()
        assert [str(e) for e in found.checks if e.state == "fail"] == []
        assert (found.is_healthy, found.exit_code) == (True, 0)
        assert checks(found, "h1")["processes"].detail == "ray ready"
        assert checks(found, "h1")["ports"].detail == "20000-20999 held by this cluster"
        assert checks(found, "cluster")["OpenAI API"].detail == "answers"
        assert checks(found, "cluster")["instances"].detail == "2 of 2 ready"

    def test_a_host_where_nothing_runs(self, hosts):
        hosts.more("h2", without=["clock"])
        found = hosts.live()
        assert checks(found, "h2")["processes"].detail == "nothing of the cluster runs there"
        assert found.exit_code == ExitCode.CHECK_FAILED

    def test_a_process_that_failed(self, hosts):
        failed = "process\tm-0\t78\tcafe\tfailed\tno memory"
        hosts.more("h2", *RUNNING, failed, without=["clock"])
        assert checks(hosts.live(), "h2")["processes"].detail == "m-0 failed: no memory"

    def test_a_head_that_does_not_answer(self, hosts):
        hosts.status = UnreachableError("its head on h1 is not running", remedy="llx up")
        found = hosts.live()
        assert checks(found, "cluster")["control API"].state == "fail"
        assert found.exit_code == ExitCode.UNREACHABLE

    def test_a_heads_host_out_of_reach(self, hosts):
        hosts.away.add("h1")
        found = hosts.live()
        assert "h1 is out of reach" in checks(found, "cluster")["control API"].detail
        assert checks(found, "h2")["processes"].state == "ok"
        assert found.exit_code == ExitCode.UNREACHABLE

    def test_a_gateway_that_does_not_answer(self, hosts):
        def ask(status):
            raise RemoteError("no gateway is ready", remedy="wait")

        found = hosts.live(ask)
        assert checks(found, "cluster")["OpenAI API"].detail == "no gateway is ready"
        assert found.exit_code == ExitCode.CHECK_FAILED


class TestStatus:
    def found(self, status, keys=FRESH):
        good, wrong = control_checks(lambda: (status, keys), lambda _: "fine")
        return report("prod", good, wrong)

    def host(self, **changes):
        values = {"name": "h2", "state": HostState.READY, "memory_total_bytes": 1 << 36}
        room = {"memory_free_bytes": 1 << 35, "disk_free_bytes": 1 << 35}
        return HostStatus.model_validate({**values, **room, **changes})

    def with_host(self, **changes):
        return well().model_copy(update={"hosts": [self.host(**changes)]})

    @pytest.mark.parametrize(
        ("left_days", "state", "words"),
        [
            (200, "ok", "good for 199 days more"),
            (29, "warn", "that of gateway-0 ends in 28 days"),
            (-1, "fail", "that of gateway-0 has ended"),
        ],
    )
    def test_a_certificate_that_ends(self, left_days, state, words):
        status = well()
        ends_at = time.time() + left_days * 86400 - 60
        gateway = status.gateways[0].model_copy(update={"certificate_ends_at": ends_at})
        found = self.found(status.model_copy(update={"gateways": [gateway]}))
        seen = checks(found, "cluster")["certificates"]
        assert (seen.state, seen.detail) == (state, words)
        assert found.is_healthy is (state != "fail")

    def test_keys_that_are_old_or_half_replaced(self):
        assert checks(self.found(well()), "cluster")["keys"].detail == "0 days old"
        unknown = FRESH.model_copy(update={"made_at": None})
        assert "keys" not in checks(self.found(well(), unknown), "cluster")
        old = FRESH.model_copy(update={"made_at": time.time() - 366.5 * 86400})
        found = self.found(well(), old)
        seen = checks(found, "cluster")["keys"]
        assert (seen.state, seen.detail) == ("warn", "366 days old")
        assert seen.remedy.startswith("llx up --rotate")
        half = FRESH.model_copy(update={"is_changing": True, "awaited": ["m-0"]})
        found = self.found(well(), half)
        assert "m-0 did not change over" in checks(found, "cluster")["keys"].detail
        assert found.is_healthy

    def test_a_lost_host(self):
        found = self.found(self.with_host(state=HostState.LOST, detail="silent for 9 s"))
        assert checks(found, "cluster")["hosts"].detail == "h2 lost: silent for 9 s"
        assert not found.is_healthy

    def test_a_cordoned_host_is_a_warning(self):
        found = self.found(self.with_host(is_cordoned=True))
        assert checks(found, "cluster")["hosts"].state == "warn"
        assert checks(found, "cluster")["hosts"].remedy == "llx host uncordon h2"
        assert found.is_healthy

    @pytest.mark.parametrize("what", ["memory", "disk"])
    def test_a_host_that_runs_full(self, what):
        found = self.found(self.with_host(**{f"{what}_free_bytes": 1 << 28}))
        assert f"0.2 GiB of {what} left" in checks(found, "cluster")["hosts"].detail

    def test_a_failed_instance_says_its_last_line(self):
        status = well()
        failed = status.instances[0].model_copy(
            update={"state": InstanceState.FAILED, "detail": "Traceback\nMemoryError: no"}
        )
        found = self.found(status.model_copy(update={"instances": [failed]}))
        check = checks(found, "cluster")["instances"]
        assert check.detail == f"{failed.name} failed: MemoryError: no"
        assert check.remedy == f"llx logs {failed.name}"

    def test_a_cluster_that_stops(self):
        status = well().model_copy(update={"state": ClusterState.STOPPING})
        assert checks(self.found(status), "cluster")["control API"].state == "fail"


class TestReport:
    def finding(self, code, **changes):
        return HostFinding("h1", "disk", "full", "free some", code, **changes)

    @pytest.mark.parametrize(
        ("codes", "expected"),
        [
            ([], ExitCode.OK),
            ([ExitCode.UNREACHABLE, ExitCode.UNREACHABLE], ExitCode.UNREACHABLE),
            ([ExitCode.UNREACHABLE, ExitCode.FAILURE], ExitCode.CHECK_FAILED),
            ([ExitCode.CONFLICT], ExitCode.CHECK_FAILED),
        ],
    )
    def test_the_exit_code(self, codes, expected):
        found = report("prod", [], [self.finding(code) for code in codes])
        assert found.exit_code == expected
        assert found.is_healthy == (not codes)

    def test_warnings_do_not_count(self):
        found = report("prod", [], [self.finding(ExitCode.CONFLICT, is_fatal=False)])
        assert (found.is_healthy, found.exit_code) == (True, 0)

    def test_it_goes_through_json(self):
        found = report("prod", [], [self.finding(ExitCode.FAILURE, detail="evidence")])
        data = json.loads(found.model_dump_json())
        assert data["api_version"] == "v1"
        assert data["checks"] == [
            {
                "host": "h1",
                "subject": "disk",
                "state": "fail",
                "detail": "full",
                "remedy": "free some",
                "evidence": "evidence",
            }
        ]


def test_connections_are_closed_when_something_breaks():
    hosts = Hosts()
    hosts.shells["h2"].answer("sh", "-s", "--", "20000", by=lambda *_: 1 / 0)
    with contextlib.suppress(ZeroDivisionError):
        hosts.plan()
    assert all(shell.is_closed for shell in hosts.shells.values())

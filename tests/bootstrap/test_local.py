"""`up` and `down` on a make-believe machine: every way in, every way out."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.api import InstanceState
from llx.bootstrap import local, local_stop
from llx.bootstrap.cluster_dir import PROCS, cluster_lock
from llx.bootstrap.down_plan import plan_here
from llx.bootstrap.facts import NodeFact, PortFact
from llx.bootstrap.local import StartError, up
from llx.bootstrap.local_stop import down, down_and_purge, purge_list
from llx.bootstrap.plan import describe
from llx.bootstrap.preflight import PreflightError
from llx.bootstrap.readiness import reason
from llx.curve import load_ring
from llx.errors import (
    ConflictError,
    DeadlineError,
    ExitCode,
    InstallError,
    RemoteError,
)
from tests.bootstrap.world import World

FAILED, LOADING, READY = InstanceState.FAILED, InstanceState.LOADING, InstanceState.READY
ALL = ["gateway-0", "head", "m-0", "m-1"]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def bring_up(world, plan=None):
    return up(plan or world.plan(), world.ports(), world.events.append)


def take_down(world, **options):
    return down(world.state_dir, world.ports(), world.events.append, **options)


class TestUp:
    def test_goes_through_its_steps(self, world):
        # The first look is at the head's, whether it is up at all.
        world.states = {"m-0": [LOADING] * 2 + [READY], "m-1": [LOADING] * 3 + [READY]}
        result = bring_up(world)
        assert (result.was_running, result.is_probed) == (False, True)
        assert world.alive == ALL
        assert world.steps() == [
            ("preflight", "running"),
            ("preflight", "done"),
            ("node environment", "running"),
            ("node environment", "done"),
            ("tiny model", "running"),
            ("tiny model", "done"),
            ("head", "running"),
            ("head", "done"),
            ("instance m-0", "running"),
            ("instance m-1", "running"),
            ("gateway-0", "done"),
            ("instance m-0", "done"),
            ("instance m-1", "done"),
            ("first token", "running"),
            ("first token", "done"),
        ]

    def test_makes_no_tiny_model_for_another(self, world, tmp_path):
        plan = world.plan(models=[{"name": "m", "model": "org/name", "instances": {"min": 2}}])
        bring_up(world, plan)
        assert "make_tiny_model" not in world.calls

    def test_hides_keys_from_the_processes(self, world):
        environment = world.environment(A_KEY="sesame", HF_TOKEN="t", LLX_API_KEY="k")
        keys = [{"tenant": "a", "key_env": "A_KEY"}]
        bring_up(world, world.plan(environment, gateway={"api_keys": keys}))
        assert world.inherited == {"HOME": str(world.root), "PATH": "/bin", "HF_TOKEN": "t"}
        assert "sesame" not in (world.state_dir / "cluster.yaml").read_text()

    def test_skips_the_probe_when_only_hashes_are_known(self, world):
        keys = [{"tenant": "a", "sha256": "ab" * 32}]
        result = bring_up(world, world.plan(gateway={"api_keys": keys}))
        assert result.is_probed is False
        assert ("first token", "skipped") in world.steps()
        assert "first_token" not in world.calls

    def test_waits_for_a_gateway_that_is_busy_at_first(self, world):
        world.first_token_errors = [RemoteError("busy"), RemoteError("busy")]
        assert bring_up(world).is_probed is True
        assert world.calls.count("first_token") == 3


class TestUpOnARunningCluster:
    def test_says_so(self, world):
        bring_up(world)
        world.calls.clear()
        assert bring_up(world).was_running is True
        assert {"gather", "install", "launch_head"}.isdisjoint(world.calls)

    def test_restarts_what_has_failed(self, world):
        bring_up(world)
        world.states["m-1"] = [FAILED]
        assert bring_up(world).was_running is True
        assert "restart m-1" in world.calls
        assert "restart m-0" not in world.calls

    def test_names_the_differing_keys(self, world):
        bring_up(world)
        with pytest.raises(ConflictError, match=r"other settings: gateway.port\n") as caught:
            bring_up(world, world.plan(gateway={"port": 8001}))
        assert "llx down --context c" in caught.value.remedy
        assert world.alive == ALL

    def test_renews_a_certificate_of_its_making_only_if_it_must(self, world):
        plan = world.plan(gateway={"tls": "generated"})
        bring_up(world, plan)
        path = world.state_dir / "gateway.pem"
        first = path.read_text()
        assert path.stat().st_mode & 0o777 == 0o600
        assert (world.state_dir / "gateway-ca.pem").read_text() in first
        bring_up(world, plan)
        assert path.read_text() == first
        bring_up(world, replace(plan, rotates=True))
        assert path.read_text() != first
        take_down(world)
        assert not path.exists()
        assert not (world.state_dir / "gateway-ca.pem").exists()

    def test_replaces_the_control_token_when_asked_to(self, world):
        bring_up(world)
        token = world.state_dir / "token"
        token.write_text("former")
        bring_up(world)
        assert token.read_text() == "former"
        bring_up(world, replace(world.plan(), rotates=True))
        assert len(token.read_text()) > 40
        assert token.stat().st_mode & 0o777 == 0o600

    def test_replaces_the_keys_of_its_sockets_when_all_have_taken_them_up(self, world):
        bring_up(world)
        path = world.state_dir / "keys.json"
        [old] = load_ring(path)
        bring_up(world)
        assert load_ring(path) == (old,)
        world.keys_awaited = [["m-0", "scheduler"], ["m-0"], []]
        bring_up(world, replace(world.plan(), rotates=True))
        [new] = load_ring(path)
        assert world.key_files == [(new, old)] * 3
        assert {new.listener_public, new.dialer_public}.isdisjoint(
            {old.listener_public, old.dialer_public}
        )
        assert path.stat().st_mode & 0o777 == 0o600

    def test_ends_later_what_an_up_before_it_has_begun_with_the_keys(self, world):
        bring_up(world)
        path = world.state_dir / "keys.json"
        [old] = load_ring(path)
        world.keys_awaited = [["m-0"]] * 1000
        with pytest.raises(DeadlineError, match="m-0 did not change over"):
            bring_up(world, replace(world.plan(), rotates=True))
        new, former = load_ring(path)
        assert former == old
        world.keys_awaited = []
        bring_up(world)
        assert load_ring(path) == (new,)

    def test_gives_it_a_new_head(self, world):
        bring_up(world)
        world.processes["head"].is_running = False
        world.calls.clear()
        assert bring_up(world).was_running is True
        assert world.alive == ALL
        assert "launch_head" in world.calls
        assert "gather" not in world.calls

    def test_interrupted_leaves_it_running(self, world):
        bring_up(world)
        world.calls.clear()
        world.interrupt = ("status", 2)
        with pytest.raises(KeyboardInterrupt):
            bring_up(world)
        assert world.alive == ALL

    def test_stale_files_are_no_cluster(self, world):
        """After a reboot: the files are there, the processes are not."""
        bring_up(world)
        for each in world.processes.values():
            each.is_running = False
        result = bring_up(world, world.plan(gateway={"port": 8001}))
        assert result.was_running is False

    def test_leftover_processes_without_settings(self, world):
        bring_up(world)
        (world.state_dir / "cluster.yaml").unlink()
        with pytest.raises(ConflictError, match="left over from an earlier start") as caught:
            bring_up(world)
        assert "llx down" in caught.value.remedy

    def test_another_llx_at_work(self, world):
        with (
            cluster_lock(world.state_dir, "up"),
            pytest.raises(ConflictError, match="another llx up is at work") as caught,
        ):
            bring_up(world)
        assert caught.value.exit_code is ExitCode.CONFLICT
        assert world.calls == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("facts", "code", "words"),
        [
            (
                {"ports": {("127.0.0.1", 8000): PortFact("port 8000 is taken", "x (pid 7)")}},
                5,
                "gateway: port 8000 is taken by x",
            ),
            (
                {"node": NodeFact(False, "/p", InstallError("vllm 0.1 found", remedy="r"))},
                1,
                "runtime: vllm 0.1 found",
            ),
            ({"memory_available_bytes": 1}, 1, "memory: about"),
        ],
    )
    def test_by_preflight_change_nothing(self, world, facts, code, words):
        world.facts = facts
        with pytest.raises(PreflightError) as caught:
            bring_up(world)
        assert caught.value.message.startswith(words)
        assert caught.value.exit_code == code
        assert world.calls == ["gather"]
        assert not world.state_dir.exists()
        assert world.steps()[-1] == ("preflight", "failed")

    def test_dry_run_changes_nothing(self, world):
        local.check(world.plan(), world.ports())
        world.facts = {"memory_available_bytes": 1}
        with pytest.raises(PreflightError):
            local.check(world.plan(), world.ports())
        assert not world.state_dir.exists()

    def test_dry_run_sees_a_running_cluster(self, world):
        bring_up(world)
        local.check(world.plan(), world.ports())
        with pytest.raises(ConflictError):
            local.check(world.plan(gateway={"port": 1}), world.ports())


class TestFailures:
    def test_of_one_instance_leave_the_rest(self, world):
        world.states["m-1"] = [LOADING, FAILED]
        log = world.state_dir / PROCS / "m-1" / "log"
        with pytest.raises(StartError) as caught:
            bring_up(world)
        assert caught.value.exit_code is ExitCode.PARTIAL
        assert str(log) in caught.value.message
        assert caught.value.detail == "m-1 says hello"
        assert "llx logs m-1" in caught.value.remedy
        assert world.alive == ALL
        assert ("instance m-1", "failed") in world.steps()

    def test_of_all(self, world):
        world.states = {"m-0": [FAILED], "m-1": [FAILED]}
        with pytest.raises(StartError) as caught:
            bring_up(world)
        assert caught.value.exit_code is ExitCode.FAILURE
        assert "m-0, m-1 did not start" in caught.value.message

    def test_of_the_head_show_its_log(self, world):
        world.is_head_deaf = True

        def die(seconds):
            world.processes["head"].is_running = False
            world.processes["head"].ending = "exit code 3"
            log = world.state_dir / PROCS / "head" / "log"
            log.write_text("boring\nValueError: what it was\nmore\n")

        ports = world.ports()
        world.sleep = die
        with pytest.raises(StartError, match=r"head ended \(exit code 3\): ValueError: what it"):
            up(world.plan(), world.ports(), world.events.append)
        assert ports is not None

    def test_a_silent_head_ends_at_its_deadline(self, world):
        world.is_head_deaf = True
        with pytest.raises(DeadlineError, match="the head does not answer"):
            bring_up(world)

    def test_start_deadline(self, world):
        world.states["m-0"] = [LOADING]
        with pytest.raises(DeadlineError, match=r"not ready after 30 s: m-0 \(loading\)") as caught:
            bring_up(world)
        assert caught.value.exit_code is ExitCode.TIMEOUT
        assert ("instance m-0", "failed") in world.steps()
        assert world.alive == ALL

    def test_no_first_token(self, world):
        world.first_token_errors = [RemoteError("busy")] * 10_000
        with pytest.raises(StartError, match="no first token of m: busy"):
            bring_up(world)

    def test_are_all_cleared_by_down(self, world):
        world.states["m-1"] = [FAILED]
        with pytest.raises(StartError):
            bring_up(world)
        assert take_down(world).was_running is True
        assert world.alive == []
        assert not (world.state_dir / "cluster.yaml").exists()


MOMENTS = [
    *(("gather", 1), ("install", 1), ("make_tiny_model", 1), ("launch_head", 1)),
    *(("control", n) for n in (1, 2)),
    *(("status", n) for n in (1, 2, 3, 4, 5)),
    *(("sleep", n) for n in (1, 2)),
    ("first_token", 1),
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_leaves_nothing(world, moment):
    world.interrupt = moment
    world.states = {"m-0": [LOADING] * 4 + [READY], "m-1": [LOADING] * 2 + [READY]}
    with pytest.raises(KeyboardInterrupt):
        bring_up(world)
    assert world.alive == []
    left = [each.name for each in world.state_dir.rglob("*") if each.is_file()]
    assert set(left) <= {"log"}
    world.interrupt = None
    assert bring_up(world).was_running is False


class TestDown:
    def test_asks_the_head(self, world):
        bring_up(world)
        result = take_down(world, deadline_s=7)
        assert result.was_running is True
        assert result.report is not None
        assert (result.report.finished, result.report.cut) == (2, 1)
        assert "stop 7" in world.calls
        details = [each.detail for each in world.events if each.step == "streams"]
        assert details[-1] == "2 finished, 1 cut at the deadline"
        left = {each.name for each in world.state_dir.rglob("*") if each.is_file()}
        assert left == {"log"}

    def test_twice(self, world):
        bring_up(world)
        take_down(world)
        assert take_down(world).was_running is False

    def test_of_nothing_makes_nothing(self, world):
        assert take_down(world).was_running is False
        assert not world.state_dir.exists()

    @pytest.mark.parametrize("how", ["deaf", "dead"])
    def test_without_a_head(self, world, how):
        bring_up(world)
        if how == "deaf":
            world.is_head_deaf = True
        else:
            world.processes["head"].is_running = False
        result = take_down(world)
        assert (result.was_running, result.report) == (True, None)
        assert world.alive == []
        assert {"m-0", "m-1", "gateway-0"} <= set(world.stopped)

    def test_while_up_is_at_work(self, world):
        bring_up(world)
        with (
            cluster_lock(world.state_dir, "up"),
            pytest.raises(ConflictError, match="another llx up is at work"),
        ):
            take_down(world)
        assert world.alive == ALL


class TestPurge:
    def make(self, world, environment):
        bring_up(world, world.plan(environment))
        node = local_stop.default_prefix(local_stop.NodePlatform.CPU, environment.xdg_data_home)
        node.mkdir(parents=True)
        (node / "install.lock").touch()
        environment.tiny_model.mkdir(parents=True)
        return node

    def test_removes_what_llx_made(self, world):
        environment = world.environment()
        node = self.make(world, environment)
        result = down_and_purge(world.state_dir, environment, world.ports(), world.events.append)
        assert set(result.removed) == {world.state_dir, node, environment.tiny_model}
        assert not any(each.exists() for each in result.removed)

    def test_keeps_what_somebody_else_names(self, world):
        environment = world.environment()
        node = self.make(world, environment)
        named = world.environment(LLX_NODE_PREFIX=str(node))
        assert purge_list(world.state_dir, named) == [environment.tiny_model]

    def test_keeps_what_another_cluster_uses(self, world):
        environment = world.environment()
        self.make(world, environment)
        other = environment.cluster_dir("other")
        other.mkdir()
        (other / "cluster.yaml").touch()
        assert purge_list(world.state_dir, environment) == []


class TestDownPlan:
    def test_of_a_running_cluster(self, world, monkeypatch):
        up(world.plan(), world.ports(), world.events.append)
        world.calls.clear()
        rows = plan_here(world.state_dir, world.ports(), [], deadline_s=60)
        assert rows == [
            ("cluster", "c, on this machine"),
            ("streams", "none is going on"),
            ("processes", "end gateway-0, head, m-0, m-1"),
            ("keep", f"logs in {world.state_dir / PROCS}"),
        ]
        assert world.calls == ["control", "status"]
        assert world.stopped == []

    def test_of_one_whose_head_is_deaf_with_a_purge(self, world):
        up(world.plan(), world.ports(), world.events.append)
        world.is_head_deaf = True
        rows = dict(plan_here(world.state_dir, world.ports(), [world.state_dir], deadline_s=60))
        assert "the head does not answer (its head is not running)" in rows["streams"]
        assert rows["remove"] == str(world.state_dir)
        assert "keep" not in rows

    def test_of_nothing(self, world):
        rows = plan_here(world.state_dir, world.ports(), [], deadline_s=60)
        assert rows == [("cluster", "c is not running: nothing to stop")]


def test_a_home_here_is_this_users(world, monkeypatch):
    monkeypatch.setenv("HOME", "/home/op")
    plan = world.plan(
        models=[{"name": "m", "model": "~/w"}], runtime={"platform": "cpu", "python": "~/py"}
    )
    assert plan.settings.models[0].model == "/home/op/w"
    assert plan.node.python == plan.settings.runtime.python == Path("/home/op/py")


def test_the_plan_in_words(world):
    rows = dict(describe(world.plan(), is_installed=False))
    assert rows["model m"].startswith("2 × vllm of /")
    assert "will be installed at" in rows["node environment"]
    assert "will be made at" in rows["tiny model"]


@given(st.text())
def test_a_reason_is_one_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "log"
    path.write_text(text + "\nKeyError: 'x'\nafter", encoding="utf-8", errors="replace")
    found = reason(local.log_end(path))
    assert "\n" not in found
    assert found

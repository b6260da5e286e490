"""The end of units and clusters whose agents, heads or disks fail on the way."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llx.agent.processes import attach
from llx.api import ClusterState, InstanceState, StopReport
from llx.client import Cluster
from llx.cluster.driving.actions import Actions
from llx.cluster.driving.ending import Ending
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.placement_file import StopOrder, load_stop_order
from llx.cluster.state_dir import StateDir
from llx.core.model import Term
from llx.errors import ConflictError
from tests.cluster.hosts_rig import FakeHost, HostsRig, events, is_busy, make_rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def streaming(rig: HostsRig, finish_s: float) -> list[dict[str, object]]:
    return [rig.model("m", 2, serve_args={"in_flight": 3, "finish_s": finish_s})]


def exit_code(host: FakeHost, name: str) -> int | None:
    process = attach(host.state.procs / name)
    assert process is not None
    return process.status().exit_code


def finish(rig: HostsRig, *names: str) -> None:
    """Have the requests of these gateways end, if they are told to stop."""
    for host in rig.hosts.values():
        for name in names:
            if (host.state.procs / name).exists():
                (host.state.procs / name / "finish").touch()


class Asked:
    """Something that takes a while, asked for in a thread."""

    def __init__(self, ask: Any) -> None:
        self._found: list[StopReport] = []
        self._thread = threading.Thread(target=lambda: self._found.append(ask()))
        self._thread.start()

    def report(self) -> StopReport:
        self._thread.join(60)
        (found,) = self._found
        return found


def is_draining(client: Cluster) -> bool:
    return client.status().gateways[1].state is InstanceState.DRAINING


@pytest.mark.slow
def test_a_gateway_drains_to_the_end_though_its_agent_dies(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings(models=streaming(rig, 600))) as client, rig.client() as other:
        rig.reaches(client, ClusterState.READY)
        asked = Asked(lambda: client.drain_host("h2", deadline_s=40))
        rig.eventually(lambda: is_draining(other), "it drains")
        rig.hosts["h2"].line = "cut"
        time.sleep(2)
        assert "gateway-1" in rig.hosts["h2"].alive()
        rig.hosts["h2"].line = "up"
        finish(rig, "gateway-1")
        report = asked.report()
    assert (report.finished, report.cut, report.not_stopped) == (3, 0, [])
    assert events(rig, "process.removed") == []


@pytest.mark.slow
def test_what_is_cut_while_the_agent_is_away_is_counted(rig, monkeypatch) -> None:
    monkeypatch.setattr("llx.cluster.fleet.host_unit._AWAY_AFTER_S", 60.0)  # not lost meanwhile
    rig.add("h1", "h2")
    with rig.up(rig.settings(models=streaming(rig, 600))) as client, rig.client() as other:
        rig.reaches(client, ClusterState.READY)
        asked = Asked(lambda: client.drain_host("h2", deadline_s=5))
        rig.eventually(lambda: is_draining(other), "it drains")
        rig.hosts["h2"].line = "cut"
        rig.eventually(lambda: "gateway-1" not in rig.hosts["h2"].alive(), "it is cut")
        rig.hosts["h2"].line = "up"
        report = asked.report()
    assert (report.finished, report.cut, report.not_stopped) == (0, 3, [])


@pytest.mark.slow
def test_instances_outlive_the_streams_of_a_cluster_that_stops(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings(models=streaming(rig, 600))) as client, rig.client() as other:
        rig.reaches(client, ClusterState.READY)
        asked = Asked(lambda: client.stop(deadline_s=40))
        rig.reaches(other, ClusterState.STOPPING)
        time.sleep(0.5)
        rig.hosts["h2"].line = "cut"
        time.sleep(2)
        rig.hosts["h2"].line = "up"
        assert rig.hosts["h1"].alive() == {"gateway-0", "m-0"}
        assert rig.hosts["h2"].alive() == {"gateway-1", "m-1"}
        finish(rig, "gateway-0", "gateway-1")
        report = asked.report()
    assert (report.finished, report.cut, report.not_stopped) == (6, 0, [])
    assert rig.end_head() is True
    assert all(not host.alive() for host in rig.hosts.values())


@pytest.mark.slow
def test_a_second_stop_shortens_the_first_though_an_agent_is_away(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings(models=streaming(rig, 600))) as client, rig.client() as other:
        rig.reaches(client, ClusterState.READY)
        asked = Asked(lambda: client.stop(deadline_s=600))
        rig.reaches(other, ClusterState.STOPPING)
        time.sleep(0.5)
        rig.hosts["h2"].line = "cut"
        again = Asked(lambda: other.stop(deadline_s=1))
        time.sleep(3)
        rig.hosts["h2"].line = "up"
        assert asked.report() == again.report()
        assert asked.report().cut == 6


@pytest.mark.slow
def test_an_instance_that_drains_is_left_to_the_stop_of_the_cluster(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings(models=streaming(rig, 3))) as client, rig.client() as other:
        rig.reaches(client, ClusterState.READY)
        (rig.hosts["h2"].state.procs / "m-1" / "busy").touch()
        rig.eventually(lambda: is_busy(client, "m-1"), "it is busy")
        draining = Asked(lambda: other.drain_host("h2", deadline_s=60))
        rig.eventually(lambda: client.instance("m-1").state is InstanceState.DRAINING, "it drains")
        asked = Asked(lambda: client.stop(deadline_s=40))
        is_over = False
        while not is_over:
            alive = rig.alive()
            is_over = "gateway-0" not in rig.alive()
            assert is_over or {"m-0", "m-1"} <= alive, "its streams go on"
            time.sleep(0.05)
        assert draining.report().not_stopped == ["m-1"]
        assert asked.report().not_stopped == []
    assert all(not host.alive() for host in rig.hosts.values())


@pytest.mark.slow
def test_the_next_head_goes_on_stopping(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings(models=streaming(rig, 600))) as client, rig.client() as other:
        rig.reaches(client, ClusterState.READY)
        threading.Thread(target=lambda: broken_off(client), daemon=True).start()
        rig.reaches(other, ClusterState.STOPPING)
        assert load_stop_order(rig.state.stopping).user == "ann"
    assert rig.end_head() is False
    assert rig.hosts["h2"].alive() == {"gateway-1", "m-1"}
    with rig.up() as client:
        assert client.status().state is ClusterState.STOPPING
        with pytest.raises(ConflictError, match="is being stopped"):
            client.restart_instance("m-0")
        finish(rig, "gateway-0", "gateway-1")
        rig.eventually(
            lambda: all(not host.alive() for host in rig.hosts.values()), "all is stopped"
        )
    assert rig.end_head() is True
    assert exit_code(rig.hosts["h2"], "gateway-1") == 0, "its streams had time to finish"
    assert events(rig, "cluster.stopped")[0]["user"] == "ann"


def broken_off(client: Cluster) -> None:
    with pytest.raises(Exception, match=r"does not answer|disconnected"):
        client.stop(deadline_s=60, user="ann")


class TestFailures:
    """An `Ending` of a cluster of nothing."""

    @pytest.fixture
    def state(self, tmp_path: Path) -> StateDir:
        state = StateDir(tmp_path / "state")
        state.create()
        return state

    def ending(self, state: StateDir, save: Any) -> Ending:
        nothing: Any = None
        fleet = Fleet(nothing, "cpu", Term(1), {}, {}, {}, nothing, nothing, "", state.procs)
        audit = AuditTrail(state.events)
        return Ending(fleet, Actions(fleet, audit, nothing), audit, state, save)

    async def test_a_stop_that_fails_is_none_and_can_be_repeated(self, state: StateDir) -> None:
        problems: list[Exception] = [RuntimeError("a bug")]

        async def save() -> None:
            if problems:
                raise problems.pop()

        ending = self.ending(state, save)
        with pytest.raises(RuntimeError):
            await ending.ask(5, "ann")
        assert not ending.done.is_set()
        await ending.ask(5, "ann")
        assert ending.done.is_set()

    async def test_a_full_disk_keeps_nobody_from_stopping(self, state: StateDir) -> None:
        async def save() -> None:
            raise OSError(28, "No space left on device")

        ending = self.ending(state, save)
        state.stopping.mkdir()  # nor can the order be written
        assert (await ending.ask(5, "ann")).not_stopped == []
        assert ending.done.is_set()

    async def test_an_order_is_carried_out_by_whoever_finds_it(self, state: StateDir) -> None:
        async def save() -> None: ...

        idle = self.ending(state, save)
        idle.go_on()
        assert not idle.done.is_set()
        assert load_stop_order(state.stopping) is None
        await idle.ask(5, "ann")
        order = load_stop_order(state.stopping)
        assert order is not None
        assert order == StopOrder(order.deadline, "ann")
        assert time.time() < order.deadline <= time.time() + 5
        other = self.ending(state, save)
        other.go_on()
        await other.done.wait()

"""The driver over several hosts: placement, hosts that go and come back, convergence, drains."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llx.agent.devices import Need
from llx.agent.processes import list_processes
from llx.api import ClusterState, HostState, InstanceState
from llx.errors import ConfigError, ConflictError, NotFoundError, UnreachableError
from llx.settings import load_cluster
from llx.specs import GatewaySpec, InstanceSpec, load_spec
from tests.cluster.hosts_rig import NETWORK, HostsRig, events, host_state, is_busy, make_rig, put

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def test_a_cluster_spreads_over_its_hosts_and_goes(rig) -> None:
    rig.add("h1", "h2", "h3")
    with rig.up(rig.settings(models=[rig.model("m", 4, model="@models/big")])) as client:
        status = rig.reaches(client, ClusterState.READY)
        assert rig.where(client) == {
            "gateway-0": "h1", "gateway-1": "h2", "m-0": "h1", "m-1": "h2", "m-2": "h3", "m-3": "h1"
        }  # fmt: skip
        assert [(each.name, each.state, each.address) for each in status.hosts] == [
            ("h1", HostState.READY, f"{NETWORK}.11"),
            ("h2", HostState.READY, f"{NETWORK}.12"),
            ("h3", HostState.READY, f"{NETWORK}.13"),
        ]
        assert status.hosts[0].instances == ["m-0", "m-3"]
        assert status.hosts[0].gateways == ["gateway-0"]
        assert status.hosts[0].memory_free_bytes > 0
        assert {each.name for each in status.instances if each.devices} == {
            "m-0", "m-1", "m-2", "m-3"
        }  # fmt: skip
        assert all(each.connected == ["m-0", "m-1", "m-2", "m-3"] for each in status.gateways)

        spec = load_spec(rig.hosts["h2"].state.procs / "m-1" / "spec.json", InstanceSpec)
        assert (spec.bind_host, spec.model) == (f"{NETWORK}.12", "/models/big")
        port = int(status.instances[1].addresses[0].rpartition(":")[2])
        assert status.instances[1].addresses[0].startswith(f"tcp://{NETWORK}.12:")
        assert 21100 <= port <= 21999
        spec = load_spec(rig.hosts["h2"].state.procs / "gateway-1" / "spec.json", GatewaySpec)
        assert (spec.host, spec.url_host) == ("0.0.0.0", f"{NETWORK}.12")
        assert spec.pools[0].model == "/models/big"
        assert "older settings" not in str(status)

        assert client.logs("m-2").text == "fake m-2: ready\n"
        client.note("model add", "m on h1", user="ann@laptop")
        (event,) = events(rig, "operator.note")
        assert (event["verb"], event["text"]) == ("model add", "m on h1")
        assert event["user"] == "ann@laptop"
        with pytest.raises(NotFoundError):
            client.logs("nobody")
        report = client.stop(deadline_s=5)
        assert (report.finished, report.cut, report.not_stopped) == (0, 0, [])
    assert rig.end_head() is True
    assert all(not host.alive() for host in rig.hosts.values())


def test_a_head_that_comes_back_finds_everything_where_it_is(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        where = rig.where(client)
        before = rig.hosts["h2"].pid("m-1")
        client.cordon_host("h2", is_on=True)
    assert rig.end_head() is False
    rig.state.placements.unlink()  # it is found by what runs
    with rig.up() as client:
        rig.reaches(client, ClusterState.READY)
        assert rig.where(client) == where
        assert rig.hosts["h2"].pid("m-1") == before
        assert [each.is_cordoned for each in client.status().hosts] == [False, True]
        assert all(each.restarts == 0 for each in client.status().instances)
        told = "members term=2 m-0,m-1\ncordoned: m-1"
        rig.eventually(lambda: told in rig.hosts["h1"].log("gateway-0"), "gateways know it")


def test_what_is_new_waits_for_a_host_that_is_silent_for_a_moment(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        rig.hosts["h2"].line = "cut"
        rig.eventually(lambda: host_state(client, "h2") is HostState.AGENT_AWAY, "it is away")
        put(client, rig.settings(models=[rig.model("m", 4)]))
        rig.hosts["h2"].line = "up"
        rig.reaches(client, ClusterState.READY)
        assert sorted(rig.where(client)[f"m-{n}"] for n in range(4)) == ["h1", "h1", "h2", "h2"]


@pytest.mark.parametrize("line", ["cut", "hangs"])
def test_an_agent_that_is_away_changes_nothing_for_what_runs(rig, line: str) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        pid = rig.hosts["h2"].pid("m-1")
        rig.hosts["h2"].line = line
        rig.eventually(lambda: host_state(client, "h2") is HostState.AGENT_AWAY, "it is away")
        status = client.status()
        assert status.state is ClusterState.DEGRADED
        assert status.instances[1].state is InstanceState.READY
        assert "agent of h2 does not answer" in status.instances[1].detail
        assert [each.state for each in status.gateways] == [InstanceState.READY] * 2
        with pytest.raises(UnreachableError, match="agent of h2"):
            client.restart_instance("m-1")

        # The other host is looked after as ever.
        os.kill(rig.hosts["h1"].pid("m-0"), signal.SIGKILL)
        rig.eventually(
            lambda: (
                client.instance("m-0").restarts == 1
                and client.instance("m-0").state is InstanceState.READY
            ),
            "m-0 is started again",
        )
        assert "m-1" in client.status().gateways[0].connected

        rig.hosts["h2"].new_agent()
        rig.hosts["h2"].line = "up"
        rig.reaches(client, ClusterState.READY)
        assert rig.hosts["h2"].pid("m-1") == pid
        assert client.instance("m-1").restarts == 0
    assert "h2" in {each["name"] for each in events(rig, "host.agent_away")}


@pytest.mark.parametrize("victim", ["m-1", "gateway-1"])
def test_who_does_not_answer_is_not_ready_whatever_its_agent_says(rig, victim: str) -> None:
    rig.add("h1", "h2")

    def detail() -> str:
        status = client.status()
        (found,) = [u for u in [*status.instances, *status.gateways] if u.name == victim]
        assert found.state is InstanceState.READY, "to end it is not the driver's"
        return found.detail

    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        os.kill(rig.hosts["h2"].pid(victim), signal.SIGSTOP)
        rig.eventually(lambda: detail().startswith("does not answer since "), detail)
        status = client.status()
        assert status.state is ClusterState.DEGRADED
        assert status.models[0].instances_ready == (1 if victim == "m-1" else 2)
        assert status.gateways[0].detail == "", "it waits for nobody"
        os.kill(rig.hosts["h2"].pid(victim), signal.SIGCONT)
        rig.reaches(client, ClusterState.READY)
        assert detail() == ""


def test_a_host_without_power_is_lost_and_taken_back(rig) -> None:
    rig.add("h1", "h2", "h3")
    with rig.up(rig.settings(models=[rig.model("m", 3)])) as client:
        rig.reaches(client, ClusterState.READY)
        rig.hosts["h3"].off()
        rig.eventually(lambda: host_state(client, "h3") is HostState.LOST, "it is lost")
        rig.eventually(lambda: client.instance("m-2").state is InstanceState.LOST, "m-2 is lost")
        status = client.status()
        assert status.state is ClusterState.DEGRADED
        assert status.instances[2].detail == "h3 is lost"
        assert status.instances[2].host == "h3"
        assert status.hosts[2].last_heard_s > 3
        assert "nothing heard for" in status.hosts[2].detail
        assert rig.where(client)["m-2"] == "h3", "it is not started elsewhere"
        assert "m-2" in status.gateways[0].connected, "gateways keep its address"

        rig.hosts["h3"].on()
        status = rig.reaches(client, ClusterState.READY)
        assert rig.hosts["h3"].alive() == {"m-2"}
        ending = "killed together with its shim, while its host was away"
        assert status.instances[2].last_failure == ending


def test_a_new_head_keeps_what_is_on_a_host_that_is_away(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        pid = rig.hosts["h2"].pid("m-1")
    rig.end_head()
    rig.hosts["h2"].line = "hangs"
    with rig.up() as client:
        rig.eventually(
            lambda: client.instance("m-1").state is InstanceState.READY, "it is heard of itself"
        )
        rig.eventually(lambda: host_state(client, "h2") is HostState.AGENT_AWAY, "h2 is away")
        rig.eventually(
            lambda: "members term=2" in rig.hosts["h1"].log("gateway-0"), "a list is sent"
        )
        lists = [line for line in rig.hosts["h1"].log("gateway-0").splitlines() if "term=2" in line]
        assert lists == ["members term=2 m-0,m-1"], "nothing is taken from the gateways"
        rig.hosts["h2"].line = "up"
        rig.reaches(client, ClusterState.READY)
        assert rig.hosts["h2"].pid("m-1") == pid
        assert rig.hosts["h1"].alive() == {"gateway-0", "m-0"}


def test_what_runs_twice_is_ended_where_it_does_not_belong(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        other = rig.hosts["h1"].agent
        spec = load_spec(rig.hosts["h2"].state.procs / "m-1" / "wanted.json", InstanceSpec)
        other.start_instance(spec, [Need("m-1", 0)])
        rig.eventually(
            lambda: rig.hosts["h1"].alive() == {"gateway-0", "m-0"}, "the second m-1 is ended"
        )
        assert "m-1" in rig.hosts["h2"].alive()
    (event,) = events(rig, "process.removed")
    assert (event["name"], event["host"]) == ("m-1", "h1")


def test_hosts_and_instances_are_added_without_touching_what_fits(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings("h1", gateway={"host": "127.0.0.1", "count": 1})) as client:
        rig.reaches(client, ClusterState.READY)
        before = {name: rig.hosts["h1"].pid(name) for name in ("gateway-0", "m-0", "m-1")}
        more = rig.settings(gateway={"host": "127.0.0.1"}, models=[rig.model("m", 4)])
        changes = put(client, more)
        assert changes == [
            "host h2 is added",
            "model m: 2 → 4 instances",
            "gateway.count changes",
            "gateways: 1 → 2",
        ]
        rig.eventually(lambda: len(client.status().instances) == 4, "four instances")
        rig.reaches(client, ClusterState.READY)
        assert rig.where(client) == {
            "gateway-0": "h1", "gateway-1": "h2", "m-0": "h1", "m-1": "h1", "m-2": "h2", "m-3": "h2"
        }  # fmt: skip
        assert {name: rig.hosts["h1"].pid(name) for name in before} == before
        assert put(client, more) == []
        assert load_cluster(rig.state.settings) == more
    (event,) = events(rig, "settings.changed")
    assert event["user"] == "ann"
    assert "host h2 is added" in event["changes"]


def test_an_instance_that_is_no_longer_asked_for_finishes_first(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        busy = rig.hosts["h2"].state.procs / "m-1" / "busy"
        busy.touch()
        rig.eventually(lambda: is_busy(client, "m-1"), "it is busy")
        fewer = rig.settings(models=[rig.model("m", 1)])
        assert put(client, fewer) == ["model m: 2 → 1 instances"]
        rig.eventually(
            lambda: "cordoned: m-1" in rig.hosts["h1"].log("gateway-0"), "it gets nothing new"
        )
        time.sleep(1)
        assert client.instance("m-1").state is InstanceState.DRAINING
        assert client.instance("m-1").detail == "takes nothing new; 3 requests left"
        assert rig.hosts["h2"].alive() == {"gateway-1", "m-1"}
        pid = rig.hosts["h2"].pid("m-1")
        assert put(client, rig.settings()) == ["model m: 1 → 2 instances"]
        rig.eventually(lambda: client.instance("m-1").state is InstanceState.READY, "it is kept")
        assert rig.hosts["h2"].pid("m-1") == pid, "and was not started again"
        assert put(client, fewer) == ["model m: 2 → 1 instances"]
        rig.eventually(lambda: client.instance("m-1").state is InstanceState.DRAINING, "it drains")
        busy.unlink()
        rig.eventually(lambda: rig.hosts["h2"].alive() == {"gateway-1"}, "it ends when idle")
        rig.eventually(lambda: len(client.status().instances) == 1, "it is gone")
        assert rig.hosts["h2"].agent.ledger.held() == {}
        assert client.status().state is ClusterState.READY


def test_a_host_that_is_removed_is_emptied_and_its_instances_move(rig) -> None:
    rig.add("h1", "h2", "h3")
    with rig.up(rig.settings(models=[rig.model("m", 3)])) as client:
        rig.reaches(client, ClusterState.READY)
        fewer = rig.settings("h1", "h3", models=[rig.model("m", 3)])
        assert put(client, fewer) == ["host h2 is removed"]
        rig.eventually(lambda: len(client.status().hosts) == 2, "h2 is gone")
        rig.reaches(client, ClusterState.READY)
        assert rig.where(client) == {
            "gateway-0": "h1", "gateway-1": "h3", "m-0": "h1", "m-1": "h1", "m-2": "h3"
        }  # fmt: skip
        assert rig.hosts["h2"].alive() == set()
        assert rig.removed == ["h2"]


def test_a_removed_host_that_is_lost_holds_nothing_up(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        rig.hosts["h2"].off()
        rig.eventually(lambda: host_state(client, "h2") is HostState.LOST, "it is lost")
        put(client, rig.settings("h1"))
        rig.eventually(lambda: len(client.status().hosts) == 1, "h2 is gone")
        rig.reaches(client, ClusterState.READY)
        assert rig.where(client) == {"gateway-0": "h1", "m-0": "h1", "m-1": "h1"}


def test_a_removal_that_a_head_did_not_finish_is_finished_by_the_next(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        busy = rig.hosts["h2"].state.procs / "m-1" / "busy"
        busy.touch()
        rig.eventually(lambda: is_busy(client, "m-1"), "it is busy")
        put(client, rig.settings("h1"))
        rig.eventually(lambda: client.instance("m-1").state is InstanceState.DRAINING, "it drains")
    rig.end_head()
    assert "m-1" in rig.hosts["h2"].alive()
    with rig.up() as client:
        rig.eventually(lambda: client.instance("m-1").state is InstanceState.DRAINING, "it drains")
        assert "m-1" in rig.hosts["h2"].alive()
        busy.unlink()
        rig.eventually(lambda: len(client.status().hosts) == 1, "h2 is gone")
        rig.reaches(client, ClusterState.READY)
        assert rig.hosts["h2"].alive() == set()


def test_a_model_is_added_while_gateways_start_again_one_at_a_time(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        instances = [rig.hosts["h1"].pid("m-0"), rig.hosts["h2"].pid("m-1")]
        both = rig.settings(models=[rig.model("m", 2), rig.model("n", 1)])
        assert put(client, both) == ["model n is added", "gateways start again: models.n"]
        least = 2
        end = time.monotonic() + 60
        while [each.restarts for each in client.status().gateways] != [1, 1]:
            states = [each.state for each in client.status().gateways]
            least = min(least, states.count(InstanceState.READY))
            assert time.monotonic() < end
        rig.reaches(client, ClusterState.READY)
        assert least == 1
        assert client.status().gateways[0].connected == ["m-0", "m-1", "n-0"]
        assert [rig.hosts["h1"].pid("m-0"), rig.hosts["h2"].pid("m-1")] == instances
        put(client, rig.settings())
        rig.eventually(lambda: len(client.status().instances) == 2, "n-0 is gone")
        rig.eventually(
            lambda: [each.restarts for each in client.status().gateways] == [2, 2], "both again"
        )
        rig.reaches(client, ClusterState.READY)


FIXED: list[tuple[dict[str, object], str]] = [
    ({"models": [{"name": "m", "model": "/x", "engine": "sim"}]}, "models.m.model"),
    ({"control": {"port": 1}}, "control.port"),
    ({"network": {"first_port": 30000}}, "network.first_port"),
    ({"gateway": {"host": "0.0.0.0", "port": 1}}, "gateway.port"),
    ({"hosts": [{"address": "h1", "cluster_address": "10.0.0.1"}]}, "hosts.h1.cluster_addr"),
    ({"hosts": []}, "hosts"),
    ({"cluster": "other"}, "cluster"),
    ({"gateway": {"host": "0.0.0.0", "max_requests": 5}}, "streams would be cut"),
]


def test_what_a_running_cluster_cannot_change_is_named_and_nothing_is_changed(rig) -> None:
    rig.add("h1")
    settings = rig.settings()
    with rig.up(settings) as client:
        rig.reaches(client, ClusterState.READY)
        for changes, words in FIXED:
            with pytest.raises(ConflictError, match=words) as caught:
                put(client, rig.settings(**changes))
            remedy = "llx rollout m" if words == "models.m.model" else "llx up"
            assert remedy in caught.value.remedy
        assert put(client, settings) == []
        assert load_cluster(rig.state.settings) == settings
        with pytest.raises(ConfigError):
            client.put_settings("models: 7")


def test_the_head_cannot_be_another(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        for settings in (rig.settings("h2"), rig.settings("h2", "h1"), rig.settings(head="h2")):
            with pytest.raises(ConflictError, match="head"):
                put(client, settings)


def test_a_drained_host_is_empty_and_used_again_when_uncordoned(rig) -> None:
    rig.add("h1", "h2", "h3")
    with rig.up(rig.settings(models=[rig.model("m", 3)])) as client:
        rig.reaches(client, ClusterState.READY)
        report = client.drain_host("h2", deadline_s=20, user="ann")
        assert (report.finished, report.cut, report.not_stopped) == (0, 0, [])
        assert rig.hosts["h2"].alive() == set()
        rig.reaches(client, ClusterState.READY)
        where = rig.where(client)
        assert "h2" not in where.values()
        assert where["gateway-1"] == "h3"
        client.drain_host("h3", deadline_s=20)
        rig.eventually(
            lambda: client.status().gateways[1].state is InstanceState.FAILED, "there is no room"
        )
        status = client.status()
        assert status.state is ClusterState.DEGRADED
        assert status.gateways[1].detail == (
            "no host without a gateway is left (h2 is cordoned, h3 is cordoned)"
        )
        with pytest.raises(ConflictError, match="only host in use"):
            client.drain_host("h1")
        client.cordon_host("h2", is_on=False)
        rig.reaches(client, ClusterState.READY)
        assert rig.where(client)["gateway-1"] == "h2"
    assert [each["user"] for each in events(rig, "host.drained")] == ["ann", ""]


def test_a_drain_cuts_at_its_deadline_and_says_so(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        (rig.hosts["h2"].state.procs / "m-1" / "busy").touch()
        rig.eventually(lambda: is_busy(client, "m-1"), "it is busy")
        report = client.drain_host("h2", deadline_s=1)
        assert (report.finished, report.cut) == (0, 3)


def test_a_cordoned_host_gets_nothing_new_and_keeps_what_it_has(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        assert client.cordon_host("h2", is_on=True, user="ann").is_cordoned
        rig.eventually(
            lambda: rig.hosts["h1"].log("gateway-0").endswith("cordoned: m-1\n"), "no new requests"
        )
        put(client, rig.settings(models=[rig.model("m", 4)]))
        rig.eventually(lambda: len(client.status().instances) == 4, "four instances")
        rig.reaches(client, ClusterState.READY)
        where = rig.where(client)
        assert (where["m-1"], where["m-2"], where["m-3"]) == ("h2", "h1", "h1")
        assert client.cordon_host("h2", is_on=False).is_cordoned is False
        rig.eventually(
            lambda: rig.hosts["h1"].log("gateway-0").endswith("cordoned: \n"), "it is used again"
        )
        with pytest.raises(NotFoundError, match='no host "h9"'):
            client.cordon_host("h9", is_on=True)


def test_gpus_are_given_once_and_who_finds_none_says_so_until_there_is_one(rig) -> None:
    rig.add("h1", "h2", num_gpus=2)
    models = [rig.model("m", 3, engine="vllm", tensor_parallel=2)]
    with rig.up(rig.settings("h1", models=models)) as client:
        rig.eventually(
            lambda: client.instance("m-1").state is InstanceState.FAILED, "there is no room"
        )
        assert client.instance("m-1").detail == "needs 2 free GPU(s) on one host; free: h1: 0"
        put(client, rig.settings(models=models))
        rig.eventually(lambda: client.instance("m-1").state is InstanceState.READY, "there is")
        assert client.instance("m-2").state is InstanceState.FAILED
        assert client.instance("m-1").devices == ["h2-0", "h2-1"]
        gpus = client.status().hosts[1].gpus
        assert [(each.label, each.holder) for each in gpus] == [("0: X", "m-1"), ("1: X", "m-1")]


def test_an_instance_leaves_a_host_that_has_no_devices_for_it_after_all(rig) -> None:
    rig.add("h1", "h2", "h3", num_gpus=2)
    rig.hosts["h2"].lend_gpus()
    models = [rig.model("m", 2, engine="vllm", tensor_parallel=2)]
    with rig.up(rig.settings(models=models)) as client:
        status = rig.reaches(client, ClusterState.READY)
        assert [each.host for each in status.instances] == ["h1", "h3"]
        assert status.instances[1].last_failure == (
            "h2 refused it: m-1 needs 2 GPU(s), 0 of 2 are free; busy: 0: X, 1: X"
        )
    (event,) = events(rig, "instance.refused")
    assert (event["name"], event["host"]) == ("m-1", "h2")


def test_a_host_that_refuses_again_and_again_is_asked_less_and_less(rig) -> None:
    rig.add("h1")
    rig.hosts["h1"].refuses = True
    models = [rig.model("m", 1, engine="vllm")]
    with rig.up(rig.settings(models=models)) as client:
        expected = "no other host takes it; h1 refused it: m-0 needs GPUs, none is free"
        rig.eventually(
            lambda: client.instance("m-0").detail == expected, lambda: str(client.status())
        )
        time.sleep(4)
        assert 2 <= len(events(rig, "instance.refused")) <= 4
        rig.hosts["h1"].refuses = False
        rig.reaches(client, ClusterState.READY)


def test_a_stop_names_what_it_could_not_reach(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        rig.hosts["h2"].off()
        rig.eventually(lambda: host_state(client, "h2") is HostState.LOST, "it is lost")
        report = client.stop(deadline_s=5)
        assert sorted(report.not_stopped) == ["gateway-1", "m-1"]
    assert rig.end_head() is True
    assert rig.hosts["h1"].alive() == set()
    assert list_processes(rig.hosts["h1"].state.procs)


def test_a_gateway_that_was_replaced_is_not_heard_when_its_host_is_back(rig) -> None:
    rig.add("h1", "h2", "h3")
    with rig.up(rig.settings(models=[rig.model("m", 1)])) as client:
        rig.reaches(client, ClusterState.READY)
        old = rig.hosts["h2"].pid("gateway-1")
        rig.hosts["h2"].line = "cut"
        os.kill(old, signal.SIGSTOP)  # as beyond a partition
        try:
            rig.eventually(lambda: host_state(client, "h2") is HostState.LOST, "it is lost")
            client.drain_host("h2", deadline_s=1)
            rig.eventually(lambda: rig.where(client)["gateway-1"] == "h3", "it is put elsewhere")
            rig.eventually(
                lambda: client.status().gateways[1].state is InstanceState.READY, "ready"
            )
        finally:
            os.kill(old, signal.SIGCONT)
        time.sleep(0.5)  # it says hello again
        heard = {name: rig.hosts[name].log("gateway-1").count("members") for name in ("h2", "h3")}
        client.restart_instance("m-0")
        rig.eventually(
            lambda: rig.hosts["h3"].log("gateway-1").count("members") >= heard["h3"] + 2,
            "h3 hears of it",
        )
        assert rig.hosts["h2"].log("gateway-1").count("members") == heard["h2"], "and h2 does not"
        assert host_state(client, "h2") is HostState.LOST
        assert "gateway-1" in rig.hosts["h2"].alive()
        rig.hosts["h2"].line = "up"
        rig.eventually(lambda: "gateway-1" not in rig.hosts["h2"].alive(), "it is ended")
        assert rig.where(client)["gateway-1"] == "h3"
        assert [each["host"] for each in events(rig, "process.removed")] == ["h2"]

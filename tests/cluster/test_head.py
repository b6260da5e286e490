"""The head as a real process over fakes: start, adopt, fail, restart, stop."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from llx.agent import shim
from llx.agent.processes import attach
from llx.api import ClusterState, ClusterStatus, InstanceState
from llx.client import Cluster
from llx.cluster.launch import stop_everything
from llx.cluster.placement_file import PlacedUnit, load_placements, save_placements
from llx.errors import ConflictError, NotFoundError, UnreachableError
from llx.settings import dump_cluster
from llx.specs import ProcessStatus, load_spec

ALL = {"head", "gateway-0", "m-0", "m-1"}


def model(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "model": "/m", "engine": "sim", **more}


def pids(rig) -> dict[str, int]:
    found = {}
    for name in ("gateway-0", "m-0", "m-1"):
        process = attach(rig.state.procs / name)
        assert process is not None
        found[name] = process.status().child_pid
    return found


def test_a_cluster_comes_up_reports_and_goes(rig) -> None:
    rig.launch()
    with rig.client() as client:
        status = rig.reaches(client, ClusterState.READY)
        assert rig.alive() == ALL
        assert (status.term, status.cluster, status.platform) == (1, "c", "cpu")
        assert [(each.name, each.state) for each in status.instances] == [
            ("m-0", InstanceState.READY),
            ("m-1", InstanceState.READY),
        ]
        first = status.instances[0]
        assert first.model == "m"
        assert first.pid == pids(rig)["m-0"]
        assert len(first.addresses) == 2
        assert first.ready_after_s is not None
        assert 0 < first.ready_after_s < 60
        assert first.devices
        assert first.log == str(rig.state.procs / "m-0" / "log")
        (gateway,) = status.gateways
        assert gateway.connected == ["m-0", "m-1"]
        assert (gateway.refused, gateway.output_tokens) == (7, 70)
        assert status.url == gateway.url == "http://127.0.0.1:1"
        (host,) = status.hosts
        assert (host.name, host.state, host.gateways) == ("localhost", "ready", ["gateway-0"])
        assert host.instances == ["m-0", "m-1"]
        assert host.cpus == len(os.sched_getaffinity(0))
        (model,) = status.models
        assert (model.instances_min, model.instances_ready) == (2, 2)

        def has_load() -> bool:
            return all(each.load is not None for each in client.status().instances)

        rig.eventually(has_load, "load reports arrive")
        load = client.instance("m-1").load
        assert load is not None
        assert (load.blocks_total, load.blocks_used, load.running, load.waiting) == (100, 40, 2, 1)
        assert load.freeness == pytest.approx((100 - 40 - 8) / 3)

        report = client.stop(deadline_s=10, user="ann")
        assert (report.finished, report.cut) == (0, 0)
    rig.eventually(lambda: not rig.alive(), "everything is gone")
    head = attach(rig.state.head)
    assert head is not None
    assert head.status().exit_code == 0
    events = [json.loads(line) for line in rig.state.events.read_text().splitlines()]
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "head.started"
    assert kinds[-2:] == ["cluster.stopping", "cluster.stopped"]
    assert events[-1]["user"] == "ann"
    assert {"instance.started", "instance.ready", "gateway.ready"} <= set(kinds)
    with pytest.raises(UnreachableError, match="not running"):
        Cluster.for_cluster(rig.state.path)


@pytest.mark.slow
def test_a_killed_head_leaves_all_running_and_the_next_adopts_it(rig) -> None:
    head = rig.launch()
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
    before = pids(rig)
    old_token = rig.state.token.read_text()
    os.kill(head.status().child_pid, signal.SIGKILL)
    rig.eventually(lambda: not head.is_alive(), "the head is gone")
    with pytest.raises(UnreachableError):
        Cluster.for_cluster(rig.state.path).status()
    assert rig.alive() == ALL - {"head"}

    rig.launch()
    with rig.client() as client:
        status = rig.reaches(client, ClusterState.READY)
        assert status.term == 2
        assert pids(rig) == before
        assert status.instances[0].devices
        assert status.instances[0].restarts == 0
        rig.eventually(lambda: "members term=2 m-0,m-1" in rig.log("gateway-0"), "it is told")
        members = re.findall(r"members term=2 (.*)", rig.log("gateway-0"))
        assert members[0] == "m-0,m-1", "no instance is taken away while the head looks around"
        assert rig.state.token.read_text() != old_token
        client.stop(deadline_s=10)
    rig.eventually(lambda: not rig.alive(), "everything is gone")


@pytest.mark.slow
def test_a_killed_head_is_started_again_and_adopts_all(rig) -> None:
    head = rig.launch()
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
    before, keeper = pids(rig), head.status().child_pid
    (killed,) = children(keeper)
    os.kill(killed, signal.SIGKILL)
    rig.eventually(lambda: not Path(f"/proc/{killed}").exists(), "it is gone")
    with rig.client() as client:
        assert rig.reaches(client, ClusterState.READY).term == 2
        assert pids(rig) == before
        assert head.status().child_pid == keeper
        client.stop(deadline_s=10)
    rig.eventually(lambda: not rig.alive(), "everything is gone")
    assert head.status().exit_code == 0
    assert "head.killed signal=9 times=1" in rig.log("head")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_head_ends_only_the_head(rig, number: int) -> None:
    head = rig.launch()
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
    os.kill(head.status().child_pid, number)
    rig.eventually(lambda: not head.is_alive(), "the head ends")
    assert head.status().exit_code == 0
    assert rig.alive() == ALL - {"head"}


@pytest.mark.slow
def test_what_died_while_the_head_was_away_is_started_anew(rig) -> None:
    head = rig.launch()
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
    before = pids(rig)
    head.stop(10)
    os.kill(before["m-0"], signal.SIGKILL)
    rig.eventually(lambda: "m-0" not in rig.alive(), "it is gone")
    rig.launch()
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
        after = pids(rig)
        assert after["m-0"] != before["m-0"]
        assert (after["m-1"], after["gateway-0"]) == (before["m-1"], before["gateway-0"])


@pytest.mark.slow
def test_an_instance_that_dies_is_started_again_and_the_reason_is_kept(rig) -> None:
    rig.launch()
    with rig.client() as client:
        devices = rig.reaches(client, ClusterState.READY).instances[0].devices
        without = "members term=1 m-1\n"
        count = rig.log("gateway-0").count(without)
        os.kill(pids(rig)["m-0"], signal.SIGKILL)
        seen: list[ClusterStatus] = []

        def is_back() -> bool:
            seen.append(client.status())
            return seen[-1].state is ClusterState.READY and seen[-1].instances[0].restarts == 1

        rig.eventually(is_back, lambda: str(seen[-1]))
        for status in seen:
            failed, other = status.instances
            assert other.state is InstanceState.READY
            if failed.pid is None:
                assert status.state is not ClusterState.READY
                assert failed.state is InstanceState.STARTING
                assert failed.addresses == []
            if failed.detail.startswith("restarts"):
                assert failed.detail == "restarts in 1 s; last: killed by SIGKILL"
        rig.eventually(
            lambda: rig.log("gateway-0").count(without) > count, "the gateway lets go of it"
        )
        assert seen[-1].instances[0].last_failure == "killed by SIGKILL"
        assert seen[-1].instances[0].detail == ""
        assert seen[-1].instances[0].devices == devices
    events = [json.loads(line) for line in rig.state.events.read_text().splitlines()]
    assert [e["reason"] for e in events if e["kind"] == "instance.failed"] == ["killed by SIGKILL"]


@pytest.mark.slow
def test_a_gateway_that_dies_is_started_again(rig) -> None:
    rig.launch()
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
        os.kill(pids(rig)["gateway-0"], signal.SIGKILL)
        rig.eventually(lambda: client.status().gateways[0].restarts == 1, "it is started again")
        status = rig.reaches(client, ClusterState.READY)
        assert status.gateways[0].last_failure == "killed by SIGKILL"


@pytest.mark.slow
def test_a_restart_of_an_instance_that_waits_begins_at_once(rig) -> None:
    head = rig.launch()
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
    head.stop(10)
    os.kill(pids(rig)["m-0"], signal.SIGKILL)
    rig.eventually(lambda: "m-0" not in rig.alive(), "it is gone")
    known = load_placements(rig.state.placements)
    past = known.instances["m-0"]
    # So often has it failed: it would wait for a minute.
    known.instances["m-0"] = PlacedUnit(past.host, [], past.spec, 7, "killed by SIGKILL", True)
    save_placements(rig.state.placements, known)
    rig.launch()
    with rig.client() as client:
        rig.eventually(lambda: "restarts in" in client.instance("m-0").detail, "it waits")
        begun = client.restart_instance("m-0", user="bob")
        assert begun.state is InstanceState.STOPPING
        rig.reaches(client, ClusterState.READY)
    events = [json.loads(line) for line in rig.state.events.read_text().splitlines()]
    assert [e["user"] for e in events if e["kind"] == "instance.restarting"] == ["bob"]


@pytest.mark.slow
def test_restart_of_a_running_instance_replaces_its_process(rig) -> None:
    slow_to_end = model("m", instances={"min": 2}, engine_args={"end_s": 600})
    rig.launch(rig.settings(models=[slow_to_end]))
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
        before = pids(rig)
        client.restart_instance("m-1", deadline_s=0)
        with pytest.raises(ConflictError, match="m-1 is being stopped or started"):
            client.restart_instance("m-1")
        assert client.status().state is ClusterState.DEGRADED
        (rig.state.procs / "m-1" / "finish").touch()
        rig.eventually(lambda: client.instance("m-1").restarts == 1, "it is restarted")
        rig.reaches(client, ClusterState.READY)
        after = pids(rig)
        assert after["m-1"] != before["m-1"]
        assert after["m-0"] == before["m-0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("crash", ["exit code 3", "RuntimeError: out of fake memory"]),
        ("fail", ["the model is not a model", "the log says why"]),
    ],
)
def test_a_model_that_does_not_start_fails_the_cluster_and_says_why(
    rig, behaviour: str, words: list[str]
) -> None:
    bad = model("bad", engine_args={"fake": behaviour})
    rig.launch(rig.settings(models=[model("good"), bad]))
    with rig.client() as client:
        status = rig.reaches(client, ClusterState.FAILED)
        detail = status.instances[1].detail.splitlines()
        assert detail[0] == words[0]
        rig.eventually(
            lambda: words[1] in client.instance("bad-0").detail + rig.log("bad-0"), "log"
        )
        rig.eventually(
            lambda: client.instance("good-0").state is InstanceState.READY, "good goes on"
        )
        assert client.stop(deadline_s=5).cut == 0


def others_are_ready(client: Cluster) -> bool:
    status = client.status()
    units = [*status.gateways, *status.instances]
    return all(each.state is InstanceState.READY for each in units if each.name != "slow-0")


@pytest.mark.slow
def test_an_instance_that_is_not_ready_in_time_is_failed_and_ended(rig) -> None:
    slow = model("slow", engine_args={"fake": "never"})
    models = [model("good"), slow]
    rig.launch(rig.settings(models=models))
    with rig.client() as client:
        rig.eventually(lambda: client.instance("slow-0").detail == "loading weights", "it loads")
        rig.eventually(lambda: others_are_ready(client), "what else there is has come up")
        hasty = rig.settings(models=models, runtime={"start_timeout_s": 1})
        client.put_settings(dump_cluster(hasty))
        status = rig.reaches(client, ClusterState.FAILED)
        detail = status.instances[1].detail
        assert detail.startswith("not ready after 1 s (last: loading weights)\nfake slow-0: never")
        rig.eventually(lambda: "slow-0" not in rig.alive(), "its process is ended")


@pytest.mark.slow
def test_a_gateway_that_cannot_listen_fails_the_cluster(rig) -> None:
    taken = model("m", serve_args={"fake": "taken"})
    rig.launch(rig.settings(models=[taken]))
    with rig.client() as client:
        status = rig.reaches(client, ClusterState.FAILED)
        assert status.gateways[0].state is InstanceState.FAILED
        assert status.gateways[0].detail.startswith("127.0.0.1:8000: Address already in use")


def busy(**serve_args: object) -> list[dict[str, object]]:
    return [model("m", instances={"min": 2}, serve_args=serve_args)]


@pytest.mark.slow
def test_stop_lets_streams_finish(rig) -> None:
    rig.launch(rig.settings(models=busy(in_flight=3, finish_s=0.4)))
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
        assert client.status().gateways[0].in_flight == 3
        report = client.stop(deadline_s=20)
    assert (report.finished, report.cut) == (3, 0)
    rig.eventually(lambda: not rig.alive(), "everything is gone")


@pytest.mark.slow
def test_stop_cuts_streams_at_the_deadline(rig) -> None:
    rig.launch(rig.settings(models=busy(in_flight=3, finish_s=600)))
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
        report = client.stop(deadline_s=0.3)
    assert (report.finished, report.cut) == (0, 3)
    rig.eventually(lambda: not rig.alive(), "everything is gone")


@pytest.mark.slow
def test_a_second_stop_cuts_the_first_short(rig) -> None:
    rig.launch(rig.settings(models=busy(in_flight=3, finish_s=600)))
    with rig.client() as client, rig.client() as other:
        rig.reaches(client, ClusterState.READY)
        reports = []
        first = threading.Thread(target=lambda: reports.append(client.stop(deadline_s=600)))
        first.start()
        rig.reaches(other, ClusterState.STOPPING)
        with pytest.raises(ConflictError, match="is being stopped"):
            other.restart_instance("m-0")
        second = other.stop(deadline_s=0)
        first.join(60)
    assert reports == [second]
    assert second.cut == 3
    rig.eventually(lambda: not rig.alive(), "everything is gone")


@pytest.mark.slow
def test_a_cluster_that_was_stopped_comes_up_when_it_is_launched_again(rig) -> None:
    for _ in range(2):
        rig.launch()
        with rig.client() as client:
            rig.reaches(client, ClusterState.READY)
            client.stop(deadline_s=5)
        rig.eventually(lambda: not rig.alive(), "everything is gone")


@pytest.mark.slow
def test_an_instance_that_is_no_longer_asked_for_is_ended(rig) -> None:
    idle = model("b", engine_args={"is_idle": True})
    head = rig.launch(rig.settings(models=[model("a"), idle]))
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
    head.stop(10)
    rig.launch(rig.settings(models=[model("a")]))
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
        rig.eventually(
            lambda: [each.name for each in client.status().instances] == ["a-0"], "it leaves"
        )
        rig.eventually(lambda: rig.alive() == {"head", "gateway-0", "a-0"}, "b-0 is ended")


@pytest.mark.slow
def test_an_instance_of_older_settings_serves_on_and_says_so(rig) -> None:
    head = rig.launch()
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
    before = pids(rig)
    head.stop(10)
    newer = model("m", instances={"min": 2}, engine_args={"max_model_len": 99})
    rig.launch(rig.settings(models=[newer]))
    with rig.client() as client:
        status = rig.reaches(client, ClusterState.READY)
        assert pids(rig) == before
        assert "older settings" in status.instances[0].detail
        client.restart_instance("m-0", deadline_s=0)
        rig.eventually(lambda: client.instance("m-0").restarts == 1, "it is restarted")
        rig.reaches(client, ClusterState.READY)
        assert client.instance("m-0").detail == ""


def test_a_second_head_is_refused(rig) -> None:
    rig.launch()
    with pytest.raises(ConflictError, match='cluster "c" is running'):
        rig.launch()


def test_a_taken_control_port_starts_nothing_and_says_so(rig) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        head = rig.launch(rig.settings(control={"port": port}))
        rig.eventually(lambda: not head.is_alive(), "the head gives up")
    assert head.status().exit_code == ConflictError.exit_code
    status = load_spec(rig.state.head / "status.json", ProcessStatus)
    assert f"127.0.0.1:{port}: Address already in use" in status.detail
    assert rig.alive() == set()
    with pytest.raises(UnreachableError):
        Cluster.for_cluster(rig.state.path)


@pytest.mark.slow
def test_logs_are_read_in_parts_and_followed(rig) -> None:
    rig.launch()
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
        part = client.logs("m-0")
        assert part.text.startswith("fake m-0: ready\n")
        assert client.logs("m-0", offset=part.next_offset).text == ""
        again = client.logs("m-0", offset=0, limit=16)
        assert (again.text, again.next_offset) == ("fake m-0: ready\n", 16)
        assert "head.starting" in client.logs("head", tail=1000).text
        assert len(client.logs("head", tail=2).text.splitlines()) == 2
        for name in ("nobody", "../m-0", "..%2fm-0"):
            with pytest.raises(NotFoundError):
                client.logs(name)
        with pytest.raises(NotFoundError, match="no instance"):
            client.instance("gateway-0")


@pytest.mark.slow
def test_nothing_secret_is_readable_by_others_or_on_a_command_line(rig) -> None:
    rig.launch()
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
    token = rig.state.token.read_text()
    keys = json.loads(rig.state.keys.read_text()).values()
    secrets = {token, *(each for each in keys if isinstance(each, str))}
    for path in [rig.state.path, *rig.state.path.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):  # it was being written, and has its name now
            mode = stat.S_IMODE(path.stat().st_mode)
            assert not mode & 0o077, f"{path} {mode:o}"
    assert len(secrets) == 5
    for name in rig.alive():
        process = attach(rig.state.procs / name)
        assert process is not None
        for pid in (process.status().child_pid, process.status().shim_pid):
            text = (
                Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
            )
            assert not any(secret in text for secret in secrets), name
        assert not any(secret in rig.log(name) for secret in secrets), name


@pytest.mark.slow
def test_killing_every_shim_leaves_nothing(rig) -> None:
    rig.launch()
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
    records = [attach(rig.state.procs / name).status() for name in sorted(ALL)]
    for record in records:
        os.kill(record.shim_pid, signal.SIGKILL)
    rig.eventually(
        lambda: all(shim.start_time(record.child_pid) is None for record in records), "all gone"
    )


@pytest.mark.slow
def test_stop_everything_clears_a_cluster_at_any_moment_of_its_start(rig) -> None:
    for delay_s in (0, 0.2, 0.35, 0.5, 0.8):
        rig.launch()
        time.sleep(delay_s)
        stop_everything(rig.state.path, 1)
        assert rig.alive() == set(), delay_s
    time.sleep(0.3)
    assert rig.alive() == set()


@pytest.mark.slow
def test_stop_everything_lets_streams_finish_before_it_ends_what_they_come_from(rig) -> None:
    rig.launch(rig.settings(models=busy(in_flight=3, finish_s=1.5)))
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
    stopping = threading.Thread(target=stop_everything, args=(rig.state.path, 20))
    stopping.start()
    rig.eventually(lambda: "head" not in rig.alive(), "the head is stopped")
    is_over = False
    while not is_over:
        alive = rig.alive()
        is_over = "gateway-0" not in rig.alive()
        assert is_over or alive == ALL - {"head"}, "the gateway still has its instances"
        time.sleep(0.05)
    gateway = attach(rig.state.procs / "gateway-0")
    assert gateway is not None
    assert gateway.status().exit_code == 0, "it ended by itself"
    stopping.join(60)
    assert rig.alive() == set()


@pytest.mark.slow
def test_the_local_cluster_changes_size_while_it_runs(rig) -> None:
    def sized(count: int) -> str:
        idle = model("m", instances={"min": count}, engine_args={"is_idle": True})
        return dump_cluster(rig.settings(models=[idle]))

    rig.launch(
        rig.settings(models=[model("m", instances={"min": 2}, engine_args={"is_idle": True})])
    )
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
        before = pids(rig)
        words = client.put_settings(sized(3), is_dry_run=True)
        assert words[0] == "model m: 2 → 3 instances"
        assert client.put_settings(sized(3), user="ann") == words
        assert client.put_settings(sized(3)) == []
        rig.eventually(lambda: "m-2" in rig.alive(), "it is started")
        rig.reaches(client, ClusterState.READY)
        client.put_settings(sized(2))
        rig.eventually(lambda: rig.alive() == ALL, "it is ended")
        assert pids(rig) == before
        with pytest.raises(ConflictError, match="only host in use"):
            client.drain_host("localhost")
        assert client.settings() == sized(2)

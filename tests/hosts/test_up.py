"""`llx up` where something comes in between; the cluster goes on, or is taken up from there.

One cluster of simulated engines for the module, in the order of its life.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hosts.operator_machine import Operator, eventually
from tests.hosts.rig import USER, HostOptions, Rig, python_binds

pytestmark = [pytest.mark.hosts, pytest.mark.node, pytest.mark.e2e]


@pytest.fixture(scope="module")
def operator(host_rig: Rig, node_python):
    binds = python_binds(Path(node_python))
    host_rig.up(3, HostOptions(binds=binds, size="16g", keeps_disk=True))
    operator = Operator(host_rig, python=node_python)
    yield operator
    host_rig.down()


def hosts(operator: Operator, *names: str) -> list[dict]:
    return [each for each in operator.rig.cluster_hosts() if each["name"] in names]


def wait_for(process, words: str, timeout_s: float = 60) -> str:
    """Read what `llx` says until it says `words`."""
    said, end = "", time.monotonic() + timeout_s
    while words not in said:
        assert time.monotonic() < end, said
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


def test_two_operators_at_once(operator):
    path = operator.config(hosts(operator, "h1", "h2"))
    first = operator.start("up", "-y", path)
    wait_for(first, "host h1")
    other = operator.rig.home / "other"
    environment = {**operator.rig.operator_environment(), "XDG_STATE_HOME": str(other)}

    def by_another(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llx", *words],
            env=environment, capture_output=True, text=True, timeout=60, cwd=operator.rig.home,
        )  # fmt: skip

    second = by_another("up", "-y", path)
    assert second.returncode == 5, second.stderr
    assert "llx lock show --file FILE" in second.stderr
    shown = by_another("lock", "show", "--file", path)
    assert shown.stdout.startswith("llx up of root@"), shown.stderr
    assert "llx up of root@" in second.stderr
    assert f"(pid {first.pid}" in second.stderr
    said = first.communicate(timeout=200)
    assert first.returncode == 0, said
    assert operator("lock", "show").stdout == "nobody holds the lock\n"
    assert operator.is_well()


def test_a_crashed_instance_is_started_again_and_the_reason_kept(operator):
    name = "sim-0"
    before = operator.json("inst", "get", name)
    host = operator.rig[before["host"]]
    assert host.kill(f"procs/{name}/spec.json") >= 1
    eventually(lambda: restarts(operator, name) == 1, 30)
    eventually(operator.is_well, 60)
    after = operator.json("inst", "get", name)
    assert after["pid"] != before["pid"]
    events = host_events(operator)
    assert "instance.failed" in events


def restarts(operator: Operator, name: str) -> int:
    [found] = [each for each in operator.glance()["instances"] if each["name"] == name]
    return found["restarts"]


def host_events(operator: Operator) -> str:
    return operator.rig["h1"].x("cat", f"/home/{USER}/.llx/clusters/c/events.jsonl").stdout


def test_a_partitioned_host_is_lost_and_comes_back_by_itself(operator):
    h1, h2 = operator.rig["h1"], operator.rig["h2"]
    before = operator.json("status")
    h2.drop(h1)
    try:
        eventually(lambda: operator.states().get("h2") == "lost", 60)
        done = operator("generate", "Hello", "--max-tokens", "4")
        assert done.returncode == 0, done.stderr
    finally:
        h2.heal()
    eventually(operator.is_well, 120)
    after = operator.json("status")
    assert [each["pid"] for each in after["instances"]] == [
        each["pid"] for each in before["instances"]
    ], "nothing was started again on the way"


def test_a_rebooted_host_is_taken_back_by_up(operator):
    rig = operator.rig
    rig["h2"].off()
    eventually(lambda: operator.states().get("h2") == "lost", 60)
    assert operator.states()["h1"] == "ready"
    rig["h2"].on()
    rig["h2"].wait_for_sshd()
    done = operator("up", "-y", operator.config(hosts(operator, "h1", "h2")))
    assert done.returncode == 0, done.stderr
    assert operator.is_well()


def test_a_host_that_dies_in_the_middle_leaves_the_others_unharmed(operator):
    rig = operator.rig
    pids = {each["name"]: each["pid"] for each in operator.json("status")["instances"]}
    adding = operator.start("up", "-y", operator.config())
    wait_for(adding, "host h3")
    rig["h3"].off()
    _, said = adding.communicate(timeout=300)
    assert adding.returncode == 6, said
    assert "h3" in said.partition("error:")[2]
    assert "remedy:" in said
    now = operator.json("status")
    assert {each["name"]: each["pid"] for each in now["instances"]} == pids
    rig["h3"].on()
    rig["h3"].wait_for_sshd()
    done = operator("up", "-y", operator.config())
    assert done.returncode == 0, done.stderr
    assert operator.states()["h3"] == "ready"


def test_ctrl_c_leaves_what_up_goes_on_from(operator):
    model = {"name": "sim", "model": "llx/tiny", "engine": "sim", "instances": {"min": 3}}
    path = operator.config(models=[model])
    going = operator.start("up", "-y", path)
    wait_for(going, "host h1")
    going.send_signal(signal.SIGINT)
    going.communicate(timeout=60)
    assert going.returncode == 130
    assert operator("lock", "show").stdout == "nobody holds the lock\n"
    done = operator("up", "-y", path)
    assert done.returncode == 0, done.stderr
    status = operator.json("status")
    assert len(status["instances"]) == 3
    assert {each["host"] for each in status["instances"]} == {"h1", "h2", "h3"}
    assert operator.is_well()


def test_fewer_instances_and_hosts_leave_what_fits_alone(operator):
    status = operator.json("status")
    kept = {each["name"]: each["pid"] for each in status["instances"] if each["name"] != "sim-2"}
    path = operator.config(hosts(operator, "h1", "h2"))
    done = operator("up", "-y", path)
    assert done.returncode == 0, done.stderr
    eventually(lambda: len(operator.glance()["instances"]) == 2, 30)
    now = operator.json("status")
    pids = {each["name"]: each["pid"] for each in now["instances"]}
    stayed = {n: pid for n, pid in kept.items() if host_of(status, n) != "h3"}
    assert {name: pids[name] for name in stayed} == stayed
    assert {each["name"] for each in now["hosts"]} == {"h1", "h2"}
    assert not operator.rig["h3"].processes("llx")


def host_of(status: dict, name: str) -> str:
    return next(each["host"] for each in status["instances"] if each["name"] == name)


def test_a_change_that_needs_a_restart_is_refused_by_name(operator):
    path = operator.config(hosts(operator, "h1", "h2"), network={"first_port": 22000})
    pids = {host.name: sorted(host.processes("llx")) for host in operator.rig.hosts}
    done = operator("up", "-y", path)
    assert done.returncode == 5, done.stderr
    assert "network.first_port" in done.stderr
    assert {host.name: sorted(host.processes("llx")) for host in operator.rig.hosts} == pids
    assert operator.is_well()


def test_a_machine_under_a_new_name_is_refused(operator):
    """It would be brought up as the one, and taken down as the other."""
    first, second = hosts(operator, "h1", "h2")
    done = operator("up", "-y", operator.config([first, {**second, "name": "gpu-2"}]))
    assert done.returncode == 5, done.stderr
    assert "host gpu-2 is the machine that the cluster calls h2" in done.stderr
    assert operator.is_well()


def test_a_host_that_is_gone_for_good_is_forgotten(operator):
    rig, path = operator.rig, operator.config(hosts(operator, "h1", "h2"))
    rig["h2"].off()
    done = operator("host", "rm", "h2", "--forget", "-y")
    assert done.returncode == 0, done.stderr
    assert "h2: out of reach, forgotten" in done.stdout
    assert {each["name"] for each in operator.json("host", "ls")} == {"h1"}
    rig["h2"].on()
    rig["h2"].wait_for_sshd()
    done = operator("up", "-y", path)
    assert done.returncode == 0, done.stderr
    assert set(operator.states()) >= {"h1", "h2"}
    assert operator.is_well()


def test_cordon_and_drain(operator):
    assert operator("host", "cordon", "h2").returncode == 0
    assert {each["name"]: each["is_cordoned"] for each in operator.json("host", "ls")} == {
        "h1": False,
        "h2": True,
    }
    assert operator("host", "uncordon", "h2").returncode == 0
    assert operator("host", "cordon", "h9").returncode == 4


def test_the_head_cannot_leave(operator):
    done = operator("host", "rm", "h1", "-y")
    assert done.returncode == 5
    assert "h1 is the head" in done.stderr


def test_logs_of_a_host(operator):
    done = operator("logs", "h2", "--tail", "50")
    assert done.returncode == 0, done.stderr
    assert "ray.ready" in done.stdout


def test_what_is_done_past_the_head_is_in_its_audit_trail(operator):
    weights = operator.rig.home / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    dry = operator("model", "add", "w", str(weights), "--dry-run")
    assert "1 file to be copied" in dry.stdout, dry.stderr
    assert operator("model", "add", "w", str(weights)).returncode == 0
    events = [json.loads(line) for line in host_events(operator).splitlines()]
    (event,) = [each for each in events if each["kind"] == "operator.note"]
    assert (event["verb"], event["text"].rpartition(": ")[2]) == ("model add", "on h1, h2")
    assert event["user"].startswith("root@")
    assert operator("model", "rm", "w", "-y").returncode == 0


def test_down_while_a_host_is_away_and_again(operator):
    rig = operator.rig
    rig["h2"].off()
    dry = operator("down", "--dry-run", "--purge")
    assert dry.returncode == 0, dry.stderr
    assert "end gateway-0, ray, sim-0" in dry.stdout
    assert "host h2  left as it is, out of reach" in dry.stdout
    assert operator.states()["h1"] == "ready"
    done = operator("down", "-y", "--deadline", "1s")
    assert done.returncode == 6, done.stderr
    assert "h2" in done.stderr
    assert "llx down --forget h2" in done.stderr
    rig["h2"].on()
    rig["h2"].wait_for_sshd()
    done = operator("down", "-y", "--deadline", "1s")
    assert done.returncode == 0, done.stderr
    assert rig["h2"].x("ls", f"/home/{USER}/.llx/models").stdout.split() == ["tiny-1"]
    done = operator("logs", "gateway-0", "--tail", "5")
    assert (done.returncode, "cluster c is down: reading " in done.stderr) == (0, True), done.stderr
    assert done.stdout
    done = operator("down", "-y", "--purge", "--deadline", "1s")
    assert done.returncode == 0, done.stderr
    for name in ("h1", "h2", "h3"):
        assert rig[name].x("ls", "-A", f"/home/{USER}").stdout.split() == [".ssh"]
        assert not [path for path in rig[name].own_paths("/tmp") if path.startswith("/tmp/llx")]
        assert not rig[name].processes("llx")

"""`llx up` where something comes in between; the cluster goes on, or is taken up from there.

One cluster of simulated engines for the module, in the order of its life.
"""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from llx.host_ports import HostPorts
from tests.e2e.rig import ROOT
from tests.hosts.operator_machine import CONTROL_PORT, SIM, Operator, eventually
from tests.hosts.rig import USER, Host, HostOptions, Rig, python_binds
from tests.hosts.sockets import hear, listeners
from tests.hosts.traffic import Traffic

BROKEN_GATEWAY = ROOT / "tests/e2e/broken_gateway/sitecustomize.py"

pytestmark = [pytest.mark.hosts, pytest.mark.node, pytest.mark.e2e]


@pytest.fixture(scope="module")
def operator(host_rig: Rig, node_python):
    binds = python_binds(Path(node_python))
    host_rig.up(3, HostOptions(binds=binds, size="16g", keeps_disk=True))
    operator = Operator(host_rig, python=node_python, gateway={"tls": "generated"})
    yield operator
    host_rig.down()


def hosts(operator: Operator, *names: str) -> list[dict]:
    return [each for each in operator.rig.cluster_hosts() if each["name"] in names]


def wait_for(process, words: str, timeout_s: float = 60) -> str:
    """Read what `llx` says until it says `words`."""
    said, timer = "", threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        while words not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
    finally:
        timer.cancel()
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
    said = first.communicate(timeout=500)
    assert first.returncode == 0, said
    assert operator("lock", "show").stdout == "nobody holds the lock\n"
    assert operator.is_well()


def test_a_crashed_instance_is_started_again_and_the_reason_kept(operator):
    name = "sim-0"
    before = operator.json("inst", "get", name)
    host = operator.rig[before["host"]]
    assert host.kill(f"procs/{name}/spec.json") >= 1
    eventually(lambda: restarts(operator, name) == 1, 30)
    operator.becomes_well()
    after = operator.json("inst", "get", name)
    assert after["pid"] != before["pid"]
    events = host_events(operator)
    assert "instance.failed" in events


def restarts(operator: Operator, name: str) -> int:
    """-1: the head does not say."""
    found = [each for each in operator.glance().get("instances", []) if each["name"] == name]
    return found[0]["restarts"] if found else -1


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
    operator.becomes_well()
    after = operator.json("status")
    assert [each["pid"] for each in after["instances"]] == [
        each["pid"] for each in before["instances"]
    ], "nothing was started again on the way"


@dataclass(frozen=True)
class RayIdentity:
    """By what a process passes for one of the cluster's Ray, in contents of files by name."""

    files: dict[str, str]

    @classmethod
    def of(cls, host: Host) -> "RayIdentity":
        """A host's."""
        names = ("ray.token", "tls/ca.pem", "tls/host.pem", "tls/host.key")
        state = f"/home/{USER}/.llx/clusters/c"
        return cls({n: host.x("cat", f"{state}/{n}", check=True).stdout for n in names})

    def with_token_of(self, other: "RayIdentity") -> "RayIdentity":
        return RayIdentity({**self.files, "ray.token": other.files["ray.token"]})

    def is_let_in(self, rig: Rig, stranger: str) -> set[bool]:
        """At each port where Ray listens on h1 and h2: whether it is answered as one of its own."""
        self._lay(rig[stranger])
        answers = set()
        for host in (rig["h1"], rig["h2"]):
            ports = {each for each in listeners(host) if each.process in RAYS and not each.is_local}
            ports = {each for each in ports if each.port != HostPorts(20000).scheduler}
            heard = hear(ports, host, rig[stranger], "/run/ray/tls")
            encrypted = {e: word for e, word in heard.items() if "HTTP" not in word.word}
            assert len(encrypted) >= 3, heard
            answers |= {said.word == "TLS" for said in encrypted.values()}
            assert {said.word for said in encrypted.values()} <= {"TLS", "nothing"}
            environments = f"http://{host.address}:{HostPorts(20000).runtime_env_agent}/"
            token = f"Authorization: Bearer {self.files['ray.token']}"
            asked = ("curl", "-s", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", "-H")
            answers.add(rig[stranger].x(*asked, token, environments).stdout not in {"401", "403"})
        return answers

    def can_join(self, rig: Rig, python: str) -> bool:
        """Whether a driver on h2 can speak to Ray."""
        host = rig["h2"]
        self._lay(host)
        environment = [
            "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=/run/ray/ray.token", "RAY_USE_TLS=1",
            "RAY_TLS_SERVER_CERT=/run/ray/tls/host.pem", "RAY_TLS_SERVER_KEY=/run/ray/tls/host.key",
            "RAY_TLS_CA_CERT=/run/ray/tls/ca.pem",
        ]  # fmt: skip
        argv = ("timeout", "90", python, "-c", JOIN, f"{rig['h1'].address}:20000", host.address)
        return host.x("env", *environment, *argv, user=USER, timeout=120).stdout.startswith(
            "joined"
        )

    def _lay(self, host: Host) -> None:
        for name, content in self.files.items():
            host.write(f"/run/ray/{name}", content, mode=0o644)


RAYS = ("Ray control store", "Ray node", "Ray environments", "scheduler", "node agent")
JOIN = """
import ray, sys
ray.init(address=sys.argv[1], _node_ip_address=sys.argv[2], log_to_driver=False)
print("joined", ray.nodes()[0]["NodeID"])
"""


KNOCK = """
import json, sys, zmq
from zmq.utils.monitor import recv_monitor_message as next_event
old, new, *addresses = json.loads(sys.argv[1])
let_in = []
for address in addresses:
    for server in (old, new):
        socket = zmq.Context.instance().socket(zmq.DEALER)
        monitor = socket.get_monitor_socket()
        socket.curve_publickey = old["dialer_public"].encode()
        socket.curve_secretkey = old["dialer_secret"].encode()
        socket.curve_serverkey = server["listener_public"].encode()
        socket.connect(address)
        while monitor.poll(20000):
            event = next_event(monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                let_in.append(address)
            if event in (
                zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_AUTH,
                zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            ):
                break
        else:
            sys.exit(f"{address} does not answer")
        socket.disable_monitor()
        socket.close(0)
sys.exit(f"let in: {let_in}" if let_in else 0)
"""


def test_rotate_locks_out_what_was_known_and_cuts_no_stream(operator, node_python):
    rig, state = operator.rig, f"/home/{USER}/.llx/clusters/c"

    def files(*names: str) -> list[str]:
        return [rig["h1"].x("cat", f"{state}/{name}", check=True).stdout for name in names]

    path = operator.config(hosts(operator, "h1", "h2"))
    names = ("keys.json", "token", "gateway.pem", "ray.token", "tls/ca.pem", "tls/ca.key")
    former = RayIdentity.of(rig["h2"])
    assert former.is_let_in(rig, "h3") == {True}
    assert former.can_join(rig, node_python)
    term = operator.json("status")["term"]
    before_it = files(*names)
    keys, token = before_it[:2]
    status = operator.json("status")
    before = {e["name"]: e["pid"] for e in [*status["instances"], *status["gateways"]]}
    url = status["url"]
    assert url.startswith("https://")
    trusted = str(operator.state_dir / "gateway-ca.pem")
    with Traffic(url, "sim", [], threads=0, authority=trusted) as first:
        cases = [(prompt, first.ask(prompt, 120)) for prompt in ([1, 2, 3], [4, 5], [6, 7, 8])]
    with Traffic(url, "sim", cases, threads=4, authority=trusted) as traffic:
        eventually(lambda: traffic.finished >= 4 or traffic.failures, 120)
        dry = operator("up", "--rotate", "--dry-run", path)
        assert "started anew on every host" in dry.stdout, dry.stderr
        began = time.monotonic()
        done = operator("up", "-y", "--rotate", path, timeout_s=500)
        print(f"\nup --rotate took {time.monotonic() - began:.1f} s")
        finished = traffic.finished
        eventually(lambda: traffic.finished >= finished + 8 or traffic.failures, 120)
    assert traffic.failures == []
    assert done.returncode == 0, done.stderr
    assert "replaced: the former ones are refused" in done.stderr
    assert {name: pid_of(operator, name) for name in before} == before
    assert operator.json("status")["term"] > term
    now = files(*names)
    assert all(each != former for each, former in zip(now, before_it, strict=True))
    assert rig["h2"].x("cat", f"{state}/keys.json").stdout == now[0]
    asked = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20",
             f"http://127.0.0.1:{CONTROL_PORT}/v1/status", "-H")  # fmt: skip
    said = [rig["h1"].x(*asked, f"Authorization: Bearer {each}").stdout for each in (token, now[1])]
    assert said == ["401", "200"]
    assert rig["h1"].x("ls", f"{state}/ray.next").returncode != 0
    present = RayIdentity.of(rig["h2"])
    assert present.is_let_in(rig, "h3") == {True}, "or the next line would prove nothing"
    assert former.is_let_in(rig, "h3") == {False}
    assert present.can_join(rig, node_python)
    assert not present.with_token_of(former).can_join(rig, node_python)
    addresses = [a for each in operator.json("status")["instances"] for a in each["addresses"]]
    assert len(addresses) == 4
    addresses.append(f"tcp://{rig['h1'].address}:{HostPorts(20000).scheduler}")
    words = json.dumps([json.loads(keys), json.loads(now[0]), *addresses])
    knocked = rig["h3"].x(node_python, "-c", KNOCK, words, timeout=120)
    assert knocked.returncode == 0, knocked.stderr
    for name in ("gateway-0", "sim-0"):
        assert sum(host.kill(f"procs/{name}/spec.json") for host in rig.hosts) >= 1
        eventually(lambda name=name: pid_of(operator, name) not in {None, before[name]}, 300)
    operator.becomes_well()
    eventually(lambda: operator("generate", "Hello", "--max-tokens", "4").returncode == 0, 120)


def test_a_rotation_that_was_interrupted_is_gone_on_with_and_cuts_no_stream(operator):
    rig, state = operator.rig, f"/home/{USER}/.llx/clusters/c"
    path = operator.config(hosts(operator, "h1", "h2"))
    status = operator.json("status")
    before = {e["name"]: e["pid"] for e in [*status["instances"], *status["gateways"]]}
    former = RayIdentity.of(rig["h2"])
    trusted = str(operator.state_dir / "gateway-ca.pem")
    with Traffic(status["url"], "sim", [], threads=0, authority=trusted) as first:
        cases = [([1, 2, 3], first.ask([1, 2, 3], 120))]
    with Traffic(status["url"], "sim", cases, threads=2, authority=trusted) as traffic:
        going = operator.start("up", "-y", "--rotate", path)
        wait_for(going, "Ray ends on all hosts", 300)
        going.send_signal(signal.SIGINT)
        going.communicate(timeout=60)
        assert going.returncode == 130
        said = operator("doctor").stdout
        assert "half replaced by an `up --rotate`" in said
        finished = traffic.finished
        eventually(lambda: traffic.finished >= finished + 2 or traffic.failures, 120)
        done = operator("up", "-y", path)
        assert done.returncode == 0, done.stderr
    assert traffic.failures == []
    assert {name: pid_of(operator, name) for name in before} == before
    assert RayIdentity.of(rig["h2"]).files["ray.token"] != former.files["ray.token"]
    assert rig["h1"].x("ls", f"{state}/ray.next").returncode != 0
    assert "half replaced" not in operator("doctor").stdout
    operator.becomes_well()


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
    path = operator.config(models=[{**SIM, "instances": {"min": 3}}])
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
    eventually(lambda: len(operator.glance().get("instances", [])) == 2)
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
    before = shims(operator)
    done = operator("up", "-y", path)
    assert done.returncode == 5, done.stderr
    assert "network.first_port" in done.stderr
    assert shims(operator) == before
    assert operator.is_well()


def shims(operator: Operator) -> dict[str, list[int]]:
    """Parents of all that stays; what comes and goes, like a keeper's question, has none."""
    return {each.name: sorted(each.processes("llx/agent/shim.py")) for each in operator.rig.hosts}


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
    notes = [each for each in events if each["kind"] == "operator.note"]
    (event,) = [each for each in notes if each["verb"] != "up --rotate"]
    assert (event["verb"], event["text"].rpartition(": ")[2]) == ("model add", "on h1, h2")
    assert event["user"].startswith("root@")
    assert operator("model", "rm", "w", "-y").returncode == 0


@pytest.fixture
def broken_gateway(operator, node_python):
    """The gateway checks no epochs from now on: whatever comes counts, whoever sends it.

    Python reads what is broken at its start, where it learns where llx is.
    """
    [gateway] = operator.json("status")["gateways"]
    host = operator.rig[gateway["host"]]
    [start] = Path(node_python).parent.parent.glob("lib/python3*/site-packages/_llx.pth")
    host.write("/run/broken/broken_gateway.py", BROKEN_GATEWAY.read_text())
    words = "; ".join(
        (
            "import os, sys",
            "os.environ['BROKEN_GATEWAY'] = 'leaves zombies, checks no epochs'",
            "sys.path.append('/run/broken')",
            "import broken_gateway",
        )
    )
    host.cover(str(start), f"{start.read_text().strip()}\n{words}\n")
    start_again(operator, gateway)
    yield
    host.uncover(str(start))


def start_again(operator: Operator, unit: dict) -> None:
    """Restart an instance or a gateway; returns when another process serves."""
    done = operator("inst", "restart", unit["name"], "-y", "--deadline", "5s")
    assert done.returncode == 0, done.stderr
    eventually(lambda: pid_of(operator, unit["name"]) not in {None, unit["pid"]}, 300)
    operator.becomes_well()


def pid_of(operator: Operator, name: str) -> int | None:
    status = operator.glance()
    units = status.get("instances", []) + status.get("gateways", [])
    return next((each["pid"] for each in units if each["name"] == name), None)


def test_a_gateway_that_checks_no_epochs_is_caught(broken_gateway, operator):
    """Two instances speak at once; the same build with its check passes in `tests/e2e`."""
    done = operator("chaos", "kill", "instance", "-y", "-o", "json", "--out", "broken")
    verdict = json.loads(done.stdout)
    assert done.returncode == 8, done.stderr
    assert verdict["doubled"] + verdict["reordered"] + verdict["wrong"] >= 1, verdict["problems"]


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

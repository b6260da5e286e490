"""A cluster on three hosts from its first day to its last: real SSH, Ray, TLS and vLLM.

One cluster for the module, in the order of a life: up, first tokens, agents and Ray killed under
load, hosts added and removed, down and away. h1 and h2 use an environment that is there; h3 has
nothing of ours and no network but its cable, and is built from a wheelhouse.
"""

import json
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llx.host_ports import HostPorts
from llx.scheduling_settings import installed_policies
from tests.e2e.rig import ROOT
from tests.hosts.operator_machine import CONTROL_PORT, Operator, eventually
from tests.hosts.rig import USER, Host, HostOptions, Rig, python_binds
from tests.hosts.sockets import check_sockets
from tests.hosts.traffic import Traffic
from tests.hosts.verbs import Verbs
from tests.hosts.verbs_here import verbs_here

pytestmark = [pytest.mark.hosts, pytest.mark.node, pytest.mark.e2e]

ENGINE_ARGS = {
    "max_model_len": 2048,
    "block_size": 32,
    "max_num_seqs": 16,
    "num_gpu_blocks_override": 400,
    "enforce_eager": True,
    "dtype": "float32",
    "enable_prefix_caching": False,
}
LENGTHS = (300, 120)
rng = random.Random(7)
PROMPTS = [[rng.randrange(3, 540) for _ in range(length)] for length in (40, 9)]


@pytest.fixture(scope="module")
def rig(host_rig: Rig, node_python):
    """Four hosts; the cluster begins with three of them."""
    binds = python_binds(Path(node_python))
    host_rig.up(4, HostOptions(binds=binds, size="16g"))
    host_rig["h3"].restart(binds=(), keeps_disk=True)
    host_rig["h3"].wait_for_sshd()
    yield host_rig
    host_rig.down()


@pytest.fixture(scope="module")
def before(rig) -> dict[str, str]:
    """What lies on each host before llx has been there."""
    return {host.name: belongings(host) for host in rig.hosts}


@pytest.fixture(scope="module")
def operator(rig, before, oracle, node_python) -> Operator:
    operator = Operator(rig)
    operator.config(hosts=described(rig, node_python, "h1", "h2", "h3"), **cluster(oracle))
    done = operator("up", "-y", "cluster.yaml", timeout_s=1200)
    assert done.returncode == 0, done.stderr
    return operator


@pytest.fixture(scope="module")
def cases(oracle, node_python, node_environment) -> list[tuple[list[int], list[int]]]:
    """Prompts, and what the model says to them."""
    script = str(ROOT / "tests/e2e/oracle_model.py")
    asked = list(zip(PROMPTS, LENGTHS, strict=True))
    done = subprocess.run(
        [node_python, script, "greedy", str(oracle)],
        input=json.dumps(asked), env=node_environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return list(zip(PROMPTS, json.loads(done.stdout), strict=True))


def cluster(oracle: Path) -> dict:
    """The changes to the operator's standard cluster.yaml."""
    wheelhouse = os.environ.get("LLX_WHEELHOUSE")
    assert wheelhouse, "host tests need LLX_WHEELHOUSE: run them with `make test`"
    model = {
        "name": "oracle",
        "model": str(oracle),
        "instances": {"min": 2},
        "engine_args": ENGINE_ARGS,
    }
    runtime = {"platform": "cpu", "cpu_threads": 1, "wheelhouse": wheelhouse}
    return {"models": [model], "runtime": runtime}


def described(rig: Rig, python: str, *names: str) -> list[dict]:
    """Hosts of cluster.yaml; h3 gets an environment of llx's making."""
    hosts = {each["name"]: each for each in rig.cluster_hosts()}
    return [hosts[n] if n == "h3" else {**hosts[n], "python": python} for n in names]


def belongings(host: Host) -> str:
    """Files of the user's, users, sockets that listen, processes."""
    paths = host.own_paths("/home", "/tmp", "/dev/shm", "/root", "/var/tmp")
    look = (
        "cat /etc/passwd; "
        "grep -h ' 0A ' /proc/net/tcp /proc/net/tcp6 | cut -d' ' -f-5 | sort; "
        "ps -eo user,args | grep -v -e 'ps -eo' -e sshd -e 'sh -c' -e sleep -e grep -e cut -e sort"
    )
    files = sorted(path for path in paths if "/.ssh" not in path)
    return "\n".join([*files, host.x("sh", "-c", look).stdout])


def url_of(operator: Operator) -> str:
    return operator.json("status")["url"]


def serving(operator: Operator) -> dict[str, int]:
    """Process ids of what serves, by name."""
    return pids_of(operator.json("status"))


def pids_of(status: dict[str, Any]) -> dict[str, int]:
    return {each["name"]: each["pid"] for each in status["instances"] + status["gateways"]}


def serves_still(operator: Operator, pids: dict[str, int]) -> bool:
    """Whether the same processes serve; false while no head says so."""
    done = operator("status", "-o", "json")
    return done.returncode == 0 and pids_of(json.loads(done.stdout)) == pids


def test_the_oracle_speaks_through_the_cluster(operator, cases):
    status = operator.json("status")
    assert {each["host"] for each in status["instances"]} <= {"h1", "h2", "h3"}
    assert len({each["host"] for each in status["instances"]}) == 2
    assert [each["state"] for each in status["hosts"]] == ["ready"] * 3
    with Traffic(status["url"], "oracle", cases, threads=4) as traffic:
        eventually(lambda: traffic.finished >= 6 or bool(traffic.failures), 120)
    assert traffic.failures == []


def test_llx_generate_goes_through(operator):
    done = operator("generate", "Hello", "--max-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_verb_works_while_it_serves(operator, tmp_path):
    with verbs_here(operator, "oracle", tmp_path) as here:
        Verbs(operator, here, "oracle").check()


def test_each_policy_schedules_it_and_every_decision_is_made_again_in_a_replay(operator, cases):
    prompt, answer = cases[1]
    rules = [f"dispatch={each}" for each in installed_policies().dispatch]
    assert len(rules) >= 6
    with Traffic(url_of(operator), "oracle", [], threads=0) as traffic:
        for each in ("binding=immediate", *rules):
            done = operator("policy", "set", each)
            assert done.returncode == 0, done.stderr
            for _ in range(2):
                assert traffic.ask(prompt, 20) == answer[:20], each
    done = operator("inst", "drain", "oracle-0")
    assert done.returncode == 0, done.stderr
    for words in (("inst", "uncordon", "oracle-0"), ("policy", "revert")):
        assert operator(*words).returncode == 0, words
    seen = operator.json("sim", "replay", "--from-cluster")
    assert (seen["difference"], seen["stopped"]) == (None, None)
    assert seen["commands"]["Dispatch"] >= 2 * len(rules)


def test_a_second_up_changes_nothing(operator):
    pids = serving(operator)
    done = operator("up", "-y", "cluster.yaml")
    assert done.returncode == 0, done.stderr
    assert "nothing to change" in done.stdout
    assert serving(operator) == pids


def test_no_secret_can_be_seen(operator, rig):
    """Not in arguments or environments, and in no file but the 0600 ones that are for it."""
    head = rig["h1"]
    state = f"/home/{USER}/.llx/clusters/c"
    paths = ["token", "ray.token", "tls/host.key", "tls/ca.key", "keys.json"]
    contents = [head.x("cat", f"{state}/{each}").stdout.strip() for each in paths]
    assert all(contents)
    keys = [value for name, value in json.loads(contents[-1]).items() if "secret" in name]
    secrets = [*contents[:2], *(each.splitlines()[2] for each in contents[2:4]), *keys]
    look = (
        "xargs -d '\n' grep -D skip -alFf /run/secrets; "
        "grep -alFf /run/secrets /proc/[0-9]*/cmdline /proc/[0-9]*/environ"
    )
    for host in rig.hosts[:3]:
        host.write("/run/secrets", "".join(f"{each}\n" for each in secrets), mode=0o600)
        files = [path for path in host.own_paths("/home", "/tmp", "/dev/shm") if not is_big(path)]
        found = host.x("sh", "-c", f"({look}) 2>/dev/null", input="\n".join(files)).stdout.split()
        assert found, "its own files at least"
        assert set(found) <= {f"{state}/{each}" for each in paths}
        modes = host.x("stat", "-c", "%a %U", *found).stdout.splitlines()
        assert set(modes) == {f"600 {USER}"}
    here = [path for path in rig.home.rglob("*") if path.is_file() and path.suffix != ".whl"]
    for path in here:
        text = path.read_text(errors="replace")
        assert not any(secret in text for secret in secrets), path


def is_big(path: str) -> bool:
    return "/.llx/node/" in path or "/.llx/wheelhouse/" in path


KILLS = {
    "SIGKILL of an agent": lambda rig, python: rig["h2"].kill("ray::NodeAgentActor"),
    "SIGKILL of a raylet": lambda rig, python: rig["h2"].kill("raylet/raylet"),
    "ray stop": lambda rig, python: (
        rig["h2"].x(str(Path(python).with_name("ray")), "stop", "--force", user=USER).returncode
        == 0
    ),
    "SIGKILL of Ray's head": lambda rig, python: rig["h1"].kill("gcs_server"),
    "ray.kill of an agent": lambda rig, python: ray_kill(rig["h1"], python),
}


def ray_kill(head: Host, python: str) -> bool:
    """`ray.kill` of h2's agent, without restart, from a driver on the head."""
    script = (
        "import ray, sys\n"
        "from llx.cluster.ray.paths import NAMESPACE, actor_name\n"
        "ray.init(address=sys.argv[1], namespace=NAMESPACE, log_to_driver=False)\n"
        "ray.kill(ray.get_actor(actor_name('h2'), namespace=NAMESPACE), no_restart=True)\n"
    )
    state = f"/home/{USER}/.llx/clusters/c"
    environment = [
        "RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={state}/ray.token", "RAY_USE_TLS=1",
        f"RAY_TLS_SERVER_CERT={state}/tls/host.pem", f"RAY_TLS_SERVER_KEY={state}/tls/host.key",
        f"RAY_TLS_CA_CERT={state}/tls/ca.pem",
    ]  # fmt: skip
    address = f"{head.address}:20000"
    done = head.x("env", *environment, python, "-c", script, address, user=USER, timeout=60)
    assert done.returncode == 0, done.stderr
    return True


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_control_dies_and_streams_go_on(operator, rig, cases, node_python, kill):
    operator.becomes_well()
    pids, url = serving(operator), url_of(operator)
    held = ledgers(rig)
    with Traffic(url, "oracle", cases) as traffic:
        eventually(lambda: traffic.finished >= 1 or bool(traffic.failures), 300)
        assert KILLS[kill](rig, node_python)
        begun = traffic.finished
        eventually(lambda: traffic.finished > begun + 1 or bool(traffic.failures), 300)
        operator.becomes_well(what=kill)
    assert traffic.failures == []
    # A head that dies with Ray's answers for some seconds yet, that all is well.
    eventually(lambda: serves_still(operator, pids), 60, f"{kill}: others serve than before")
    assert ledgers(rig) == held


def ledgers(rig: Rig) -> dict[str, str]:
    """Who holds which core, on each host's disk."""
    path = f"/home/{USER}/.llx/clusters/c/devices.json"
    return {host.name: host.x("cat", path).stdout for host in rig.hosts}


CHAOS = """
traffic: {streams: 4, prompts: 2, prompt_tokens: 32, output_tokens: 200}
bounds: {healed_s: 180}
faults:
  - {kind: freeze, target: instance, for_s: 1}
  - {kind: slow, target: instance, for_s: 2, draw: 0.9}
  - {kind: kill, target: agent, draw: 0.9}
  - {kind: freeze, target: ray, for_s: 1, draw: 0.5}
  - {kind: kill, target: head}
"""


def test_faults_over_ssh_cost_no_token(operator, rig):
    (rig.home / "chaos.yaml").write_text(CHAOS)
    done = operator("chaos", "run", "chaos.yaml", "-y", "-o", "json", "--out", "chaos")
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["problems"]) == (0, []), done.stderr
    assert verdict["faults_by"] == {
        "freeze instance": 1, "freeze ray": 1, "kill agent": 1, "kill head": 1, "slow instance": 1
    }  # fmt: skip
    assert verdict["complete"] == verdict["streams"] > verdict["hit"] >= 2


def test_who_may_not_cut_a_host_off_is_told_before_anything_is_done(operator, rig):
    done = operator("chaos", "partition", "h2", "-y", "--out", "cut")
    assert done.returncode == 5, done.stderr
    assert "h2: nft there takes root" in done.stderr
    assert not (rig.home / "cut").exists()


def test_a_strange_peer_is_refused(operator, rig, node_python):
    """Somebody on the network, without token, certificate or secret key, at each kind of port."""
    script = (
        "import sys, zmq\n"
        "from zmq.utils.monitor import recv_monitor_message as next_event\n"
        "socket = zmq.Context().socket(zmq.DEALER)\n"
        "monitor = socket.get_monitor_socket()\n"
        "public, secret = zmq.curve_keypair()\n"
        "socket.curve_publickey, socket.curve_secretkey = public, secret\n"
        "socket.curve_serverkey = sys.argv[2].encode()\n"
        "socket.connect(sys.argv[1])\n"
        "while monitor.poll(60000):\n"
        "    event = next_event(monitor)['event']\n"
        "    if event == zmq.EVENT_HANDSHAKE_SUCCEEDED: sys.exit('let in')\n"
        "    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH: sys.exit(0)\n"
        "sys.exit('no answer')\n"
    )
    stranger = rig["h4"]
    keys = json.loads(rig["h1"].x("cat", f"/home/{USER}/.llx/clusters/c/keys.json").stdout)
    status = operator.json("status")
    addresses = [a for each in status["instances"] for a in each["addresses"]]
    addresses.append(f"tcp://{rig['h1'].address}:20009")
    ray = "import ray, sys\nray.init(address=sys.argv[1], log_to_driver=False)\n"
    head = f"{rig['h1'].address}:20000"

    def knock(address: str) -> "subprocess.CompletedProcess[str]":
        return stranger.x(node_python, "-c", script, address, keys["listener_public"], timeout=120)

    with ThreadPoolExecutor() as pool:  # Ray and ZeroMQ take their time to give up
        to_ray = pool.submit(stranger.x, "timeout", "60", node_python, "-c", ray, head, timeout=180)
        for address, done in zip(addresses, pool.map(knock, addresses), strict=True):
            assert done.returncode == 0, (address, done.stderr)
        done = to_ray.result()
    assert done.returncode != 0
    assert "Failed to connect to GCS" in done.stderr
    refused = stranger.x("curl", "-s", "-m", "5", f"http://{rig['h1'].address}:8900/v1/status")
    assert refused.returncode != 0, "the control API listens on loopback only"


def test_every_socket_is_in_the_docs_and_refuses_a_stranger(operator, rig):
    """Of all three hosts: who listens, and what somebody without any key hears there."""
    hosts = [rig[name] for name in ("h1", "h2", "h3")]
    named = {"gateway.port": 8000, "control.port": CONTROL_PORT}
    ports = HostPorts(20000)
    check_sockets(hosts, rig["h4"], ports, named, has_keys=False, has_vllm=True)


def test_a_host_is_added_and_one_removed(operator, rig, cases, node_python):
    url = url_of(operator)
    fourth = described(rig, node_python, "h4")[0]
    with Traffic(url, "oracle", cases) as traffic:
        done = operator(
            "host", "add", fourth["address"], "--name", "h4", "--user", USER,
            "--identity-file", fourth["identity_file"], "--python", node_python, "-y",
            timeout_s=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert {each["name"] for each in operator.json("host", "ls")} == {"h1", "h2", "h3", "h4"}
        done = operator("host", "rm", "h2", "-y", timeout_s=600)
        assert done.returncode == 0, done.stderr
    assert traffic.failures == []
    status = operator.json("status")
    assert {each["name"] for each in status["hosts"]} == {"h1", "h3", "h4"}
    assert len(status["instances"]) == 2
    assert operator.is_well()
    assert not rig["h2"].processes("llx")


def test_down_leaves_nothing(operator, rig, before):
    done = operator("down", "--purge", "-y", "--deadline", "5s", timeout_s=300)
    assert done.returncode == 0, done.stderr
    for host in rig.hosts:  # h2, too, which was taken out before
        assert belongings(host) == before[host.name]
    assert not operator.state_dir.exists()

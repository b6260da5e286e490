"""Real Ray on namespace hosts: with token and TLS, over every way it can be lost.

What is simulated is the engine; Ray, shims, agents, scheduler and gateways are real.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llx.agent.names import HOST_SPEC
from llx.cluster.ray.paths import RayPaths, ray_environment
from tests import node
from tests.hosts.ray_cluster import (
    BINDS,
    CONTROL_PORT,
    CONTROL_TOKEN,
    PORTS,
    PYTHON,
    TOKEN,
    RayCluster,
    eventually,
)
from tests.hosts.rig import UID, Host, HostOptions
from tests.hosts.sockets import Listener, check_sockets, hear

pytestmark = [pytest.mark.hosts, pytest.mark.node, pytest.mark.e2e, pytest.mark.slow]

ENGINE = "llx.agent.instance"
DRIVER = """
import ray, sys
ray.init(address=sys.argv[1], _node_ip_address=sys.argv[2], namespace="llx",
         log_to_driver=False, configure_logging=False)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The tiny model: gateways need its tokenizer."""
    folder = tmp_path_factory.mktemp("ray") / "model"
    subprocess.run(
        [str(PYTHON), "-m", "llx.agent.vllm.tiny_model", "--out", str(folder)],
        env=node.node_environment(), check=True, capture_output=True,
    )  # fmt: skip
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def made(host_rig, model) -> Iterator[RayCluster]:
    """Two hosts with all that is needed laid out; started by the first test, worn by all."""
    host_rig.up(2, HostOptions(binds=(*BINDS, model)))
    cluster = RayCluster(host_rig)
    engine = {"name": "m", "model": str(model), "engine": "sim", "instances": {"min": 2}}
    cluster.configure(
        models=[engine | {"sim": {"step_base_ms": 80}}], gateway={"host": "0.0.0.0", "count": 1}
    )
    yield cluster
    host_rig.down()


def states(cluster: RayCluster) -> dict[str, str]:
    status = cluster.status()
    units = [*status.get("hosts", []), *status.get("instances", [])]
    return {each["name"]: each["state"] for each in units}


def is_whole(cluster: RayCluster) -> bool:
    found = states(cluster)
    return len(found) == 2 * len(cluster.rig.hosts) and set(found.values()) == {"ready"}


def await_whole(cluster: RayCluster, timeout_s: float = 300) -> None:
    eventually(lambda: is_whole(cluster), lambda: story(cluster), timeout_s)


def story(cluster: RayCluster) -> str:
    logs = [f"--- {host.name} {name}\n{cluster.log(host, name)[-2000:]}"
            for host in cluster.rig.hosts for name in ("ray", "agent", "head")]  # fmt: skip
    return "\n".join([str(states(cluster)), *logs])


def engines(cluster: RayCluster) -> dict[str, list[int]]:
    """Processes of instances and their shims by host: what nothing here may touch."""
    return {host.name: cluster.pids(host, ENGINE) for host in cluster.rig.hosts}


def agent_pid(cluster: RayCluster, host: Host) -> list[int]:
    return cluster.pids(host, "ray::NodeAgentActor")


def driver(cluster: RayCluster, host: Host, script: str, **changes: str) -> Any:
    """Run a driver of Ray on `host`, as a process of the cluster, or with other variables."""
    spec = cluster.spec(host)
    variables = ray_environment(spec, Path(str(cluster.layout.spec)), {}) | changes
    environment = [f"{key}={value}" for key, value in variables.items() if value]
    address = f"{cluster.head.address}:{PORTS.gcs}"
    argv = [str(PYTHON), "-c", DRIVER + script, address, host.address]
    return host.x("env", *environment, "timeout", "-s", "KILL", "60", *argv, user="llx")


def test_it_comes_up_in_any_order_and_once(made):
    h1, h2 = made.rig.hosts
    made.start(h2)
    waits = "waits for the head"
    eventually(lambda: waits in made.read(h2, "procs/ray/status.json"), lambda: story(made))
    assert made.verb(h2, "check").returncode != 0
    made.start(h1)
    made.wait_up()
    await_whole(made)

    def running() -> dict[str, list[int]]:
        """Of Ray's own: what else has it in its command line comes and goes by itself."""
        return {
            f"{host.name} {each}": made.pids(host, each)
            for host in made.rig.hosts
            for each in ("raylet/raylet", "gcs_server", "llx/agent/shim.py")
        }

    before = running()
    assert before["h1 raylet/raylet"]
    made.start()
    assert running() == before


def test_nothing_is_open_and_nothing_is_told_without_the_token(made):
    h1, h2 = made.rig.hosts
    await_whole(made)

    # Only what must be is open, and only in the cluster's own block, but for the gateway.
    allowed = {*range(PORTS.first, PORTS.last + 1), 22, 8000}
    for host in made.rig.hosts:
        assert {port for address, port in listening(host) if address != "127.0.0.1"} <= allowed

    # No secret is seen by anybody: arguments, environments, logs, files.
    secrets = [TOKEN, CONTROL_TOKEN, "PRIVATE KEY"]
    for host in made.rig.hosts:
        for pid, line in host.processes().items():
            environment = ""
            with contextlib.suppress(OSError):  # it has ended
                environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
            assert not [each for each in secrets if each in line + environment], line
        paths = host.own_paths("/tmp", str(made.layout.procs))
        grep = ["xargs", "-d", "\n", "grep", "-D", "skip", "-slE", "|".join(secrets)]
        assert host.x(*grep, input="\n".join(paths)).stdout == ""
        tmp = str(made.layout.ray_tmp)
        readable = host.x("find", str(made.layout.root), tmp, "-maxdepth", "0", "-perm", "/077")
        assert readable.stdout == ""

    # Engines inherit nothing of Ray.
    for pid in made.pids(h2, ENGINE):
        assert os.getpriority(os.PRIO_PROCESS, pid) == 0
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "0"
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        odd = (b"RAY_", b"LD_PRELOAD", b"PYTHONPATH", HOST_SPEC.encode(), b"CUDA_VISIBLE")
        assert not [each for each in variables if each.startswith(odd)]

    # A stranger on a host of the cluster network gets nowhere.
    ask = "print(len(ray.nodes()))"
    assert driver(made, h2, ask).stdout.strip() == "2"
    h2.write("/tmp/wrong", "w" * 45, mode=0o644)
    refused = {
        "wrong token": {"RAY_AUTH_TOKEN_PATH": "/tmp/wrong"},
        "no token": {"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN_PATH": ""},
    }
    with ThreadPoolExecutor() as pool:  # Ray gives up after twenty seconds
        ended = pool.map(lambda changes: driver(made, h2, ask, **changes), refused.values())
    for what, done in zip(refused, ended, strict=True):
        assert done.returncode != 0, what
        assert done.stdout == "", what
    plain = h2.x("curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}",
                 f"http://{h1.address}:{PORTS.runtime_env_agent}/")  # fmt: skip
    assert plain.stdout == "401"


def test_each_open_port_refuses_a_stranger(made):
    """Every socket that listens is in the docs, and says no more to a stranger than they do."""
    await_whole(made)
    eventually(lambda: made.is_ready(made.head, "gateway-0"), lambda: story(made), 180)
    named = {"gateway.port": 8000, "control.port": CONTROL_PORT}
    check_sockets(made.rig.hosts, made.rig["h2"], PORTS, named, has_keys=False, has_vllm=False)
    # The same knock of one who belongs there is answered.
    head = Listener("tcp", made.head.address, PORTS.gcs, "Ray control store")
    tls_dir = f"{made.layout.state}/tls"
    heard = hear([head], made.rig["h2"], made.rig["h2"], tls_dir)
    assert heard[head].word == "TLS"


def listening(host: Host) -> set[tuple[str, int]]:
    lines = host.x("ss", "-Hltn").stdout.splitlines()
    pairs = [line.split()[3].rpartition(":") for line in lines]
    return {(address.strip("[]").removeprefix("::ffff:"), int(port)) for address, _, port in pairs}


def test_a_stream_goes_on_whatever_happens_to_ray(made, tmp_path):
    """Agent, raylet, `ray stop`, control store, scheduler, keeper."""
    h1, h2 = made.rig.hosts
    await_whole(made)
    url = f"http://{h1.address}:8000/v1/completions"
    probe = ("curl", "-sf", "-m", "20", url, "-H", "Content-Type: application/json",
             "-d", '{"model": "m", "prompt": "a", "max_tokens": 1}')  # fmt: skip
    eventually(lambda: h1.x(*probe).returncode == 0, lambda: made.log(h1, "gateway-0"), 180)
    before = engines(made)
    streams = [stream(h1, url, tmp_path / str(n), num_tokens=500) for n in range(4)]
    eventually(
        lambda: all(map(has_begun, streams)), lambda: str([p.read_text() for _, p in streams]), 60
    )

    def lose(what: str, host: Host, lost: Callable[[], Any], name: str) -> None:
        former = made.pids(host, name)
        assert former, f"{what}: no {name}"
        lost()
        eventually(
            lambda: (now := made.pids(host, name)) != [] and set(former).isdisjoint(now),
            lambda: f"{what}: {story(made)}",
            60,
        )
        await_whole(made)
        assert engines(made) == before, what

    kill = 'ray.kill(ray.get_actor("agent:h2"), no_restart=True)'
    lose("ray.kill", h2, lambda: driver(made, h1, kill), "ray::NodeAgentActor")
    lose("agent", h2, lambda: h2.kill("ray::NodeAgentActor"), "ray::NodeAgentActor")
    lose("raylet", h2, lambda: h2.kill("raylet/raylet"), "ray::NodeAgentActor")
    ray_stop = (str(PYTHON), "-m", "ray.scripts.scripts", "stop")
    lose("ray stop", h2, lambda: h2.x(*ray_stop, user="llx"), "ray::NodeAgentActor")
    others = agent_pid(made, h2)
    lose("control store", h1, lambda: h1.kill("gcs/gcs_server"), "gcs/gcs_server")
    assert agent_pid(made, h2) == others, "what the control store knew was lost"
    lose("scheduler", h1, lambda: h1.kill("ray::SchedulerActor"), "ray::SchedulerActor")
    assert made.status()["term"] >= 3
    devices = json.loads(made.read(h2, "devices.json"))
    assert list(devices["allocations"]) == ["m-1"]
    said = [finished(each) for each in streams]
    assert [len(each) for each in said] == [500] * 4, "a token is missing or came twice"
    assert all(each == said[0] for each in said)


def stream(host: Host, url: str, path: Path, num_tokens: int) -> "tuple[Any, Path]":
    """A completion under way; its events go to a file."""
    body = {"model": "m", "prompt": "on and on", "max_tokens": num_tokens, "stream": True,
            "ignore_eos": True, "temperature": 0, "return_token_ids": True}  # fmt: skip
    with path.open("wb") as file:
        argv = ["curl", "-sSN", "-m", "300", url, "-H", "Content-Type: application/json",
                "-d", json.dumps(body)]  # fmt: skip
        return host.spawn(*argv, stdout=file, stderr=file), path


def has_begun(each: "tuple[Any, Path]") -> bool:
    return b"data: " in each[1].read_bytes()


def finished(each: "tuple[Any, Path]") -> list[int]:
    """The stream's tokens, once it has ended as it should; an event may have several."""
    process, path = each
    assert process.wait(timeout=300) == 0
    lines = [line for line in path.read_text().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]", lines[-2:]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    return [token for each in events for token in each["choices"][0].get("token_ids") or ()]


def test_a_host_that_was_cut_off_or_off_is_taken_back(made):
    h1, h2 = made.rig.hosts
    await_whole(made)
    before = engines(made)

    h2.drop()
    eventually(lambda: states(made)["h2"] == "lost", lambda: story(made), 30)
    h2.heal()
    await_whole(made)
    assert engines(made) == before, "a healed host lost what ran on it"

    pid = agent_pid(made, h2)[0]
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: states(made)["h2"] == "agent_away", lambda: story(made), 30)
    await_whole(made)
    assert agent_pid(made, h2) != [pid]
    assert engines(made) == before

    # The control store comes back knowing nothing: workers must notice and join anew.
    storage = str(RayPaths(made.spec(h1)).storage)
    h1.x("sh", "-c", 'mv "$1" "$1.away"', "sh", storage, check=True)
    former = made.pids(h2, "raylet/raylet")
    h1.kill("gcs/gcs_server")
    eventually(
        lambda: set(former).isdisjoint(made.pids(h2, "raylet/raylet")), lambda: story(made), 90
    )
    await_whole(made)
    assert engines(made) == before

    h2.off()
    eventually(lambda: states(made)["h2"] == "lost", lambda: story(made), 30)
    h2.on()
    made.lay_out(h2)
    made.start(h2)
    await_whole(made)


def test_stopped_is_stopped_until_started_and_leaves_nothing(made):
    h1, _ = made.rig.hosts
    await_whole(made)
    # Somebody else's Ray, on other ports: never touched.
    theirs = h1.x(
        str(PYTHON), "-m", "ray.scripts.scripts", "start", "--head", "--port=7000",
        "--object-store-memory=80000000", "--num-cpus=1", "--disable-usage-stats",
        "--temp-dir=/run/theirs",
    )  # fmt: skip
    assert theirs.returncode == 0, theirs.stderr
    eventually(
        lambda: len(owned_by(h1, 0) & set(made.pids(h1, "ray::"))) == 2, "their Ray is not up", 60
    )
    strangers = owned_by(h1, 0)

    assert made.control("POST", "/v1/stop", deadline_s=5, user="test") is not None
    eventually(lambda: made.said(h1, "head").detail == "stopped", lambda: story(made), 30)
    time.sleep(8)  # longer than the keeper is patient with a silent scheduler
    assert made.status() == {}
    assert engines(made) == {"h1": [], "h2": []}
    assert made.verb(h1, "check").returncode != 0

    made.start()
    await_whole(made)
    for host in made.rig.hosts:
        done = made.verb(host, "stop", "--grace", "5")
        assert done.returncode == 0, done.stderr
    for host in made.rig.hosts:
        done = made.verb(host, "gone")
        assert done.returncode == 0, done.stderr
        assert owned_by(host, UID) == set(), host.processes()
        assert not [path for path in host.own_paths("/dev/shm", "/tmp") if "llx" in path.lower()]
    assert owned_by(h1, 0) >= strangers


def owned_by(host: Host, uid: int) -> set[int]:
    """Processes of a user."""
    return {pid for pid in host.pids() if Path(f"/proc/{pid}").stat().st_uid == uid}

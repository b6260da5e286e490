"""`llx up --head`: the head's host loses its power, comes back, is cut off; streams go on.

One cluster of simulated engines on three hosts for the module, in the order of its life.
"""

import json
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llx.bootstrap.ssh_sharing import MASTER_FILE
from tests.hosts.operator_machine import SIM, Operator, eventually
from tests.hosts.rig import USER, Host, HostOptions, Rig, python_binds
from tests.hosts.traffic import Traffic

pytestmark = [pytest.mark.hosts, pytest.mark.node, pytest.mark.e2e]

PROMPT = list(range(3, 40))
LENGTH = 100
STATE = f"/home/{USER}/.llx/clusters/c"


@pytest.fixture(scope="module")
def operator(host_rig: Rig, node_python):
    binds = python_binds(Path(node_python))
    host_rig.up(3, HostOptions(binds=binds, size="16g", keeps_disk=True))
    operator = Operator(host_rig, python=node_python)
    path = operator.config(
        models=[{**SIM, "instances": {"min": 3}}], gateway={"host": "0.0.0.0", "count": 2}
    )
    done = operator("up", "-y", path)
    assert done.returncode == 0, done.stderr
    yield operator
    operator("down", "-y", "--purge", "--deadline", "1s", "--forget", "h1", "--forget", "h2")
    host_rig.down()


def units(operator: Operator) -> dict[str, dict]:
    status = operator.json("status")
    return {each["name"]: each for each in status["instances"] + status["gateways"]}


def hosts(operator: Operator) -> dict[str, dict]:
    return {each["name"]: each for each in operator.json("host", "ls")}


def pids_beside(operator: Operator, host: str) -> dict[str, int]:
    """Process ids of what serves on other hosts."""
    return {n: each["pid"] for n, each in units(operator).items() if each["host"] != host}


def url_beside(operator: Operator, host: str) -> str:
    """Of a gateway on another host."""
    gateways = operator.json("status")["gateways"]
    return next(each["url"] for each in gateways if each["host"] != host)


def traffic(url: str) -> Traffic:
    """The simulated engine says the same to the same prompt, wherever it runs."""
    cases: list[tuple[list[int], list[int]]] = []
    streams = Traffic(url, "sim", cases, threads=4)
    cases.append((PROMPT, streams.ask(PROMPT, LENGTH)))
    assert len(cases[0][1]) == LENGTH
    return streams


def is_well(operator: Operator) -> bool:
    done = operator("status", "-o", "json")
    if done.returncode != 0:
        return False
    status = json.loads(done.stdout)
    rows = status["hosts"] + status["instances"] + status["gateways"]
    return {each["state"] for each in rows} == {"ready"}


def file_of(host: Host, name: str) -> str:
    return host.x("cat", f"{STATE}/{name}").stdout


def test_a_host_that_is_none_is_refused(operator):
    done = operator("up", "-y", "--head", "h9")
    assert done.returncode == 4
    assert 'no host "h9"' in done.stderr


def bundle(operator: Operator, name: str) -> tuple[int, dict[str, str]]:
    """How `llx debug bundle` ends, and its files."""
    path = operator.rig.home / name
    done = operator("debug", "bundle", "-o", str(path))
    assert done.returncode in {0, 6}, done.stderr
    with tarfile.open(path) as archive:
        names = {each: each.partition("/")[2] for each in archive.getnames()}
        return done.returncode, {
            short: archive.extractfile(each).read().decode() for each, short in names.items()
        }


def secrets_of(host: Host) -> list[str]:
    values = json.loads(file_of(host, "keys.json")).items()
    keys = [value for name, value in values if name.endswith(("_public", "_secret"))]
    return [file_of(host, "token").strip(), file_of(host, "ray.token").strip(), *keys]


def test_metrics_and_a_bundle_come_over_ssh(operator):
    assert 'llx:host_up{host="h3"} 1.0' in operator("metrics").stdout.splitlines()
    assert "vllm:num_requests_running" in operator("metrics", "gateway-1").stdout
    code, files = bundle(operator, "all.tar.gz")
    assert code == 0, files["contents.json"]
    for host in ("h1", "h2", "h3"):
        assert {f"hosts/{host}/facts.txt", f"hosts/{host}/procs/ray/log"} <= set(files)
        assert any(name.startswith(f"hosts/{host}/ray/r/s/logs/raylet") for name in files)
    for name in ("head", "agent"):
        assert f"hosts/h1/procs/{name}/log" in files
    for name in ("sim-0", "sim-1", "sim-2", "gateway-0", "gateway-1"):
        assert any(each.endswith(f"/procs/{name}/log") for each in files), name
    assert json.loads(files["head/status.json"])["state"] == "ready"
    for secret in secrets_of(operator.rig["h1"]):
        assert len(secret) > 20
        assert not [name for name, text in files.items() if secret in text]


def test_verbs_that_read_share_a_connection(operator):
    master, away = operator.state_dir / MASTER_FILE, operator.rig.home / "key-put-away"
    assert operator("status").returncode == 0
    eventually(lambda: master.exists() and master.stat().st_size > 0, 60)
    operator.rig.key.rename(away)  # who would connect is not let in
    try:
        # On a busy machine the one that is shared may not answer in time.
        eventually(lambda: operator("inst", "ls").returncode == 0, 120)
        assert "sim-0" in operator("top", "--once").stdout
        alone = replace(operator, variables={"LLX_SSH_PERSIST": "0"})
        assert alone("inst", "ls").returncode == 3
        assert operator("policy", "pause").returncode == 3, "a change goes its own way"
    finally:
        away.rename(operator.rig.key)


def test_the_heads_host_loses_its_power_and_another_takes_over(operator):
    rig = operator.rig
    done = operator("inst", "cordon", "sim-2")
    assert done.returncode == 0, done.stderr
    assert operator("policy", "pause").returncode == 0
    eventually(lambda: "policies.json" in file_of(rig["h2"], "head-copy.json"), 60)
    pids, url = pids_beside(operator, "h1"), url_beside(operator, "h1")
    with traffic(url) as streams:
        eventually(lambda: streams.finished >= 4, 60)
        rig["h1"].off()
        dry = operator("up", "--head", "h2", "--dry-run")
        assert "moves from h1 to h2" in dry.stdout, dry.stderr
        began = time.monotonic()
        done = operator("up", "-y", "--head", "h2")
        print(f"\nup --head took {time.monotonic() - began:.1f} s")
        assert done.returncode == 0, done.stderr
        begun = streams.finished
        eventually(lambda: streams.finished >= begun + 4 or bool(streams.failures), 60)
    assert streams.failures == []
    now = units(operator)
    assert {name: now[name]["pid"] for name in pids} == pids, "nothing that ran was started again"
    assert {each["state"] for each in now.values()} == {"ready"}
    assert now["sim-2"]["is_cordoned"], "as it was"
    done = operator("inst", "uncordon", "sim-2")
    assert done.returncode == 0, done.stderr
    assert hosts(operator)["h1"]["state"] == "lost"
    assert operator.json("policy", "show")["policies"][0]["is_paused"]
    assert operator("policy", "resume").returncode == 0, "control works"
    code, files = bundle(operator, "without-h1.tar.gz")
    assert (code, [*json.loads(files["contents.json"])["not_taken"]]) == (6, ["host h1"])
    assert "hosts/h2/procs/head/log" in files
    trail = file_of(rig["h2"], "events.jsonl").splitlines()
    (moved,) = [e for e in map(json.loads, trail) if e["kind"] == "head.moved"]
    assert (moved["former"], moved["name"]) == ("h1", "h2")


def test_the_former_head_comes_back_as_a_host_like_others(operator):
    rig = operator.rig
    rig["h1"].on()
    rig["h1"].wait_for_sshd()
    stale = operator.rig.home / "stale"
    other = Operator(rig, python=operator.python, variables={"XDG_STATE_HOME": str(stale)})
    done = other("up", "-y", "cluster.yaml")
    assert done.returncode == 5, "another machine takes h1 for the head still"
    assert "its head is h2, not h1" in done.stderr
    done = operator("up", "-y", "cluster.yaml")
    assert done.returncode == 0, done.stderr
    eventually(lambda: is_well(operator), 300)
    assert not rig["h1"].processes("gcs_server")
    assert rig["h1"].x("ls", f"{STATE}/token", f"{STATE}/tls/ca.key").returncode != 0


def test_a_head_that_was_cut_off_is_fenced(operator):
    rig = operator.rig
    pids, url = pids_beside(operator, "h2"), url_beside(operator, "h2")
    with traffic(url) as streams:
        rig["h2"].cable(is_in=False)
        done = operator("up", "-y", "--head", "h3")
        assert done.returncode == 0, done.stderr
        rig["h2"].cable(is_in=True)
        eventually(lambda: "head.superseded" in file_of(rig["h2"], "events.jsonl"), 60)
        now = units(operator)
        assert {name: now[name]["pid"] for name in pids} == pids
        done = operator("up", "-y", "cluster.yaml")
        assert done.returncode == 0, done.stderr
    assert streams.failures == []
    eventually(lambda: is_well(operator), 300)
    assert not rig["h2"].processes("gcs_server")


def test_the_head_of_a_cluster_that_is_well_moves_without_a_loss(operator):
    pids = {name: each["pid"] for name, each in units(operator).items()}
    with traffic(operator.json("status")["url"]) as streams:
        done = operator("up", "-y", "--head", "h1")
        assert done.returncode == 0, done.stderr
    assert streams.failures == []
    assert {name: each["pid"] for name, each in units(operator).items()} == pids
    assert [each["state"] for each in hosts(operator).values()] == ["ready"] * 3

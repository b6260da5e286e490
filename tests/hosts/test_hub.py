"""A model of the hub, served by real vLLM on hosts: fetched ahead once, then without the hub.

One cluster for the module, in the order of its life.
"""

import json
from pathlib import Path

import pytest

from tests.agent.fake_hub import COMMIT, FakeHub
from tests.hosts.operator_machine import Operator
from tests.hosts.rig import USER, HostOptions, Rig, python_binds

pytestmark = [pytest.mark.hosts, pytest.mark.node, pytest.mark.e2e]

MODEL = {
    "name": "served",
    "model": "org/name",
    "engine_args": {
        "max_model_len": 1024,
        "block_size": 32,
        "max_num_seqs": 4,
        "enforce_eager": True,
        "dtype": "float32",
        "revision": "v1",
    },
}
PLACE = f"/home/{USER}/.llx/models/org--name--v1"
TOKEN = "hf_0123456789abcdef"


@pytest.fixture(scope="module")
def operator(host_rig: Rig, node_python):
    binds = python_binds(Path(node_python))
    host_rig.up(2, HostOptions(binds=binds, size="4g"))
    yield Operator(host_rig, python=node_python)
    host_rig.down()


@pytest.fixture(scope="module")
def hub(oracle) -> FakeHub:
    hub = FakeHub("org/name", {path.name: path.read_bytes() for path in oracle.iterdir()})
    hub.revisions = {"v1"}
    hub.token = TOKEN
    return hub


def up(operator: Operator, *names: str):
    hosts = [each for each in operator.rig.cluster_hosts() if each["name"] in names]
    return operator("up", "-y", operator.config(hosts, models=[MODEL]), timeout_s=300)


def test_a_hub_out_of_reach_is_said_before_anything_is_started(operator):
    operator.variables = {"HF_ENDPOINT": f"http://{operator.rig.network}.1:9"}
    done = up(operator, "h1")
    assert done.returncode == 1, done.stderr
    assert "pull org/name@v1: the hub is out of reach" in done.stderr
    assert "llx model add org--name--v1 DIR" in done.stderr
    assert f"see {operator.state_dir}/hosts/h1.log" in done.stderr
    assert not operator.rig["h1"].processes("llx")


def test_it_is_fetched_ahead_and_served_under_its_own_name(operator, hub):
    with hub.running(f"{operator.rig.network}.1") as url:
        operator.variables = {"HF_ENDPOINT": url, "HF_TOKEN": TOKEN}
        done = up(operator, "h1")
    assert done.returncode == 0, done.stderr
    assert "model org--name--v1" in done.stderr
    url = operator.json("status")["url"]
    head = operator.rig["h1"]
    [model] = json.loads(head.x("curl", "-s", f"{url}/v1/models").stdout)["data"]
    assert model["id"] == "served"
    spec = head.x("cat", f"/home/{USER}/.llx/clusters/c/procs/served-0/spec.json").stdout
    assert json.loads(spec)["model"] == PLACE
    assert TOKEN not in (operator.state_dir / "hosts/h1.log").read_text()


def test_a_second_up_needs_no_hub(operator):
    operator.variables = {}
    done = up(operator, "h1")
    assert done.returncode == 0, done.stderr
    assert "nothing to change" in done.stdout


def test_a_host_that_is_added_gets_the_same_commit(operator, hub):
    hub.asked.clear()
    with hub.running(f"{operator.rig.network}.1") as url:
        operator.variables = {"HF_ENDPOINT": url, "HF_TOKEN": TOKEN}
        done = up(operator, "h1", "h2")
    assert done.returncode == 0, done.stderr
    looked_up = {path for _, path in hub.asked if path.startswith("/api/models/org/name/revision")}
    assert looked_up == {f"/api/models/org/name/revision/{COMMIT}"}
    rows = operator.json("model", "ls")
    assert {(each["host"], each["source"]) for each in rows} == {
        (name, f"hub:org/name@{COMMIT}") for name in ("h1", "h2")
    }
    assert operator("model", "rm", "org--name--v1", "-y").returncode == 5


def test_down_keeps_the_weights_and_a_purge_nothing(operator):
    assert operator("down", "-y", "--deadline", "1s").returncode == 0
    head = operator.rig["h1"]
    assert head.x("ls", PLACE).returncode == 0
    done = operator("down", "-y", "--purge", "--deadline", "1s")
    assert done.returncode == 0, done.stderr
    for host in operator.rig.hosts:
        assert host.x("ls", "-A", f"/home/{USER}").stdout.split() == [".ssh"]
        assert not [path for path in host.own_paths("/tmp") if path.startswith("/tmp/llx")]

"""`llx upgrade`: a cluster that serves is brought to the next release, and interrupted in between.

One cluster of simulated engines for the module, with a gateway on each of two hosts, in the order
of its life.
"""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llx.errors import ExitCode
from tests.hosts.operator_machine import SIM, Operator, end, eventually
from tests.hosts.releases import Releases
from tests.hosts.rig import USER, HostOptions, Rig, python_binds
from tests.hosts.traffic import Traffic

pytestmark = [pytest.mark.hosts, pytest.mark.node, pytest.mark.e2e]

OLD, NEW = "0.1.77", "0.2.0"
HOSTS = 2
SERVING = ("instances", "gateways")
ALL = ("hosts", *SERVING)
SPEC = f"/home/{USER}/.llx/clusters/c/host.spec.json"
MODEL = {**SIM, "sim": {"step_base_ms": 30.0}}
PROMPTS = [list(range(3 + number, 40)) for number in range(4)]
LENGTH = 150


@dataclass
class OperatorOf(Operator):
    """An operator whose llx is of some release."""

    release: Path = Path()

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"PYTHONPATH": str(self.release)}


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory, node_python: str) -> Releases:
    """Two releases; hosts have the older one."""
    directory = tmp_path_factory.mktemp("releases")
    directory.chmod(0o755)  # the hosts' user is not us
    releases = Releases(directory, Path(node_python))
    releases.install(OLD)
    releases.release(NEW)
    return releases


@pytest.fixture(scope="module")
def operator(host_rig: Rig, releases: Releases, node_python: str) -> Iterator[OperatorOf]:
    """Two instances, and a gateway on each host, under the older release."""
    binds = (releases.directory, *python_binds(Path(node_python)))
    host_rig.up(HOSTS, HostOptions(binds=binds, size="16g", keeps_disk=True))
    operator = OperatorOf(host_rig, python=str(releases.python), gateway={"count": HOSTS})
    operator.release = releases.release(OLD)
    done = operator("up", "-y", operator.config(models=[MODEL]))
    assert done.returncode == 0, done.stderr
    yield operator
    host_rig.down()


def versions(status: dict[str, Any], *kinds: str) -> set[str]:
    """What parts of a cluster say of themselves."""
    return {each["llx_version"] for kind in kinds for each in status.get(kind, [])}


def pids_of(status: dict[str, Any], *kinds: str) -> dict[str, tuple[str, int]]:
    """By name; pids are each host's own."""
    parts = [each for kind in kinds for each in status.get(kind, [])]
    return {each["name"]: (each["host"], each["pid"]) for each in parts}


def interrupt(going: "subprocess.Popen[str]") -> int:
    """Once the head has begun anew, and instances and gateways have not; returns the exit code."""
    assert going.stderr is not None
    timer = threading.Timer(300, going.kill)  # its words are waited for without a limit
    timer.start()
    try:
        for line in going.stderr:
            if " agents done" in line:
                going.send_signal(signal.SIGINT)
                break
        going.communicate(timeout=60)
    finally:
        timer.cancel()
        end(going)
    return going.returncode


@contextlib.contextmanager
def clients(gateways: list[dict[str, Any]]) -> Iterator[dict[str, Traffic]]:
    """Of each gateway, two; every stream must say what it says where nothing disturbs it."""
    with Traffic(gateways[0]["url"], "sim", [], threads=0) as first:
        cases = [(prompt, first.ask(prompt, LENGTH)) for prompt in PROMPTS]
    with contextlib.ExitStack() as stack:
        yield {
            each["name"]: stack.enter_context(
                Traffic(each["url"], "sim", cases, threads=2, waits=True)
            )
            for each in gateways
        }


def restarts(operator: OperatorOf) -> dict[str, float]:
    """When gateways were told to start again, in Unix seconds; the last time."""
    found = operator.json("events", "--kind", "gateway.restarting")["events"]
    return {each["fields"]["name"]: each["at"] for each in found}


def test_another_release_changes_nothing_but_by_upgrade(
    operator: OperatorOf, releases: Releases
) -> None:
    done = operator("upgrade", "-y")
    assert (done.returncode, f"runs llx {OLD} already" in done.stderr) == (5, True), done.stderr
    operator.release = releases.release(NEW)
    done = operator("upgrade", "-y")
    assert (done.returncode, f"llx {OLD} found" in done.stderr) == (1, True), done.stderr
    releases.install(NEW)
    done = operator("up", "-y", str(operator.rig.home / "cluster.yaml"))
    assert (done.returncode, "llx upgrade" in done.stderr) == (5, True), done.stderr
    done = operator("upgrade", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"llx {OLD} → {NEW}" in done.stdout
    status = operator.glance()
    assert status["llx_version"] == OLD
    assert versions(status, *ALL) == {OLD}


def test_streams_go_on_while_everything_is_replaced_even_in_two_goes(operator: OperatorOf) -> None:
    before = operator.glance()
    former = pids_of(before, "gateways")
    assert len({each["host"] for each in before["gateways"]}) == HOSTS
    with clients(before["gateways"]) as streams:
        assert interrupt(operator.start("upgrade", "-y")) == ExitCode.INTERRUPTED
        seen: list[Any] = []

        def is_between() -> bool:
            """The head and agents are new, and gateways as they were; told by whoever was heard."""
            seen[:] = [operator.glance()]
            [now] = seen
            if not now:
                return False
            told = (now["llx_version"], versions(now, "hosts"), pids_of(now, "gateways"))
            return told == (NEW, {NEW}, former)

        eventually(is_between, 60, "the gateways run on")
        assert NEW not in versions(seen[0], "gateways")
        done = operator("upgrade", "-y", timeout_s=600)
        assert done.returncode == 0, done.stderr
    for name, each in streams.items():
        assert (name, each.failures) == (name, [])
        assert each.finished >= 4, name
    # A version is told by whoever was heard just now.
    eventually(lambda: versions(operator.glance(), *ALL) == {NEW}, 60, "all is of the new one")
    after = operator.glance()
    one, other = (set(pids_of(each, *SERVING).values()) for each in (before, after))
    assert not one & other, "everything was replaced"
    operator.becomes_well()
    (rollout,) = operator.json("rollout")
    assert (rollout["moved"] > 0, rollout["cut"]) == (True, 0)
    # Nobody was turned away but while his own gateway was replaced, and then another took him in.
    begun = restarts(operator)
    away = sorted(
        (min(told for _, told in times), max(asked for asked, _ in times), name)
        for name, each in streams.items()
        if (times := each.not_let_in)
    )
    assert all(first >= begun[name] for first, _, name in away), (away, begun)
    assert all(one[1] < other[0] for one, other in pairwise(away)), away


def test_a_cluster_without_a_head_is_left_to_its_release(
    operator: OperatorOf, releases: Releases
) -> None:
    serving, host = pids_of(operator.glance(), *SERVING), operator.rig.hosts[0]
    rest = [str(releases.python), "-m", "llx.cluster.ray.node", "rest", SPEC]
    host.x(*rest, user=USER, check=True)
    spec = host.x("cat", SPEC).stdout
    releases.install(OLD)  # going back, say
    operator.release = releases.release(OLD)
    done = operator("up", "-y", str(operator.rig.home / "cluster.yaml"))
    assert done.returncode == ExitCode.CONFLICT, done.stderr
    assert f"runs llx {NEW}, its head does not answer, and this is llx {OLD}" in done.stderr
    assert f"`llx up` with llx {NEW}" in done.stderr
    assert host.x("cat", SPEC).stdout == spec
    for name, (where, pid) in serving.items():
        alive = operator.rig[where].x("cat", f"/proc/{pid}/cmdline").stdout
        assert name in alive

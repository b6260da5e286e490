"""Whatever happens to hosts, agents, heads and processes: afterwards all runs, and runs once."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llx.agent.processes import list_processes
from llx.api import ClusterState
from llx.errors import ConflictError, UnreachableError
from tests.cluster.hosts_rig import FakeHost, HostsRig, make_rig

STEPS = 14


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def kill_something(rig: HostsRig, dice: random.Random) -> str:
    running = [
        each
        for host in rig.hosts.values()
        for each in list_processes(host.state.procs)
        if each.is_alive()
    ]
    if not running:
        return "nothing to kill"
    victim = dice.choice(running)
    record = victim.status()
    pid = dice.choice([record.child_pid, record.shim_pid])
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return "it was gone"
    return f"kill {victim.directory}"


def toggle(host: FakeHost, dice: random.Random) -> str:
    if host.line != "up":
        host.on()
        return f"{host.name} is back"
    match dice.randrange(3):
        case 0:
            host.off()
            return f"{host.name} off"
        case 1:
            host.line = "hangs"
        case 2:
            host.line = "cut"
    return f"{host.name} {host.line}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [int(each) for each in os.environ.get("SEEDS", "1").split(",")])
def test_after_any_storm_everything_runs_once(rig, seed: int) -> None:
    dice = random.Random(seed)
    rig.add("h1", "h2", "h3", num_gpus=2)
    models = [rig.model("m", 4, engine="vllm")]
    happened = []
    client = rig.up(rig.settings(models=models))
    rig.reaches(client, ClusterState.READY)
    for _ in range(STEPS):
        match dice.randrange(5):
            case 0 | 1:
                happened.append(kill_something(rig, dice))
            case 2 | 3:
                happened.append(toggle(rig.hosts[dice.choice(["h1", "h2", "h3"])], dice))
            case 4:
                happened.append("new head")
                client.close()
                rig.end_head()
                client = rig.up()
        time.sleep(dice.choice([0.0, 0.3, 1.0, 5.0]))
        held = [
            (host.name, device)
            for host in rig.hosts.values()
            for each in host.agent.ledger.held().values()
            for device in each.devices
        ]
        assert len(set(held)) == len(held), happened
    for host in rig.hosts.values():
        if host.line != "up":
            host.on()
    end = time.monotonic() + 90
    while client.status().state is not ClusterState.READY:
        for each in client.status().instances:
            if each.state == "failed":
                with suppress(ConflictError, UnreachableError):  # it is being ended, or away
                    client.restart_instance(each.name)
        assert time.monotonic() < end, (happened, client.status())
        time.sleep(0.1)
    where = rig.where(client)
    expected = {name: {unit for unit, host in where.items() if host == name} for name in rig.hosts}
    rig.eventually(
        lambda: {host.name: host.alive() for host in rig.hosts.values()} == expected,
        lambda: f"{happened}: {expected}, {[h.alive() for h in rig.hosts.values()]}",
    )
    client.close()

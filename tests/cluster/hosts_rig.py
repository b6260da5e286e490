"""Several hosts in one machine: a head in a thread, an agent and a directory per host, real shims.

Hosts are `NETWORK`.11, .12, …, this process's alone. An agent can be cut off or made to hang; a
host can be switched off with all that runs on it. There is no Ray here: what is tested is what the
driver makes of agents.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec

import llx
from llx.agent import shim
from llx.agent.devices import Device, DeviceKind, DeviceLedger, Inventory, Need
from llx.agent.host_view import HostView
from llx.agent.log_file import LogPart
from llx.agent.node import Commands, NodeAgent
from llx.agent.place import Place
from llx.agent.processes import ShimRecord, list_processes
from llx.api import ClusterState, ClusterStatus, HostState
from llx.client import Cluster
from llx.cluster.fleet.agents import AgentPort, LocalAgent
from llx.cluster.launch import stop_everything
from llx.cluster.serve import HeadSeat, bind_control, serve
from llx.cluster.state_dir import StateDir, write_private
from llx.errors import ConflictError, UnreachableError
from llx.head_copy import HeadCopy
from llx.settings import ClusterSettings, dump_cluster, load_cluster
from llx.specs import GatewaySpec, InstanceSpec

FAKES = Path(__file__).parent / "fakes"

# Loopback is large: two runs of these tests at once do not meet.
NETWORK = f"127.{64 + os.getpid() // 250 % 128}.{1 + os.getpid() % 250}"


class Link:
    """An agent at the end of a line that can be cut, or hang."""

    def __init__(self, host: "FakeHost") -> None:
        self._to = host

    @property
    def host(self) -> str:
        return self._to.name

    async def _reach(self) -> AgentPort:
        match self._to.line:
            case "cut":
                raise UnreachableError(f"{self.host}: the line is cut")
            case "hangs":
                await asyncio.sleep(3600)
        assert self._to.agent is not None
        return LocalAgent(self._to.agent)

    async def observe(self) -> HostView:
        view = await (await self._reach()).observe()
        await self._reach()  # nor does an answer come through a line that was cut meanwhile
        release = self._to.release or view.llx_version
        return msgspec.structs.replace(view, llx_version=release)

    async def start_instance(
        self, spec: InstanceSpec, needs: Sequence[Need], cores_each: int | None
    ) -> list[str]:
        agent = await self._reach()
        if spec.name == self._to.dies_of:
            self._to.line = "cut"
            raise UnreachableError(f"{self.host}: its agent is gone")
        if self._to.refuses:
            raise ConflictError(f"{spec.name} needs GPUs, none is free")
        return await agent.start_instance(spec, needs, cores_each)

    async def start_gateway(self, spec: GatewaySpec) -> None:
        await (await self._reach()).start_gateway(spec)

    async def stop(self, name: str, grace_s: float) -> ShimRecord | None:
        call = asyncio.ensure_future((await self._reach()).stop(name, grace_s))
        while not call.done():
            if self._to.line != "up":  # as when the agent dies while somebody waits for it
                raise UnreachableError(f"{self.host}: its agent is gone")
            await asyncio.wait([call], timeout=0.05)
        return call.result()

    async def release(self, name: str) -> None:
        await (await self._reach()).release(name)

    async def forget(self, name: str) -> None:
        await (await self._reach()).forget(name)

    async def keep_copy(self, copy: HeadCopy) -> None:
        await (await self._reach()).keep_copy(copy)

    async def read_log(self, name: str, offset: int | None, limit: int, tail: int) -> LogPart:
        return await (await self._reach()).read_log(name, offset, limit, tail)


class FakeHost:
    """One host."""

    def __init__(self, rig: "HostsRig", name: str, number: int, num_gpus: int) -> None:
        self.name = name
        self.state = StateDir(rig.root / name)
        self.state.create()
        self.state.keys.unlink()
        self.state.keys.write_bytes(rig.keys)
        self.state.keys.chmod(0o600)
        self.line = "up"
        self.dies_of = ""
        """An instance that takes its agent along when it is started."""
        self.refuses = False
        """It has no devices for anybody, whatever it shows."""
        self.release = ""
        """Of its agent; empty: the head's."""
        self.agent: NodeAgent | None = None
        self._rig = rig
        self._address = f"{NETWORK}.{number}"
        self._inventory = Inventory(
            DeviceKind.GPU if num_gpus else DeviceKind.CPU,
            tuple(Device(f"{name}-{i}", f"{i}: X") for i in range(num_gpus or 2)),
        )
        self.new_agent()

    def new_agent(self) -> None:
        """As after the agent's death: nothing is remembered but what lies on disk."""
        python = sys.executable
        self.agent = NodeAgent(
            self.state.procs,
            DeviceLedger(self.state.devices, self._inventory, lambda: self._inventory),
            Commands(
                (python, str(FAKES / "fake_instance.py")), (python, str(FAKES / "fake_gateway.py"))
            ),
            self._rig.environment,
            place=Place(self.name, self._address, "cpu", "/models", (21100, 21999)),
        )

    def lend_gpus(self) -> None:
        """Somebody outside llx uses them from now on; the agent has not looked yet."""
        devices = [replace(each, used_mib=70_000) for each in self._inventory.devices]
        self._inventory = replace(self._inventory, devices=tuple(devices))

    def alive(self) -> set[str]:
        return {each.name for each in list_processes(self.state.procs) if each.is_alive()}

    def pid(self, name: str) -> int:
        (found,) = [each for each in list_processes(self.state.procs) if each.name == name]
        return found.status().child_pid

    def log(self, name: str) -> str:
        path = self.state.procs / name / "log"
        return path.read_text() if path.exists() else ""

    def off(self) -> None:
        """Everything there is gone at once."""
        self.line = "cut"
        for process in list_processes(self.state.procs):
            record = process.status()
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.shim_pid, signal.SIGKILL)

    def on(self) -> None:
        self.new_agent()
        self.line = "up"


class HostsRig:
    """A cluster on such hosts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = StateDir(root / "head-state")
        self.state.create()
        self.keys = self.state.keys.read_bytes()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "PYTHONPATH": str(Path(llx.__file__).parents[1]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.hosts: dict[str, FakeHost] = {}
        self.removed: list[str] = []
        self.url = ""
        self.line_port = 21009
        self._head: _Head | None = None

    # -------------------------------------------------- agents source

    def agent(self, host: str) -> AgentPort:
        return Link(self.hosts[host])

    async def remove(self, host: str) -> None:
        self.removed.append(host)

    # -------------------------------------------------- arranging

    def add(self, *names: str, num_gpus: int = 0) -> None:
        for name in names:
            self.hosts[name] = FakeHost(self, name, 11 + len(self.hosts), num_gpus)

    def settings(self, *hosts: str, **changes: Any) -> ClusterSettings:
        values = {
            "cluster": "c",
            "hosts": list(hosts or self.hosts),
            "models": [self.model("m", 2)],
            "control": {"port": 0},
            "gateway": {"host": "0.0.0.0"},
            **changes,
        }
        return ClusterSettings.model_validate(values)

    def model(self, name: str, count: int, **more: object) -> dict[str, object]:
        return {
            "name": name,
            "model": "/m",
            "engine": "sim",
            "instances": count,
            "engine_args": {"is_idle": True},
            **more,
        }

    def up(self, settings: ClusterSettings | None = None) -> Cluster:
        """A head; of the settings given, else of those on disk."""
        if settings is not None:
            write_private(self.state.settings, dump_cluster(settings))
        self._head = _Head(self)
        return self.client()

    def client(self) -> Cluster:
        assert self._head is not None
        return Cluster(self._head.wait_ready(), self.state.keep_or_new_token())

    def end_head(self) -> bool:
        """End the head alone; returns whether it says that the cluster was stopped."""
        assert self._head is not None
        return self._head.end()

    def release_head(self) -> "_Head":
        """The head, which goes on while another one is brought up; whoever gets it ends it."""
        assert self._head is not None
        head, self._head = self._head, None
        return head

    def alive(self) -> set[str]:
        """What runs on all hosts."""
        return {name for host in self.hosts.values() for name in host.alive()}

    def close(self) -> None:
        if self._head is not None:
            self._head.end()
        for host in self.hosts.values():
            stop_everything(host.state.path, 0)
            for process in list_processes(host.state.procs):
                shim.kill_marked(process.status().mark)

    # -------------------------------------------------- looking

    def reaches(
        self, client: Cluster, state: ClusterState, timeout_s: float = 60.0
    ) -> ClusterStatus:
        found: list[ClusterStatus] = []

        def check() -> bool:
            found[:] = [client.status()]
            return found[0].state is state

        self.eventually(check, lambda: f"{state}, but {found[0]}", timeout_s)
        return found[0]

    def eventually(
        self, check: Callable[[], bool], what: str | Callable[[], str], timeout_s: float = 60.0
    ) -> None:
        end = time.monotonic() + timeout_s
        while not check():
            assert time.monotonic() < end, (
                f"not in time: {what if isinstance(what, str) else what()}"
            )
            time.sleep(0.02)

    def where(self, client: Cluster) -> dict[str, str]:
        status = client.status()
        return {each.name: each.host for each in [*status.gateways, *status.instances]}


class _Head:
    """A head in a thread of its own."""

    def __init__(self, rig: HostsRig) -> None:
        self._rig = rig
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._is_ready = threading.Event()
        self._url = ""
        self._result: bool | BaseException = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        rig = self._rig
        try:
            with bind_control(0) as listener:
                rig.state.keep_or_new_token()
                seat = HeadSeat(
                    load_cluster(rig.state.settings), rig.state, "cpu", rig.state.raise_term(),
                    f"tcp://{NETWORK}.11:{rig.line_port}",
                )  # fmt: skip
                serving = serve(
                    seat, rig, listener=listener, ending=self._ending, on_ready=self._on_ready
                )
                self._result = self._loop.run_until_complete(serving)
        except BaseException as error:  # noqa: BLE001 - the test shall see it
            self._result = error
        finally:
            self._is_ready.set()
            self._loop.close()

    def _on_ready(self, url: str) -> None:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port), 5):
            self._url = url  # from now on nobody is refused
        self._is_ready.set()

    def wait_ready(self) -> str:
        assert self._is_ready.wait(120), "no head"
        if isinstance(self._result, BaseException):
            raise self._result
        return self._url

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def end(self) -> bool:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(60)
        assert not self._thread.is_alive(), "the head does not end"
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result


def make_rig(root: Path) -> Iterator[HostsRig]:
    """For a fixture."""
    made = HostsRig(root)
    yield made
    made.close()


def events(rig: HostsRig, kind: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in rig.state.events.read_text().splitlines()]
    return [each for each in lines if each["kind"] == kind]


def host_state(client: Cluster, name: str) -> HostState:
    (found,) = [each for each in client.status().hosts if each.name == name]
    return found.state


def is_busy(client: Cluster, name: str) -> bool:
    """Whether an instance has the two requests of a busy one; its load may not be known yet."""
    load = client.instance(name).load
    return load is not None and load.running == 2


def put(client: Cluster, settings: ClusterSettings) -> list[str]:
    return client.put_settings(dump_cluster(settings), user="ann")

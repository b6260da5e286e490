"""A head over the instances of crowds, which run already: ``python -m tests.bench.crowd_head DIR``.

Its parts are those of `llx.cluster.serve`, with an agent that starts nothing: asked for an instance
it names the addresses of the one of that name (``addresses.json`` in DIR), asked for a gateway it
says that it runs. How many load reports have come so far is in ``reports``. ``profile.txt``, if it
is there at the beginning, gets what the event loop's time went to.
"""

import asyncio
import contextlib
import cProfile
import json
import os
import pstats
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from llx import __version__
from llx.agent.devices import Device, DeviceKind, Inventory, Need
from llx.agent.host_view import HostView, Observed
from llx.agent.link import InstanceLink
from llx.agent.log_file import LogPart
from llx.agent.place import HERE
from llx.agent.processes import ProcessState, ShimRecord
from llx.cluster.driving.driver import ClusterDriver
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.gateway_line import GatewayLine
from llx.cluster.fleet.load_watch import LoadWatch
from llx.cluster.serve import HeadSeat, bind_control, drive, make_fleet
from llx.cluster.state_dir import StateDir, TokenFile
from llx.core.model import InstanceLoad
from llx.curve import ClusterKeys
from llx.errors import NotFoundError
from llx.garbage import leave_what_is_here
from llx.log import configure_logging
from llx.open_files import raise_file_limit
from llx.pins import VLLM_VERSION
from llx.settings import load_cluster
from llx.specs import GatewaySpec, InstanceSpec, Phase, ProcessStatus

_CORES = Inventory(DeviceKind.CPU, (Device("cpu-0", "0"), Device("cpu-1", "1")))


class CrowdAgent:
    """`AgentPort` and `AgentsSource` of the one host."""

    host = HERE

    def __init__(self, addresses: dict[str, list[str]]) -> None:
        self._addresses = addresses
        self._processes: dict[str, Observed] = {}

    def agent(self, _host: str) -> "CrowdAgent":
        return self

    async def remove(self, _host: str) -> None: ...

    async def observe(self) -> HostView:
        return HostView(
            host=HERE, address="127.0.0.1", platform="cpu", inventory=_CORES, held={},
            processes=dict(self._processes), cpu_count=2, memory_total_bytes=1 << 34,
            memory_free_bytes=1 << 33, disk_free_bytes=1 << 34, llx_version=__version__,
            vllm_version=VLLM_VERSION,
        )  # fmt: skip

    async def start_instance(
        self, spec: InstanceSpec, _needs: Sequence[Need], _cores_each: int | None
    ) -> list[str]:
        self._enter(spec, self._addresses[spec.name])
        return ["cpu-0"]

    async def start_gateway(self, spec: GatewaySpec) -> None:
        self._enter(spec, ["http://127.0.0.1:1"])

    def _enter(self, spec: InstanceSpec | GatewaySpec, addresses: list[str]) -> None:
        record = ShimRecord(1, 1, 1, 1, ProcessState.RUNNING, time.time(), spec.name)
        said = ProcessStatus(Phase.READY, addresses=addresses, pid=1, at=time.time())
        self._processes[spec.name] = Observed(spec.name, spec, record, said)

    async def stop(self, name: str, _grace_s: float) -> ShimRecord | None:
        found = self._processes.pop(name, None)
        return None if found is None else found.record

    async def release(self, _name: str) -> None: ...

    async def forget(self, _name: str) -> None: ...

    async def read_log(self, name: str, _offset: int | None, _limit: int, _tail: int) -> LogPart:
        raise NotFoundError(f"{name}: instances of a crowd have no log of their own")


class CountingWatch(LoadWatch):
    """Counts load reports, for which nothing in the product has a use."""

    num_reports = 0

    def on_load(self, link: InstanceLink, load: InstanceLoad) -> None:
        """One more."""
        self.num_reports += 1
        super().on_load(link, load)

    async def tell(self, path: Path) -> None:
        """Keep the number in a file; of one width, so that it is whole whenever it is read."""
        with path.open("wb", buffering=0) as file:
            while True:
                os.pwrite(file.fileno(), b"%012d" % self.num_reports, 0)
                await asyncio.sleep(0.1)


async def run(folder: Path) -> None:
    state = StateDir(folder / "state")
    agent = CrowdAgent(json.loads((folder / "addresses.json").read_text()))
    keys = ClusterKeys.load(state.keys)
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    term = state.raise_term()
    state.new_token()
    with bind_control(0) as listener, contextlib.closing(GatewayLine(keys, term)) as line:
        loads = CountingWatch(keys, term)
        telling = asyncio.create_task(loads.tell(folder / "reports"))
        address = await line.bind((folder / "line").read_text())
        seat = HeadSeat(load_cluster(state.settings), state, "cpu", term, address)
        fleet = make_fleet(seat, agent, line, loads, address)
        driver = ClusterDriver(fleet, agent, AuditTrail(state.events), state)

        def begun(url: str) -> None:
            leave_what_is_here()
            (folder / "url").write_text(url)

        await drive(driver, TokenFile(state.token), listener, ending, begun)
        telling.cancel()
        await loads.close()


@contextlib.contextmanager
def profiled(path: Path) -> Iterator[None]:
    """Where the time of this thread goes, if anybody wants to know."""
    if not path.exists():
        yield
        return
    profile = cProfile.Profile(time.process_time)
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        with path.open("w") as file:
            pstats.Stats(profile, stream=file).sort_stats("tottime").print_stats(60)


def main() -> int:
    folder = Path(sys.argv[1])
    configure_logging()
    raise_file_limit()
    with profiled(folder / "profile.txt"):
        asyncio.run(run(folder))
    return 0


if __name__ == "__main__":
    code = main()
    os._exit(code)

"""A head over the instances of crowds, which run already: ``python -m tests.bench.crowd_head DIR``.

It is `llx.cluster.serve` with an agent that starts nothing: asked for an instance it names the
addresses of the one of that name (``addresses.json`` in DIR), asked for a gateway it says that it
runs. ``profile.txt``, if it is there at the beginning, gets what the event loop's time went to.
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
from llx.cluster.fleet.load_watch import LoadWatch
from llx.cluster.serve import HeadSeat, bind_control, serve
from llx.cluster.state_dir import StateDir
from llx.core.model import InstanceLoad
from llx.errors import NotFoundError
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


class Counting:
    """Counts load reports, for which nothing in the product has a use."""

    def __init__(self, path: Path) -> None:
        self._path, self._on_load, self._count = path, LoadWatch.on_load, 0
        LoadWatch.on_load = lambda *given: self._one_more(*given)  # type: ignore[method-assign]

    def _one_more(self, watch: LoadWatch, link: InstanceLink, load: InstanceLoad) -> None:
        self._count += 1
        self._on_load(watch, link, load)

    async def write(self) -> None:
        while True:
            new = self._path.with_suffix(".new")
            new.write_text(f"{self._count}")
            new.replace(self._path)
            await asyncio.sleep(0.1)


async def run(folder: Path) -> None:
    writing = asyncio.create_task(Counting(folder / "reports").write())
    state = StateDir(folder / "state")
    agent = CrowdAgent(json.loads((folder / "addresses.json").read_text()))
    address = (folder / "line").read_text()
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    with bind_control(0) as listener:
        seat = HeadSeat(
            load_cluster(state.settings), state, "cpu", state.raise_term(), state.new_token(),
            address,
        )  # fmt: skip
        await serve(
            seat, agent, listener=listener, ending=ending,
            on_ready=lambda url: (folder / "url").write_text(url) and None,
        )  # fmt: skip
    writing.cancel()


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

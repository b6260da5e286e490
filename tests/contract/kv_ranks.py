"""Processes that are ranks: forked from one that has imported everything already.

    python -m tests.contract.kv_ranks      a line in: a store; out: its rank's address

A rank lives until its core goes. All end with the test process, however that ends.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llx.agent.transport.remote import connect_ranks
from llx.agent.transport.worker import RankAddress, serve_rank
from llx.secret import Secret
from llx.wire import Route
from tests.contract.kv_rig import (
    BLOCK_BYTES,
    NUM_BLOCKS,
    SPEC,
    BytesStore,
    End,
    Heard,
    wait_until,
)
from tests.node import ROOT


@dataclass(frozen=True)
class RankProcess:
    """One of them."""

    pid: int
    address: RankAddress

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait_gone(self) -> None:
        wait_until(lambda: not Path(f"/proc/{self.pid}").exists())


class Nursery:
    """The process they are forked from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.kv_ranks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def start(self, path: Path) -> RankProcess:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(path, file=self._process.stdin, flush=True)
        pid, control, secret, route = json.loads(self._process.stdout.readline())
        address = RankAddress(control, Secret(secret), msgspec.convert(route, Route))
        return RankProcess(pid, address)

    def close(self) -> None:
        self._process.communicate(timeout=60)


@dataclass
class EndElsewhere(End):
    """An instance whose ranks are such processes; their stores are files that the test maps."""

    processes: list[RankProcess]


def end_elsewhere(nursery: Nursery, folder: Path, num_ranks: int) -> EndElsewhere:
    heard = Heard()
    folder.mkdir(exist_ok=True)
    paths = [folder / f"rank{rank}.kv" for rank in range(num_ranks)]
    stores = [BytesStore(NUM_BLOCKS, BLOCK_BYTES, path=path) for path in paths]
    processes = [nursery.start(path) for path in paths]
    transport = connect_ranks([process.address for process in processes], heard)
    return EndElsewhere(transport, heard, stores, processes)


def be_rank(path: Path) -> None:
    store = BytesStore(NUM_BLOCKS, BLOCK_BYTES, path=path)
    address = serve_rank(store, SPEC, "127.0.0.1")
    route = msgspec.to_builtins(address.route)
    print(json.dumps([os.getpid(), address.control, address.secret.reveal(), route]), flush=True)
    for thread in threading.enumerate():
        if thread.name == "kv-control":
            thread.join()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            try:
                be_rank(Path(line.strip()))
            finally:
                os._exit(0)


if __name__ == "__main__":
    main()

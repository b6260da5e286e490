"""Processes under torment: forked from a zygote, held by their reins, killed by their pid."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections import deque
from pathlib import Path

from tests import node
from tests.chaos.control import Message, Reins

_BORN_S = 240.0
_DEAD_S = 30.0


class Child:
    """One process. What it has said and nobody has asked for yet is in `said`."""

    def __init__(self, name: str, pid: int, reins: Reins, log: Path) -> None:
        self.name = name
        self.pid = pid
        self.reins = reins
        self.log = log
        self.said: deque[Message] = deque()
        self.is_alive = True
        self._pidfd = os.pidfd_open(pid)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if not self.is_alive:
            return
        self.is_alive = False
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        is_gone, _, _ = select.select([self._pidfd], [], [], _DEAD_S)
        assert is_gone, f"{self.name} does not die"
        os.close(self._pidfd)
        self.reins.close()

    def state(self) -> str:
        """As in ps: ``T`` is stopped."""
        text = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii")
        return text.rpartition(")")[2].split()[0]


class Zygote:
    """The process that all others are forked from. `fork` may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        prefix = os.environ.get("LLX_NODE_PREFIX")
        assert prefix, "the fault matrix needs LLX_NODE_PREFIX: run it with `make test`"
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._log = folder / "zygote.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [f"{prefix}/bin/python", "-m", "tests.chaos.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | node.node_environment(),
                cwd=node.ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        theirs.close()
        self._orders.settimeout(_BORN_S)
        answer = self._orders.recv(16)
        assert answer == b"ready", self._log.read_text(errors="replace")[-4000:]

    def fork(self, name: str, main: str, argument: Path, log: Path) -> Child:
        """A process that runs `main` of `tests.chaos.zygote.MAINS`."""
        ours, theirs = socket.socketpair()
        order = json.dumps({"main": main, "argument": str(argument), "log": str(log)})
        with theirs, self._lock:
            socket.send_fds(self._orders, [order.encode()], [theirs.fileno()])
            pid = int(self._orders.recv(16))
        return Child(name, pid, Reins(ours), log)

    def close(self) -> None:
        """End it, and with it all that still runs."""
        self._process.kill()
        self._process.wait()
        self._orders.close()

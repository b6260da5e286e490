"""``python -m tests.chaos.zygote FD``: imports once what takes seconds, and forks on demand.

An order is one datagram of JSON, ``{"main": "instance" or "gateway", "argument": …, "log": …}``,
with the file descriptor of the child's control socket beside it; the answer is the child's pid.
"""

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
import threading
import traceback

from tests.chaos import faulty_gateway, faulty_instance
from tests.chaos.control import Control

MAINS = {"instance": faulty_instance.main, "gateway": faulty_gateway.main}
_PR_SET_PDEATHSIG = 1
_MAX_ORDER_BYTES = 1 << 16


def main(orders: socket.socket) -> None:
    """Fork until the test hangs up."""
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    assert threading.active_count() == 1, "what is forked must not have had threads"
    gc.freeze()
    orders.send(b"ready")
    while True:
        data, fds, _, _ = socket.recv_fds(orders, _MAX_ORDER_BYTES, 1)
        if not data:
            return
        order = json.loads(data)
        pid = os.fork()
        if pid == 0:
            orders.close()
            _child(order, fds[0])
        os.close(fds[0])
        orders.send(str(pid).encode())


def _child(order: dict[str, str], fd: int) -> None:
    code = 1
    with contextlib.suppress(BaseException):
        _die_with_parent()
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        try:
            control = Control(socket.socket(fileno=fd))
            code = MAINS[order["main"]](control, order["argument"])
        except BaseException:
            traceback.print_exc()
            raise
    os._exit(code)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))

"""Ports of this machine for tests in which nobody listens yet."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections and that nobody else is given meanwhile.

    Whoever sets `SO_REUSEADDR`, as ZeroMQ and servers do, can bind to it and listen.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]

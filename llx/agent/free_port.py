"""A free port within a range, whatever kind of socket is bound to it."""

import errno
import random
from collections.abc import Callable
from typing import TypeVar

import zmq

from llx.errors import ConflictError

T = TypeVar("T")


def bind_within(bind: Callable[[int], T], host: str, port_range: tuple[int, int]) -> T:
    """What `bind` returns of the first free port of the range, tried one after another.

    Begins anywhere in it: peers of an instance that has just ended still dial its port.

    Args:
        bind: Binds to that port of `host`; raises OSError or ZMQError if it cannot.
        host: An IP address.
        port_range: First and last port.

    Raises:
        ConflictError: No port of the range is free, or the address is not this host's.
    """
    first, last = port_range
    count = last - first + 1
    start = random.randrange(count)
    for step in range(count):
        try:
            return bind(first + (start + step) % count)
        except (OSError, zmq.ZMQError) as error:
            if error.errno != errno.EADDRINUSE:
                raise ConflictError(f"{host} cannot be listened on: {error}") from None
    raise ConflictError(
        f"{host}: every port from {first} to {last} is taken",
        remedy="choose another network.first_port",
    )

"""Sockets of the KV transport: how they are made, tuned, filled and read. No frames here.

All are blocking, with the kernel's own timeouts: a large send or receive is one system call and one
hand-over of the interpreter's lock. To wake a thread that is in one, another shuts the socket down;
only its own thread closes it.
"""

import contextlib
import os
import select
import socket
import struct
from pathlib import Path

from llx.agent.free_port import bind_within
from llx.errors import UnreachableError

CONNECT_TIMEOUT_S = 3.0
SILENCE_S = 30.0
"""No progress at all for so long, inside a frame or in front of an answer, is a dead peer."""
_USER_TIMEOUT_MS = 5000
"""Bytes unacknowledged for so long end a TCP connection."""
_KEEPALIVE_IDLE_S, _KEEPALIVE_INTERVAL_S, _KEEPALIVE_COUNT = 2, 1, 3
_BACKLOG = 64
_CREDENTIALS = struct.Struct("3i")
_TIMEVAL = struct.Struct("ll")


def host_id() -> str:
    """Equal for two processes that can reach each other by an abstract unix socket.

    Those are of one boot of one kernel, one network namespace (which scopes the names) and one user
    (whom the listener insists on).
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/net').stat().st_ino}/{os.getuid()}"


def listen_tcp(host: str, port_range: tuple[int, int] | None) -> socket.socket:
    """A listener at an IP address, on a port within (first, last); None: as the system chooses.

    Raises:
        ConflictError: No port of the range is free, or the address is not this host's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def listen(port: int) -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener

    return bind_within(listen, host, port_range or (0, 0))


def listen_local(prefix: str) -> tuple[socket.socket, str]:
    """A listener on an abstract unix socket of a fresh name that nobody can guess, and the name."""
    name = f"{prefix}-{os.urandom(12).hex()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{name}")
    listener.listen(_BACKLOG)
    return listener, name


def address_of(listener: socket.socket) -> str:
    """``host:port``, an IPv6 address in brackets."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect_tcp(address: str) -> socket.socket:
    """A tuned connection to ``host:port``.

    Raises:
        UnreachableError: Nobody is there, or not in time.
    """
    host, _, port = address.rpartition(":")
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S)
    except (OSError, ValueError, OverflowError) as error:
        raise UnreachableError(f"{address} cannot be reached for KV: {error}") from None
    connection.settimeout(None)
    tune(connection)
    return connection


def connect_local(name: str) -> socket.socket:
    """A connection to the abstract unix socket of that name.

    Raises:
        UnreachableError: Nobody of this user is there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_TIMEOUT_S)
    try:
        connection.connect(f"\0{name}")
        connection.settimeout(None)
        if not is_same_user(connection):
            raise PermissionError("it is another user's")
    except (OSError, ValueError) as error:
        connection.close()
        raise UnreachableError(f"{name} cannot be reached within the host: {error}") from None
    return connection


def is_same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end of a unix socket is this user's."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(raw)[1] == os.getuid())


def tune(connection: socket.socket) -> None:
    """No delay, and a peer that vanishes without a word is noticed within seconds."""
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS),
        (socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, _KEEPALIVE_COUNT),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def limit_waits(connection: socket.socket, *, send_s: float, receive_s: float) -> None:
    """The kernel's timeouts; 0: wait for ever. A call that runs into one raises OSError."""
    for option, seconds in ((socket.SO_SNDTIMEO, send_s), (socket.SO_RCVTIMEO, receive_s)):
        whole = int(seconds)
        value = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, option, value)


def receive_into(connection: socket.socket, view: memoryview) -> None:
    """Fill `view` to its end.

    Raises:
        ConnectionError: The peer hung up first.
        OSError: The connection broke, or nothing came in time.
    """
    filled, size = 0, len(view)
    while filled < size:
        count = connection.recv_into(view[filled:], size - filled, socket.MSG_WAITALL)
        if count == 0:
            raise ConnectionResetError("the peer hung up")
        filled += count


def receive_parts(connection: socket.socket, first: memoryview, second: memoryview) -> None:
    """Fill both, as a rule in one system call; raises as `receive_into`."""
    count, *_ = connection.recvmsg_into([first, second], 0, socket.MSG_WAITALL)
    if count == 0:
        raise ConnectionResetError("the peer hung up")
    receive_into(connection, first[count:])
    receive_into(connection, second[max(0, count - len(first)) :])


def receive(connection: socket.socket, size: int) -> bytearray:
    """Exactly `size` bytes; raises as `receive_into`."""
    data = bytearray(size)
    receive_into(connection, memoryview(data))
    return data


def has_hung_up(connection: socket.socket) -> bool:
    """Whether either end has hung up, or the peer is known to be dead; at once."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def peek(connection: socket.socket, size: int) -> bytes:
    """The next bytes, at most `size`, left where they are; empty if nothing has come yet."""
    try:
        return connection.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""


def in_words(error: OSError) -> str:
    """What a socket's error means here: that a wait of it was too long has a strange name."""
    return "it did not go on in time" if isinstance(error, BlockingIOError) else str(error)


def hang_up(connection: socket.socket) -> None:
    """Wake whoever waits on it; from any thread, before its own one closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)

"""What an SSH connection runs over: a TCP socket, a channel of a jump host, or a ProxyCommand.

A `Wire` notices when the other end has fallen silent, whatever is between. No SSH in here.
"""

import contextlib
import errno
import socket
import subprocess
import time
from typing import Protocol

from llx.bootstrap.ssh_target import ConnectError, ConnectFailure, SshTarget

SILENCE_S = 5.0
"""How long a host that was asked something may say nothing at all."""

_CARRIER_SILENCE_S = 2.0
"""A carrier that was asked every second and said nothing for this long is in doubt itself."""

_TCP_USER_TIMEOUT = 18  # <linux/tcp.h>; not in `socket` everywhere


class Endpoint(Protocol):
    """A socket or what looks like one."""

    def recv(self, size: int, /) -> bytes:
        """Some bytes; empty at the end."""

    def send(self, data: bytes, /) -> int:
        """Send some; how many."""

    def settimeout(self, timeout_s: float | None, /) -> None:
        """Longest wait of the other two."""

    def close(self) -> None:
        """End it."""


class Wire:
    """An endpoint that fails when nothing comes for `SILENCE_S` once it is watched.

    Only time spent waiting counts: a process that was stopped or a laptop that slept is no silence.

    Args:
        endpoint: What bytes go through.
        carrier: The wire that `endpoint` runs over, of a jump host. While nothing comes on that
            one either, the silence is its own to judge, so that the host named is the one to blame.
        process: The ProxyCommand at the other end of `endpoint`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        carrier: "Wire | None" = None,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._carrier = carrier
        self._process = process
        self._is_watched = False
        self._waited_s = 0.0
        self._closed = False  # read by paramiko
        self.failure: str | None = None
        """Why nothing comes any more; None while it does, or when we closed it."""

    def watch(self) -> None:
        """From here on the other end is asked something every second."""
        self._is_watched = True

    def recv(self, size: int) -> bytes:
        """As a socket's.

        Raises:
            ConnectionAbortedError: The other end is silent.
        """
        before = time.monotonic()
        try:
            data = self._endpoint.recv(size)
        except TimeoutError as error:
            if error.errno is not None:  # the kernel's verdict, not ours
                self._fail(f"no answer for {SILENCE_S:.0f} s")
            self._waited_s += min(time.monotonic() - before, 0.5)
            if self._is_silent(SILENCE_S) and not self._is_carrier_silent():
                self._fail(f"no answer for {SILENCE_S:.0f} s")
            raise
        except OSError as error:
            self.failure = self.failure or error.strerror or str(error)
            raise
        self._waited_s = 0.0
        if not data and self.failure is None and not self._closed:
            self.failure = "it was closed by the host"
        return data

    def send(self, data: bytes) -> int:
        """As a socket's. The kernel's verdict over a silent host may come here as well."""
        try:
            return self._endpoint.send(data)
        except TimeoutError as error:
            if error.errno is not None:
                self._fail(f"no answer for {SILENCE_S:.0f} s")
            raise
        except OSError as error:
            self.failure = self.failure or error.strerror or str(error)
            raise

    def settimeout(self, timeout_s: float | None) -> None:
        """As a socket's."""
        self._endpoint.settimeout(timeout_s)

    def close(self) -> None:
        """End it, and the ProxyCommand."""
        self._closed = True
        self._endpoint.close()
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def _is_silent(self, for_s: float) -> bool:
        return self._is_watched and self._waited_s >= for_s

    def _is_carrier_silent(self) -> bool:
        return self._carrier is not None and self._carrier._is_silent(_CARRIER_SILENCE_S)

    def _fail(self, failure: str) -> None:
        self.failure = failure
        raise ConnectionAbortedError(errno.ECONNABORTED, failure)


def dial(target: SshTarget, timeout_s: float) -> Wire:
    """Connect to `target` itself.

    Raises:
        ConnectError: Says why it cannot be.
    """
    if target.proxy_command is not None:
        return _through_command(target, target.proxy_command)
    try:
        found = socket.getaddrinfo(target.address, target.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ConnectError(
            f"{target.label}{target.address}: {getattr(error, 'strerror', None) or error}",
            host=target.name,
            failure=ConnectFailure.NAME,
            remedy=f"correct the `address` of {target.name}, or its entry in ~/.ssh/config",
        ) from None
    deadline = time.monotonic() + timeout_s
    failure: OSError = TimeoutError()
    for number, (family, kind, protocol, _, address) in enumerate(found):
        connection = socket.socket(family, kind, protocol)
        try:
            # A fair part for each: one that swallows everything must not take it all.
            left_s = (deadline - time.monotonic()) / (len(found) - number)
            connection.settimeout(max(0.5, left_s))
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
            continue
        except BaseException:
            connection.close()
            raise
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # Linux only; the watch covers the rest
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, round(SILENCE_S * 1000))
        return Wire(connection)
    raise _refusal(target, failure, timeout_s) from None


def _through_command(target: SshTarget, command: str) -> Wire:
    ours, theirs = socket.socketpair()
    with theirs:
        # ssh_config's own: the user's shell line, as `ssh` runs it.
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            start_new_session=True,
        )
    return Wire(ours, process=process)


def _refusal(target: SshTarget, error: OSError, timeout_s: float) -> ConnectError:
    place = f"{target.address} port {target.port}"
    is_on = f"is the machine on, and {target.address} right? try: ssh {target}"
    match error:
        case ConnectionRefusedError():
            reason, failure = "connection refused", ConnectFailure.REFUSED
            remedy = f"is sshd running there, on port {target.port}?"
        case TimeoutError():
            reason, failure = f"no answer for {timeout_s:.0f} s", ConnectFailure.TIMEOUT
            remedy = is_on
        case _:
            reason, failure = error.strerror or str(error), ConnectFailure.UNREACHABLE
            remedy = is_on
    return ConnectError(
        f"{target.label}{place}: {reason}", host=target.name, failure=failure, remedy=remedy
    )

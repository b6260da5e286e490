"""`llx.bootstrap.tunnel` over a real connection: HTTP, events, half-closed ends, endings."""

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from llx.bootstrap.ssh import SshShell, Tunnel, connect, resolve
from llx.environment import Environment
from llx.errors import UnreachableError
from llx.settings import HostSettings
from tests.hosts.rig import HERE, Rig, python_binds

pytestmark = pytest.mark.hosts

PORT = 8900


@pytest.fixture
def rig(hosts: Callable[..., Rig]) -> Iterator[Rig]:
    rig = hosts(1, binds=(*python_binds(Path(sys.executable)), HERE))
    server = rig["h1"].spawn(
        sys.executable, str(HERE / "echo_server.py"), str(PORT), stdout=subprocess.PIPE
    )
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield rig
        server.kill()


def connected(rig: Rig) -> SshShell:
    environment = Environment(rig.operator_environment(), Path.cwd())
    (host,) = rig.cluster_hosts()
    target = resolve(HostSettings.model_validate(host), environment)
    return connect(target, ask=lambda *_: False)


@pytest.fixture
def shell(rig: Rig) -> Iterator[SshShell]:
    with connected(rig) as shell:
        yield shell


@pytest.fixture
def tunnel(shell: SshShell) -> Iterator[Tunnel]:
    with Tunnel(shell, "127.0.0.1", PORT) as tunnel:
        yield tunnel


def client(tunnel: Tunnel) -> httpx.Client:
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=tunnel.path), base_url="http://head", timeout=30
    )


def dialled(tunnel: Tunnel) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(20)
    connection.connect(tunnel.path)
    return connection


def carried(connections: list[socket.socket]) -> None:
    """Wait until the tunnel has taken over what was said: before, its close is a reset."""
    for connection in connections:
        while fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)) != bytes(4):
            time.sleep(0.01)


@contextlib.contextmanager
def used(shell: SshShell, count: int) -> Iterator[tuple[Tunnel, list[socket.socket]]]:
    """A tunnel with so many connections, each of which has said something that is there."""
    with contextlib.ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel(shell, "127.0.0.1", PORT + 1))
        connections = [stack.enter_context(dialled(tunnel)) for _ in range(count)]
        for connection in connections:
            connection.sendall(b"x")
        carried(connections)
        yield tunnel, connections


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_only_this_user_gets_to_the_socket(tunnel: Tunnel) -> None:
    assert stat.S_IMODE(Path(tunnel.path).parent.stat().st_mode) == 0o700


def test_thousands_of_events_arrive_in_order_on_several_streams(tunnel: Tunnel) -> None:
    def work(_: int) -> list[str]:
        with client(tunnel) as http, http.stream("GET", "/events/3000") as response:
            return [line for line in response.iter_lines() if line]

    wanted = [f"data: {number}" for number in range(3000)]
    with ThreadPoolExecutor(8) as pool:
        assert all(lines == wanted for lines in pool.map(work, range(8)))


def test_a_connection_serves_one_request_after_the_other(tunnel: Tunnel) -> None:
    with client(tunnel) as http:
        for size in (0, 1, 5 << 20):
            body = os.urandom(size)
            assert http.post("/sum", content=body).text == hashlib.sha256(body).hexdigest()


def test_an_end_that_has_said_all_still_hears_the_answer(shell: SshShell) -> None:
    with Tunnel(shell, "127.0.0.1", PORT + 1) as tunnel, dialled(tunnel) as connection:
        connection.sendall(bytes(3 << 20))
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(100):
            answer += data
        assert answer == b"%d" % (3 << 20)


def test_where_nothing_listens_the_connection_ends(shell: SshShell) -> None:
    with pytest.raises(UnreachableError, match=r"h1: 127.0.0.1 port 9 is not reached from there"):
        shell.dial("127.0.0.1", 9)
    with Tunnel(shell, "127.0.0.1", 9) as tunnel, dialled(tunnel) as connection:
        assert connection.recv(1) == b""


def test_a_host_that_forbids_forwarding_says_so(hosts: Callable[..., Rig]) -> None:
    rig = hosts(1, sshd="AllowTcpForwarding no")
    with (
        connected(rig) as shell,
        pytest.raises(UnreachableError, match="prohibited") as caught,
    ):
        shell.dial("127.0.0.1", PORT)
    assert "AllowTcpForwarding" in caught.value.remedy


def test_closing_ends_streams_threads_and_files(shell: SshShell) -> None:
    with used(shell, 3) as (tunnel, connections):
        tunnel.close()
        tunnel.close()
        assert not Path(tunnel.path).parent.exists()
        assert not [each for each in threading.enumerate() if each.name == "tunnel"]
        for connection in connections:
            assert connection.recv(1) == b""
    assert shell.run(["true"]).is_success


@pytest.mark.usefixtures("hasty_threads")
def test_nobody_hears_an_answer_to_an_end_that_the_tunnel_made(shell: SshShell) -> None:
    """The far end takes a tunnel that closes for an end of data, and answers it.

    An end of data behind the close of its channel makes sshd end the whole connection.
    """
    for _ in range(40):
        with used(shell, 8) as (tunnel, connections):
            tunnel.close()
            assert [connection.recv(1) for connection in connections] == [b""] * 8
    assert shell.run(["true"]).is_success


def test_a_dead_host_ends_the_streams_within_seconds(rig: Rig, shell: SshShell) -> None:
    with used(shell, 1) as (_, [connection]):
        rig["h1"].off()
        assert connection.recv(1) == b"", "within the 20 s that it waits"

"""SSH: connecting to a host with its key verified, and working on it. The only user of paramiko.

    connect   TCP, jump hosts or ProxyCommand → host key → our keys → `SshShell`
    SshShell  commands, files and ports of one host (`llx.bootstrap.ssh_shell`)

Paramiko waits for ever in many places; what ends each wait is that `Wire` breaks a silent
connection. So every connection asks its host something each second, behind jump hosts, too.
"""

import base64
import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import UnsupportedAlgorithm

from llx.bootstrap.known_hosts import HostKey
from llx.bootstrap.shell import Stream
from llx.bootstrap.ssh_host_key import AskHostKey, accept_new, is_known, wanted_types
from llx.bootstrap.ssh_shell import RemoteFile, SessionChannel, SshShell
from llx.bootstrap.ssh_target import (
    AuthError,
    ConnectError,
    ConnectFailure,
    HostKeyError,
    SshTarget,
    resolve,
)
from llx.bootstrap.ssh_wire import Wire, dial
from llx.bootstrap.tunnel import Tunnel
from llx.lean_import import without

with without("invoke"):  # a third of the import, for a reader of configuration that we do not use
    import paramiko
    from paramiko.agent import AgentSSH
    from paramiko.pkey import UnknownKeyType

__all__ = [
    "AskHostKey",
    "AuthError",
    "ConnectError",
    "ConnectFailure",
    "HostKeyError",
    "SshShell",
    "SshTarget",
    "Tunnel",
    "connect",
    "resolve",
]

_PULSE_S = 1.0
_OPEN_TIMEOUT_S = 10.0
_MAX_DROPS = 4
_STALL_S = 60.0
_CLOSE = b"\x61"  # SSH_MSG_CHANNEL_CLOSE
_REKEY_BYTES = 1 << 35
"""New keys after so much: half of what a 128-bit block cipher is good for (RFC 4344, 3.2).

Paramiko's own 512 MiB would meet every large upload, and it cannot take a channel's close in the
middle of a key exchange: it stands still until that has timed out.
"""
_LOST = (EOFError, OSError, paramiko.SSHException)


def connect(target: SshTarget, *, ask: AskHostKey, timeout_s: float = 8.0) -> SshShell:
    """Connect to `target`, through its jump hosts if it has any.

    `ask` is asked about a key that no known_hosts file has; yes writes it down.

    Raises:
        ConnectError: There is no connection: unreachable, `AuthError` or `HostKeyError`.
    """
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what it would say, our errors do
    links: list[_Link] = []
    try:
        for hop in (*target.jumps, target):
            links.append(_link(hop, links[-1] if links else None, ask, timeout_s))
    except BaseException:
        for each in reversed(links):
            each.close()
        raise
    return SshShell(target, _Chain(links))


class _Link:
    """One authenticated connection, to the host or to one on the way."""

    def __init__(self, target: SshTarget, wire: Wire) -> None:
        self.target = target
        self.wire = wire
        self.transport = paramiko.Transport(wire)  # type: ignore[arg-type]
        packetizer = self.transport.packetizer
        packetizer.REKEY_BYTES = packetizer.REKEY_BYTES_OVERFLOW_MAX = _REKEY_BYTES
        self._ended = threading.Event()
        self._failure: Exception | None = None

    @property
    def failure(self) -> str:
        """Why it broke: what the wire met, or else what SSH did not like."""
        if self._failure is None:
            self._failure = self.transport.get_exception()  # once: it is forgotten then
        said = None if self._failure is None else str(self._failure)
        return self.wire.failure or said or "it was closed by the host"

    def close(self) -> None:
        self._ended.set()
        self.transport.close()
        self.wire.close()

    def keep_alive(self) -> None:
        """From now on the host has to answer something each second."""
        self.wire.watch()
        threading.Thread(target=self._pulse, name="ssh-pulse", daemon=True).start()

    def _pulse(self) -> None:
        while not self._ended.wait(_PULSE_S) and self.transport.is_active():
            try:
                self.transport.global_request("keepalive@openssh.com", wait=True)
            except _LOST:
                return


class _Chain:
    """The last of some links, with those that it runs through: `Connection`."""

    errors = _LOST

    def __init__(self, links: Sequence[_Link]) -> None:
        self._links = links
        self._transport = links[-1].transport

    @property
    def is_active(self) -> bool:
        return self._transport.is_active()

    @property
    def failure(self) -> str:
        """Of the first link that broke: it took the others along."""
        broken = (e for e in self._links if e.wire.failure or not e.transport.is_active())
        link = next(broken, self._links[-1])
        return f"{link.target.label}{link.failure}"

    def session(self) -> SessionChannel:
        return self._opened()

    def stream(self, address: str, port: int, timeout_s: float) -> Stream:
        channel = self._transport.open_channel(
            "direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=timeout_s
        )
        return _Stream(_gated(channel))

    @contextlib.contextmanager
    def upload(self, path: str) -> Iterator[RemoteFile]:
        channel = self._opened()
        # A disk that hangs there: sshd still answers, and paramiko would wait for ever.
        channel.settimeout(_STALL_S)
        begun = threading.Timer(_STALL_S, channel.close)
        begun.start()
        try:
            channel.invoke_subsystem("sftp")
            sftp = paramiko.SFTPClient(channel)
        except BaseException:
            channel.close()
            raise
        finally:
            begun.cancel()
        try:
            with sftp, sftp.open(path, "r+") as file:
                file.set_pipelined(True)
                yield file
        except TimeoutError:
            raise TimeoutError(f"no progress for {_STALL_S:.0f} s") from None

    def close(self) -> None:
        for each in reversed(self._links):
            each.close()

    def _opened(self) -> paramiko.Channel:
        """Waits while sshd has too many: one we closed counts until it has reaped its process."""
        deadline = time.monotonic() + _OPEN_TIMEOUT_S
        while True:
            try:
                return _gated(self._transport.open_session(timeout=_OPEN_TIMEOUT_S))
            except paramiko.SSHException as error:
                if not self.is_active:
                    raise
                if time.monotonic() > deadline:
                    reason = f"its sshd opens no session ({error}); is its MaxSessions small?"
                    raise paramiko.SSHException(reason) from None
            time.sleep(0.05)


class _Gate:
    """A transport as one of its channels sees it: nothing of the channel leaves after its close.

    Paramiko makes a message under the channel's lock and sends it after that, so that data or its
    end may come behind the close that another thread has sent. Then sshd, which knows the channel
    no more, ends the whole connection.
    """

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport
        self._sending = threading.Lock()
        self._is_shut = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send_user_message(self, message: paramiko.Message) -> None:
        with self._sending:
            if not self._is_shut:
                self._is_shut = message.asbytes()[:1] == _CLOSE
                self._transport._send_user_message(message)  # type: ignore[attr-defined]


def _gated(channel: paramiko.Channel) -> paramiko.Channel:
    assert channel.transport is not None, "it has been opened"
    channel.transport = _Gate(channel.transport)  # type: ignore[assignment]
    return channel


class _Stream:
    """A channel as a socket: what paramiko raises besides OSError is one here."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def recv(self, size: int, /) -> bytes:
        with _as_os_error():
            return self._channel.recv(size)

    def send(self, data: bytes, /) -> int:
        with _as_os_error():
            return self._channel.send(data)

    def sendall(self, data: bytes, /) -> None:
        with _as_os_error():
            self._channel.sendall(data)

    def shutdown(self, how: int, /) -> None:
        with _as_os_error():
            self._channel.shutdown(how)

    def settimeout(self, timeout_s: float | None, /) -> None:
        self._channel.settimeout(timeout_s)

    def close(self) -> None:
        with contextlib.suppress(*_LOST):
            self._channel.close()


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except (EOFError, paramiko.SSHException) as error:
        raise ConnectionResetError(errno.ECONNRESET, str(error) or "connection lost") from None


def _link(hop: SshTarget, via: _Link | None, ask: AskHostKey, timeout_s: float) -> _Link:
    """Connect to `hop` and log in there, its key known or confirmed."""
    timeout_s = hop.connect_timeout_s or timeout_s
    confirmed: HostKey | None = None
    while True:
        link = _handshake(hop, via, timeout_s)
        try:
            shown = link.transport.get_remote_server_key()
            key = HostKey(shown.get_name(), shown.asbytes())
            if key == confirmed or is_known(hop, key):
                _log_in(link)
                link.keep_alive()
                return link
        except BaseException:
            link.close()
            raise
        # Who is asked may take minutes: more than a host waits.
        link.close()
        accept_new(hop, key, ask)
        confirmed = key


def _handshake(hop: SshTarget, via: _Link | None, timeout_s: float) -> _Link:
    """Reach `hop` and agree on keys with it. Who is one of many to come at once may be dropped."""
    deadline = time.monotonic() + timeout_s
    for attempt in range(1, _MAX_DROPS + 1):
        link = _Link(hop, dial(hop, timeout_s) if via is None else _through(via, hop, timeout_s))
        transport = link.transport
        transport.banner_timeout = transport.handshake_timeout = timeout_s
        transport.auth_timeout = timeout_s
        wanted = wanted_types(hop)
        options = transport.get_security_options()
        options.key_types = sorted(options.key_types, key=lambda each: _plain(each) not in wanted)
        try:
            transport.start_client(timeout=timeout_s)
            if transport.get_remote_server_key() is not None:
                return link
            raise paramiko.SSHException("no key exchange in time")
        except _LOST as error:
            link.close()
            was_dropped = isinstance(error, (EOFError, ConnectionError)) or "banner" in str(error)
            if was_dropped and attempt < _MAX_DROPS and time.monotonic() < deadline:
                time.sleep(0.2 * attempt)
                continue
            reason = str(error) or "it ended the connection"
            if time.monotonic() >= deadline or "banner" in reason:
                reason = f"no word within {timeout_s:.0f} s"
            raise ConnectError(
                f"{hop.label}{hop.address} port {hop.port} does not speak SSH with us: {reason}",
                host=hop.name,
                failure=ConnectFailure.PROTOCOL,
                remedy=f"try: ssh -v -p {hop.port} {hop.user}@{hop.address}",
            ) from None
        except BaseException:
            link.close()
            raise
    raise AssertionError("the last attempt raises")


def _through(via: _Link, hop: SshTarget, timeout_s: float) -> Wire:
    """A connection to `hop` made by the host before it."""
    try:
        channel = via.transport.open_channel(
            "direct-tcpip", (hop.address, hop.port), ("127.0.0.1", 0), timeout=timeout_s
        )
    except _LOST as error:
        raise ConnectError(
            f"{hop.label}{hop.address} port {hop.port}: not reached from {via.target}: {error}",
            host=hop.name,
            failure=ConnectFailure.UNREACHABLE,
            remedy=f"try on {via.target.address}: ssh -p {hop.port} {hop.user}@{hop.address}",
        ) from None
    # Its own close says so over the jump host's connection, which may be gone: no matter then,
    # and nothing that may be raised in paramiko's thread, which has waiters to wake after that.
    return Wire(_Stream(channel), carrier=via.wire)


def _plain(key_type: str) -> str:
    """The type a key is stored as, for one that is negotiated."""
    return "ssh-rsa" if key_type.startswith("rsa-sha2-") else key_type


# ------------------------------------------------------------------ logging in


def _log_in(link: _Link) -> None:
    """Offer our keys until one is accepted."""
    target = link.target
    with _agent_keys(target) as in_agent:
        wallet = _Wallet(target, in_agent)
        for key, name in wallet.offers():
            try:
                missing = link.transport.auth_publickey(target.user, key)
            except paramiko.BadAuthenticationType as error:
                _refuse(link, wallet, f"it accepts {', '.join(error.allowed_types)} only, no keys")
            except paramiko.AuthenticationException as error:
                wallet.tried.append(name)
                if not link.transport.is_active():
                    _refuse(link, wallet, "it ended the connection")
                if "timeout" in str(error).lower():
                    _refuse(link, wallet, "no answer in time")
            except _LOST as error:
                _refuse(link, wallet, f"the connection was lost ({error})")
            else:
                if not missing:
                    return
                _refuse(link, wallet, f"it wants {', '.join(missing)} besides")
        _refuse(link, wallet, "")


def _refuse(link: _Link, wallet: "_Wallet", reason: str) -> NoReturn:
    target = link.target
    tried = f"tried {', '.join(wallet.tried)}" if wallet.tried else "there is no key to offer"
    skipped = f"; not usable: {'; '.join(wallet.skipped)}" if wallet.skipped else ""
    if wallet.encrypted:
        remedy = f"ssh-add {wallet.encrypted[0]}"
    else:
        remedy = (
            f"put your key there by ssh-copy-id {target.user}@{target.address}, or correct "
            f"`user` and `identity_file` of {target.name}"
        )
    raise AuthError(
        f"{target.label}{target.user}@{target.address} does not let us in"
        f"{': ' + reason if reason else ''} ({tried}{skipped})",
        host=target.name,
        remedy=remedy,
    )


class _Wallet:
    """The keys to offer, in order, and what became of them."""

    def __init__(self, target: SshTarget, in_agent: Sequence[paramiko.AgentKey]) -> None:
        self._target = target
        self._in_agent = in_agent
        self._offered: set[bytes] = set()
        self.tried: list[str] = []
        self.skipped: list[str] = []
        self.encrypted: list[Path] = []

    def offers(self) -> Iterator[tuple[paramiko.PKey, str]]:
        """Keys named first, then the agent's, then the usual files, each once."""
        for path in self._target.identity_files:
            yield from self._from_file(path, is_named=True)
        if not self._target.is_identities_only:
            for key in self._in_agent:
                yield from self._once(key, f"{key.comment or key.fingerprint} (agent)")
        for path in self._target.default_keys:
            yield from self._from_file(path, is_named=False)

    def _from_file(self, path: Path, *, is_named: bool) -> Iterator[tuple[paramiko.PKey, str]]:
        try:
            key = paramiko.PKey.from_path(path)
        except FileNotFoundError:
            yield from self._from_agent(path, "does not exist" if is_named else "")
        except (paramiko.PasswordRequiredException, TypeError):
            if not (yield from self._from_agent(path, "is encrypted and in no agent")):
                self.encrypted.append(path)
        except UnsupportedAlgorithm:
            yield from self._from_agent(path, "is of a kind that an agent has to hold (ssh-add)")
        except (OSError, ValueError, paramiko.SSHException, UnknownKeyType) as error:
            yield from self._from_agent(path, f"cannot be read: {error}")
        else:
            yield from self._once(key, str(path))

    def _from_agent(
        self, path: Path, otherwise: str
    ) -> Generator[tuple[paramiko.PKey, str], None, bool]:
        """The agent's key that `path` names by its public half; whether it has been offered."""
        public = _public_blob(path)
        held = [each for each in self._in_agent if each.asbytes() == public]
        if held:
            yield from self._once(held[0], f"{path} (agent)")
        is_offered = public is not None and public in self._offered
        if otherwise and not is_offered:
            self.skipped.append(f"{path} {otherwise}")
        return is_offered

    def _once(self, key: paramiko.PKey, name: str) -> Iterator[tuple[paramiko.PKey, str]]:
        if key.asbytes() not in self._offered:
            self._offered.add(key.asbytes())
            yield key, name


def _public_blob(path: Path) -> bytes | None:
    """The public half that lies beside a private key, or in `path` itself."""
    for each in (Path(f"{path}.pub"), path):
        with contextlib.suppress(OSError, ValueError, IndexError):
            kind, blob = each.read_text(encoding="utf-8").split()[:2]
            if kind.startswith(("ssh-", "ecdsa-", "sk-")):
                return base64.b64decode(blob, validate=True)
    return None


@contextlib.contextmanager
def _agent_keys(target: SshTarget) -> Iterator[Sequence[paramiko.AgentKey]]:
    """The keys of the agent, usable within the context; none when it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        keys: Sequence[paramiko.AgentKey] = ()
        if target.agent_socket is not None:
            with contextlib.suppress(*_LOST):
                connection.connect(target.agent_socket)
                keys = _Agent(connection).get_keys()
        yield keys


class _Agent(AgentSSH):
    """The agent behind a socket of ours; paramiko's own would read the environment."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connect(connection)  # type: ignore[attr-defined]

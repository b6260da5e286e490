"""CurveZMQ with per-cluster keys: who may speak on the cluster's sockets.

A cluster has two key pairs, made once by `ClusterKeys.create`. Every listening socket uses the
*listener* pair and admits exactly the *dialer* key (ZAP, RFC 27); every connecting socket uses the
dialer pair and knows the listener's public key. A peer without the dialer's secret key cannot
finish the handshake, one without the listener's cannot impersonate an instance, and nothing
travels in clear. Both pairs live in one file, 0600, on the hosts of the cluster alone.

While keys are being replaced that file holds two sets, a *ring*. A listener uses the first alone,
for itself and for whom it admits; a dialer knows all of them. As long as the first set of each host
is somewhere in the ring of every other host, everybody can dial everybody (`rotation_rings`).
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import zmq
import zmq.auth.thread

from llx.errors import ConfigError
from llx.secret import Secret
from llx.wire import MAX_MESSAGE_BYTES

KEYS_FILE = "keys.json"
"""In a cluster's directory, on every host."""

_ZAP_DOMAIN = "llx"
_MAX_SOCKETS = 1 << 15
_FIELDS = ("listener_public", "listener_secret", "dialer_public", "dialer_secret")


@dataclass(frozen=True, slots=True)
class ClusterKeys:
    """The cluster's two CURVE key pairs, in Z85; `made_at` in seconds since 1970, 0: not known."""

    listener_public: str
    listener_secret: Secret
    dialer_public: str
    dialer_secret: Secret
    made_at: int = 0

    @classmethod
    def create(cls) -> "ClusterKeys":
        """Fresh keys from the system's random source."""
        listener_public, listener_secret = zmq.curve_keypair()
        dialer_public, dialer_secret = zmq.curve_keypair()
        return cls(
            listener_public.decode(),
            Secret(listener_secret.decode()),
            dialer_public.decode(),
            Secret(dialer_secret.decode()),
            int(time.time()),
        )

    def ring(self) -> "tuple[ClusterKeys, ...]":
        """These keys alone."""
        return (self,)

    def dump(self) -> str:
        """The content of a key file, secrets and all."""
        return dump_ring((self,))

    def save(self, path: Path) -> None:
        """Write the keys to `path`, readable by the owner alone; refuses to overwrite."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(self.dump())

    @classmethod
    def load(cls, path: Path) -> "ClusterKeys":
        """Read keys written by `save`.

        Raises:
            ConfigError: The file is missing, readable by others, or not a key file.
        """
        return load_ring(path)[0]


class KeySource(Protocol):
    """Where a socket's owner has its keys from: fixed ones, or a file that can be replaced."""

    def ring(self) -> tuple[ClusterKeys, ...]:
        """Of this moment; see above. Never empty."""


class KeyFile:
    """The keys as their file says at that moment; one that cannot be used changes nothing.

    Raises:
        ConfigError: There are no usable keys to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._now()
        self._ring = load_ring(path)

    def ring(self) -> tuple[ClusterKeys, ...]:
        """See `KeySource`. Costs a look at the file."""
        seen = self._now()
        if seen != self._seen:
            try:
                self._ring, self._seen = load_ring(self._path), seen
            except ConfigError:  # half written, or gone: the next look may find it whole
                return self._ring
        return self._ring

    def _now(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size


class KeyTurns:
    """Which keys to dial with: the first of the ring, and after a refusal the next."""

    def __init__(self, source: KeySource) -> None:
        self._source = source
        self._num_refused = 0

    def now(self) -> ClusterKeys:
        """Those to dial with next."""
        ring = self._source.ring()
        return ring[self._num_refused % len(ring)]

    def refuse(self, keys: ClusterKeys) -> None:
        """The listener did not take these; the ring may have turned since they were dialled."""
        if self.now() == keys:
            self._num_refused += 1

    def take(self, listener_public: str) -> bool:
        """From now on those with that listener's key; false if they are not known here."""
        known = [each.listener_public for each in self._source.ring()]
        if listener_public not in known:
            return False
        self._num_refused = known.index(listener_public)
        return True


def rotation_rings(ring: Sequence[ClusterKeys]) -> tuple[tuple[ClusterKeys, ...], ...]:
    """What every host's file has to say, one after the other, for the first set to be replaced.

    1. Dialers know the new keys; everybody listens with the old ones.
    2. Listeners use the new ones. A host that has not been told yet can be dialled all the same.
    3. The old ones are forgotten.

    A step begins when all hosts have the file of the step before. Whoever stops in between leaves
    hosts that can dial each other; a ring of two is the sign that somebody did.
    """
    if len(ring) == 1:
        old, new = ring[0], ClusterKeys.create()
        new = replace(new, made_at=max(new.made_at, old.made_at + 1))  # whatever the clock says
        return (old, new), (new, old), (new,)
    old, new = sorted(ring, key=lambda each: each.made_at)
    rest = ((new, old), (new,))
    return rest if ring[0] == new else ((old, new), *rest)


def dump_ring(ring: Sequence[ClusterKeys]) -> str:
    """The content of a key file, secrets and all."""
    first, *others = (
        {
            "listener_public": each.listener_public,
            "listener_secret": each.listener_secret.reveal(),
            "dialer_public": each.dialer_public,
            "dialer_secret": each.dialer_secret.reveal(),
            "made_at": each.made_at,
        }
        for each in ring
    )
    return json.dumps(first | ({"others": others} if others else {}))


def load_ring(path: Path) -> tuple[ClusterKeys, ...]:
    """Read a key file.

    Raises:
        ConfigError: The file is missing, readable by others, or not a key file.
    """
    try:
        mode = path.stat().st_mode & 0o077
        ring = parse_ring(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: no usable cluster keys ({type(error).__name__})",
            remedy="run `llx down` and `llx up` again: `up` makes new keys",
        ) from None
    if mode:
        raise ConfigError(f"{path}: readable by others", remedy=f"chmod 600 {path}")
    return ring


def parse_ring(text: str) -> tuple[ClusterKeys, ...]:
    """The content of a key file.

    Raises:
        ValueError: It is none.
    """
    try:
        values = json.loads(text)
        first, *others = (_parsed(each) for each in (values, *values.get("others", ())[:1]))
        return (first, *others)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no key file: {type(error).__name__}") from None


def _parsed(values: dict[str, object]) -> ClusterKeys:
    public_a, secret_a, public_b, secret_b = (str(values[name]) for name in _FIELDS)
    made_at = values.get("made_at", 0)
    if not isinstance(made_at, int):
        raise TypeError("made_at is no number")
    return ClusterKeys(public_a, Secret(secret_a), public_b, Secret(secret_b), made_at)


def make_wide(context: "zmq.Context[Any]") -> None:
    """Let a context have sockets for thousands of instances; before its first one.

    A link to an instance has six: two, a monitor of each, and the two that libzmq itself holds for
    those. By default a context has room for 170 links.
    """
    context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)


def make_listener(socket: "zmq.Socket[Any]", keys: ClusterKeys) -> None:
    """Prepare `socket` to be bound: encrypted, authenticated, bounded. Needs an `Authenticator`."""
    _bound(socket)
    # A listener has leases for dead peers. Its own heartbeats together with ROUTER_HANDOVER abort
    # the process (libzmq 4.3.5, stream_engine_base.cpp, `!_io_error`) when a superseded connection
    # speaks once more and closes before the next heartbeat.
    socket.setsockopt(zmq.HEARTBEAT_IVL, 0)
    socket.curve_secretkey = keys.listener_secret.reveal().encode()
    socket.curve_publickey = keys.listener_public.encode()
    socket.curve_server = True
    socket.zap_domain = _ZAP_DOMAIN.encode()


def make_dialer(socket: "zmq.Socket[Any]", keys: ClusterKeys) -> None:
    """Prepare `socket` to connect to a listener of the same cluster."""
    _bound(socket)
    socket.curve_secretkey = keys.dialer_secret.reveal().encode()
    socket.curve_publickey = keys.dialer_public.encode()
    socket.curve_serverkey = keys.listener_public.encode()


class Authenticator:
    """Admits the dialer key, and no other, on every listener of one ZMQ context.

    Without it libzmq would let any key pair finish the handshake. One per context, started before
    the first bind.
    """

    def __init__(self, context: "zmq.Context[Any]", keys: ClusterKeys) -> None:
        self._thread = zmq.auth.thread.ThreadAuthenticator(context)
        self._thread.start()
        self._admitted = _OneKey(keys)
        self._thread.configure_curve_callback(
            domain=_ZAP_DOMAIN, credentials_provider=self._admitted
        )

    def admit(self, keys: ClusterKeys) -> None:
        """Admit their dialer instead, to connections that begin from now on."""
        self._admitted.allowed = keys.dialer_public.encode()

    def stop(self) -> None:
        """Stop answering; new connections are refused from now on."""
        self._thread.stop()


class _OneKey:
    def __init__(self, keys: ClusterKeys) -> None:
        self.allowed = keys.dialer_public.encode()

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self.allowed


def _bound(socket: "zmq.Socket[Any]") -> None:
    """Options of every socket of the cluster.

    A dialer's heartbeats find a silently dead peer in about 3 s (`EVENT_DISCONNECTED` on the
    monitor); the
    high-water marks bound memory: a ROUTER drops towards a peer that does not read, and the gap in
    offsets ends that peer's requests rather than corrupting them.
    """
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 100_000)
    socket.setsockopt(zmq.RCVHWM, 100_000)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)

"""CurveZMQ with per-cluster keys: who may speak on the cluster's sockets.

A cluster has two key pairs, made once by `ClusterKeys.create`. Every listening socket uses the
*listener* pair and admits exactly the *dialer* key (ZAP, RFC 27); every connecting socket uses the
dialer pair and knows the listener's public key. A peer without the dialer's secret key cannot
finish the handshake, one without the listener's cannot impersonate an instance, and nothing
travels in clear. Both pairs live in one file, 0600, on the hosts of the cluster alone.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
import zmq.auth.thread

from llx.errors import ConfigError
from llx.secret import Secret
from llx.wire import MAX_MESSAGE_BYTES

_ZAP_DOMAIN = "llx"
_MAX_SOCKETS = 1 << 15
_FIELDS = ("listener_public", "listener_secret", "dialer_public", "dialer_secret")


@dataclass(frozen=True, slots=True)
class ClusterKeys:
    """The cluster's two CURVE key pairs, in Z85."""

    listener_public: str
    listener_secret: Secret
    dialer_public: str
    dialer_secret: Secret

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
        )

    def dump(self) -> str:
        """The content of a key file, secrets and all."""
        return json.dumps(
            {
                "listener_public": self.listener_public,
                "listener_secret": self.listener_secret.reveal(),
                "dialer_public": self.dialer_public,
                "dialer_secret": self.dialer_secret.reveal(),
            }
        )

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
        try:
            mode = path.stat().st_mode & 0o077
            values = json.loads(path.read_text())
            public_a, secret_a, public_b, secret_b = (str(values[name]) for name in _FIELDS)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: no usable cluster keys ({type(error).__name__})",
                remedy="run `llx down` and `llx up` again: `up` makes new keys",
            ) from None
        if mode:
            raise ConfigError(f"{path}: readable by others", remedy=f"chmod 600 {path}")
        return cls(public_a, Secret(secret_a), public_b, Secret(secret_b))


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
        self._thread.configure_curve_callback(
            domain=_ZAP_DOMAIN, credentials_provider=_OneKey(keys)
        )

    def stop(self) -> None:
        """Stop answering; new connections are refused from now on."""
        self._thread.stop()


class _OneKey:
    def __init__(self, keys: ClusterKeys) -> None:
        self._allowed = keys.dialer_public.encode()

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._allowed


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

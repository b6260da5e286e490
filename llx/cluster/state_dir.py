"""What lies in a cluster's state directory, and how it is written: 0600, atomically.

cluster.yaml    the resolved settings          term           raised at each start of the head
head.spec.json  HeadSpec                       events.jsonl   the audit trail
keys.json       the cluster's CURVE keys       devices.json   who holds which device
token           of the control API             procs/<name>/  one directory per process
placement.json  what is where                  cordons.json   hosts that get nothing new
stopping.json   the cluster is being stopped   policies.json  what operators changed
moved.json      it was another host's head     head-copy.json  of another host's head
"""

import contextlib
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llx.agent.names import HEAD
from llx.client import TOKEN_FILE
from llx.core.model import Term
from llx.curve import KEYS_FILE, ClusterKeys
from llx.errors import ConfigError
from llx.head_copy import MOVED_FILE
from llx.secret import Secret


class HeadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a head is started with: ``python -m llx.cluster.head SPEC``.

    Attributes:
        cluster: The cluster's name.
        state_dir: Its state directory.
        python: Interpreter of the node environment.
        platform: ``cpu`` or ``cuda``.
        instance_command: Starts an instance (its spec's path is appended); empty: llx's own.
        gateway_command: Starts a gateway, likewise.
    """

    cluster: str
    state_dir: str
    python: str
    platform: str
    instance_command: list[str] = []
    gateway_command: list[str] = []


@dataclass(frozen=True, slots=True)
class StateDir:
    """Paths in one cluster's state directory."""

    path: Path

    @property
    def settings(self) -> Path:
        """The resolved cluster.yaml."""
        return self.path / "cluster.yaml"

    @property
    def head_spec(self) -> Path:
        """`HeadSpec`."""
        return self.path / "head.spec.json"

    @property
    def keys(self) -> Path:
        """`ClusterKeys`."""
        return self.path / KEYS_FILE

    @property
    def token(self) -> Path:
        """The control API's bearer token."""
        return self.path / TOKEN_FILE

    @property
    def term(self) -> Path:
        """The scheduler's term."""
        return self.path / "term"

    @property
    def events(self) -> Path:
        """The audit trail."""
        return self.path / "events.jsonl"

    @property
    def policies(self) -> Path:
        """What operators have changed of the models' scheduling."""
        return self.path / "policies.json"

    @property
    def recordings(self) -> Path:
        """What schedulers were told and answered, a file for each term."""
        return self.path / "recordings"

    @property
    def devices(self) -> Path:
        """The device ledger."""
        return self.path / "devices.json"

    @property
    def placements(self) -> Path:
        """Where instances and gateways are."""
        return self.path / "placement.json"

    @property
    def rollouts(self) -> Path:
        """As what models were rolled out."""
        return self.path / "rollouts.json"

    @property
    def cordons(self) -> Path:
        """Hosts that get nothing new."""
        return self.path / "cordons.json"

    @property
    def stopping(self) -> Path:
        """There from the moment a stop is asked for until the cluster is wanted again."""
        return self.path / "stopping.json"

    @property
    def moved(self) -> Path:
        """How this head came to its host, until it has started: `HeadMoved`."""
        return self.path / MOVED_FILE

    @property
    def procs(self) -> Path:
        """One directory per process."""
        return self.path / "procs"

    @property
    def head(self) -> Path:
        """The head's own process directory."""
        return self.procs / HEAD

    def create(self) -> None:
        """Make the directories, the owner's alone, and the keys; keeps what is there."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self.procs.mkdir(mode=0o700, exist_ok=True)
        self.head.mkdir(mode=0o700, exist_ok=True)
        if not self.keys.exists():
            ClusterKeys.create().save(self.keys)

    def new_token(self) -> Secret:
        """Replace the control API's token."""
        token = Secret(secrets.token_urlsafe(32))
        write_private(self.token, token.reveal())
        return token

    def keep_or_new_token(self) -> Secret:
        """The control API's token; made if there is none.

        Where operators have copies of it, a head that comes back must not change it.
        """
        try:
            token = self.token.read_text().strip()
        except FileNotFoundError:
            token = ""
        return Secret(token) if token else self.new_token()

    def raise_term(self) -> Term:
        """The next term, on disk before it is used.

        Raises:
            ConfigError: The file holds no number.
        """
        try:
            text = self.term.read_text() if self.term.exists() else "0"
            term = Term(int(text) + 1)
        except ValueError:
            raise ConfigError(
                f"{self.term}: not a number", remedy="llx down, remove that file, llx up"
            ) from None
        write_private(self.term, f"{term}\n")
        return term


class TokenFile:
    """The control API's token as its file says at that moment: `llx up --rotate` replaces it.

    A file that is gone or empty changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] = (0, 0)
        self._token = Secret("")

    def __call__(self) -> Secret:
        """The token; empty if there never was one."""
        with contextlib.suppress(OSError):
            found = self._path.stat()
            now = found.st_ino, found.st_mtime_ns
            if now != self._seen and (text := self._path.read_text().strip()):
                self._token, self._seen = Secret(text), now
        return self._token


def write_private(path: Path, text: str) -> None:
    """Write a file atomically, readable by the owner alone."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

"""Where and as whom a host is reached: cluster.yaml over ``~/.ssh/config``; and why it cannot be.

Pure but for reading the configuration; connecting is `llx.bootstrap.ssh`'s.
"""

import os
import pwd
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from llx.bootstrap.ssh_config import SshConfig, expanded
from llx.environment import Environment
from llx.errors import ConfigError, UnreachableError
from llx.settings import HostSettings

_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_SYSTEM = Path("/etc/ssh")
_MAX_JUMPS = 8
_JUMP = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?P<host>\[[^\]]+\]|[^:@]+)(?::(?P<port>\d+))?/?"
)


class StrictHostKeys(Enum):
    """What is done with a host key nobody has seen; a changed one is always refused."""

    ASK = "ask"
    YES = "yes"
    ACCEPT_NEW = "accept-new"


class ConnectFailure(Enum):
    """Why there is no connection."""

    NAME = "name"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    AUTH = "auth"
    HOST_KEY = "host key"


class ConnectError(UnreachableError):
    """A host cannot be connected to.

    Attributes:
        host: Its name in cluster.yaml.
        step: ``connect``.
        failure: Why.
    """

    def __init__(
        self,
        message: str,
        *,
        host: str,
        failure: ConnectFailure,
        remedy: str = "",
        detail: str = "",
    ) -> None:
        super().__init__(f"{host}: connect: {message}", remedy=remedy, detail=detail)
        self.host = host
        self.step = "connect"
        self.failure = failure


class AuthError(ConnectError):
    """The host accepts none of our keys."""

    def __init__(self, message: str, *, host: str, remedy: str = "", detail: str = "") -> None:
        super().__init__(
            message, host=host, failure=ConnectFailure.AUTH, remedy=remedy, detail=detail
        )


class HostKeyError(ConnectError):
    """The host's key is unknown and was not accepted, or is not the known one."""

    def __init__(self, message: str, *, host: str, remedy: str = "") -> None:
        super().__init__(message, host=host, failure=ConnectFailure.HOST_KEY, remedy=remedy)


@dataclass(frozen=True, slots=True)
class SshTarget:
    """How one host is reached.

    Attributes:
        name: The host's name in cluster.yaml.
        address: Name or IP address to connect to.
        known_as: The name in known_hosts: address and port, or HostKeyAlias as it stands.
        identity_files: Private keys that were named, most wanted first.
        default_keys: Private keys to try when none was named.
        is_identities_only: Offer no other keys of the agent than those.
        agent_socket: The agent's socket; None when there is none.
        known_hosts: The user's files; the first is the one written to.
        hashes_names: Host names are written hashed.
        jumps: The hosts the connection goes through, first the one reached directly.
        is_jump: This is such a host; `name` is that of the host behind it.
    """

    name: str
    address: str
    port: int
    user: str
    known_as: str
    identity_files: tuple[Path, ...]
    default_keys: tuple[Path, ...]
    is_identities_only: bool
    agent_socket: str | None
    known_hosts: tuple[Path, ...]
    global_known_hosts: tuple[Path, ...]
    strict_host_keys: StrictHostKeys
    hashes_names: bool
    connect_timeout_s: float | None
    jumps: tuple["SshTarget", ...] = ()
    proxy_command: str | None = None
    is_jump: bool = False

    @property
    def label(self) -> str:
        """Begins what is said about it."""
        return f"jump host {self}: " if self.is_jump else ""

    def __str__(self) -> str:
        port = "" if self.port == 22 else f":{self.port}"
        return f"{self.user}@{self.address}{port}"


def resolve(host: HostSettings, environment: Environment) -> SshTarget:
    """How `host` is reached: cluster.yaml first, then what `ssh` would do.

    Raises:
        ConfigError: The configuration cannot be followed; names the host.
    """
    home = Path(environment.get("HOME") or Path.home())
    files = (home / ".ssh" / "config", _SYSTEM / "ssh_config")
    return _Resolver(SshConfig(files, home), environment).target(host, seen=())


@dataclass(frozen=True, slots=True)
class _Resolver:
    config: SshConfig
    environment: Environment

    def target(self, host: HostSettings, seen: tuple[str, ...]) -> SshTarget:
        local_user = pwd.getpwuid(os.getuid()).pw_name
        found = self.config.lookup(host.address, user=host.user, local_user=local_user)
        one = {keyword: values[0] for keyword, values in found.items()}
        address = one.get("hostname", host.address).replace("%h", host.address).replace("%%", "%")
        user = host.user or one.get("user") or local_user
        port = host.port or _number(one, "port", host) or 22
        tokens = {
            "%%": "%", "%h": address, "%n": host.address, "%p": str(port), "%r": user,
            "%u": local_user, "%d": str(self.config.home),
        }  # fmt: skip
        named = [] if host.identity_file is None else [host.identity_file]
        named += [self._path(each, tokens) for each in found.get("identityfile", [])]
        ssh = self.config.home / ".ssh"
        known = one.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")
        known_global = one.get(
            "globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
        )
        command = one.get("proxycommand", "none")
        jumps = self._jumps(one.get("proxyjump", "none"), host, tokens, seen)
        place = address if port == 22 else f"[{address}]:{port}"
        has_command = command.lower() != "none" and not jumps
        return SshTarget(
            name=host.name,
            address=address,
            port=port,
            user=user,
            known_as=one.get("hostkeyalias", place).lower(),
            identity_files=tuple(each for each in dict.fromkeys(named) if each.name != "none"),
            default_keys=() if named else tuple(ssh / name for name in _DEFAULT_KEYS),
            is_identities_only=one.get("identitiesonly", "no").lower() == "yes",
            agent_socket=self._agent(one.get("identityagent", "SSH_AUTH_SOCK"), tokens),
            known_hosts=tuple(self._path(each, tokens) for each in known.split()),
            global_known_hosts=tuple(self._path(each, tokens) for each in known_global.split()),
            strict_host_keys=_strictness(one.get("stricthostkeychecking", "ask")),
            hashes_names=one.get("hashknownhosts", "no").lower() == "yes",
            connect_timeout_s=_number(one, "connecttimeout", host),
            jumps=jumps,
            proxy_command=_substituted(command, tokens) if has_command else None,
        )

    def _jumps(
        self, given: str, host: HostSettings, tokens: dict[str, str], seen: tuple[str, ...]
    ) -> tuple[SshTarget, ...]:
        """The hops of a ProxyJump; the first may have hops of its own."""
        if given.lower() == "none":
            return ()
        seen = (*seen, host.address)
        hops: list[SshTarget] = []
        for spec in _substituted(given, tokens).split(","):
            found = _JUMP.fullmatch(spec.strip())
            if found is None:
                raise ConfigError(f'{host.name}: ssh config: ProxyJump "{given}" is no [user@]host')
            address = found["host"].strip("[]")
            if address in seen or len(seen) > _MAX_JUMPS:
                if not hops and address == host.address:
                    return ()  # "Host *" with a ProxyJump applies to the bastion itself, too
                raise ConfigError(f'{host.name}: ssh config: ProxyJump "{given}" leads in a circle')
            hop = HostSettings(
                name=host.name,
                address=address,
                user=found["user"],
                port=int(found["port"]) if found["port"] else None,
            )
            target = replace(self.target(hop, seen), is_jump=True)
            hops += [target] if hops else [*target.jumps, target]
        return tuple(hops)

    def _agent(self, given: str, tokens: dict[str, str]) -> str | None:
        if given.lower() == "none":
            return None
        if given.startswith("$") or given == "SSH_AUTH_SOCK":
            return self.environment.get(given.lstrip("$").strip("{}"))
        return str(self._path(given, tokens))

    def _path(self, given: str, tokens: dict[str, str]) -> Path:
        return expanded(_substituted(given.strip('"'), tokens), self.config.home)


def _substituted(given: str, tokens: dict[str, str]) -> str:
    return re.sub("%.", lambda found: tokens.get(found[0], found[0]), given)


def _number(values: dict[str, str], keyword: str, host: HostSettings) -> int | None:
    given = values.get(keyword)
    if given is None or given.lower() == "none":
        return None
    if not given.isdigit():
        raise ConfigError(f'{host.name}: ssh config: {keyword} "{given}" is no number')
    return int(given)


def _strictness(given: str) -> StrictHostKeys:
    match given.lower():
        case "yes" | "true":
            return StrictHostKeys.YES
        case "accept-new" | "no" | "off" | "false":
            return StrictHostKeys.ACCEPT_NEW
        case _:
            return StrictHostKeys.ASK


def key_files(target: SshTarget) -> Sequence[Path]:
    """The private keys to offer, most wanted first; they need not be there."""
    return (*target.identity_files, *target.default_keys)

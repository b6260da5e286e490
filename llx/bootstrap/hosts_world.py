"""What `up`, `down` and the other verbs reach out with, on hosts; and who is asking.

`llx.cli` makes the one for use; tests give their own.
"""

import getpass
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from llx.api import ClusterStatus
from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.shell import Shell
from llx.client import Cluster
from llx.errors import HostError, LlxError
from llx.secret import Secret
from llx.settings import ClusterSettings, HostSettings
from llx.yaml_reader import read_yaml

Connect = Callable[[HostSettings], Shell]
FirstToken = Callable[[Mapping[str, Shell], ClusterStatus, str, Secret | None], None]
"""Connected hosts, the cluster's status, a model, an API key; `first_token.ask_gateway`."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who is at work, for locks and the audit trail."""

    user: str
    machine: str
    pid: int

    @classmethod
    def current(cls) -> "Asker":
        """This process's user and machine."""
        try:
            user = getpass.getuser()
        except (OSError, KeyError):
            user = str(os.getuid())
        return cls(user, socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        return f"{self.user}@{self.machine}"


@dataclass(frozen=True, slots=True)
class HostsWorld:
    """The outside world.

    Attributes:
        connect: To a host; raises UnreachableError and the like.
        control: The control API on the head's host that the shell reaches; raises UnreachableError.
        first_token: Ask a model of a gateway that runs on one of these hosts for one token.
        asker: Who is at work.
        clock: Monotonic seconds.
        sleep: Wait so many seconds.
    """

    connect: Connect
    control: Callable[[Shell, HostLayout], Cluster]
    first_token: FirstToken
    asker: Asker = field(default_factory=Asker.current)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(slots=True)
class Crew:
    """Hosts that were connected to, and those that could not be or failed since."""

    shells: dict[str, Shell] = field(default_factory=dict)
    layouts: dict[str, HostLayout] = field(default_factory=dict)
    errors: dict[str, LlxError] = field(default_factory=dict)

    @property
    def good(self) -> list[str]:
        """Names of those that have not failed."""
        return [name for name in self.shells if name not in self.errors]

    def close(self) -> None:
        """End all connections."""
        for shell in self.shells.values():
            shell.close()


def connect_all(hosts: Sequence[HostSettings], cluster: str, connect: Connect) -> Crew:
    """Connect to all at once; who cannot be reached is in `errors`."""
    by_name = {each.name: each for each in hosts}

    def work(name: str) -> tuple[Shell, HostLayout]:
        shell = connect(by_name[name])
        try:
            return shell, layout_of(shell, cluster)
        except BaseException:
            shell.close()
            raise

    crew = Crew()
    for name, result in fan_out(list(by_name), work).items():
        if isinstance(result, LlxError):
            crew.errors[name] = result
        else:
            crew.shells[name], crew.layouts[name] = result
    return crew


def layout_of(shell: Shell, cluster: str) -> HostLayout:
    """Where llx keeps things on the host.

    Raises:
        HostError: Its shell does not say where home is.
    """
    done = shell.run(["sh", "-c", 'printf "%s\\n%s\\n" "$HOME" "$(id -u)"'], timeout_s=15)
    # A shell that greets has said something before.
    home, uid = ["", "", *done.stdout.splitlines()][-2:]
    if not home.startswith("/") or not uid.isdigit():
        raise HostError(
            f"its login shell answers {done.stdout[:200]!r}",
            host=shell.host,
            step="connect",
            process_exit_code=done.exit_code,
            stderr_tail=done.stderr_tail,
            remedy="see that the user's shell starts, and prints nothing of its own when it is "
            "not interactive",
        )
    return HostLayout(PurePosixPath(home), int(uid), cluster)


def settings_of(control: Cluster) -> ClusterSettings:
    """The settings that the head goes by.

    Raises:
        ConfigError: It is of another release of llx.
    """
    values = yaml.safe_load(control.settings())
    return read_yaml("the head's settings", ClusterSettings, base=Path("/"), values=values)

"""A client of a cluster that is known here, wherever its head is: `llx.client.Cluster.open`.

Nearly every verb comes through here, so little is imported before it is needed.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from llx.bootstrap.contexts import ID_FILE, Context, pick_context
from llx.environment import Environment

if TYPE_CHECKING:
    from llx.bootstrap.hosts_world import Connect
    from llx.bootstrap.shell import Shell
    from llx.bootstrap.ssh import AskHostKey
    from llx.client import Cluster
    from llx.settings import ClusterSettings, HostSettings


def open_cluster(name: str | None, environment: Environment) -> "Cluster":
    """A client of the cluster called `name`, else of the one that verbs mean by default.

    Raises:
        ConfigError: A file that says which that is is wrong.
        NotFoundError: There is no such cluster.
        UnreachableError: It is down, or its head is.
    """
    from llx.client_options import load_client_options

    meant = load_client_options(environment, context=name).context
    return control_of(
        settings_of(pick_context(environment, meant)),
        environment,
        lambda host: connect_to(host, environment),
    )


def open_to_read(
    context: Context, environment: Environment, persist_s: float, connect: "Connect"
) -> "Cluster":
    """As `open_cluster`, for who changes nothing.

    A head on this machine, or one to which another verb has left a connection open, is asked
    without its cluster's settings: to take them in takes as long as everything else, and what they
    would tell is whether this llx may change anything. For `persist_s` an SSH connection is kept
    for who comes next; 0: none is, or used.
    """
    from llx.client import HEAD_STATUS_FILE, Cluster

    state_dir = context.state_dir
    if context.is_up and (state_dir / ID_FILE).exists():
        return _shared(context, environment, persist_s, connect)
    if context.is_up and (state_dir / HEAD_STATUS_FILE).exists():
        return Cluster.for_cluster(state_dir)
    return control_of(settings_of(context), environment, connect)


def settings_of(context: Context) -> "ClusterSettings":
    """The settings that a cluster runs with.

    Raises:
        UnreachableError: It is down.
    """
    from llx.bootstrap.cluster_dir import remembered_hosts, running_settings
    from llx.errors import UnreachableError

    settings = running_settings(context.state_dir)
    if settings is None:
        # Without a file, `llx up` makes a cluster on this machine.
        is_on_hosts = remembered_hosts(context.state_dir) is not None
        remedy = "llx up FILE" if is_on_hosts else "llx up"
        raise UnreachableError(f"cluster {context.name} is down", remedy=remedy)
    return settings


def control_of(
    settings: "ClusterSettings", environment: Environment, connect: "Connect"
) -> "Cluster":
    """A client of the cluster of these settings; on hosts through its head's SSH.

    Raises:
        NotFoundError: There is no such cluster here.
        UnreachableError: Its head is not up.
    """
    from llx.client import Cluster

    head = settings.head_host
    if head is None:
        return Cluster.for_cluster(environment.cluster_dir(settings.cluster))
    from llx.bootstrap.hosts_world import layout_of
    from llx.bootstrap.remote_control import open_control

    shell = _connect_head(settings, head, connect)
    try:
        return open_control(shell, layout_of(shell, settings.cluster), closes_shell=True)
    except BaseException:
        shell.close()
        raise


def connect_to(
    host: "HostSettings", environment: Environment, ask: "AskHostKey | None" = None
) -> "Shell":
    """SSH to a host; `ask` decides about an unknown key, without it such a host is refused.

    Raises:
        UnreachableError: It cannot be reached.
    """
    from llx.bootstrap.ssh import connect, resolve

    return connect(resolve(host, environment), ask=ask or _nobody)


def _shared(
    context: Context, environment: Environment, persist_s: float, connect: "Connect"
) -> "Cluster":
    """Through the connection kept to the head's host; else through one's own, and keep one."""
    from llx.bootstrap.ssh_sharing import begin_sharing, shared_control

    state_dir: Path = context.state_dir
    found = shared_control(state_dir) if persist_s else None
    if found is None:
        settings = settings_of(context)
        found = control_of(settings, environment, connect)
        if persist_s and settings.head_host is not None:
            begin_sharing(state_dir, persist_s, environment.variables)
    return found


def _connect_head(settings: "ClusterSettings", head: "HostSettings", connect: "Connect") -> "Shell":
    from llx.errors import UnreachableError

    try:
        return connect(head)
    except UnreachableError as error:
        away = (
            "what runs on the other hosts goes on meanwhile; if it is lost, "
            "`llx up --head HOST` moves the control plane to another host"
        )
        raise UnreachableError(
            f"cluster {settings.cluster}: its head's host is out of reach: {error.message}",
            remedy="; ".join(filter(None, [error.remedy, away])),
            detail=error.detail,
        ) from None


def _nobody(_host: str, _kind: str, _fingerprint: str) -> bool:
    """Nobody is there to say whether an unknown host key is right."""
    return False

"""The machines of the cluster meant, for faults that are done on them."""

import contextlib
from typing import TYPE_CHECKING

from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.chaos.grounds import Grounds


def grounds_of(session: Session, stack: contextlib.ExitStack) -> "Grounds":
    """The machines of the cluster meant."""
    from llx.bootstrap.hosts_world import layout_of
    from llx.chaos.grounds import Grounds, Place
    from llx.chaos.inject import ThisMachine

    settings = session.cluster()
    if not settings.hosts:
        state = session.environment.cluster_dir(settings.cluster)
        places = {"": Place(ThisMachine(), state / "procs")}
        return Grounds(lambda: session.control_of(settings), places, "", session.user)
    places = {}
    for host in settings.hosts:
        shell = session.connect(host)
        stack.callback(shell.close)
        places[host.name] = Place(shell, layout_of(shell, settings.cluster).procs)
    head = settings.head_host
    assert head is not None, "a cluster on hosts has a head"
    return Grounds(lambda: session.control_of(settings), places, head.name, session.user)

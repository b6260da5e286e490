"""`llx logs`."""

import sys
import time
from typing import TYPE_CHECKING

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, FollowOption, ProcessArgument, TailOption
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.settings import ClusterSettings

_POLL_S = 0.5
_CHUNK_BYTES = 262_144
_FOLLOW_S = 86_400.0


@command
def logs(
    name: ProcessArgument,
    follow: FollowOption = False,
    tail: TailOption = 200,
    context: ContextOption = None,
) -> None:
    """Print the log of a host, the head, a gateway or an instance.

    Of a host: its Ray node's and its agent's. The head being gone, logs are read where they lie.
    """
    from llx.errors import LlxError, UnreachableError

    session = Session(context_name=context)
    try:
        settings: ClusterSettings | None = session.cluster()
    except LlxError:  # down: its logs are still there
        settings = None
    if settings is not None and name in {host.name for host in settings.hosts}:
        _of_host(session, settings, name, tail, is_following=follow)
        return
    try:
        with session.control() as control:
            part = control.logs(name, tail=tail, limit=_CHUNK_BYTES)
            _write(part.text)
            while follow:
                part = control.logs(name, offset=part.next_offset, limit=_CHUNK_BYTES)
                _write(part.text)
                if not part.text:
                    time.sleep(_POLL_S)
    except UnreachableError as error:
        if settings is not None and settings.hosts:
            _from_hosts(session, settings, name, tail, error)
        else:
            _from_file(session, name, tail, error)


def _of_host(
    session: Session, settings: "ClusterSettings", name: str, lines: int, *, is_following: bool
) -> None:
    """The logs that lie on the host itself, whether or not the head or its agent is there."""
    from llx.bootstrap.hosts_world import layout_of
    from llx.errors import NotFoundError

    host = next(each for each in settings.hosts if each.name == name)
    shell = session.connect(host)
    try:
        procs = str(layout_of(shell, settings.cluster).procs)
        script = 'cd "$1" 2>/dev/null && ls ray/log agent/log head/log 2>/dev/null'
        found = shell.run(["sh", "-c", script, "sh", procs]).stdout.split()
        if not found:
            raise NotFoundError(f"no logs of {settings.cluster} on {name}", remedy="llx up")
        command = ["tail", "-n", str(lines), *(["-F"] if is_following else [])]
        paths = [f"{procs}/{each}" for each in found]
        shell.run([*command, "--", *paths], timeout_s=_FOLLOW_S, on_line=_line)
    finally:
        shell.close()


def _from_hosts(
    session: Session, settings: "ClusterSettings", name: str, lines: int, error: Exception
) -> None:
    """The head being away: look for the process on every host."""
    from llx.bootstrap.cluster_dir import PROCS
    from llx.bootstrap.hosts_world import connect_all
    from llx.errors import NotFoundError

    crew = connect_all(settings.hosts, settings.cluster, session.connect)
    try:
        for host, shell in crew.shells.items():
            path = f"{crew.layouts[host].state}/{PROCS}/{_file_name(name)}/log"
            done = shell.run(["tail", "-n", str(lines), "--", path])
            if done.is_success:
                note = f"({error.args[0]}: reading {path} on {host})"
                session.err.print(note, markup=False, soft_wrap=True)
                _write(done.stdout)
                return
    finally:
        crew.close()
    out_of_reach = f"; out of reach: {', '.join(crew.errors)}" if crew.errors else ""
    raise NotFoundError(f'no log of "{name}" on {", ".join(crew.shells)}{out_of_reach}')


def _from_file(session: Session, name: str, lines: int, error: Exception) -> None:
    from llx.bootstrap.cluster_dir import PROCS
    from llx.bootstrap.local import log_end
    from llx.bootstrap.readiness import tail
    from llx.errors import NotFoundError

    procs = session.context().state_dir / PROCS
    path = procs / name / "log"
    known = sorted(each.parent.name for each in procs.glob("*/log"))
    if name not in known:
        raise NotFoundError(f'no log of "{name}" (there are: {", ".join(known) or "none"})')
    session.err.print(f"({error.args[0]}: reading {path})", markup=False, soft_wrap=True)
    _write(tail(log_end(path), lines) + "\n")


def _file_name(name: str) -> str:
    """`name` as one path segment, or an error."""
    from llx.errors import ConfigError

    if "/" in name or name.startswith("."):
        raise ConfigError(f'"{name}" is no name of a process')
    return name


def _line(text: str) -> None:
    _write(f"{text}\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

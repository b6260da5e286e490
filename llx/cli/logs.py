"""`llx logs`."""

import sys
import time
from typing import TYPE_CHECKING

from llx.cli.failures import command
from llx.cli.parameters import (
    ContextOption,
    FollowOption,
    ProcessOption,
    StoryOption,
    TailOption,
)
from llx.cli.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from llx.bootstrap.hosts_world import Crew
    from llx.errors import UnreachableError
    from llx.settings import ClusterSettings

_POLL_S = 0.5
_CHUNK_BYTES = 262_144
_FOLLOW_S = 86_400.0

# $1 procs: when each process's log was written last, and its name.
_LIST = 'cd "$1" 2>/dev/null || exit 0; for each in */log; do stat -c "%Y %n" -- "$each"; done'


@command
def logs(
    name: ProcessOption = None,
    request: StoryOption = None,
    follow: FollowOption = False,
    tail: TailOption = 200,
    context: ContextOption = None,
) -> None:
    """Print the log of a host, the head, a gateway or an instance.

    Of a host: its Ray node's and its agent's. The head being gone, or the cluster down, logs are
    read where they lie.

    With `--request`: what all processes on all hosts say of one request, by time, whichever of its
    ids is given.
    """
    from llx.cli.request_logs import show_request_logs
    from llx.errors import ConfigError

    if (name is None) is (request is None):
        raise ConfigError("give either NAME or --request ID", remedy="llx logs --help")
    session = Session(context_name=context)
    if request is not None:
        show_request_logs(session, request, tail, is_following=follow)
    elif name is not None:
        show_logs(session, name, tail, is_following=follow)


def show_logs(session: Session, name: str, lines: int, *, is_following: bool = False) -> None:
    """`llx logs`."""
    from llx.bootstrap.cluster_dir import remembered_hosts
    from llx.errors import UnreachableError

    context = session.context()
    if is_following and not context.is_up:
        session.err.print(f"(cluster {context.name} is down: nothing will be added)")
        is_following = False
    hosts = remembered_hosts(context.state_dir)
    if hosts is not None and name in {each.name for each in hosts.hosts}:
        _of_host(session, hosts, name, lines, is_following=is_following)
    elif hosts is not None and not context.is_up:
        away = UnreachableError(f"cluster {context.name} is down")
        _from_hosts(session, hosts, name, lines, away, is_following=False)
    else:
        _of_head(session, hosts, name, lines, is_following=is_following)


def _of_head(
    session: Session,
    hosts: "ClusterSettings | None",
    name: str,
    lines: int,
    *,
    is_following: bool,
) -> None:
    """What the head says; when it does not, or no more, what lies on disk."""
    from llx.errors import UnreachableError

    has_begun = False
    try:
        with session.control() as control:
            part = control.logs(name, tail=lines, limit=_CHUNK_BYTES)
            _write(part.text)
            has_begun = True
            while is_following:
                part = control.logs(name, offset=part.next_offset, limit=_CHUNK_BYTES)
                _write(part.text)
                if not part.text:
                    time.sleep(_POLL_S)
    except UnreachableError as error:
        lines = 0 if has_begun else lines
        if hosts is not None:
            _from_hosts(session, hosts, name, lines, error, is_following=is_following)
        else:
            _from_file(session, name, lines, error, is_following=is_following)


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
            raise NotFoundError(f"no logs of {settings.cluster} on {name}", remedy="llx up FILE")
        command = ["tail", "-n", str(lines), *(["-F"] if is_following else [])]
        paths = [f"{procs}/{each}" for each in found]
        shell.run([*command, "--", *paths], timeout_s=_FOLLOW_S, on_line=_line)
    finally:
        shell.close()


def _from_hosts(
    session: Session,
    settings: "ClusterSettings",
    name: str,
    lines: int,
    away: "UnreachableError",
    *,
    is_following: bool,
) -> None:
    """Where the process wrote last: it may have been on several hosts."""
    from llx.bootstrap.hosts_world import connect_all
    from llx.errors import NotFoundError

    crew = connect_all(settings.hosts, settings.cluster, session.connect)
    try:
        found = _logs_on(crew)
        places = [(at, host) for (host, process), at in found.items() if process == name]
        if not places:
            known = ", ".join(sorted({process for _, process in found})) or "none"
            out_of_reach = f"; out of reach: {', '.join(crew.errors)}" if crew.errors else ""
            raise NotFoundError(
                f'no log of "{name}" on {", ".join(crew.shells) or "any host"}{out_of_reach}',
                remedy=f"there are: {known}",
            )
        host = max(places)[1]
        path = f"{crew.layouts[host].procs}/{name}/log"
        _say_away(session, away, f"{path} on {host}")
        command = ["tail", "-n", str(lines), *(["-F"] if is_following else []), "--", path]
        crew.shells[host].run(command, timeout_s=_FOLLOW_S, on_line=_line)
    finally:
        crew.close()


def _logs_on(crew: "Crew") -> dict[tuple[str, str], int]:
    """By host and process, when its log was written last."""
    from llx.bootstrap.fan_out import fan_out

    def listed(host: str) -> list[str]:
        argv = ["sh", "-c", _LIST, "sh", str(crew.layouts[host].procs)]
        return crew.shells[host].run(argv).stdout.splitlines()

    found: dict[tuple[str, str], int] = {}
    for host, rows in fan_out(list(crew.shells), listed).items():
        if not isinstance(rows, list):
            crew.errors[host] = rows
            continue
        for row in rows:
            at, _, path = row.partition(" ")
            found[host, path.removesuffix("/log")] = int(at)
    return found


def _from_file(
    session: Session, name: str, lines: int, away: "UnreachableError", *, is_following: bool
) -> None:
    from llx.bootstrap.cluster_dir import PROCS
    from llx.errors import NotFoundError

    procs = session.context().state_dir / PROCS
    path = procs / name / "log"
    known = sorted(each.parent.name for each in procs.glob("*/log"))
    if name not in known:
        raise NotFoundError(f'no log of "{name}" (there are: {", ".join(known) or "none"})')
    _say_away(session, away, str(path))
    _print_file(path, lines, is_following=is_following)


def _print_file(path: "Path", lines: int, *, is_following: bool) -> None:
    from llx.agent.log_file import read_log

    part = read_log(path, None, limit=_CHUNK_BYTES, tail=lines)
    _write(part.text)
    while is_following:
        part = read_log(path, part.next_offset, limit=_CHUNK_BYTES)
        _write(part.text)
        if not part.text:
            time.sleep(_POLL_S)


def _say_away(session: Session, away: "UnreachableError", place: str) -> None:
    session.err.print(f"({away.message}: reading {place})", markup=False, soft_wrap=True)


def _line(text: str) -> None:
    _write(f"{text}\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

"""`llx logs --request`: one request's lines of all processes on all hosts, by time."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import TYPE_CHECKING

from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.bootstrap.hosts_world import Crew
    from llx.bootstrap.request_story import StoryLine
    from llx.errors import LlxError

_POLL_S = 1.0
_SEARCH_S = 60.0

Found = Mapping[str, "list[StoryLine] | LlxError"]
"""The lines found, by host; or why it could not be searched."""
Search = Callable[[str, Container[str]], Found]
"""A pattern is searched for on all hosts but these."""


def show_request_logs(session: Session, request: str, tail: int, *, is_following: bool) -> None:
    """`llx logs --request ID`. The newest `tail` lines; then what is added, until interrupted."""
    from llx.bootstrap.cluster_dir import PROCS, remembered_hosts
    from llx.bootstrap.hosts_world import connect_all
    from llx.bootstrap.request_story import check_id

    check_id(request)
    context = session.context()
    if is_following and not context.is_up:
        session.err.print(f"(cluster {context.name} is down: nothing will be added)")
        is_following = False
    hosts = remembered_hosts(context.state_dir)
    if hosts is None:
        procs = str(context.state_dir / PROCS)
        _show(
            lambda pattern, _: {"local": _here(procs, pattern)},
            request,
            tail,
            is_following=is_following,
        )
        return
    crew = connect_all(hosts.hosts, hosts.cluster, session.connect)
    try:
        _show(partial(_on_hosts, crew), request, tail, is_following=is_following)
    finally:
        crew.close()


def _show(search: Search, request: str, tail: int, *, is_following: bool) -> None:
    from llx.bootstrap.request_story import KEPT
    from llx.errors import NotFoundError

    lines, ids, missed = _story(search, [request])
    _write(lines[-tail:] if tail else [])
    if missed and not is_following:
        raise missed
    if missed:
        sys.stderr.write(f"({missed.message})\n")
    elif not lines and not is_following:
        raise NotFoundError(f'no log tells of a request "{request}"', remedy=KEPT)
    shown = Counter(map(said, lines))
    told = missed
    while is_following:
        time.sleep(_POLL_S)
        lines, ids, missed = _story(search, ids)
        _write(unseen(lines, shown))
        if missed and _who(missed) != _who(told):
            sys.stderr.write(f"({missed.message})\n")
        told = missed


def _who(missed: "LlxError | None") -> str:
    """The line that names the hosts. Why may be put in other words at each search."""
    return "" if missed is None else missed.message.partition("\n")[0]


def said(line: "StoryLine") -> tuple[str, str, str, str]:
    """What a line says, in whichever of a process's logs it lies by now."""
    return line.at, line.host, line.process, line.text


def unseen(
    lines: "list[StoryLine]", shown: "Counter[tuple[str, str, str, str]]"
) -> "list[StoryLine]":
    """Those that are not among the `shown`, and are from now on."""
    here: Counter[tuple[str, str, str, str]] = Counter()
    fresh = []
    for line in lines:
        key = said(line)
        here[key] += 1
        if here[key] > shown[key]:
            shown[key] = here[key]
            fresh.append(line)
    return fresh


def _story(
    search: Search, ids: list[str]
) -> tuple[list["StoryLine"], list[str], "LlxError | None"]:
    """The request's lines by time, the ids that it goes by, and what could not be searched.

    A host that could not be searched is not asked again in this search: one that hangs would hold
    the others up once more for each id that turns up.
    """
    from llx.bootstrap.fan_out import FanOutError
    from llx.bootstrap.request_story import MAX_ROUNDS, ids_in, pattern_of
    from llx.errors import LlxError

    lines: list[StoryLine] = []
    errors: dict[str, LlxError] = {}
    is_partial = False
    for _ in range(MAX_ROUNDS):
        found = search(pattern_of(ids), errors)
        errors |= {host: each for host, each in found.items() if isinstance(each, LlxError)}
        is_partial = any(not isinstance(each, LlxError) for each in found.values())
        lines = sorted(
            line for each in found.values() if not isinstance(each, LlxError) for line in each
        )
        known, ids = ids, ids_in(lines, ids)
        if ids == known:
            break
    if not errors:
        return lines, ids, None
    headline = f"not searched: {', '.join(errors)}; lines of theirs are missing"
    return lines, ids, FanOutError(headline, errors, is_partial=is_partial)


def _on_hosts(crew: "Crew", pattern: str, without: Container[str]) -> Found:
    from llx.bootstrap.fan_out import fan_out
    from llx.bootstrap.request_story import MAX_LINES, SEARCH, lines_of

    def search(host: str) -> "list[StoryLine]":
        procs = str(crew.layouts[host].procs)
        argv = ["sh", "-c", SEARCH, "sh", procs, pattern, str(MAX_LINES)]
        return lines_of(host, crew.shells[host].run(argv, timeout_s=_SEARCH_S).stdout)

    hosts = [each for each in crew.good if each not in without]
    return {**fan_out(hosts, search), **crew.errors}


def _here(procs: str, pattern: str) -> "list[StoryLine]":
    """Of a cluster on this machine."""
    import subprocess

    from llx.bootstrap.request_story import MAX_LINES, SEARCH, lines_of

    argv = ["sh", "-c", SEARCH, "sh", procs, pattern, str(MAX_LINES)]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=_SEARCH_S)
    return lines_of("local", done.stdout.decode(errors="replace"))


def _write(lines: "list[StoryLine]") -> None:
    sys.stdout.write("".join(f"{each}\n" for each in lines))
    sys.stdout.flush()

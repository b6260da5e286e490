"""Faults done on a host: small shell scripts, run there by whoever logs in as llx's user.

What lasts undoes itself: the script that ends a freeze, a slowness or a partition runs on the host
and needs neither the operator's connection nor this process. A signal goes only to a process that
is still the one meant: its pid, and when it was started.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, Protocol

from llx.agent.shim import MARK
from llx.bootstrap.shell import Completed
from llx.errors import ConflictError, DeadlineError, NotFoundError, RemoteError

_TIMEOUT_S: Final = 30.0
_GONE: Final = 3
_REFUSED: Final = 4
_STARTED: Final = """
started() { s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; set -- "$1" ${s##*) }; echo "${21}"; }
same() { [ "$(started "$pid")" = "$start" ]; }
"""
"""`started PID`: the 22nd field of its stat, counted behind the name, which may hold anything."""
_KILL: Final = 'pid=$1; start=$2; same || exit 3; kill -KILL "$pid" 2>/dev/null || exit 3\n'
_FREEZE: Final = (
    'pid=$1; start=$2; same || exit 3; kill -STOP "$pid" 2>/dev/null || exit 3\n'
    '( sleep "$3"; same && kill -CONT "$pid" ) </dev/null >/dev/null 2>&1 &\n'
)
_SLOW: Final = (
    "pid=$1; start=$2; same || exit 3; end=$(( $(date +%s) + ${3%.*} ))\n"
    '( while same && [ "$(date +%s)" -lt "$end" ]; do kill -STOP "$pid"; sleep 0.15;'
    ' kill -CONT "$pid"; sleep 0.05; done; same && kill -CONT "$pid" )'
    " </dev/null >/dev/null 2>&1 &\n"
)
_MAY_CUT: Final = """
PATH=$PATH:/usr/sbin:/sbin
command -v nft >/dev/null || { echo "nft is not installed there" >&2; exit 4; }
as() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
as nft list tables >/dev/null 2>&1 ||
  { echo "nft there takes root, or sudo without a password" >&2; exit 4; }
"""
_PARTITION: Final = """
lasts=$1; table=$2; shift 2
as nft list table inet "$table" >/dev/null 2>&1 && { echo "it is cut off already" >&2; exit 4; }
rules() { for each in $peers; do echo "${each%/*} $1 ${each#*/} drop;"; done; }
peers=$*
as nft -f - <<END || exit 1
table inet $table {
  chain hears { type filter hook input priority -300; $(rules saddr) }
  chain says { type filter hook output priority -300; $(rules daddr) }
}
END
( sleep "$lasts"; as nft delete table inet "$table" ) </dev/null >/dev/null 2>&1 &
"""
_FIND: Final = (
    'for each in /proc/[0-9]*; do read -r line 2>/dev/null <"$each/cmdline" || true;'
    ' case "$line" in $1*) grep -qsz "^$2$" "$each/environ" &&'
    ' echo "${each#/proc/} $(started "${each#/proc/}")";; esac; done; true\n'
)
_CHILD: Final = (
    'pid=$(cut -d " " -f 1 "/proc/$1/task/$1/children" 2>/dev/null); [ -n "$pid" ] || exit 3;'
    ' echo "$pid $(started "$pid")"\n'
)
_TABLE: Final = "llx_chaos"


class Hand(Protocol):
    """A host on which commands can be run: `llx.bootstrap.shell.Shell`, or this machine."""

    def run(self, argv: Sequence[str], *, timeout_s: float = 30.0, stdin: bytes = b"") -> Completed:
        """Run a command to its end."""


class ThisMachine:
    """Commands here."""

    def run(self, argv: Sequence[str], *, timeout_s: float = 30.0, stdin: bytes = b"") -> Completed:
        """Run a command to its end.

        Raises:
            DeadlineError: It took longer.
        """
        try:
            done = subprocess.run(
                list(argv), input=stdin, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"{argv[0]} took longer than {timeout_s:g} s") from None
        return Completed(
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be taken for another one: `start` in clock ticks since boot."""

    pid: int
    start: int


def find_shimmed(hand: Hand, procs: PurePath, name: str) -> ProcessId:
    """The process under the shim of that name.

    Raises:
        NotFoundError: It does not run there.
    """
    return _of_record(hand, procs, name, "child")


def find_shim(hand: Hand, procs: PurePath, name: str) -> ProcessId:
    """The shim of that name itself.

    Raises:
        NotFoundError: Nothing runs under it.
    """
    return _of_record(hand, procs, name, "shim")


def _of_record(hand: Hand, procs: PurePath, name: str, which: str) -> ProcessId:
    pid, start, _ = _record(hand, procs, name, which)
    return ProcessId(pid, start)


def _record(hand: Hand, procs: PurePath, name: str, which: str) -> tuple[int, int, str]:
    """What a shim has written of itself or its child: pid, start, and the mark of this run."""
    done = hand.run(["cat", str(procs / name / "shim.json")], timeout_s=_TIMEOUT_S)
    try:
        record = json.loads(done.stdout)
        if record["state"] == "running":
            pid, start = int(record[f"{which}_pid"]), int(record[f"{which}_start"])
            return pid, start, str(record["mark"])
    except (ValueError, KeyError, TypeError):
        pass  # there is none, or it is being written
    raise NotFoundError(f"{name} does not run")


def find_kept(hand: Hand, procs: PurePath, name: str) -> ProcessId:
    """What the process under the shim of that name keeps running: its child.

    Raises:
        NotFoundError: It does not run there.
    """
    keeper = find_shimmed(hand, procs, name)
    found = _sh(hand, "find", _CHILD, [str(keeper.pid)]).stdout.split()
    if len(found) != 2:
        raise NotFoundError(f"{name} does not run")
    return ProcessId(int(found[0]), int(found[1]))


def find_titled(hand: Hand, procs: PurePath, name: str, title: str) -> ProcessId:
    """The process whose title begins like that (a pattern of the shell) under the shim of a name.

    Other clusters' processes of the same title are told from it by that shim's mark.

    Raises:
        NotFoundError: There is none.
        ConflictError: There are several.
    """
    mark = f"{MARK}={_record(hand, procs, name, 'shim')[2]}"
    lines = _sh(hand, "find", _FIND, [title, mark]).stdout.split("\n")
    found = [ProcessId(*map(int, line.split())) for line in lines if len(line.split()) == 2]
    if not found:
        raise NotFoundError(f"no {title} runs there")
    if len(found) > 1:
        raise ConflictError(f"{len(found)} processes there are called {title}")
    return found[0]


def kill(hand: Hand, process: ProcessId) -> None:
    """SIGKILL.

    Raises:
        NotFoundError: It has gone.
    """
    _sh(hand, "kill", _KILL, [str(process.pid), str(process.start)])


def freeze(hand: Hand, process: ProcessId, lasts_s: float) -> None:
    """SIGSTOP, and SIGCONT after so long if it is still there; returns at once.

    Raises:
        NotFoundError: It has gone.
    """
    _sh(hand, "freeze", _FREEZE, [str(process.pid), str(process.start), f"{lasts_s:g}"])


def slow(hand: Hand, process: ProcessId, lasts_s: float) -> None:
    """Let it run a quarter of the time, for so long (whole seconds); returns at once.

    Raises:
        NotFoundError: It has gone.
    """
    seconds = max(1, round(lasts_s))
    _sh(hand, "slow", _SLOW, [str(process.pid), str(process.start), str(seconds)])


def check_partition(hand: Hand) -> None:
    """Whether this user may cut the host off.

    Raises:
        ConflictError: It may not.
    """
    _sh(hand, "partition", _MAY_CUT, [])


def partition(hand: Hand, peers: Sequence[str], lasts_s: float) -> None:
    """Cut the host off from these addresses for so long; returns at once.

    Raises:
        ConflictError: This user may not, or it is cut off already.
    """
    rules = [f"ip6/{each}" if ":" in each else f"ip/{each}" for each in peers]
    _sh(hand, "partition", _MAY_CUT + _PARTITION, [f"{lasts_s:g}", _TABLE, *rules])


def _sh(hand: Hand, step: str, script: str, words: Sequence[str]) -> Completed:
    argv = ["setsid", "-w", "sh", "-c", _STARTED + script, "llx-chaos", *words]
    done = hand.run(argv, timeout_s=_TIMEOUT_S)
    match done.exit_code:
        case 0:
            return done
        case _ if done.exit_code == _GONE:
            raise NotFoundError(f"{step}: the process has gone meanwhile")
        case _ if done.exit_code == _REFUSED:
            raise ConflictError(
                f"{step}: {done.stderr_tail}", remedy="use an account that may, or leave it out"
            )
        case code:
            raise RemoteError(f"{step}: the script ended with {code}", detail=done.stderr_tail)

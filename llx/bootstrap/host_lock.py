"""The lock over a cluster on hosts: a file on the head's host, kept fresh while it is held.

Whoever changes the cluster holds it, from whichever machine. The holder touches the file every few
seconds; one that has not been touched for `STALE_AFTER_S` belonged to an llx that died, or whose
network did, and may be taken over. Looking, taking over and creating are one step under flock(1).
"""

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.shell import Shell
from llx.errors import ConflictError, HostError, LlxError

STALE_AFTER_S = 20
_TOUCH_EVERY_S = 4.0
_MARGIN_S = 5.0
"""So long before others may take it over we act no more: a step that has begun goes on a little."""
_HELD = 75

# $1 directory, $2 lock, $3 record, $4 seconds. Prints the holder's record and age if there is one.
_ACQUIRE = """
mkdir -p -m 700 "$1" || exit 1
exec 9<"$1" && flock -w 10 9 || exit 1
if [ -e "$2" ]; then
  age=$(( $(date +%s) - $(stat -c %Y "$2") ))
  if [ "$age" -lt "$4" ]; then echo "$age"; cat "$2"; exit 75; fi
fi
umask 077
printf %s "$3" > "$2.new" && touch -d "@$(date +%s)" "$2.new" && mv -f "$2.new" "$2"
"""
# $1 lock, $2 nonce: still ours? then fresh. By this host's clock, should a server keep the file.
_TOUCH = 'grep -q "$2" "$1" 2>/dev/null || exit 75; touch -c -d "@$(date +%s)" "$1"'
# $1 directory, $2 lock, $3 nonce (empty: whoever holds it)
_RELEASE = """
exec 9<"$1" && flock -w 10 9 || exit 0
if [ -z "$3" ] || grep -q "$3" "$2" 2>/dev/null; then rm -f "$2"; fi
rmdir "$1" 2>/dev/null; exit 0
"""
_SHOW = '[ -e "$1" ] || exit 0; echo $(( $(date +%s) - $(stat -c %Y "$1") )); cat "$1"'


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a cluster's lock. `age_s`: since it was last heard of."""

    verb: str
    user: str
    machine: str
    pid: int
    since: float
    age_s: int

    @property
    def is_stale(self) -> bool:
        """Whether the next one may take it over."""
        return self.age_s >= STALE_AFTER_S

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return (
            f"llx {self.verb} of {self.user}@{self.machine} (pid {self.pid}, since {since}, "
            f"heard of {self.age_s} s ago)"
        )


class Held:
    """A lock in our hands.

    Attributes:
        is_lost: Somebody took it, or we have let go of it.
        fresh_at: Before that moment it was ours for certain (`_now`).
    """

    def __init__(self, cluster: str, fresh_at: float) -> None:
        self._cluster = cluster
        self.is_lost = False
        self.fresh_at = fresh_at

    def require(self) -> None:
        """See that it is ours still: nobody could have taken it over in the meantime.

        Raises:
            ConflictError: Somebody did, or may have: the head's host was out of reach, or this
                process asleep, for too long.
        """
        if self.is_lost or _now() - self.fresh_at > STALE_AFTER_S - _MARGIN_S:
            raise ConflictError(
                f"cluster {self._cluster}: this llx lost the cluster's lock",
                remedy="llx lock show --file FILE says who has it; then repeat the command",
            )


@contextmanager
def hold(
    shell: Shell, layout: HostLayout, verb: str, user: str, machine: str, pid: int
) -> Iterator[Held]:
    """Hold the cluster's lock on its head's host.

    Raises:
        ConflictError: Another llx holds it; says who.
        HostError: The lock cannot be made there.
    """
    nonce, began = secrets.token_hex(8), _now()
    record = {"verb": verb, "user": user, "machine": machine, "pid": pid, "since": time.time()}
    _acquire(shell, layout, json.dumps({**record, "nonce": nonce}))
    held = Held(layout.cluster, began)
    done = threading.Event()
    toucher = threading.Thread(
        target=_keep_fresh, args=(shell, layout, nonce, held, done), name="lock", daemon=True
    )
    toucher.start()
    try:
        yield held
    finally:
        held.is_lost = True  # work that is still under way, after a Ctrl-C, goes no further
        done.set()
        toucher.join(_TOUCH_EVERY_S)
        with contextlib.suppress(LlxError):
            _sh(shell, _RELEASE, str(layout.root), str(layout.lock), nonce)


def show(shell: Shell, layout: HostLayout) -> Holder | None:
    """Who holds the lock; None if nobody does."""
    return _holder(_sh(shell, _SHOW, str(layout.lock)))


def release(shell: Shell, layout: HostLayout) -> Holder | None:
    """Take the lock away from whoever holds it; that llx stops at its next step."""
    holder = show(shell, layout)
    _sh(shell, _RELEASE, str(layout.root), str(layout.lock), "")
    return holder


def _acquire(shell: Shell, layout: HostLayout, record: str) -> None:
    root, lock = str(layout.root), str(layout.lock)
    done = shell.run(["sh", "-c", _ACQUIRE, "sh", root, lock, record, str(STALE_AFTER_S)])
    if done.exit_code == _HELD:
        holder = _holder(done.stdout)
        raise ConflictError(
            f"cluster {layout.cluster} is locked: {holder or 'by another llx'}",
            remedy=f"wait for it; an llx that died holds it for {STALE_AFTER_S} s at most. Who has "
            "the cluster's file can say llx lock show --file FILE and llx lock release --file FILE",
        )
    if not done.is_success:
        raise HostError(
            f"cannot make {lock}",
            host=shell.host,
            step="lock",
            process_exit_code=done.exit_code,
            stderr_tail=done.stderr_tail,
            remedy="see that the SSH user's home directory can be written to",
        )


def _keep_fresh(
    shell: Shell, layout: HostLayout, nonce: str, held: Held, done: threading.Event
) -> None:
    while not done.wait(_TOUCH_EVERY_S):
        began = _now()
        with contextlib.suppress(LlxError):
            answer = shell.run(["sh", "-c", _TOUCH, "sh", str(layout.lock), nonce], timeout_s=10)
            if answer.exit_code == _HELD:
                held.is_lost = True
                return
            if answer.is_success:
                held.fresh_at = began


def _now() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _sh(shell: Shell, script: str, *arguments: str) -> str:
    return shell.run(["sh", "-c", script, "sh", *arguments], timeout_s=20).stdout


def _holder(text: str) -> Holder | None:
    age, _, record = text.partition("\n")
    try:
        found = json.loads(record)
        return Holder(
            verb=str(found["verb"]),
            user=str(found["user"]),
            machine=str(found["machine"]),
            pid=int(found["pid"]),
            since=float(found["since"]),
            age_s=int(age),
        )
    except (ValueError, KeyError, TypeError):
        return None

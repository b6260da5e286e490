"""A cluster's state directory: the lock over it, the files of a start, and taking them away.

cluster.yaml    the resolved settings; there while the cluster is up
events.jsonl    the audit trail; kept
term            raised at each start of the head; kept
procs/<name>/   one per process; its log is kept
…               keys, token, ledger and the like belong to a start

What is in it while the cluster runs is `llx.cluster.state_dir`'s.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from llx.bootstrap.contexts import ID_FILE, SETTINGS_FILE
from llx.errors import ConfigError, ConflictError, LlxError
from llx.settings import ClusterSettings, load_cluster

DOWN_FILE = "down.yaml"
"""The settings of a cluster on hosts that is down: what a later purge has to visit."""
LEFT_FILE = "left.yaml"
"""Hosts that were taken out of the cluster, and where llx's files still lie."""
LOCK_FILE = "up.lock"
PROCS = "procs"

_KEPT_FILES = frozenset({"events.jsonl", "term", LOCK_FILE, DOWN_FILE, LEFT_FILE, ID_FILE})
_KEPT_PROCESS_FILES = frozenset({"log", "log.1"})


@dataclass(frozen=True, slots=True)
class LocalHolder:
    """Who holds a cluster's lock on this machine; without a verb: that is not known."""

    verb: str = ""
    pid: int = 0
    since: float = 0.0

    def __str__(self) -> str:
        if not self.verb:
            return "another llx is at work"
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"another llx {self.verb} is at work (pid {self.pid}, since {since})"


@contextlib.contextmanager
def cluster_lock(state_dir: Path, verb: str) -> Iterator[None]:
    """Hold the cluster for one `up` or `down`; the directory is made if need be, 0700.

    The kernel lets go when the process dies. A directory that holds nothing afterwards is removed.

    Raises:
        ConflictError: Another llx holds it.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LlxError(f"cannot make {state_dir}: {error.strerror}") from None
    path = state_dir / LOCK_FILE
    handle = _acquire(path)
    try:
        record = {"verb": verb, "pid": os.getpid(), "since": time.time()}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(record).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            state_dir.rmdir()  # refuses a directory that holds anything
        os.close(handle)


def lock_holder(state_dir: Path) -> LocalHolder | None:
    """Who holds the cluster's lock on this machine; None if nobody does."""
    try:
        handle = os.open(state_dir / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _who(os.pread(handle, 1000, 0))
    finally:
        os.close(handle)


def running_settings(state_dir: Path) -> ClusterSettings | None:
    """The settings the cluster was started with; None if it is not up."""
    path = state_dir / SETTINGS_FILE
    if not path.exists():
        return None
    try:
        return load_cluster(path)
    except ConfigError as error:
        raise ConflictError(
            f"cluster {state_dir.name} was started by another llx: {error.message}",
            remedy="llx down",
        ) from None


def hosts_to_visit(state_dir: Path, *, is_purge: bool) -> ClusterSettings | None:
    """The settings of a cluster on hosts that `down` has to go to; None: it is none.

    Raises:
        ConflictError: It is one, but of another llx, whose settings cannot be read.
    """
    try:
        settings = running_settings(state_dir)
    except ConflictError as error:
        with contextlib.suppress(OSError, yaml.YAMLError):
            values = yaml.safe_load((state_dir / SETTINGS_FILE).read_text())
            if isinstance(values, dict) and values.get("hosts"):
                raise ConflictError(
                    error.message, remedy="take it down with the llx that started it"
                ) from None
        return None  # of this machine: taken down by what is found here
    down = state_dir / DOWN_FILE
    if settings is None and is_purge and down.exists():
        with contextlib.suppress(ConfigError):
            settings = load_cluster(down)
    return settings if settings is not None and settings.hosts else None


def id_of(state_dir: Path) -> str:
    """Of the cluster on hosts that is known here; empty: none is."""
    try:
        return (state_dir / ID_FILE).read_text().strip()
    except OSError:
        return ""


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user may read, whole or not at all."""
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)


def remembered_hosts(state_dir: Path) -> ClusterSettings | None:
    """The settings of a cluster on hosts, up or down, as this machine last had them; else None.

    Raises:
        ConflictError: They are those of another llx.
    """
    return hosts_to_visit(state_dir, is_purge=True)


def clear(state_dir: Path) -> None:
    """Remove what belongs to a start; logs, the audit trail and the term stay."""
    for each in state_dir.iterdir():
        if each.is_file() and each.name not in _KEPT_FILES:
            each.unlink(missing_ok=True)
    procs = state_dir / PROCS
    for directory in procs.iterdir() if procs.is_dir() else ():
        for each in directory.iterdir():
            if each.name not in _KEPT_PROCESS_FILES:
                each.unlink(missing_ok=True)


def purge(state_dir: Path) -> None:
    """Remove everything but the lock, which its holder removes."""
    for each in state_dir.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        elif each.name != LOCK_FILE:
            each.unlink(missing_ok=True)


def _acquire(path: Path) -> int:
    """The lock's file descriptor. Whoever had it removes the file: look that ours is the one."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 1000, 0)
            os.close(handle)
            raise _held(path, holder) from None
        with contextlib.suppress(OSError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        os.close(handle)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _held(path: Path, record: bytes) -> ConflictError:
    return ConflictError(
        f"cluster {path.parent.name}: {_who(record)}",
        remedy="wait for it, or end it with Ctrl-C",
    )


def _who(record: bytes) -> LocalHolder:
    try:
        holder = json.loads(record)
        return LocalHolder(str(holder["verb"]), int(holder["pid"]), float(holder["since"]))
    except (ValueError, KeyError, TypeError):
        return LocalHolder()

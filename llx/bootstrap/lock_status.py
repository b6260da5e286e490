"""Who holds a cluster's lock, wherever it lies: what `llx lock show` prints."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from llx.bootstrap import host_lock
from llx.bootstrap.cluster_dir import LocalHolder


class LockHolder(BaseModel):
    """An `llx` at work. `age_s`: since it was last heard of; None: it is alive, on this machine.

    Of a lock on this machine only `verb`, `pid` and `since` are known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verb: str
    user: str = ""
    machine: str = ""
    pid: int
    since: float
    age_s: int | None = None
    is_stale: bool = False


class LockStatus(BaseModel):
    """A cluster's lock. `host`: the head's host, where it lies; empty: this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_version: Literal["v1"] = "v1"
    cluster: str
    host: str = ""
    holder: LockHolder | None = None


def on_host(cluster: str, host: str, holder: host_lock.Holder | None) -> LockStatus:
    """Of a lock on the head's host."""
    if holder is None:
        return LockStatus(cluster=cluster, host=host)
    found = LockHolder(
        verb=holder.verb,
        user=holder.user,
        machine=holder.machine,
        pid=holder.pid,
        since=holder.since,
        age_s=holder.age_s,
        is_stale=holder.is_stale,
    )
    return LockStatus(cluster=cluster, host=host, holder=found)


def on_this_machine(cluster: str, holder: LocalHolder | None) -> LockStatus:
    """Of a lock of this machine."""
    if holder is None:
        return LockStatus(cluster=cluster)
    found = LockHolder(verb=holder.verb, pid=holder.pid, since=holder.since)
    return LockStatus(cluster=cluster, holder=found)

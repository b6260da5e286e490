"""The tables of requests and migrations."""

from llx.api import LeftOut, MigrationStatus, PlannedMove, RequestStatus
from llx.cli.render import Column, age
from llx.figures import milliseconds, rate_text, size_text


def request_columns(now: float | None = None) -> list[Column[RequestStatus]]:
    """Of `llx req ls`."""
    return [
        Column("request", lambda each: each.name or each.id),
        Column("id", lambda each: each.id, is_wide_only=True),
        Column("model", lambda each: each.model, is_wide_only=True),
        Column("instance", lambda each: each.instance or _waits_for(each)),
        Column("class", lambda each: each.priority_class or str(each.priority)),
        Column("state", _state),
        Column("prompt", lambda each: str(each.num_prompt), is_number=True, is_wide_only=True),
        Column("tokens", lambda each: str(each.num_tokens), is_number=True),
        Column("blocks", lambda each: str(each.num_blocks), is_number=True),
        Column("kv", lambda each: size_text(each.size_bytes), is_number=True, is_wide_only=True),
        Column("age", lambda each: age(each.arrived_at, now), is_number=True),
        Column("migration", lambda each: each.migration or "-", is_wide_only=True),
        Column("pinned", lambda each: each.pinned),
    ]


def migration_columns(now: float | None = None) -> list[Column[MigrationStatus]]:
    """Of `llx mig ls`."""
    return [
        Column("id", lambda each: each.id),
        Column("request", lambda each: each.name or each.request),
        Column("source", lambda each: each.source),
        Column("target", lambda each: each.target),
        Column("state", lambda each: str(each.outcome or each.state)),
        Column("tokens", lambda each: str(each.num_tokens), is_number=True, is_wide_only=True),
        Column("stages", lambda each: str(each.num_stages), is_number=True, is_wide_only=True),
        Column("blocks", lambda each: str(each.blocks_copied), is_number=True, is_wide_only=True),
        Column("reused", lambda each: str(each.blocks_reused), is_number=True, is_wide_only=True),
        Column("bytes", lambda each: size_text(each.size_bytes), is_number=True),
        Column("rate", lambda each: rate_text(each.rate), is_number=True, is_wide_only=True),
        Column("transport", transport_text, is_wide_only=True),
        Column("took", _took, is_number=True, is_wide_only=True),
        Column("downtime", lambda each: milliseconds(each.downtime_ms), is_number=True),
        Column("itl", lambda each: milliseconds(each.itl_ms), is_number=True, is_wide_only=True),
        Column("age", lambda each: age(each.begun_at, now), is_number=True),
        Column("user", lambda each: each.user or "-", is_wide_only=True),
        Column("why", lambda each: each.why or "-"),
        Column("reason", lambda each: each.reason),
    ]


def planned_columns() -> list[Column[PlannedMove]]:
    """Of `llx migrate --dry-run`."""
    return [
        Column("request", lambda each: each.request.name or each.request.id),
        Column("source", lambda each: each.request.instance),
        Column("target", lambda each: each.target),
        Column("state", lambda each: each.request.state),
        Column("tokens", lambda each: str(each.request.num_tokens), is_number=True),
        Column("blocks", lambda each: str(each.request.num_blocks), is_number=True),
        Column("bytes", lambda each: size_text(each.request.size_bytes), is_number=True),
        Column("copy", lambda each: _copy(each), is_number=True),
    ]


def progress_text(each: MigrationStatus) -> str:
    """One line of a migration under way, or of how it ended."""
    what = f"{each.id} {each.name or each.request} {each.source} → {each.target}"
    copied = f"{each.blocks_copied} blocks, {size_text(each.size_bytes)}"
    if each.blocks_reused:
        copied += f", {each.blocks_reused} reused"
    if each.outcome is None and not each.blocks_copied:
        return f"{what}: {each.state}"
    if each.outcome is None:
        return f"{what}: {each.state}, stage {each.stage}, {copied}, {rate_text(each.rate)}"
    took = f"{copied} in {milliseconds(each.elapsed_ms)}"
    gap = ""
    if each.downtime_ms is not None:
        gap = f", downtime {milliseconds(each.downtime_ms)}"
        gap += f" (ITL {milliseconds(each.itl_ms)})" if each.itl_ms else ""
    because = f": {each.reason}" if each.reason else ""
    return f"{what}: {each.outcome}{because}; {took}{gap}"


def transport_text(each: MigrationStatus) -> str:
    """How its KV went: ``nccl``, ``shm (cuda-ipc: no GPU; nccl: no GPU)``."""
    if not each.transport_why:
        return each.transport or "-"
    return f"{each.transport} ({each.transport_why})"


def left_out_text(each: LeftOut) -> str:
    """One line of a request that does not move."""
    return f"{each.name or each.request} on {each.instance} {each.reason}"


def _state(each: RequestStatus) -> str:
    """``queued 3``: the third of its queue."""
    return each.state if each.position is None else f"{each.state} {each.position}"


def _waits_for(each: RequestStatus) -> str:
    return f"for {each.nominated}" if each.nominated else "-"


def _took(each: MigrationStatus) -> str:
    return milliseconds(each.elapsed_ms or None)


def _copy(each: PlannedMove) -> str:
    return "-" if each.copy_s is None else milliseconds(each.copy_s * 1000)

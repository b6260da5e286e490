"""What each pane's columns say of a row. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from llx.api import (
    GatewayStatus,
    HostStatus,
    InstanceStatus,
    MigrationStatus,
    RequestStatus,
    Snapshot,
)
from llx.figures import cores_text, milliseconds, percents_text, rate_text, size_text, span
from llx.top.drawing import bar, count_text, shortened, state_text
from llx.top.table import Column, Order, number, since, word

_BAR = 10


@dataclass(frozen=True, slots=True)
class ClassLine:
    """The requests of one priority class of a model; `waiting`: at instances and centrally."""

    model: str
    name: str
    priority: int
    running: int
    waiting: int
    preempted: int
    blocks: int
    oldest_waiting_at: float | None


def class_lines(snapshot: Snapshot) -> list[ClassLine]:
    """The requests of the snapshot by model and class, the most urgent first."""
    groups: dict[tuple[str, int], list[RequestStatus]] = {}
    for each in snapshot.requests.requests:
        groups.setdefault((each.model, each.priority), []).append(each)
    return [_class_line(model, group) for (model, _), group in sorted(groups.items())]


def _class_line(model: str, requests: Sequence[RequestStatus]) -> ClassLine:
    waiting = [each.arrived_at for each in requests if each.state in {"waiting", "queued"}]
    first = requests[0]
    return ClassLine(
        model=model,
        name=first.priority_class or str(first.priority),
        priority=first.priority,
        running=sum(each.state in {"running", "leaving"} for each in requests),
        waiting=len(waiting),
        preempted=sum(each.state == "preempted" for each in requests),
        blocks=sum(each.num_blocks for each in requests),
        oldest_waiting_at=min(waiting, default=None),
    )


def instance_columns(snapshot: Snapshot) -> list[Column[InstanceStatus]]:
    """Of instances, with the migrations to and from each."""
    coming = [each.target for each in snapshot.migrations if each.outcome is None]
    going = [each.source for each in snapshot.migrations if each.outcome is None]

    def moves(each: InstanceStatus) -> str:
        num_in, num_out = coming.count(each.name), going.count(each.name)
        return " ".join(
            f"{arrow}{number}" for arrow, number in (("↓", num_in), ("↑", num_out)) if number
        )

    return [
        word("name", lambda each: each.name),
        word("model", lambda each: each.model, 110),
        word("host", lambda each: each.host, 120),
        Column("state", _instance_state, lambda each: (each.state,)),
        Column("kv", _kv_bar, lambda each: (_kv_share(each),)),
        Column("blocks", _blocks, lambda each: (_loaded(each, "blocks_used"),), 100, True),
        _load_number("run", "running"),
        _load_number("wait", "waiting"),
        Column("free", _freeness, lambda each: (_freeness_order(each),), 0, True),
        Column("moves", moves, lambda each: (coming.count(each.name) + going.count(each.name),)),
        Column("tok/s", _tokens_per_s, lambda each: (_pace(each, "tokens_per_s"),), 96, True),
        _latencies("TTFT 50 99", "ttft", 132),
        _latencies("ITL 50 99", "itl", 118),
        _load_number("preempted", "preempted", 180),
        _load_number("demand", "waiting_demand_blocks", 190),
        Column("use", _use, lambda each: (_use_order(each),), 104, True),
        since("age", lambda each: each.started_at, snapshot.at, 80),
        number("restarts", lambda each: each.restarts, 200),
        word("devices", lambda each: ",".join(each.devices), 170),
        word("transport", lambda each: each.moved_by.partition(" ")[0], 120),
        word("detail", _instance_detail, 76),
    ]


def _instance_state(each: InstanceStatus) -> Text:
    return state_text(each.state, " cordoned" if each.is_cordoned else "")


def _instance_detail(each: InstanceStatus) -> str:
    lines = (each.detail or each.cannot_migrate).strip().splitlines()
    return lines[-1][:80] if lines else ""


def _load_number(title: str, field: str, width_from: int = 0) -> Column[InstanceStatus]:
    return Column(
        title,
        lambda each: "-" if each.load is None else count_text(_loaded(each, field)),
        lambda each: (_loaded(each, field),),
        width_from,
        True,
    )


def _tokens_per_s(each: InstanceStatus) -> str:
    return "" if each.pace is None else count_text(each.pace.tokens_per_s)


def _use(each: InstanceStatus) -> str:
    """Of its GPUs, else of the CPU."""
    if each.gpu_percent is not None:
        return f"{each.gpu_percent:.0f}% gpu"
    return "-" if each.cores_used is None else f"{cores_text(each.cores_used)} cpu"


def _use_order(each: InstanceStatus) -> float:
    found = each.cores_used if each.gpu_percent is None else each.gpu_percent
    return -1.0 if found is None else found


def _latencies(title: str, field: str, width_from: int) -> Column[InstanceStatus]:
    """The median and the 99th percentile; ordered by the latter."""

    def text(each: InstanceStatus) -> str:
        found = [_pace(each, f"{field}_{share}_ms") for share in ("p50", "p99")]
        return " ".join(milliseconds(value) for value in found) if min(found) >= 0 else ""

    return Column(title, text, lambda each: (_pace(each, f"{field}_p99_ms"),), width_from, True)


def _pace(each: InstanceStatus, field: str) -> float:
    value = None if each.pace is None else getattr(each.pace, field)
    return -1.0 if value is None else float(value)


def _loaded(each: InstanceStatus, field: str) -> float:
    return -1.0 if each.load is None else float(getattr(each.load, field))


def _kv_share(each: InstanceStatus) -> float:
    if each.load is None or not each.load.blocks_total:
        return -1.0
    return each.load.blocks_used / each.load.blocks_total


def _kv_bar(each: InstanceStatus) -> Text:
    share = _kv_share(each)
    if share < 0:
        return Text("-")
    return bar(share, _BAR).append(f" {100 * share:3.0f}%")


def _blocks(each: InstanceStatus) -> str:
    return "-" if each.load is None else f"{each.load.blocks_used}/{each.load.blocks_total}"


def _freeness(each: InstanceStatus) -> str:
    return "-" if each.load is None else f"{each.load.freeness:.1f}"


def _freeness_order(each: InstanceStatus) -> float:
    return float("-inf") if each.load is None else each.load.freeness


def request_columns(snapshot: Snapshot) -> list[Column[RequestStatus]]:
    """Of requests."""
    return [
        word("request", lambda each: shortened(each.name or each.id, 20)),
        word("id", lambda each: shortened(each.id, 40), 180),
        word("model", lambda each: each.model, 120),
        word("instance", lambda each: each.instance or _waits_for(each)),
        Column("class", _class_name, lambda each: (each.priority,)),
        Column("state", _request_state, lambda each: (each.state, each.position or 0)),
        number("prompt", lambda each: each.num_prompt, 100),
        number("tokens", lambda each: each.num_tokens),
        number("blocks", lambda each: each.num_blocks),
        Column(
            "kv", lambda each: size_text(each.size_bytes), lambda each: (each.size_bytes,), 90, True
        ),
        since("age", lambda each: each.arrived_at, snapshot.at, 0),
        word("migration", lambda each: each.migration, 110),
        word("pinned", lambda each: each.pinned, 76),
    ]


def _request_state(each: RequestStatus) -> Text:
    return state_text(each.state, "" if each.position is None else f" {each.position}")


def _waits_for(each: RequestStatus) -> str:
    return f"for {each.nominated}" if each.nominated else "-"


def _class_name(each: RequestStatus) -> str:
    return each.priority_class or str(each.priority)


def migration_columns(snapshot: Snapshot) -> list[Column[MigrationStatus]]:
    """Of migrations."""
    return [
        Column("id", lambda each: each.id, _by_age),
        word("request", lambda each: shortened(each.name or each.request, 20), 70),
        Column("way", _way, lambda each: (each.source, each.target)),
        Column("state", _move_state, lambda each: (str(each.outcome or each.state),)),
        number("stage", lambda each: each.stage or each.num_stages, 90),
        number("blocks", lambda each: each.blocks_copied),
        number("reused", lambda each: each.blocks_reused, 140),
        Column(
            "kv", lambda each: size_text(each.size_bytes), lambda each: (each.size_bytes,), 90, True
        ),
        Column("rate", lambda each: rate_text(each.rate), lambda each: (each.rate,), 90, True),
        Column(
            "took",
            lambda each: milliseconds(each.elapsed_ms or None),
            lambda each: (each.elapsed_ms,),
            100,
            True,
        ),
        Column(
            "down",
            lambda each: "" if each.downtime_ms is None else milliseconds(each.downtime_ms),
            lambda each: (each.downtime_ms or 0.0,),
            0,
            True,
        ),
        Column(
            "ITL",
            lambda each: "" if each.itl_ms is None else milliseconds(each.itl_ms),
            lambda each: (each.itl_ms or 0.0,),
            110,
            True,
        ),
        Column("age", lambda each: span(snapshot.at - each.begun_at), _by_age, 0, True),
        word("transport", lambda each: each.transport, 120),
        word("user", lambda each: each.user, 130),
        word("why", lambda each: each.why, 140),
        word("reason", lambda each: each.reason, 76),
    ]


def _by_age(each: MigrationStatus) -> Order:
    """Those under way first, then the last that ended."""
    return (each.outcome is not None, -(each.ended_at or each.begun_at))


def _way(each: MigrationStatus) -> str:
    return f"{each.source} → {each.target}"


def _move_state(each: MigrationStatus) -> Text:
    if each.outcome is None:
        return Text(each.state, style="cyan")
    return state_text(each.outcome)


def class_columns(snapshot: Snapshot) -> list[Column[ClassLine]]:
    """Of priority classes."""
    return [
        Column("class", lambda each: each.name, lambda each: (each.priority,)),
        word("model", lambda each: each.model),
        number("priority", lambda each: each.priority),
        number("run", lambda each: each.running),
        number("wait", lambda each: each.waiting),
        number("preempted", lambda each: each.preempted),
        number("blocks", lambda each: each.blocks),
        since("oldest waits", lambda each: each.oldest_waiting_at, snapshot.at, 0),
    ]


def host_columns(_snapshot: Snapshot) -> list[Column[HostStatus]]:
    """Of hosts."""
    return [
        word("host", lambda each: each.name),
        Column("state", _host_state, lambda each: (each.state,)),
        word("address", lambda each: each.address),
        Column("cpus", _cpus, lambda each: (each.cpus,), 0, True),
        Column("gpus", _gpus, lambda each: (len(each.gpus),), 0, True),
        word("gpu use", _gpu_use, 120),
        number("instances", lambda each: len(each.instances)),
        number("gateways", lambda each: len(each.gateways), 100),
        Column("memory", _memory_bar, lambda each: (_memory_share(each),)),
        Column(
            "disk free",
            lambda each: size_text(each.disk_free_bytes) if each.disk_free_bytes else "",
            lambda each: (each.disk_free_bytes,),
            100,
            True,
        ),
        Column("heard", _heard, lambda each: (each.last_heard_s or 0.0,), 90, True),
        word("detail", lambda each: each.detail, 76),
    ]


def _host_state(each: HostStatus) -> Text:
    return state_text(each.state, " cordoned" if each.is_cordoned else "")


def _cpus(each: HostStatus) -> str:
    """In use, of all."""
    used = "-" if each.cores_used is None else cores_text(each.cores_used)
    return f"{used}/{each.cpus}" if each.cpus else "-"


def _gpus(each: HostStatus) -> str:
    """In use, of all; those of others are named."""
    if not each.gpus:
        return "-"
    held = sum(bool(gpu.holder) for gpu in each.gpus)
    busy = sum(gpu.is_busy for gpu in each.gpus)
    return f"{held}/{len(each.gpus)}" + (f" +{busy} others'" if busy else "")


def _gpu_use(each: HostStatus) -> str:
    return percents_text([gpu.use_percent for gpu in each.gpus])


def _memory_share(each: HostStatus) -> float:
    if not each.memory_total_bytes:
        return -1.0
    return 1 - each.memory_free_bytes / each.memory_total_bytes


def _memory_bar(each: HostStatus) -> Text:
    share = _memory_share(each)
    if share < 0:
        return Text("-")
    return bar(share, _BAR).append(f" of {size_text(each.memory_total_bytes)}")


def _heard(each: HostStatus) -> str:
    return "never" if each.last_heard_s is None else f"{span(each.last_heard_s)} ago"


def _gateway_cpu(each: GatewayStatus) -> str:
    return "-" if each.cores_used is None else cores_text(each.cores_used)


def gateway_columns(snapshot: Snapshot) -> list[Column[GatewayStatus]]:
    """Of gateways."""
    return [
        word("gateway", lambda each: each.name),
        word("host", lambda each: each.host, 90),
        Column("state", lambda each: state_text(each.state), lambda each: (each.state,)),
        number("now", lambda each: each.in_flight),
        Column("cpu", _gateway_cpu, lambda each: (each.cores_used or 0.0,), 90, True),
        number("requests", lambda each: each.requests),
        number("finished", lambda each: each.finished, 90),
        number("failed", lambda each: each.failed),
        number("refused", lambda each: each.refused),
        number("tokens", lambda each: each.output_tokens),
        since("age", lambda each: each.started_at, snapshot.at, 0),
        word("url", lambda each: each.url, 100),
        word("detail", lambda each: each.detail, 76),
    ]

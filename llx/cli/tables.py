"""The tables of clusters, instances, gateways, models and contexts."""

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.text import Text

from llx.api import (
    ClusterStatus,
    GatewayStatus,
    HostStatus,
    InstanceState,
    InstanceStatus,
    ModelStatus,
)
from llx.cli.render import Column, Grid, age, print_table, styled, table
from llx.figures import cores_text, percents_text, span
from llx.pinned_tls import fingerprint


def instance_columns(
    now: float | None = None, *, shows_host: bool = False
) -> list[Column[InstanceStatus]]:
    """Of `llx inst ls`; `shows_host`: there are several."""
    return [
        Column("name", lambda each: each.name),
        Column("model", lambda each: each.model),
        Column("host", lambda each: each.host or "-", is_wide_only=not shows_host),
        Column("engine", lambda each: each.engine, is_wide_only=True),
        Column("state", lambda each: f"{each.state}{', cordoned' if each.is_cordoned else ''}"),
        Column("run", lambda each: _load(each, "running"), is_number=True),
        Column("wait", lambda each: _load(each, "waiting"), is_number=True),
        Column("kv", _kv, is_number=True),
        Column("freeness", _freeness, is_number=True, is_wide_only=True),
        Column("cpu", _cores, is_number=True, is_wide_only=True),
        Column("gpu", _gpu_use, is_number=True, is_wide_only=True),
        Column("restarts", lambda each: str(each.restarts), is_number=True, is_wide_only=True),
        Column("age", lambda each: age(each.started_at, now), is_number=True),
        Column("pid", lambda each: _or_dash(each.pid), is_number=True, is_wide_only=True),
        Column("devices", lambda each: _devices(each.devices), is_wide_only=True),
        Column("moving", lambda each: str(each.moving_out), is_number=True, is_wide_only=True),
        Column("can move", _can_move, is_wide_only=True),
        Column("detail", lambda each: _one_line(each.detail)),
    ]


def gateway_columns(
    now: float | None = None, *, shows_host: bool = False, shows_certificate: bool = False
) -> list[Column[GatewayStatus]]:
    """Of the gateways in `llx status`."""
    certificate: list[Column[GatewayStatus]] = [
        Column("certificate", lambda each: certificate_left(each, now), is_number=True),
        Column("sha-256", _fingerprint, is_wide_only=True),
    ]
    return [
        Column("gateway", lambda each: each.name),
        Column("host", lambda each: each.host or "-", is_wide_only=not shows_host),
        Column("state", lambda each: str(each.state)),
        Column("now", lambda each: str(each.in_flight), is_number=True),
        Column("requests", lambda each: str(each.requests), is_number=True),
        Column("finished", lambda each: str(each.finished), is_number=True, is_wide_only=True),
        Column("failed", lambda each: str(each.failed), is_number=True),
        Column("refused", lambda each: str(each.refused), is_number=True),
        Column("tokens", lambda each: str(each.output_tokens), is_number=True),
        Column("age", lambda each: age(each.started_at, now), is_number=True),
        Column("cpu", _cores, is_number=True, is_wide_only=True),
        Column("pid", lambda each: _or_dash(each.pid), is_number=True, is_wide_only=True),
        Column("url", lambda each: each.url, is_wide_only=True),
        *(certificate if shows_certificate else []),
        Column("detail", lambda each: _one_line(each.detail), is_wide_only=True),
    ]


def certificate_left(gateway: GatewayStatus, now: float | None = None) -> str:
    """How long the certificate is good for yet, in words."""
    if gateway.certificate_ends_at is None:
        return "-"
    left_s = gateway.certificate_ends_at - (time.time() if now is None else now)
    return f"{left_s / 86400:.0f} days left" if left_s > 0 else "expired"


def _fingerprint(gateway: GatewayStatus) -> str:
    return fingerprint(gateway.certificate) if gateway.certificate else "-"


def host_columns() -> list[Column[HostStatus]]:
    """Of `llx host ls`, and of `llx status` where there are several."""
    return [
        Column("host", lambda each: each.name),
        Column("state", lambda each: f"{each.state}{', cordoned' if each.is_cordoned else ''}"),
        Column("address", lambda each: each.address or "-"),
        Column("cpus", lambda each: str(each.cpus or "-"), is_number=True),
        Column("cpu used", _cores, is_number=True, is_wide_only=True),
        Column("gpus", _gpus, is_number=True),
        Column("gpu use", _gpus_use, is_number=True, is_wide_only=True),
        Column("instances", lambda each: str(len(each.instances)), is_number=True),
        Column("gateways", lambda each: str(len(each.gateways)), is_number=True, is_wide_only=True),
        Column("memory", lambda each: _gib(each.memory_free_bytes), is_number=True),
        Column("disk", lambda each: _gib(each.disk_free_bytes), is_number=True, is_wide_only=True),
        Column("heard", lambda each: _heard(each.last_heard_s), is_number=True),
        Column("llx", lambda each: each.llx_version or "-", is_wide_only=True),
        Column("detail", lambda each: _one_line(each.detail)),
    ]


def model_columns(models: Sequence[ModelStatus]) -> list[Column[ModelStatus]]:
    """Of models in the status; what is short only if something is."""
    short: list[Column[ModelStatus]] = [Column("short of", lambda each: _one_line(each.shortage))]
    return [
        Column("model", lambda each: each.name),
        Column("engine", lambda each: each.engine),
        Column("ready", _ready, is_number=True),
        Column("range", _range, is_number=True),
        Column("source", lambda each: each.source),
        *(short if any(each.shortage for each in models) else []),
    ]


def scale_columns() -> list[Column[ModelStatus]]:
    """Of `llx scale`."""
    return [
        Column("model", lambda each: each.name),
        Column("ready", lambda each: str(each.instances_ready), is_number=True),
        Column("wanted", lambda each: str(each.instances_wanted), is_number=True),
        Column("min", lambda each: str(each.instances_min), is_number=True),
        Column("max", lambda each: str(each.instances_max), is_number=True),
        Column("short of", lambda each: _one_line(each.shortage) or "-"),
    ]


def _ready(model: ModelStatus) -> str:
    return f"{model.instances_ready}/{model.instances_wanted}"


def _range(model: ModelStatus) -> str:
    least, most = model.instances_min, model.instances_max
    return f"{least}" if least == most else f"{least}-{most}"


def cluster_parts(
    status: ClusterStatus, *, is_wide: bool, now: float | None = None
) -> list[Text | Grid]:
    """The headline and the tables of `llx status`."""
    up_for = span((time.time() if now is None else now) - status.started_at)
    headline = Text.assemble(
        (status.cluster, "bold"),
        "  ",
        styled(str(status.state)),
        f"  {status.url}/v1  {status.platform}, vLLM {status.vllm_version}, up {up_for}",
    )
    if is_wide:
        headline.append(f", llx {status.llx_version}, term {status.term}")
    is_many = len(status.hosts) > 1
    return [
        headline,
        *([table(host_columns(), status.hosts, is_wide=is_wide)] if is_many else []),
        table(
            gateway_columns(
                now,
                shows_host=is_many,
                shows_certificate=any(each.certificate for each in status.gateways),
            ),
            status.gateways,
            is_wide=is_wide,
        ),
        table(model_columns(status.models), status.models, is_wide=is_wide),
        table(instance_columns(now, shows_host=is_many), status.instances, is_wide=is_wide),
    ]


def cluster_view(status: ClusterStatus, *, is_wide: bool, now: float | None = None) -> Group:
    """`llx status -w` on a terminal."""
    parts = cluster_parts(status, is_wide=is_wide, now=now)
    spaced: list[Text | Grid] = []
    for each in parts:
        spaced += [each, Text("")]
    return Group(*spaced[:-1])


def print_cluster(
    console: Console, status: ClusterStatus, *, is_wide: bool, now: float | None = None
) -> None:
    """`llx status`."""
    headline, *grids = cluster_parts(status, is_wide=is_wide, now=now)
    console.print(headline, soft_wrap=True)
    for grid in grids:
        assert isinstance(grid, Grid), "the rest are tables"
        console.print()
        print_table(console, grid)


def without_ages(status: ClusterStatus) -> str:
    """What of a status is worth a line in a watch: all but ages, and what is measured of hosts."""
    unused = {"cores_used": None, "gpu_percent": None}
    instances = [
        each.model_copy(
            update={"load": each.load and each.load.model_copy(update={"age_s": 0.0}), **unused}
        )
        for each in status.instances
    ]
    gateways = [each.model_copy(update={"cores_used": None}) for each in status.gateways]
    hosts = [_without_use(each) for each in status.hosts]
    quiet = {"instances": instances, "gateways": gateways, "hosts": hosts}
    return status.model_copy(update=quiet).model_dump_json()


def _without_use(host: HostStatus) -> HostStatus:
    gpus = [each.model_copy(update={"use_percent": None}) for each in host.gpus]
    measured = {
        "cores_used": None,
        "memory_free_bytes": 0,
        "disk_free_bytes": 0,
        "last_heard_s": None,
    }
    return host.model_copy(update={"gpus": gpus, **measured})


def _gpus(each: HostStatus) -> str:
    busy = sum(gpu.is_busy for gpu in each.gpus)
    return f"{len(each.gpus)} ({busy} busy)" if busy else str(len(each.gpus) or "-")


def _cores(each: InstanceStatus | GatewayStatus | HostStatus) -> str:
    return "-" if each.cores_used is None else cores_text(each.cores_used)


def _gpu_use(each: InstanceStatus) -> str:
    return percents_text([each.gpu_percent])


def _gpus_use(each: HostStatus) -> str:
    return percents_text([gpu.use_percent for gpu in each.gpus])


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.0f}G" if size_bytes else "-"


def _heard(seconds: float | None) -> str:
    return "never" if seconds is None else f"{span(seconds)} ago"


def _load(each: InstanceStatus, field: str) -> str:
    return "-" if each.load is None else str(getattr(each.load, field))


def _kv(each: InstanceStatus) -> str:
    if each.load is None or not each.load.blocks_total:
        return "-"
    return f"{100 * each.load.blocks_used / each.load.blocks_total:.0f}%"


def _freeness(each: InstanceStatus) -> str:
    return "-" if each.load is None else f"{each.load.freeness:.1f}"


def _can_move(each: InstanceStatus) -> str:
    """Whether its requests can, and how they last did; or why they cannot."""
    if each.cannot_migrate:
        return f"no: {each.cannot_migrate}"
    if each.state is not InstanceState.READY:
        return "-"
    medium, _, _ = each.moved_by.partition(" ")
    return f"yes: {medium}" if medium else "yes"


def _devices(devices: list[str]) -> str:
    return ",".join(devices) or "-"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _one_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:120] if lines else ""

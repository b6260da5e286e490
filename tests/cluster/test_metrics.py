"""The head's page: what it says of a cluster, and that its series are those of docs/metrics.md."""

import re
from pathlib import Path

import pytest

from llx.api import (
    ClusterState,
    ClusterStatus,
    GatewayStatus,
    GpuStatus,
    HostState,
    HostStatus,
    InstanceState,
    InstanceStatus,
    LoadStatus,
    ModelStatus,
    PolicyStatus,
    QueueStatus,
    RolloutStatus,
)
from llx.cluster.metrics.page import Page, render
from llx.cluster.metrics.series import SERIES
from llx.cluster.metrics.state import tell_cluster, tell_rollouts, tell_scheduling
from llx.cluster.metrics.tally import Histogram, MoveTally, SchedulerTally
from llx.core.model import ClassName, InstanceId, Nanos, PoolName, RequestId
from llx.core.scheduler.commands import Dispatch, Hold, Refusal, Refuse
from llx.core.scheduler.decision import Decision
from llx.gateway.counters import Counters
from llx.gateway.metrics import GatewayMetrics

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
LOAD = LoadStatus(
    blocks_total=100, blocks_used=40, running=3, waiting=1, waiting_demand_blocks=5, preempted=0,
    freeness=20.0, age_s=0.1,
)  # fmt: skip


def status(*instances: InstanceStatus) -> ClusterStatus:
    return ClusterStatus(
        cluster="c", state=ClusterState.DEGRADED, url="u", term=7, started_at=5.0,
        llx_version="1", vllm_version="2", platform="cuda",
        models=[
            ModelStatus(
                name="m", source="/m", engine="sim", instances_min=1, instances_max=4,
                instances_ready=1, instances_wanted=3, shortage="no GPU is free",
            )
        ],
        instances=list(instances),
        gateways=[
            GatewayStatus(name=f"gateway-{number}", host="h1", url="u", state=InstanceState.READY)
            for number in range(2)
        ],
        hosts=[
            HostStatus(
                name="h1", state=HostState.READY, platform="cuda", cpus=8, cores_used=3.5,
                gpus=[
                    GpuStatus(label="0", holder="m-0", use_percent=70),
                    GpuStatus(label="1", is_busy=True), GpuStatus(label="2"),
                ],
            ),
            HostStatus(name="h2", state=HostState.LOST),
        ],
    )  # fmt: skip


def instance(name: str, state: InstanceState, load: LoadStatus | None = None) -> InstanceStatus:
    return InstanceStatus(
        name=name, model="m", host="h1", engine="sim", state=state, load=load, preemptions=2,
        cores_used=None if load is None else 1.25, gpu_percent=None if load is None else 70.0,
    )  # fmt: skip


def samples(page: Page) -> dict[str, float]:
    lines = render(page.families()).decode().splitlines()
    rows = (each.rpartition(" ") for each in lines if each.startswith("llx:"))
    return {key: float(value) for key, _, value in rows}


def test_a_cluster_is_told_as_it_is() -> None:
    page = Page()
    ready = instance("m-0", InstanceState.READY, LOAD)
    tell_cluster(page, status(ready, instance("m-1", InstanceState.FAILED)), ["gateway-0"])
    found = samples(page)
    wanted = {
        "llx:term": 7,
        'llx:cluster_state{state="degraded"}': 1,
        'llx:cluster_state{state="ready"}': 0,
        'llx:instances{model="m",state="ready"}': 1,
        'llx:instances{model="m",state="failed"}': 1,
        'llx:instances{model="m",state="loading"}': 0,
        'llx:instances_wanted{model="m"}': 3,
        'llx:instances_short{model="m"}': 1,
        'llx:instance_up{host="h1",instance="m-0",model="m"}': 1,
        'llx:instance_up{host="h1",instance="m-1",model="m"}': 0,
        'llx:instance_freeness{host="h1",instance="m-0",model="m"}': 20,
        'llx:instance_preemptions_total{host="h1",instance="m-0",model="m"}': 2,
        'llx:gateway_up{gateway="gateway-0",host="h1"}': 1,
        'llx:gateway_up{gateway="gateway-1",host="h1"}': 0,
        'llx:instance_cpu_cores{host="h1",instance="m-0",model="m"}': 1.25,
        'llx:instance_gpu_percent{host="h1",instance="m-0",model="m"}': 70,
        'llx:host_cpu_cores{host="h1"}': 3.5,
        'llx:host_gpu_percent{gpu="0",host="h1"}': 70,
        'llx:hosts{state="lost"}': 1,
        'llx:host_up{host="h2"}': 0,
        'llx:host_gpus{host="h1",use="held"}': 1,
        'llx:host_gpus{host="h1",use="foreign"}': 1,
        'llx:host_gpus{host="h1",use="free"}': 1,
    }
    assert {key: found[key] for key in wanted} == wanted
    assert 'llx:instance_freeness{host="h1",instance="m-1",model="m"}' not in found
    assert 'llx:instance_cpu_cores{host="h1",instance="m-1",model="m"}' not in found
    assert 'llx:gateway_cpu_cores{gateway="gateway-0",host="h1"}' not in found, "it is not known"
    assert 'llx:host_gpu_percent{gpu="2",host="h1"}' not in found
    assert 'llx:host_cpus{host="h2"}' not in found


def test_what_is_gone_is_gone_from_the_next_page() -> None:
    before, after = Page(), Page()
    tell_cluster(before, status(instance("m-0", InstanceState.READY, LOAD)), [])
    tell_cluster(after, status(), [])
    assert any('instance="m-0"' in key for key in samples(before))
    assert not any('instance="m-0"' in key for key in samples(after))


def test_queues_policies_and_rollouts() -> None:
    page = Page()
    queue = QueueStatus(
        model="m", priority_class="normal", priority=10, waiting=2, oldest_s=1.5, nominated="",
        limit=9, max_wait_s=60,
    )  # fmt: skip
    tell_scheduling(page, [queue], [PolicyStatus(model="m", is_paused=True, scheduling={})])
    rolled = RolloutStatus(model="m", revision=2, generation=0, state="paused", instances_new=1)
    tell_rollouts(page, [rolled, RolloutStatus(model="n", revision=0, generation=0)])
    found = samples(page)
    assert found['llx:queue_waiting{model="m",priority_class="normal"}'] == 2
    assert found['llx:queue_oldest_seconds{model="m",priority_class="normal"}'] == 1.5
    assert found['llx:policy_paused{model="m"}'] == 1
    assert found['llx:rollout_state{model="m",state="paused"}'] == 1
    assert found['llx:rollout_instances{model="m",part="new"}'] == 1
    assert 'llx:rollout_state{model="n",state="paused"}' not in found


class Asked:
    pool = PoolName("m~2")
    priority_class = ClassName("normal")
    since = Nanos(1_000_000_000)

    def __init__(self, *, was_held: bool) -> None:
        self.was_held = was_held


def test_decisions_are_counted_by_model_and_one_that_waits_once() -> None:
    tally = SchedulerTally()
    request = RequestId("r")
    rule = Decision("soonest", "tokens ahead", None)
    fresh = {request: Asked(was_held=False)}
    tally.count(Hold(request, ClassName("normal"), 1, rule), fresh, Nanos(0))
    tally.count(
        Hold(request, ClassName("normal"), 1, rule), {request: Asked(was_held=True)}, Nanos(0)
    )
    tally.count(Dispatch(request, InstanceId("m-0"), rule), fresh, Nanos(1_300_000_000))
    tally.count(Refuse(request, Refusal.QUEUE_FULL, None), fresh, Nanos(0))
    assert tally.decisions == {
        ("m", "held", "soonest"): 1,
        ("m", "placed", "soonest"): 1,
        ("m", "refused", "queue full"): 1,
    }
    assert tally.waits["m", "normal"].sum == pytest.approx(0.3)


def test_a_histogram_counts_what_is_at_most_a_bound() -> None:
    values = Histogram((1, 10))
    for each in (0.5, 1, 5, 100):
        values.observe(each)
    assert values.buckets() == [("1", 2.0), ("10", 3.0), ("+Inf", 4.0)]
    assert values.sum == 106.5


def test_moves_are_counted_in_seconds_and_bytes() -> None:
    tally = MoveTally()
    tally.over("policy", "moved")
    tally.moved(250.0, 1 << 20)
    tally.saw(12.0)
    assert tally.took.sum == 0.25
    assert tally.size.sum == 1 << 20
    assert tally.downtime.sum == pytest.approx(0.012)


def head_rows() -> list[str]:
    return [
        f"| `{each.name}` | {each.kind} | {' '.join(f'`{label}`' for label in each.labels)} "
        f"| {each.text} |"
        for each in SERIES.values()
    ]


def gateway_rows() -> list[str]:
    page = GatewayMetrics(lambda: [("m", 1, Counters())])
    return [
        f"| `{each.name}` | {each.type} | `model` | {each.documentation} |" for each in page._own()
    ]


@pytest.mark.parametrize(("part", "rows"), [("head", head_rows), ("gateway", gateway_rows)])
def test_every_series_is_in_the_docs_and_no_other(
    request: pytest.FixtureRequest, part: str, rows: object
) -> None:
    assert callable(rows)
    table = "\n".join(["| series | kind | labels | what |", "|---|---|---|---|", *rows()])
    text = DOCS.read_text()
    new = re.sub(
        rf"(<!-- {part} -->\n).*?(<!-- end -->)", lambda m: m[1] + table + "\n" + m[2], text,
        flags=re.DOTALL,
    )  # fmt: skip
    if request.config.getoption("--rewrite"):
        DOCS.write_text(new)
    assert f"<!-- {part} -->" in text
    assert new == DOCS.read_text(), "docs/metrics.md: pytest --rewrite"

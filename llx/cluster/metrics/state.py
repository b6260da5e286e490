"""What is known now, as samples: a fresh look at each page, so that what has gone is gone. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable

from llx.api import (
    ClusterState,
    ClusterStatus,
    GatewayStatus,
    HostState,
    HostStatus,
    InstanceState,
    InstanceStatus,
    ModelStatus,
    PolicyStatus,
    QueueStatus,
    RolloutStatus,
)
from llx.cluster.metrics.page import Page
from llx.cluster.rollout_file import RolloutState


def tell_cluster(page: Page, status: ClusterStatus, heard: Collection[str]) -> None:
    """The cluster, its models, instances, gateways and hosts; `heard`: gateways that answer."""
    page.add(
        "cluster_info", 1, status.cluster, status.platform, status.llx_version, status.vllm_version
    )
    page.add_state("cluster_state", ClusterState, status.state)
    page.add("term", status.term)
    page.add("head_started_seconds", status.started_at)
    for model in status.models:
        _tell_model(page, model, status.instances)
    for instance in status.instances:
        _tell_instance(page, instance)
    _count(page, "gateways", InstanceState, [each.state for each in status.gateways])
    for gateway in status.gateways:
        _tell_gateway(page, gateway, is_heard=gateway.name in heard)
    _count(page, "hosts", HostState, [each.state for each in status.hosts])
    for host in status.hosts:
        _tell_host(page, host)


def tell_scheduling(
    page: Page, queues: Iterable[QueueStatus], policies: Iterable[PolicyStatus]
) -> None:
    """Central queues, and which models are paused."""
    for queue in queues:
        labels = queue.model, queue.priority_class
        page.add("queue_waiting", queue.waiting, *labels)
        page.add("queue_oldest_seconds", queue.oldest_s or 0.0, *labels)
        page.add("queue_limit", queue.limit, *labels)
    for policy in policies:
        page.add("policy_paused", policy.is_paused, policy.model)


def tell_rollouts(page: Page, rollouts: Iterable[RolloutStatus]) -> None:
    """How far each model's rollout is; one that never was has no state."""
    for rollout in rollouts:
        page.add("rollout_revision", rollout.revision, rollout.model)
        if rollout.state:
            page.add_state("rollout_state", RolloutState, rollout.state, rollout.model)
        page.add("rollout_instances", rollout.instances_new, rollout.model, "new")
        page.add("rollout_instances", rollout.instances_former, rollout.model, "former")
        page.add("rollout_instances", rollout.instances_leaving, rollout.model, "leaving")


def _tell_model(page: Page, model: ModelStatus, instances: list[InstanceStatus]) -> None:
    states = [each.state for each in instances if each.model == model.name]
    _count(page, "instances", InstanceState, states, model.name)
    page.add("instances_wanted", model.instances_wanted, model.name)
    page.add("instances_min", model.instances_min, model.name)
    page.add("instances_max", model.instances_max, model.name)
    page.add("instances_short", bool(model.shortage), model.name)


def _tell_instance(page: Page, instance: InstanceStatus) -> None:
    labels = instance.model, instance.name, instance.host
    load = instance.load
    page.add("instance_up", instance.state is InstanceState.READY and load is not None, *labels)
    page.add("instance_cordoned", instance.is_cordoned, *labels)
    page.add("instance_moving_out", instance.moving_out, *labels)
    page.add("instance_restarts", instance.restarts, *labels)
    if instance.cores_used is not None:
        page.add("instance_cpu_cores", instance.cores_used, *labels)
    if instance.gpu_percent is not None:
        page.add("instance_gpu_percent", instance.gpu_percent, *labels)
    if instance.preemptions is not None:
        page.add("instance_preemptions", instance.preemptions, *labels)
    if load is not None:
        page.add("instance_freeness", load.freeness, *labels)
        page.add("instance_blocks", load.blocks_total, *labels)
        page.add("instance_blocks_used", load.blocks_used, *labels)
        page.add("instance_running", load.running, *labels)
        page.add("instance_waiting", load.waiting, *labels)
        page.add("instance_waiting_blocks", load.waiting_demand_blocks, *labels)
        page.add("instance_report_age_seconds", load.age_s, *labels)


def _tell_gateway(page: Page, gateway: GatewayStatus, *, is_heard: bool) -> None:
    labels = gateway.name, gateway.host
    page.add("gateway_up", gateway.state is InstanceState.READY and is_heard, *labels)
    page.add("gateway_in_flight", gateway.in_flight, *labels)
    page.add("gateway_connected", len(gateway.connected), *labels)
    page.add("gateway_refused", gateway.refused, *labels)
    if gateway.cores_used is not None:
        page.add("gateway_cpu_cores", gateway.cores_used, *labels)
    page.add("gateway_restarts", gateway.restarts, *labels)


def _tell_host(page: Page, host: HostStatus) -> None:
    page.add("host_up", host.state is HostState.READY, host.name)
    page.add("host_cordoned", host.is_cordoned, host.name)
    if host.last_heard_s is not None:
        page.add("host_silent_seconds", host.last_heard_s, host.name)
    if not host.platform:
        return  # its agent has said nothing yet
    page.add("host_cpus", host.cpus, host.name)
    if host.cores_used is not None:
        page.add("host_cpu_cores", host.cores_used, host.name)
    for gpu in host.gpus:
        if gpu.use_percent is not None:
            page.add("host_gpu_percent", gpu.use_percent, host.name, gpu.label)
    page.add("host_memory_bytes", host.memory_total_bytes, host.name)
    page.add("host_memory_free_bytes", host.memory_free_bytes, host.name)
    page.add("host_disk_free_bytes", host.disk_free_bytes, host.name)
    held = sum(bool(each.holder) for each in host.gpus)
    foreign = sum(each.is_busy and not each.holder for each in host.gpus)
    page.add("host_gpus", held, host.name, "held")
    page.add("host_gpus", foreign, host.name, "foreign")
    page.add("host_gpus", len(host.gpus) - held - foreign, host.name, "free")


def _count(
    page: Page,
    name: str,
    states: Iterable[InstanceState | HostState],
    found: Iterable[InstanceState | HostState],
    *labels: str,
) -> None:
    counts = Counter(found)
    for each in states:
        page.add(name, counts[each], *labels, each.value)

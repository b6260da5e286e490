"""A cluster to look at, and a control API that only pretends."""

import threading

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
    MigrateReport,
    MigrationStatus,
    ModelStatus,
    MoveOutcome,
    NotChanged,
    PaceStatus,
    RequestChangeReport,
    RequestList,
    RequestStatus,
    Snapshot,
    StopReport,
)
from llx.errors import ConflictError, UnreachableError

NOW = 1_800_000_000.0
GIB = 1 << 30


PACE = PaceStatus(
    tokens_per_s=1234.5, ttft_p50_ms=84.2, ttft_p99_ms=1310.0, itl_p50_ms=21.4, itl_p99_ms=48.9
)


def load(used, running, waiting=0, preempted=0):
    return LoadStatus(
        blocks_total=2048, blocks_used=used, running=running, waiting=waiting,
        waiting_demand_blocks=40 * waiting, preempted=preempted,
        freeness=(2048 - used) / max(1, running + waiting), age_s=0.02,
    )  # fmt: skip


def instance(name, state=InstanceState.READY, **more):
    values = {
        "name": name, "model": "tiny", "host": "gpu1", "engine": "vllm", "state": state,
        "pid": 101, "devices": ["gpu:0"], "started_at": NOW - 300, **more,
    }  # fmt: skip
    return InstanceStatus(**values)


def request(number, **more):
    values = {
        "id": f"chatcmpl-{number:016x}-0123abcd", "name": f"llx-{number:016x}",
        "instance": "tiny-0", "model": "tiny", "priority": 10, "priority_class": "normal",
        "state": "running", "num_prompt": 20 * number, "num_tokens": 530 + number,
        "num_blocks": 34 + number, "size_bytes": 8_912_896, "arrived_at": NOW - 90 + number,
        **more,
    }  # fmt: skip
    return RequestStatus(**values)


def migration(number, **more):
    values = {
        "id": f"m3-{number}", "request": f"chatcmpl-{number:016x}-0123abcd",
        "name": f"llx-{number:016x}", "source": "tiny-0", "target": "tiny-1", "user": "ann",
        "why": "asked for", "state": "copying", "begun_at": NOW - 40 + number, "stage": 2,
        "blocks_copied": 30, "size_bytes": 7_864_320, "rate": 250e6, "elapsed_ms": 41.0, **more,
    }  # fmt: skip
    return MigrationStatus(**values)


def host(name, **more):
    gpus = [
        GpuStatus(label="gpu:0", holder="tiny-0", use_percent=87),
        GpuStatus(label="gpu:1", is_busy=True),
    ]
    values = {
        "name": name, "address": "10.0.0.1", "state": HostState.READY, "platform": "cuda",
        "cpus": 64, "cores_used": 12.5, "gpus": gpus, "memory_total_bytes": 256 * GIB,
        "memory_free_bytes": 190 * GIB, "disk_free_bytes": 900 * GIB,
        "instances": ["tiny-0"], "gateways": ["gateway-0"], "last_heard_s": 0.4, **more,
    }  # fmt: skip
    return HostStatus(**values)


def cluster(tokens=54321):
    return ClusterStatus(
        cluster="prod", state=ClusterState.DEGRADED, url="http://10.0.0.1:8000", term=3,
        started_at=NOW - 3000, llx_version="0.1.0", vllm_version="0.32.0", platform="cuda",
        models=[
            ModelStatus(name="tiny", source="/m", engine="vllm", instances_min=3, instances_max=4,
                        instances_wanted=3, instances_ready=2)
        ],
        instances=[
            instance("tiny-0", load=load(1988, 24, 3, 1), moved_by="nccl", pace=PACE,
                     cores_used=1.31, gpu_percent=87.0),
            instance("tiny-1", load=load(512, 6), host="gpu2", is_cordoned=True,
                     pace=PaceStatus(tokens_per_s=0.0), cores_used=0.04),
            instance(
                "tiny-2", InstanceState.FAILED, detail="exit code 1\nRuntimeError: out of memory",
                host="gpu2", restarts=2, devices=[],
            ),
        ],
        gateways=[
            GatewayStatus(
                name="gateway-0", host="gpu1", url="http://10.0.0.1:8000",
                state=InstanceState.READY, started_at=NOW - 3000, in_flight=33, requests=12_345,
                finished=12_310, failed=1, cores_used=0.87, refused=2, output_tokens=tokens,
            ),
        ],
        hosts=[
            host("gpu1"), host("gpu2", address="10.0.0.2", state=HostState.LOST, last_heard_s=45.0)
        ],
        priority_classes=["urgent", "normal"],
    )  # fmt: skip


def snapshot(at=NOW, tokens=54321, num_requests=12, **more):
    requests = [request(number) for number in range(1, num_requests + 1)]
    requests[1:5] = [
        request(2, state="waiting", priority=0, priority_class="urgent", num_blocks=0),
        request(3, instance="tiny-1", pinned="has a grammar"),
        request(4, state="leaving", migration="m3-9"),
        request(5, state="preempted", num_blocks=0),
    ]
    over = {"outcome": MoveOutcome.MOVED, "num_stages": 3, "downtime_ms": 14.0, "itl_ms": 11.5}
    migrations = [
        migration(1, **over, ended_at=NOW - 38),
        migration(2, outcome=MoveOutcome.KEPT, reason="tiny-1 has no room", ended_at=NOW - 30),
        migration(9, request=request(4).id, name=request(4).name),
    ]
    values = {
        "at": at, "status": cluster(tokens),
        "requests": RequestList(requests=requests, num_found=num_requests),
        "migrations": migrations, **more,
    }  # fmt: skip
    return Snapshot(**values)


class FakeControl:
    """Answers with `found`, or fails with `error`; remembers what it was asked."""

    def __init__(self, found=None):
        self.found = found or snapshot()
        self.error = None
        self.pause = None
        self.asked = []
        self.matches = []
        self.num_connects = 0
        self.num_now = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def connect(self):
        self.num_connects += 1
        if isinstance(self.error, UnreachableError):
            raise self.error
        return self

    def snapshot(self, *, max_requests, max_over, match=""):
        with self._lock:
            self.num_now += 1
            self.most_at_once = max(self.most_at_once, self.num_now)
        try:
            if self.error is not None:
                raise self.error
            self.matches.append(match)
            if self.pause is not None:
                self.pause()
            return self.found
        finally:
            with self._lock:
                self.num_now -= 1

    def migrate(self, request):
        self.asked.append(("migrate", request.request or request.source, request.target))
        return MigrateReport(migrations=[migration(11)])

    def change_requests(self, verb, ask):
        self.asked.append((str(verb), *ask.ids, ask.priority_class, ask.user))
        if verb == "set-priority":
            refused = NotChanged(given="r", error="conflict", reason="it has ended meanwhile")
            return RequestChangeReport(not_changed=[refused])
        return RequestChangeReport(changed=[request(1)])

    def cancel_migration(self, migration, *, user=""):
        self.asked.append(("cancel", migration, user))
        return self.found.migrations[-1]

    def cordon_instance(self, name, *, is_on, user=""):
        self.asked.append(("cordon", name, is_on, user))
        return instance(name, is_cordoned=is_on)

    def cordon_host(self, name, *, is_on, user=""):
        self.asked.append(("cordon host", name, is_on, user))
        return host(name, is_cordoned=is_on)

    def drain_instance(self, name, *, deadline_s=60.0, user=""):
        self.asked.append(("drain", name, deadline_s, user))
        return StopReport(finished=1, cut=0, moved=26)

    def drain_host(self, name, *, deadline_s=60.0, user=""):
        self.asked.append(("drain host", name, deadline_s, user))
        raise ConflictError(f"{name} is the only host in use")

    def close(self):
        pass

"""Every verb that reads, in every format; the JSON of each by a schema that is looked at."""

import json

import pytest
import yaml
from pydantic import TypeAdapter

from llx.api import (
    ClusterStatus,
    EventList,
    Explanation,
    HostState,
    HostStatus,
    InstanceStatus,
    MigrationStatus,
    ModelStatus,
    PolicyList,
    PolicyStatus,
    QueueList,
    QueueStatus,
    RequestList,
    RolloutStatus,
    Snapshot,
)
from tests.cli.servers import migration_status, request_status

FORMATS = ("table", "wide", "json", "yaml", "name")
GROUPS = {"host", "inst", "req", "mig", "policy"}
READS = {
    "status": (ClusterStatus, "local"),
    "top --once": (Snapshot, "local"),
    "host ls": (list[HostStatus], "h1"),
    "inst ls": (list[InstanceStatus], "tiny-0 tiny-1"),
    "inst get tiny-0": (InstanceStatus, "tiny-0"),
    "req ls": (RequestList, "cmpl-a-0-0123abcd"),
    "req get llx-a": (RequestList, "cmpl-a-0-0123abcd"),
    "queue": (QueueList, "tiny/normal"),
    "explain llx-a": (Explanation, "cmpl-a-0-0123abcd"),
    "scale": (list[ModelStatus], "tiny"),
    "mig ls": (list[MigrationStatus], "m3-1"),
    "mig get m3-1": (MigrationStatus, "m3-1"),
    "policy show": (PolicyList, "tiny"),
    "rollout": (list[RolloutStatus], "tiny"),
    "events": (EventList, "instance.failed"),
}
"""What its JSON is, and what `-o name` prints."""


@pytest.fixture
def cluster(head):
    head.found = head.found.model_copy(
        update={"hosts": [HostStatus(name="h1", state=HostState.READY, cpus=2)]}
    )
    head.requests = RequestList(requests=[request_status("a")], num_found=1)
    head.moves = [migration_status(1)]
    head.queues = head.queues.model_copy(
        update={
            "queues": [
                QueueStatus(
                    model="tiny", priority_class="normal", priority=10, waiting=2, oldest_s=1.5,
                    nominated="tiny-0", limit=9, max_wait_s=60,
                )
            ]
        }
    )  # fmt: skip
    policy = PolicyStatus(model="tiny", is_paused=True, scheduling={"dispatch": "freest"})
    head.policies = head.policies.model_copy(update={"policies": [policy]})
    event = {"at": 1.0, "kind": "instance.failed", "fields": {"instance": "tiny-1"}}
    head.events = [EventList.model_validate({"events": [event]})]
    head.explained = Explanation.model_validate({"requests": [explained()]})
    return head


def explained():
    decision = {"at": 1.0, "what": "placed", "instance": "tiny-0", "why": "the freest"}
    return {
        "request": "cmpl-a-0-0123abcd", "name": "llx-a", "model": "tiny",
        "priority_class": "normal", "decisions": [decision],
    }  # fmt: skip


@pytest.mark.parametrize("verb", READS)
def test_each_format_is_what_it_says(llx, cluster, verb):
    kind, names = READS[verb]
    done = {name: llx(*verb.split(), "-o", name) for name in FORMATS}
    assert [each.exit_code for each in done.values()] == [0] * len(FORMATS), done
    adapter = TypeAdapter(kind)
    found = adapter.validate_json(done["json"].stdout, strict=False)
    assert json.loads(done["json"].stdout) == adapter.dump_python(found, mode="json")
    assert adapter.validate_python(yaml.safe_load(done["yaml"].stdout)) == found
    assert done["name"].stdout.split() == names.split()
    for name in ("table", "wide"):
        assert "\x1b" not in done[name].stdout
        assert done[name].stdout.strip()


@pytest.mark.golden
@pytest.mark.parametrize("verb", READS)
def test_the_schema_is_that_of_the_release(golden, verb):
    schema = TypeAdapter(READS[verb][0]).json_schema(mode="serialization")
    words = verb.split()
    name = "-".join(words[:2]) if words[0] in GROUPS else words[0]
    golden(f"schema/{name}.json", json.dumps(schema, indent=1, sort_keys=True) + "\n")

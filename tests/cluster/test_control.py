"""The control API's edge: token, bodies, errors, schema. The driver behind it is a stand-in."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from llx.api import (
    ClusterState,
    ClusterStatus,
    ErrorBody,
    Explanation,
    HostState,
    HostStatus,
    InstanceState,
    InstanceStatus,
    KeysStatus,
    LogSlice,
    MigrateReport,
    MigrateRequest,
    MigrationList,
    MigrationStatus,
    ModelStatus,
    NotChanged,
    PolicyList,
    PolicyUpdate,
    QueueList,
    RequestChange,
    RequestChangeReport,
    RequestList,
    RequestVerb,
    RolloutList,
    RolloutReport,
    RolloutRequest,
    RolloutStatus,
    ScaleReport,
    ScaleRequest,
    StopReport,
)
from llx.cluster.control import MAX_BODY_BYTES, Guard, Message, make_app
from llx.cluster.events.routes import add_event_routes
from llx.cluster.requests.page import RequestFilter
from llx.errors import ConflictError, DeadlineError, HostError, NotFoundError
from llx.secret import Secret
from llx.settings import ClusterSettings

TOKEN = "the-token"
INSTANCE = InstanceStatus(
    name="m-0", model="m", host="localhost", engine="sim", state=InstanceState.READY
)

MIGRATION = MigrationStatus(
    id="m1-1", request="r", name="llx-r", source="m-0", target="m-1", state="copying", begun_at=1.0
)


ROLLOUT = RolloutStatus(model="m", revision=1, generation=0)

MODEL = ModelStatus(
    name="m", source="/m", engine="sim", instances_min=2, instances_max=2, instances_ready=1,
    instances_wanted=2,
)  # fmt: skip


class RolloutsStandIn:
    def __init__(self, driver: "StandIn") -> None:
        self._driver = driver

    def statuses(self) -> RolloutList:
        self._driver.note_asked("rollouts")
        return RolloutList(rollouts=[])

    def begin(self, name: str, request: RolloutRequest) -> RolloutReport:
        self._driver.note_asked("rollout", name, request.changes, request.user)
        return RolloutReport(changes=["x"], rollout=ROLLOUT)

    def steer(self, name: str, verb: str, user: str) -> RolloutReport:
        self._driver.note_asked("steer_rollout", name, verb, user)
        return RolloutReport(changes=[], rollout=ROLLOUT)


class MetricsStandIn:
    def collect(self) -> list[Metric]:
        return [GaugeMetricFamily("llx:term", "The term.", value=7)]


class StandIn:
    """Answers what it was told, remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.error: Exception | None = None
        self.instances = InstancesStandIn(self)
        self.requests = RequestsStandIn(self)
        self.request_verbs = RequestVerbsStandIn(self)
        self.migrations = MigrationsStandIn(self)
        self.steering = SteeringStandIn(self)
        self.scale = ScaleStandIn(self)
        self.rollouts = RolloutsStandIn(self)
        self.metrics = MetricsStandIn()
        self.events_path = Path("/nowhere/events.jsonl")

    def note_asked(self, *what: object) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    def status(self) -> ClusterStatus:
        self.note_asked("status")
        return ClusterStatus(
            cluster="c", state=ClusterState.READY, url="u", term=1, started_at=0.0,
            llx_version="0", vllm_version="0", platform="cpu", models=[], instances=[INSTANCE],
            gateways=[],
        )  # fmt: skip

    def keys(self) -> KeysStatus:
        self.note_asked("keys")
        return KeysStatus(made_at=None, is_changing=False)

    def instance(self, name: str) -> InstanceStatus:
        self.note_asked("instance", name)
        return INSTANCE

    def restart(self, name: str, user: str, deadline_s: float) -> InstanceStatus:
        self.note_asked("restart", name, user, deadline_s)
        return INSTANCE

    async def read_log(self, name: str, offset: int | None, limit: int, tail: int) -> LogSlice:
        self.note_asked("log", name, offset, limit, tail)
        return LogSlice(name=name, text="text", next_offset=4)

    async def remember(self) -> None:
        self.note_asked("remember")

    def cordon(self, name: str, *, is_on: bool, user: str) -> HostStatus:
        self.note_asked("cordon", name, is_on, user)
        return HostStatus(name=name, state=HostState.READY, is_cordoned=is_on)

    async def drain_host(self, name: str, deadline_s: float, user: str) -> StopReport:
        self.note_asked("drain", name, deadline_s, user)
        return StopReport(finished=2, cut=1)

    def settings(self) -> str:
        self.note_asked("settings")
        return "cluster: c"

    def reconfigure(
        self, settings: ClusterSettings, user: str, *, is_dry_run: bool = False
    ) -> list[str]:
        self.note_asked("ask" if is_dry_run else "reconfigure", settings.cluster, user)
        return ["model m: 1 → 2 instances"]

    def note(self, verb: str, text: str, user: str) -> None:
        self.note_asked("note", verb, text, user)

    async def stop(self, deadline_s: float, user: str) -> StopReport:
        self.note_asked("stop", deadline_s, user)
        return StopReport(finished=1, cut=0)


class ScaleStandIn:
    def __init__(self, driver: StandIn) -> None:
        self.driver = driver

    def scale(self, name: str, request: ScaleRequest) -> ScaleReport:
        self.driver.note_asked("scale", name, request.min, request.max, request.user)
        return ScaleReport(changes=["model m: 1 → 2 instances"], model=MODEL)


class SteeringStandIn:
    def __init__(self, driver: StandIn) -> None:
        self.driver = driver

    def queues(self) -> QueueList:
        self.driver.note_asked("queues")
        return QueueList(queues=[])

    def policies(self) -> PolicyList:
        self.driver.note_asked("policies")
        return PolicyList(policies=[])

    def update(self, update: PolicyUpdate) -> PolicyList:
        self.driver.note_asked("update", update.model, update.changes, update.user)
        return PolicyList(policies=[])

    def steer(self, verb: str, model: str, user: str) -> PolicyList:
        self.driver.note_asked(verb, model, user)
        return PolicyList(policies=[])

    async def explain(self, request: str) -> Explanation:
        self.driver.note_asked("explain", request)
        return Explanation(requests=[])

    def recording(self, last_s: float | None) -> Iterator[bytes]:
        self.driver.note_asked("recording", last_s)
        if last_s == 0:
            raise NotFoundError("the scheduler is not recorded")
        return iter([b"one\n", b"two\n"])


class InstancesStandIn:
    def __init__(self, driver: StandIn) -> None:
        self.driver = driver

    def cordon(self, name: str, *, is_on: bool, user: str) -> InstanceStatus:
        self.driver.note_asked("cordon-instance", name, is_on, user)
        return INSTANCE.model_copy(update={"is_cordoned": is_on})

    async def drain(self, name: str, deadline_s: float, user: str) -> StopReport:
        self.driver.note_asked("drain-instance", name, deadline_s, user)
        return StopReport(finished=0, cut=0, moved=3, remaining=1, not_moved=["r: pinned"])


class RequestsStandIn:
    def __init__(self, driver: StandIn) -> None:
        self.driver = driver

    async def page(self, wanted: RequestFilter) -> RequestList:
        self.driver.note_asked("requests", wanted)
        return RequestList(requests=[], not_asked=["m-1: away"])

    async def get(self, given: str) -> RequestList:
        self.driver.note_asked("request", given)
        return RequestList(requests=[])


class RequestVerbsStandIn:
    def __init__(self, driver: StandIn) -> None:
        self.driver = driver

    async def change(self, verb: RequestVerb, ask: RequestChange) -> RequestChangeReport:
        self.driver.note_asked(verb, ask.ids, ask.priority_class, ask.is_dry_run, ask.user)
        refused = NotChanged(given="s", error="conflict", reason="has ended meanwhile")
        return RequestChangeReport(not_changed=[refused])


class MigrationsStandIn:
    def __init__(self, driver: StandIn) -> None:
        self.driver = driver

    def latest(self, max_over: int) -> list[MigrationStatus]:
        self.driver.note_asked("latest", max_over)
        return [MIGRATION]

    async def migrate(self, ask: MigrateRequest) -> MigrateReport:
        self.driver.note_asked("migrate", ask.request or ask.source, ask.target, ask.user)
        return MigrateReport(migrations=[MIGRATION])

    def history(self, ids: list[str]) -> MigrationList:
        self.driver.note_asked("history", ids)
        return MigrationList(migrations=[MIGRATION])

    def get(self, migration: str) -> "MigrationsStandIn":
        self.driver.note_asked("migration", migration)
        return self

    def cancel(self, migration: str, user: str) -> "MigrationsStandIn":
        self.driver.note_asked("cancel", migration, user)
        return self

    def status(self) -> MigrationStatus:
        return MIGRATION


@pytest.fixture
def driver() -> StandIn:
    return StandIn()


@pytest.fixture
async def http(driver: StandIn) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(driver, lambda: Secret(TOKEN))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://head", headers=headers
    ) as client:
        yield client


@pytest.mark.parametrize("given", [None, "", TOKEN, f"bearer {TOKEN}", "Bearer x", "Bearer "])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/status"),
        ("POST", "/v1/stop"),
        ("GET", "/openapi.json"),
        ("GET", "/nowhere"),
        ("GET", "/metrics"),
    ],
)
async def test_nothing_without_the_token(
    http: httpx.AsyncClient, driver: StandIn, given: str | None, method: str, path: str
) -> None:
    del http.headers["Authorization"]
    headers = {} if given is None else {"Authorization": given}
    answer = await http.request(method, path, headers=headers, json={})
    assert answer.status_code == 401
    assert ErrorBody.model_validate_json(answer.content).error == "unauthorized"
    assert driver.asked == []


async def test_operations_reach_the_driver(http: httpx.AsyncClient, driver: StandIn) -> None:
    assert ClusterStatus.model_validate_json((await http.get("/v1/status")).content).term == 1
    assert (await http.get("/v1/instances/m-0")).json()["name"] == "m-0"
    assert (await http.post("/v1/instances/m-0/restart?user=ann")).json()["state"] == "ready"
    assert (await http.get("/v1/logs/m-0")).json()["next_offset"] == 4
    await http.get("/v1/logs/m-0?offset=7&limit=99&tail=3")
    stopped = await http.post("/v1/stop", json={"deadline_s": 5, "user": "ann"})
    assert StopReport.model_validate_json(stopped.content) == StopReport(finished=1, cut=0)
    assert driver.asked == [
        ("status",),
        ("instance", "m-0"),
        ("restart", "m-0", "ann", 60.0),
        ("log", "m-0", None, 65536, 200),
        ("log", "m-0", 7, 99, 3),
        ("stop", 5.0, "ann"),
    ]


async def test_metrics_are_where_scrapers_look_for_them(http: httpx.AsyncClient) -> None:
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "llx:term 7.0" in answer.text.splitlines()


async def test_operations_on_hosts_and_settings_reach_the_driver(
    http: httpx.AsyncClient, driver: StandIn
) -> None:
    assert (await http.post("/v1/hosts/h1/cordon?user=ann")).json()["is_cordoned"] is True
    assert (await http.post("/v1/hosts/h1/uncordon")).json()["is_cordoned"] is False
    drained = await http.post("/v1/hosts/h1/drain", json={"deadline_s": 3, "user": "ann"})
    assert (drained.json()["finished"], drained.json()["cut"]) == (2, 1)
    assert (await http.get("/v1/settings")).json()["yaml"] == "cluster: c"
    text = "cluster: c2\nmodels: [{name: m, model: /m, engine: sim}]"
    put = await http.put("/v1/settings", json={"yaml": text, "user": "ann"})
    assert put.json()["changes"] == ["model m: 1 → 2 instances"]
    noted = {"verb": "model add", "text": "m on h1", "user": "ann"}
    assert (await http.post("/v1/events", json=noted)).json() == {"api_version": "v1"}
    assert driver.asked == [
        ("cordon", "h1", True, "ann"),
        ("cordon", "h1", False, ""),
        ("drain", "h1", 3.0, "ann"),
        ("settings",),
        ("reconfigure", "c2", "ann"),
        ("note", "model add", "m on h1", "ann"),
    ]


async def test_operations_on_instances_and_requests_reach_the_driver(
    http: httpx.AsyncClient, driver: StandIn
) -> None:
    assert (await http.post("/v1/instances/m-0/cordon?user=ann")).json()["is_cordoned"] is True
    assert (await http.post("/v1/instances/m-0/uncordon")).json()["is_cordoned"] is False
    drained = await http.post("/v1/instances/m-0/drain", json={"deadline_s": 3, "user": "ann"})
    assert (drained.json()["moved"], drained.json()["remaining"]) == (3, 1)
    await http.post("/v1/instances/m-0/restart?user=ann&deadline_s=0")
    assert (await http.get("/v1/requests")).json()["not_asked"] == ["m-1: away"]
    await http.get("/v1/requests?instance=m-0&pinned=true&offset=5&limit=2")
    assert (await http.get("/v1/requests/llx-1")).json()["requests"] == []
    snapshot = (await http.get("/v1/snapshot?max_requests=9&max_over=3&match=x")).json()
    assert (snapshot["status"]["term"], snapshot["migrations"][0]["id"]) == (1, "m1-1")
    asked = {"request": "r", "target": "m-1", "user": "ann" * 100}
    assert (await http.post("/v1/migrations", json=asked)).json()["migrations"][0]["id"] == "m1-1"
    assert len((await http.get("/v1/migrations?id=a&id=b")).json()["migrations"]) == 1
    assert (await http.get("/v1/migrations")).status_code == 200
    assert (await http.get("/v1/migrations/m1-1")).json()["state"] == "copying"
    assert (await http.post("/v1/migrations/m1-1/cancel?user=ann")).json()["id"] == "m1-1"
    assert driver.asked == [
        ("cordon-instance", "m-0", True, "ann"),
        ("remember",),
        ("cordon-instance", "m-0", False, ""),
        ("remember",),
        ("drain-instance", "m-0", 3.0, "ann"),
        ("restart", "m-0", "ann", 0.0),
        ("requests", RequestFilter()),
        ("requests", RequestFilter(instance="m-0", is_pinned=True, offset=5, limit=2)),
        ("request", "llx-1"),
        ("requests", RequestFilter(match="x", limit=9)),
        ("status",),
        ("latest", 3),
        ("migrate", "r", "m-1", ("ann" * 100)[:256]),
        ("history", ["a", "b"]),
        ("history", []),
        ("migration", "m1-1"),
        ("cancel", "m1-1", "ann"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not valid YAML"),
        ("just words", "expected keys"),
        ("cluster: c", "models"),
        ("cluster: c\nmodels: [{name: m, model: /m}]\nhost: x", "unknown key"),
    ],
)
async def test_bad_settings_are_refused_with_the_mistake_named(
    http: httpx.AsyncClient, driver: StandIn, text: str, words: str
) -> None:
    answer = await http.put("/v1/settings", json={"yaml": text})
    assert answer.status_code == 400
    assert words in ErrorBody.model_validate_json(answer.content).message
    assert driver.asked == []


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (NotFoundError("no", remedy="look", detail="more"), 404, "not_found"),
        (ConflictError("no", remedy="look", detail="more"), 409, "conflict"),
        (DeadlineError("no", remedy="look", detail="more"), 504, "deadline"),
    ],
)
async def test_errors_are_error_bodies(
    http: httpx.AsyncClient, driver: StandIn, error: Exception, code: int, name: str
) -> None:
    driver.error = error
    answer = await http.get("/v1/instances/x")
    assert answer.status_code == code
    assert answer.json() == {"error": name, "message": "no", "remedy": "look", "detail": "more"}


async def test_other_errors_are_internal(http: httpx.AsyncClient, driver: StandIn) -> None:
    driver.error = HostError("broken", host="h", step="s")
    answer = await http.get("/v1/status")
    assert (answer.status_code, answer.json()["error"]) == (500, "internal")
    driver.error = RuntimeError("a secret perhaps")
    answer = await http.get("/v1/status")
    assert answer.status_code == 500
    assert answer.json()["message"] == "RuntimeError"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "options", "code"),
    [
        ("GET", "/v1/nowhere", {}, 404),
        ("DELETE", "/v1/status", {}, 405),
        ("GET", "/v1/logs/m-0?offset=-2", {}, 422),
        ("GET", "/v1/logs/m-0?limit=99999999", {}, 422),
        ("GET", "/v1/logs/m-0?tail=x", {}, 422),
        ("POST", "/v1/stop", {"content": b"{"}, 422),
        ("POST", "/v1/stop", {"json": {"deadline": 5}}, 422),
        ("POST", "/v1/stop", {"json": {"deadline_s": -1}}, 400),
        ("POST", "/v1/stop", {"json": {"deadline_s": 1e9}}, 400),
        ("POST", "/v1/hosts/h/drain", {"json": {"deadline_s": -1}}, 400),
        ("POST", "/v1/events", {"json": {"verb": "", "text": ""}}, 422),
        ("POST", "/v1/events", {"json": {"verb": "x" * 101, "text": ""}}, 422),
        ("POST", "/v1/events", {"json": {"verb": "x", "text": "x" * 2001}}, 422),
        ("POST", f"/v1/instances/m-0/restart?user={'x' * 300}", {}, 422),
        ("POST", "/v1/instances/m-0/restart?deadline_s=-1", {}, 422),
        ("POST", "/v1/instances/m-0/drain", {"json": {"deadline_s": -1}}, 400),
        ("POST", "/v1/migrations", {"json": {"request": "r"}}, 422),
        ("POST", "/v1/migrations", {"json": {"source": "a", "target": "b", "count": 0}}, 422),
        ("GET", f"/v1/migrations?{'id=x&' * 1001}", {}, 422),
    ],
)
async def test_bad_requests(
    http: httpx.AsyncClient,
    driver: StandIn,
    method: str,
    path: str,
    options: dict[str, object],
    code: int,
) -> None:
    answer = await http.request(method, path, **options)
    assert answer.status_code == code
    assert ErrorBody.model_validate_json(answer.content).message
    assert driver.asked == []


async def test_a_large_body_is_refused_stated_or_not(
    http: httpx.AsyncClient, driver: StandIn
) -> None:
    stated = await http.post("/v1/stop", content=b"x" * (MAX_BODY_BYTES + 1))

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield b"x" * 1024
            await asyncio.sleep(0)

    chunked = await http.post("/v1/stop", content=chunks())
    for answer in (stated, chunked):
        assert answer.status_code == 413
        assert answer.json()["error"] == "too_large"
    assert driver.asked == []


async def test_requests_are_changed_and_what_was_not_is_told(
    http: httpx.AsyncClient, driver: StandIn
) -> None:
    for verb in RequestVerb:
        body = {"ids": ["r", "s"], "priority_class": "urgent", "user": "u" * 300}
        answer = await http.post(f"/v1/requests/changes/{verb}", json=body)
        assert answer.status_code == 200
        assert answer.json()["not_changed"][0]["reason"] == "has ended meanwhile"
    assert driver.asked == [
        (verb, ["r", "s"], "urgent", False, "u" * 256) for verb in RequestVerb
    ]  # fmt: skip
    for body in ({}, {"ids": []}, {"ids": ["r"] * 1001}, {"ids": ["r" * 513]}):
        assert (await http.post("/v1/requests/changes/cancel", json=body)).status_code == 422
    assert (await http.post("/v1/requests/changes/forget", json={"ids": ["r"]})).status_code == 422


async def test_the_scheduler_is_looked_at_and_steered(
    http: httpx.AsyncClient, driver: StandIn
) -> None:
    for path in ("queues", "policies", "explain/r"):
        answer = await http.get(f"/v1/{path}")
        assert (answer.status_code, answer.json()["api_version"]) == (200, "v1")
    body = {"model": "m", "changes": {"low": "3"}, "user": "u" * 300}
    assert (await http.put("/v1/policies", json=body)).status_code == 200
    assert (await http.post("/v1/policies/pause?model=m&user=ann")).status_code == 200
    assert (await http.post("/v1/policies/forget")).status_code == 422
    assert driver.asked == [
        ("queues",), ("policies",), ("explain", "r"), ("update", "m", {"low": "3"}, "u" * 256),
        ("pause", "m", "ann"),
    ]  # fmt: skip


async def test_a_recording_is_handed_out_in_pieces(
    http: httpx.AsyncClient, driver: StandIn
) -> None:
    answer = await http.get("/v1/recording?last_s=60")
    assert (answer.status_code, answer.text) == (200, "one\ntwo\n")
    assert driver.asked == [("recording", 60.0)]
    await http.get("/v1/recording?whole=true")
    assert driver.asked[1:] == [("recording", None)]
    assert (await http.get("/v1/recording?last_s=0")).status_code == 404
    assert (await http.get("/v1/recording?last_s=-1")).status_code == 422


async def test_scaling_and_events_reach_what_does_and_keeps_them(
    http: httpx.AsyncClient, driver: StandIn
) -> None:
    body = {"min": 1, "max": 2, "user": "u" * 300}
    answer = await http.put("/v1/models/m/instances", json=body)
    assert answer.json()["changes"] == ["model m: 1 → 2 instances"]
    assert driver.asked == [("scale", "m", 1, 2, "u" * 256)]
    answer = await http.get("/v1/events?kind=a&kind=b")
    assert answer.json() == {"api_version": "v1", "events": [], "num_found": 0, "cursor": ""}
    assert (await http.get("/v1/events?after=x")).status_code == 400
    assert (await http.get("/v1/events?limit=0")).status_code == 422
    assert (await http.get("/v1/events?last_s=-1")).status_code == 422


async def test_only_the_events_of_so_long_are_given(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    trail = [
        {"at": time.time() - age_s, "kind": "instance.failed", "user": "", "age_s": age_s}
        for age_s in (300, 30)
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in trail))
    app = FastAPI()
    add_event_routes(app, path)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for query, ages in {"": [300, 30], "?last_s=60": [30], "?last_s=0": []}.items():
            found = (await client.get(f"/v1/events{query}")).json()["events"]
            assert [each["fields"]["age_s"] for each in found] == ages


async def test_long_answers_are_compressed_for_whoever_reads_that(
    http: httpx.AsyncClient,
) -> None:
    plain = await http.get("/openapi.json", headers={"accept-encoding": "identity"})
    packed = await http.get("/openapi.json", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == plain.json()
    assert int(packed.headers["content-length"]) < len(plain.content) / 3
    short = await http.get("/v1/settings", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in short.headers


async def test_a_model_is_rolled_out(http: httpx.AsyncClient, driver: StandIn) -> None:
    answer = await http.put("/v1/models/m/rollout", json={"changes": {"a": "1"}, "user": "ann"})
    assert answer.json()["rollout"]["revision"] == 1
    answer = await http.post("/v1/models/m/rollout/abort", params={"user": "ann"})
    assert answer.status_code == 200
    assert (await http.get("/v1/rollouts")).json()["rollouts"] == []
    assert driver.asked == [
        ("rollout", "m", {"a": "1"}, "ann"),
        ("steer_rollout", "m", "abort", "ann"),
        ("rollouts",),
    ]
    assert (await http.post("/v1/models/m/rollout/forget")).status_code == 422


async def test_a_model_is_scaled(http: httpx.AsyncClient, driver: StandIn) -> None:
    body = {"min": 2, "max": 2, "user": "ann" * 200}
    answer = await http.put("/v1/models/m/instances", json=body)
    assert ScaleReport.model_validate(answer.json()).model == MODEL
    assert driver.asked == [("scale", "m", 2, 2, ("ann" * 200)[:256])]


async def test_the_schema_names_every_operation(http: httpx.AsyncClient) -> None:
    schema = (await http.get("/openapi.json")).json()
    assert set(schema["paths"]) == {
        "/metrics",
        "/v1/recording",
        "/v1/status",
        "/v1/keys",
        "/v1/instances/{name}",
        "/v1/instances/{name}/steps",
        "/v1/instances/{name}/restart",
        "/v1/instances/{name}/cordon",
        "/v1/instances/{name}/uncordon",
        "/v1/instances/{name}/drain",
        "/v1/requests",
        "/v1/requests/{request}",
        "/v1/requests/changes/{verb}",
        "/v1/snapshot",
        "/v1/migrations",
        "/v1/migrations/{migration}",
        "/v1/migrations/{migration}/cancel",
        "/v1/models/{name}/instances",
        "/v1/models/{name}/rollout",
        "/v1/models/{name}/rollout/{how}",
        "/v1/rollouts",
        "/v1/queues",
        "/v1/policies",
        "/v1/policies/{verb}",
        "/v1/explain/{request}",
        "/v1/logs/{name}",
        "/v1/stop",
        "/v1/hosts/{name}/cordon",
        "/v1/hosts/{name}/uncordon",
        "/v1/hosts/{name}/drain",
        "/v1/events",
        "/v1/settings",
    }
    conflict = schema["paths"]["/v1/instances/{name}/restart"]["post"]["responses"]["409"]
    assert "ErrorBody" in str(conflict)
    assert (await http.get("/docs")).status_code == 404


async def send_body(driver: StandIn, parts: list[bytes], *, leaves: bool) -> list[int]:
    """What is answered to a body that comes in these parts and then stops short."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if leaves:
        messages.append({"type": "http.disconnect"})
    statuses: list[int] = []

    async def receive() -> dict[str, object]:
        if not messages:
            await asyncio.sleep(60)
        return messages.pop(0)

    async def send(message: Message) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    headers = [
        (b"authorization", f"Bearer {TOKEN}".encode()),
        (b"content-type", b"application/json"),
    ]
    scope = {"type": "http", "method": "POST", "path": "/v1/hosts/h/drain", "headers": headers,
             "query_string": b"", "http_version": "1.1", "scheme": "http"}  # fmt: skip
    token = Secret(TOKEN)
    guard = Guard(make_app(driver, lambda: token), lambda: token, body_s=0.1)
    await guard(scope, receive, send)
    return statuses


async def test_half_a_request_is_none(driver: StandIn) -> None:
    """Even if the half would do: nothing is drained for somebody who has left."""
    whole = b'{"deadline_s": 1, "user": "ann"}'
    assert await send_body(driver, [whole], leaves=True) == []
    assert await send_body(driver, [whole[:9]], leaves=False) == [408]
    assert driver.asked == []


async def test_a_token_that_is_replaced_is_refused_from_then_on(driver: StandIn) -> None:
    right = [Secret(TOKEN)]
    transport = httpx.ASGITransport(make_app(driver, lambda: right[0]))
    async with httpx.AsyncClient(transport=transport, base_url="http://head") as http:

        async def status(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return (await http.get("/v1/status", headers=headers)).status_code

        assert (await status(TOKEN), await status("new")) == (200, 401)
        right[0] = Secret("new")
        assert (await status(TOKEN), await status("new")) == (401, 200)
        right[0] = Secret("")
        assert (await status(""), await status("new")) == (401, 401)


PUBLISHED = Path(__file__).parents[2] / "docs/control-api.json"


async def test_the_published_schema_is_that_of_the_api(
    http: httpx.AsyncClient, request: pytest.FixtureRequest
) -> None:
    text = json.dumps((await http.get("/openapi.json")).json(), indent=1, sort_keys=True) + "\n"
    if request.config.getoption("--rewrite"):
        PUBLISHED.write_text(text)
    assert PUBLISHED.read_text() == text, f"see {PUBLISHED}; pytest --rewrite"

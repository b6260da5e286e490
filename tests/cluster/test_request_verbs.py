"""What operators do to requests: who is asked, what is answered, what is written down."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llx.api import InstanceState, RequestChange, RequestVerb
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.requests.requests import Requests
from llx.cluster.requests.stream_changes import StreamChanges
from llx.cluster.requests.verbs import RequestVerbs
from llx.cluster.scheduling.queue_view import Waiting
from llx.core.model import ClassName, PoolName, RequestId, Term, Tokens
from llx.errors import NotFoundError
from llx.settings import ClusterSettings
from llx.wire import CancelRequests, Change, Changed, ReclassRequests, RequestView
from tests.cluster.test_migrations import unit

CLASSES = [
    {"name": "urgent", "priority": 0},
    {"name": "normal", "priority": 10, "default": True},
]


def view(key: str, state: str = "running", priority: int = 10) -> RequestView:
    return RequestView(f"cmpl-{key}-0", f"llx-{key}", 1, priority, state, 5, 32, 2, 4096, 1.0)


class Line:
    """Gateways that answer as told; one that is silent is in no `answers`."""

    def __init__(self) -> None:
        self.gateways = {b"g0": "gateway-0", b"g1": "gateway-1"}
        self.has: dict[bytes, set[str]] = {b"g0": set(), b"g1": set()}
        self.late: dict[str, str] = {}
        self.told: list[tuple[bytes, Change]] = []

    def tell_changed(self, on_changed: Any) -> None:
        self.on_changed = on_changed

    def present(self) -> dict[bytes, str]:
        return dict(self.gateways)

    def tell(self, gateway: bytes, change: Change) -> None:
        self.told.append((gateway, change))
        if gateway not in self.has:
            return
        here = [each for each in change.requests if each in self.has[gateway]]
        done = [each for each in here if each not in self.late]
        late = [(each, self.late[each]) for each in here if each in self.late]
        self.on_changed(gateway, Changed(change.change + 7, here, []))  # of another change
        asyncio.get_running_loop().call_soon(
            self.on_changed, gateway, Changed(change.change, done, late)
        )


class Loads:
    """Instances that list their requests and keep pins."""

    def __init__(self) -> None:
        self.views: dict[str, list[RequestView]] = {"m-0": [], "m-1": [], "m-2": []}
        self.pins: list[tuple[str, str, str]] = []
        self.mute: set[str] = set()
        self.forgets = False

    async def call(self, instance: str, method: str, payload: Any, _timeout: float) -> Any:
        if method == "llx_requests":
            return [msgspec.msgpack.encode(self.views[instance])]
        assert method == "llx_pin"
        request, words = msgspec.msgpack.decode(payload[0])
        if instance in self.mute:
            raise TimeoutError
        self.pins.append((instance, request, words))
        known = set() if self.forgets else {each.id for each in self.views[instance]}
        return [msgspec.msgpack.encode("" if request in known else "it is not here")]


class Rig:
    def __init__(self, folder: Path) -> None:
        self.loads, self.line = Loads(), Line()
        self.waiting: list[Waiting] = []
        settings = ClusterSettings.model_validate(
            {"models": [{"name": "m", "model": "/m"}], "priority_classes": CLASSES}
        )
        instances = {name: unit(name) for name in ("m-0", "m-1")}
        gateways = {name: unit(name) for name in ("gateway-0", "gateway-1")}
        line: Any = self.line
        loads: Any = self.loads
        self.fleet = Fleet(
            settings, "cpu", Term(7), {}, instances, gateways, line, loads, "", folder
        )
        self.requests = Requests(self.fleet, lambda: self.waiting)
        self.trail = folder / "events"
        streams = StreamChanges(line, Term(7), self.fleet.running_gateways, answer_s=0.1)
        self.verbs = RequestVerbs(self.fleet, self.requests, streams, AuditTrail(self.trail))

    def run(self, key: str, gateway: bytes = b"g0", **more: Any) -> None:
        self.loads.views["m-0"].append(view(key, **more))
        self.line.has[gateway].add(f"cmpl-{key}-0")

    def queue(self, key: str, gateway: bytes = b"g0") -> None:
        self.waiting.append(
            Waiting(
                RequestId(f"cmpl-{key}-0"), f"llx-{key}", PoolName("m"), ClassName("normal"), 10,
                Tokens(40), 3.0, 1, "m-1",
            )
        )  # fmt: skip
        self.line.has[gateway].add(f"cmpl-{key}-0")

    async def do(self, verb: RequestVerb, *ids: str, **more: Any) -> Any:
        return await self.verbs.change(verb, RequestChange(ids=list(ids), user="ann", **more))

    def events(self) -> list[dict[str, Any]]:
        if not self.trail.exists():
            return []
        return [json.loads(line) for line in self.trail.read_text().splitlines()]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_what_waits_centrally_is_listed_with_its_place(rig: Rig) -> None:
    rig.run("a")
    rig.queue("b")
    found = (await rig.requests.get("llx-b")).requests[0]
    assert (found.state, found.instance, found.model) == ("queued", "", "m")
    assert (found.position, found.nominated, found.num_tokens) == (1, "m-1", 40)
    assert found.priority_class == "normal"


async def test_one_that_is_listed_by_an_instance_too_waits(rig: Rig) -> None:
    """The instances were asked first: it was lost there, or has not left yet."""
    rig.run("a")
    rig.queue("a")
    (found,) = (await rig.requests.listing()).requests
    assert found.waits is not None


@pytest.mark.parametrize("where", ["run", "queue"])
async def test_cancelled_wherever_it_is_by_the_gateway_that_has_it(rig: Rig, where: str) -> None:
    getattr(rig, where)("a", b"g1")
    report = await rig.do(RequestVerb.CANCEL, "llx-a")
    assert [each.name for each in report.changed] == ["llx-a"]
    assert report.not_changed == []
    assert rig.line.told == [
        (gateway, CancelRequests(Term(7), 1, [RequestId("cmpl-a-0")])) for gateway in (b"g0", b"g1")
    ]
    (event,) = rig.events()
    assert (event["kind"], event["user"], event["request"]) == (
        "request.cancelled", "ann", "cmpl-a-0",
    )  # fmt: skip
    assert event["state"] == ("running" if where == "run" else "queued")


async def test_of_several_ids_each_has_its_own_fate(rig: Rig) -> None:
    rig.run("ab12")
    rig.run("gone", gateway=b"g0")
    rig.line.has[b"g0"].remove("cmpl-gone-0")
    report = await rig.do(RequestVerb.CANCEL, "llx-ab12", "cmpl-ab12-0", "llx-gone", "llx-ab1")
    assert [each.id for each in report.changed] == ["cmpl-ab12-0"], "named twice, ended once"
    unknown, gone = report.not_changed
    assert (unknown.given, unknown.error) == ("llx-ab1", "not_found")
    assert unknown.remedy == "llx req ls", "what each may mean is not looked for"
    assert (gone.given, gone.error) == ("llx-gone", "conflict")
    assert gone.reason == "llx-gone has ended meanwhile"
    assert [each["name"] for each in rig.events()] == ["llx-ab12"]


async def test_what_a_single_unknown_id_may_mean_is_said(rig: Rig) -> None:
    rig.run("ab12")
    (unknown,) = (await rig.do(RequestVerb.CANCEL, "llx-ab1")).not_changed
    assert "did you mean llx-ab12" in unknown.remedy


async def test_a_gateway_that_does_not_answer_may_have_it(rig: Rig) -> None:
    rig.run("a")
    del rig.line.has[b"g0"]
    report = await rig.do(RequestVerb.CANCEL, "llx-a")
    (left,) = report.not_changed
    assert (left.error, left.reason) == ("unreachable", "llx-a may be with gateway-0, silent now")
    (event,) = rig.events()
    assert (event["kind"], event["request"], event["unanswered"]) == (
        "request.cancelled", "cmpl-a-0", "gateway-0",
    ), "it may end yet"  # fmt: skip


async def test_a_gateway_that_is_not_heard_of_may_have_it(rig: Rig) -> None:
    """It was silent before, or has not come back to a head that was just restarted."""
    rig.run("a")
    rig.run("b", b"g1")
    del rig.line.gateways[b"g0"]
    report = await rig.do(RequestVerb.CANCEL, "llx-a", "llx-b")
    assert [each.name for each in report.changed] == ["llx-b"]
    (left,) = report.not_changed
    assert (left.error, left.reason) == ("unreachable", "llx-a may be with gateway-0, silent now")
    assert [each["name"] for each in rig.events()] == ["llx-b"], "nobody was asked to end the other"


@pytest.mark.parametrize("state", [InstanceState.FAILED, InstanceState.STOPPED])
async def test_one_that_has_ended_has_nothing(rig: Rig, state: InstanceState) -> None:
    rig.run("a")
    del rig.line.gateways[b"g0"]
    rig.fleet.gateways["gateway-0"].state = state
    (left,) = (await rig.do(RequestVerb.CANCEL, "llx-a")).not_changed
    assert left.reason == "llx-a has ended meanwhile"


async def test_another_class_is_the_gateways_to_make(rig: Rig) -> None:
    rig.run("a")
    rig.queue("b")
    rig.run("c")
    rig.line.late["cmpl-c-0"] = "not taken within 2 s by m-0"
    report = await rig.do(
        RequestVerb.SET_PRIORITY, "llx-a", "llx-b", "llx-c", priority_class="urgent"
    )
    asked = rig.line.told[0][1]
    assert isinstance(asked, ReclassRequests)
    assert (asked.priority_class, asked.priority, len(asked.requests)) == ("urgent", 0, 3)
    assert {each.name for each in report.changed} == {"llx-a", "llx-b"}
    assert report.not_changed[0].reason == (
        "llx-c is of that class from now on, but was not taken within 2 s by m-0"
    )
    events = rig.events()
    assert {(each["kind"], each["priority_class"]) for each in events} == {
        ("request.reclassed", "urgent")
    }
    assert {each["name"]: each.get("not_taken") for each in events} == {
        "llx-a": None, "llx-b": None, "llx-c": "not taken within 2 s by m-0",
    }  # fmt: skip


async def test_a_class_that_is_none_changes_nothing(rig: Rig) -> None:
    rig.run("a")
    with pytest.raises(NotFoundError, match='no priority class "urgnt"') as caught:
        await rig.do(RequestVerb.SET_PRIORITY, "llx-a", priority_class="urgnt")
    assert "did you mean urgent?" in caught.value.remedy
    assert rig.line.told == []


async def test_a_pin_names_who_wants_it(rig: Rig) -> None:
    rig.run("a")
    report = await rig.do(RequestVerb.PIN, "llx-a")
    assert [each.name for each in report.changed] == ["llx-a"]
    await rig.do(RequestVerb.UNPIN, "llx-a")
    assert rig.loads.pins == [("m-0", "cmpl-a-0", "by ann"), ("m-0", "cmpl-a-0", "")]
    assert [each["kind"] for each in rig.events()] == ["request.pinned", "request.unpinned"]


async def test_a_pin_that_nobody_confirms_may_be_there(rig: Rig) -> None:
    rig.run("a")
    rig.loads.mute.add("m-0")
    (left,) = (await rig.do(RequestVerb.PIN, "llx-a")).not_changed
    assert (left.error, left.reason) == ("unreachable", "llx-a is on m-0: no answer in 3 s")
    (event,) = rig.events()
    assert (event["kind"], event["unanswered"]) == ("request.pinned", "m-0")


async def test_a_pin_that_is_refused_is_not_there(rig: Rig) -> None:
    rig.run("a")
    rig.loads.forgets = True
    (left,) = (await rig.do(RequestVerb.PIN, "llx-a")).not_changed
    assert left.reason == "llx-a is not pinned on m-0: it is not here"
    assert rig.events() == []


async def test_what_waits_or_moves_cannot_be_pinned(rig: Rig) -> None:
    rig.queue("a")
    rig.run("b", state="leaving")
    report = await rig.do(RequestVerb.PIN, "llx-a", "llx-b")
    assert [each.reason for each in report.not_changed] == [
        "llx-a waits in the central queue: no instance has it yet",
        "llx-b is on its way to another instance",
    ]
    assert (report.changed, rig.loads.pins, rig.events()) == ([], [], [])


async def test_a_dry_run_names_them_and_does_nothing(rig: Rig) -> None:
    rig.run("a")
    for verb in RequestVerb:
        report = await rig.do(verb, "llx-a", "x", priority_class="urgent", is_dry_run=True)
        assert [each.name for each in report.changed] == ["llx-a"]
        assert [each.given for each in report.not_changed] == ["x"]
    assert (rig.line.told, rig.loads.pins, rig.events()) == ([], [], [])

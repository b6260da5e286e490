"""What operators see of the scheduler and do to it, and what is left of it after a restart."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llx.api import PolicyUpdate
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.rollout_file import Generation, Rollout, RolloutState
from llx.cluster.scheduling.configs import desired_config
from llx.cluster.scheduling.live import LiveScheduler
from llx.cluster.scheduling.policy_book import PolicyBook
from llx.cluster.scheduling.steering import Steering
from llx.core.model import ClassName, InstanceId, Nanos, PoolName, RequestId, Term
from llx.core.scheduler.policies import Policies
from llx.errors import ConfigError, NotFoundError
from llx.settings import ClusterSettings
from llx.wire import InstanceInfo, Place

SETTINGS = {
    "models": [
        {"name": "m", "model": "/m", "scheduling": {"age_after_s": 7}},
        {"name": "n", "model": "/n"},
    ]
}


class NoMoves:
    def order(self, _: Any) -> None: ...
    def ended(self, _: Any) -> None: ...
    def why(self, _: Any) -> str:
        return ""


class Rig:
    """A head's scheduler, without a cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        nothing: Any = None
        self.fleet = Fleet(
            ClusterSettings.model_validate(SETTINGS), "cpu", Term(1), {}, {}, {}, nothing,
            nothing, "", folder,
        )  # fmt: skip
        self.live = LiveScheduler(Term(1), lambda *_: None, NoMoves(), Policies())
        self.book = PolicyBook(folder / "policies.json")
        audit = AuditTrail(folder / "events")
        self.steering = Steering(
            self.fleet, self.live, self.book, Policies(), audit, self.schedule, folder / "r"
        )
        self.schedule()
        self.live.open()

    def schedule(self) -> None:
        models = self.fleet.settings.models
        self.live.configure(
            desired_config(self.fleet.settings, each, self.book.scheduling(each), ())
            for each in models
        )
        self.live.pause(PoolName(each) for each in self.book.paused(one.name for one in models))

    def place(self, request: str, cls: str = "normal", name: str = "") -> None:
        ask = Place(PoolName("m"), RequestId(request), 1, ClassName(cls), 20, Nanos(0), name)
        self.live.place(b"g", ask)

    def in_force(self, model: str = "m") -> dict[str, Any]:
        found = self.steering.policies().policies
        return next(each for each in found if each.model == model).scheduling

    def pool(self, model: str = "m") -> Any:
        return self.live._scheduler.pools[PoolName(model)]

    def audited(self) -> list[dict[str, Any]]:
        lines = (self.folder / "events").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def change(rig: Rig, model: str = "", **more: Any) -> None:
    changes = {key.replace("__", "."): text for key, text in more.pop("changes", {}).items()}
    rig.steering.update(PolicyUpdate(model=model, changes=changes, user="ann", **more))


def test_a_change_is_in_force_at_once_and_after_a_restart(rig: Rig, tmp_path: Path) -> None:
    rig.place("r")
    change(rig, "m", changes={"dispatch": "round_robin", "rescheduling__steps": "[balance]"})
    assert rig.pool().config.dispatch == "round_robin"
    assert rig.pool().config.rescheduling.steps == ("balance",)
    assert len(rig.pool().queues) == 1, "what waits keeps its place"
    assert rig.pool("n").config.dispatch == "soonest"
    after = Rig(tmp_path)
    assert after.in_force()["dispatch"] == "round_robin"
    assert after.in_force()["age_after_s"] == 7
    assert after.pool().config.dispatch == "round_robin"
    event = rig.audited()[-1]
    assert (event["kind"], event["user"], event["models"]) == ("policy.changed", "ann", "m")
    assert "dispatch=round_robin" in event["changes"]


def test_a_revert_brings_the_file_back(rig: Rig) -> None:
    change(rig, changes={"dispatch": "least_loaded", "age_after_s": "1"})
    assert rig.pool("n").config.dispatch == "least_loaded"
    change(rig, "m", is_revert=True)
    assert (rig.in_force()["dispatch"], rig.in_force()["age_after_s"]) == ("soonest", 7)
    assert rig.in_force("n")["dispatch"] == "least_loaded"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dispatch": "nicest"}, "no dispatch policy 'nicest'"),
        ({"dispach": "freest"}, 'no key "dispach"'),
        ({"rescheduling": "1"}, "rescheduling"),
        ({"rescheduling__low": "50"}, "low must be below high"),
        ({"rescheduling__steps": "[drain]"}, "llx inst drain"),
        ({"age_after_s": "soon"}, "age_after_s"),
        ({"age_after_s": "["}, "not valid YAML"),
    ],
)
def test_what_is_wrong_changes_nothing(rig: Rig, changes: dict[str, str], why: str) -> None:
    before = rig.in_force()
    with pytest.raises(ConfigError) as error:
        change(rig, changes={**changes, "charge_expires_after_s": "2"})
    assert why in str(error.value)
    assert rig.in_force() == before
    assert not (rig.folder / "policies.json").exists()
    with pytest.raises(NotFoundError, match='no model "x"'):
        change(rig, "x")


def test_a_dry_run_shows_and_changes_nothing(rig: Rig) -> None:
    update = PolicyUpdate(model="m", changes={"binding": "immediate"}, is_dry_run=True)
    [m, n] = rig.steering.update(update).policies
    assert (m.scheduling["binding"], m.changed) == ("immediate", {"binding": "immediate"})
    assert n.changed == {}
    assert rig.in_force()["binding"] == "late"


def test_a_pause_holds_until_it_is_ended_by_a_restart_too(rig: Rig, tmp_path: Path) -> None:
    rig.steering.steer("pause", "m", "ann")
    assert rig.pool().is_paused
    assert not rig.pool("n").is_paused
    after = Rig(tmp_path)
    assert after.pool().is_paused
    change(after, is_revert=True)
    assert after.pool().is_paused, "that is another matter"
    after.steering.steer("resume", "", "ann")
    assert not after.pool().is_paused
    after.steering.steer("step", "", "ann")
    kinds = [each["kind"] for each in after.audited()]
    assert kinds == ["policy.pause", "policy.reverted", "policy.resume", "policy.step"]


def test_a_damaged_book_is_no_reason_not_to_schedule(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "policies.json").write_text('{"m": 1}')
    assert Rig(tmp_path).in_force()["dispatch"] == "soonest"
    (tmp_path / "policies.json").write_text('{"m": {"changed": {"gone": 1}}}')
    assert Rig(tmp_path).in_force()["dispatch"] == "soonest"


def test_queues_say_who_waits_for_whom(rig: Rig) -> None:
    for number in range(3):
        rig.place(f"r{number}", "batch")
    found = rig.steering.queues().queues
    assert [(each.model, each.priority_class) for each in found[:3]] == [
        ("m", "interactive"), ("m", "normal"), ("m", "batch"),
    ]  # fmt: skip
    assert (found[2].waiting, found[2].limit, found[2].max_wait_s) == (3, 1024, 600)
    assert found[2].oldest_s is not None
    assert (found[0].waiting, found[0].oldest_s, found[0].nominated) == (0, None, "")


async def test_an_explanation_is_found_by_every_id(rig: Rig) -> None:
    rig.place("cmpl-mine-0-0a1b2c3d", name="llx-1")
    rig.place("cmpl-mine-0-0a1b2c3d", name="llx-1")
    for given in ("cmpl-mine-0-0a1b2c3d", "llx-1", "mine"):
        [found] = (await rig.steering.explain(given)).requests
        assert (found.request, found.name) == ("cmpl-mine-0-0a1b2c3d", "llx-1")
        [held] = found.decisions
        assert (held.what, held.instance) == ("held", "")
        assert held.why.startswith("1 of its class wait")
    with pytest.raises(NotFoundError):
        await rig.steering.explain("other")


def test_what_instances_say_they_can_is_what_counts() -> None:
    settings = ClusterSettings.model_validate(
        {"models": [{"name": "m", "model": "/m", "engine_args": {"max_num_seqs": 4}}]}
    )
    [model] = settings.models
    config = desired_config(settings, model, model.scheduling, ())
    assert (config.max_requests, config.step_tokens) == (4, 8192)
    info = InstanceInfo(
        InstanceId("m-0"), PoolName("m"), "vllm", "", "", "m", 10, 16, 100, 8, 512, 1, 1
    )
    config = desired_config(settings, model, model.scheduling, [info])
    assert (config.max_requests, config.step_tokens) == (8, 512)
    assert config.rescheduling.steps
    pinned = InstanceInfo(
        InstanceId("m-1"), PoolName("m"), "vllm", "", "", "m", 10, 16, 100, 6, 999, 1, 1, "hybrid"
    )
    config = desired_config(settings, model, model.scheduling, [info, pinned])
    assert (config.max_requests, config.step_tokens) == (6, 512)
    assert config.rescheduling.steps == ()


def test_nothing_is_scaled_by_rule_while_a_rollout_counts_alone() -> None:
    ranged = {"name": "m", "model": "/m", "instances": {"min": 1, "max": 4}}
    settings = ClusterSettings.model_validate({"cluster": "c", "models": [ranged]})
    (model,) = settings.models
    rollout = Rollout({}, {}, 0, 0, 2, 60.0, 3.0, "ann", 0.0)
    under_way = Generation(revision=1, generation=1, newest=1, rollout=rollout)
    config = desired_config(settings, model, model.scheduling, (), under_way)
    assert (config.name, config.scaling.rule) == ("m~1", "none")
    done = msgspec.structs.replace(rollout, state=RolloutState.DONE)
    over = msgspec.structs.replace(under_way, rollout=done)
    config = desired_config(settings, model, model.scheduling, (), over)
    assert (config.scaling.rule, config.scaling.max_instances) == ("demand", 4)

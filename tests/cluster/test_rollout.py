"""Rollouts at the head: one by one, side by side, stopped, gone back on, under the next head."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llx.api import ClusterState, RolloutRequest, RolloutStatus, ScaleRequest
from llx.client import Cluster
from llx.errors import ConfigError, ConflictError, NotFoundError
from llx.specs import InstanceSpec, load_spec
from tests.cluster.hosts_rig import HostsRig, events, make_rig, put

IN_PLACE = {"sim.step_base_ms": "9"}
APART = {"model": "/other"}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def roll(client: Cluster, changes: dict[str, str], **more: object) -> list[str]:
    request = RolloutRequest.model_validate(
        {"changes": changes, "user": "ann", "steady_s": 0.2, **more}
    )
    return client.rollout("m", request).changes


def found(client: Cluster) -> RolloutStatus:
    (status,) = client.rollouts()
    return status


def over(rig: HostsRig, client: Cluster, state: str = "done") -> RolloutStatus:
    rig.eventually(lambda: found(client).state == state, lambda: f"{state}: {found(client)}", 60)
    return found(client)


def spec(rig: HostsRig, client: Cluster, name: str) -> InstanceSpec:
    host = rig.hosts[rig.where(client)[name]]
    return load_spec(host.state.procs / name / "spec.json", InstanceSpec)


def specs(rig: HostsRig, client: Cluster) -> list[InstanceSpec]:
    return [spec(rig, client, each.name) for each in client.status().instances]


@pytest.mark.slow
def test_one_after_the_other_where_there_is_no_room(rig) -> None:
    rig.add("h1", "h2", num_gpus=1)
    with rig.up(rig.settings(models=[rig.model("m", 2, engine="vllm")])) as client:
        rig.reaches(client, ClusterState.READY)
        change = {"max_num_seqs": "64"}
        plan = roll(client, change, is_dry_run=True)
        assert plan[0] == "engine_args.max_num_seqs: default → 64"
        assert "meanwhile fewer serve" in plan[2]
        assert "one by one, their requests move" in plan[1]
        assert found(client).revision == 0
        assert roll(client, change) == plan
        with pytest.raises(ConflictError, match="under way"):
            roll(client, change)
        with pytest.raises(ConflictError, match="being rolled out"):
            put(client, rig.settings(models=[rig.model("m", 3)]))
        done = over(rig, client)
        assert (done.revision, done.generation, done.instances_former) == (1, 0, 0)
        assert {each.engine_args["max_num_seqs"] for each in specs(rig, client)} == {64}
        rig.reaches(client, ClusterState.READY)
        assert len(client.status().instances) == 2
        assert roll(client, change) == []
        assert {each["kind"] for each in events(rig, "rollout.begun")} == {"rollout.begun"}
        assert "max_num_seqs" in client.settings()


@pytest.mark.slow
def test_another_model_is_a_generation_of_its_own(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        plan = roll(client, APART)
        assert plan[:2] == [
            "model: /m → /other",
            "requests cannot move to the new instances (model)",
        ]
        done = over(rig, client)
        assert (done.is_apart, done.is_switched, done.generation) == (True, True, 1)
        assert [each.name for each in client.status().instances] == ["m-2", "m-3"]
        assert {(each.model, each.pool_key) for each in specs(rig, client)} == {("/other", "m~1")}
        rig.reaches(client, ClusterState.READY)
    rig.end_head()
    with rig.up() as client:
        status = rig.reaches(client, ClusterState.READY)
        assert [each.name for each in status.instances] == ["m-2", "m-3"]
        assert all("older settings" not in each.detail for each in status.instances)
        assert [each.restarts for each in status.gateways] == [0, 0]


@pytest.mark.slow
def test_what_does_not_come_up_stops_it_and_is_gone_back_on(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        pids = {each.name: each.pid for each in client.status().instances}
        roll(client, {"sim.num_blocks": "1"})
        failed = over(rig, client, "failed")
        assert failed.reason.startswith("m-2: ")
        now = {each.name: each.pid for each in client.status().instances}
        assert {name: now[name] for name in pids} == pids
        client.steer_rollout("m", "resume")
        assert over(rig, client, "failed").reason.startswith("m-")
        client.steer_rollout("m", "abort", user="ann")
        back = over(rig, client)
        assert (back.is_back, back.revision) == (True, 0)
        assert {each.name: each.pid for each in client.status().instances} == pids
        rig.reaches(client, ClusterState.READY)
        assert "num_blocks" not in client.settings()
        roll(client, IN_PLACE)
        assert over(rig, client).revision == 2


@pytest.mark.slow
def test_a_rollout_goes_on_under_the_next_head(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings(models=[rig.model("m", 3)])) as client:
        rig.reaches(client, ClusterState.READY)
        roll(client, IN_PLACE)
        rig.eventually(lambda: found(client).instances_leaving == 1, "one is emptied")
    rig.end_head()
    with rig.up() as client:
        client.steer_rollout("m", "pause")
        assert 1 <= found(client).instances_former <= 3
        client.steer_rollout("m", "resume")
        over(rig, client)
        assert {each.sim.step_base_ms for each in specs(rig, client) if each.sim} == {9}
        assert len(client.status().instances) == 3
        rig.reaches(client, ClusterState.READY)
    assert events(rig, "process.removed") == []


@pytest.mark.slow
def test_a_changed_model_is_gone_back_on_before_and_after_the_switch(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        roll(client, APART)
        rig.eventually(lambda: found(client).instances_new == 1, "the first is there")
        client.steer_rollout("m", "abort")
        over(rig, client)
        assert [each.name for each in client.status().instances] == ["m-0", "m-1"]
        for name in ("m-0", "m-1"):
            (directory(rig, client, name) / "busy").touch()
        roll(client, APART)
        rig.eventually(lambda: found(client).is_switched, lambda: f"switched {found(client)}")
        client.steer_rollout("m", "abort")
        back = over(rig, client)
        assert (back.generation, back.cut) == (0, 0)
        assert {each.pool_key for each in specs(rig, client)} == {"m"}
        rig.reaches(client, ClusterState.READY)


@pytest.mark.slow
def test_what_has_not_finished_at_the_deadline_is_cut_and_counted(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        (directory(rig, client, "m-0") / "busy").touch()
        rig.eventually(lambda: bool(client.instance("m-0").load), "its load is known")
        roll(client, APART, deadline_s=1)
        done = over(rig, client)
        assert done.cut == 3, done
        (event,) = events(rig, "instance.cut")
        assert event["name"] == "m-0"


@pytest.mark.slow
def test_what_gateways_cannot_serve_stops_it_until_that_is_mended(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        pids = {each.name: each.pid for each in client.status().instances}
        roll(client, {"model": "/unusable"})
        reason = over(rig, client, "failed").reason
        assert reason in [f"gateway-{i} cannot serve it: no tokenizer" for i in (0, 1)]
        now = {each.name: each.pid for each in client.status().instances}
        assert {name: now[name] for name in pids} == pids
        client.steer_rollout("m", "resume")
        assert over(rig, client, "failed").reason.endswith("no tokenizer")
        for name in ("gateway-0", "gateway-1"):
            (directory(rig, client, name) / "mended").touch()
        client.steer_rollout("m", "resume")
        assert over(rig, client).generation == 1
        rig.reaches(client, ClusterState.READY)


@pytest.mark.slow
def test_requests_that_could_not_move_stop_a_rollout_in_place(rig) -> None:
    """What lies where the former instances had read their weights is something else by now."""
    rig.add("h1", "h2")
    model = rig.model("m", 2, engine_args={"is_idle": True, "weights": "file"})
    with rig.up(rig.settings(models=[model])) as client:
        rig.reaches(client, ClusterState.READY)
        rig.eventually(lambda: all(each.load for each in client.status().instances), "they report")
        assert client.instance("m-0").compatibility == "abc"
        pids = {each.name: each.pid for each in client.status().instances}
        (rig.root / "weights").write_text("xyz")
        roll(client, IN_PLACE)
        failed = over(rig, client, "failed")
        assert "requests cannot move from m-" in failed.reason
        assert "(abc) to m-2 (xyz): go back, and roll out with --apart" in failed.reason
        now = {each.name: each.pid for each in client.status().instances}
        assert {name: now[name] for name in pids} == pids, "nothing was emptied"
        client.steer_rollout("m", "abort")
        over(rig, client)
        assert {each.name: each.pid for each in client.status().instances} == pids


@pytest.mark.slow
def test_a_key_that_is_not_known_to_be_harmless_is_rolled_out_apart(rig) -> None:
    rig.add("h1")
    with rig.up(rig.settings()) as client:
        plan = roll(client, {"engine_args.weights": "xyz"}, is_dry_run=True)
        assert "a generation of their own" in plan[2]
        assert found(client).state == ""


@pytest.mark.slow
def test_one_instance_without_room_is_refused_before_anything_changes(rig) -> None:
    rig.add("h1")
    with rig.up(rig.settings(models=[rig.model("m", 1)])) as client:
        rig.reaches(client, ClusterState.READY)
        client.cordon_host("h1", is_on=True)
        with pytest.raises(ConflictError, match="no room for a new instance"):
            roll(client, IN_PLACE)
        assert found(client).revision == 0


def test_nonsense_is_refused(rig) -> None:
    rig.add("h1")
    with rig.up(rig.settings()) as client:
        with pytest.raises(NotFoundError, match='no model "x"'):
            client.rollout("x", RolloutRequest())
        for changes, says in (
            ({"instances.min": "3"}, "not rolled out"),
            ({"name": "x"}, "not rolled out"),
            ({"engine_args": "3"}, "name a key below"),
            ({"model": "''"}, "names no model"),
            ({"sim.nothing": "3"}, "unknown key"),
            ({"tensor_parallel": "[a"}, "not valid YAML"),
        ):
            with pytest.raises(ConfigError, match=says):
                roll(client, changes)
        with pytest.raises(ConflictError, match="no rollout of m is under way"):
            client.steer_rollout("m", "pause")
        with pytest.raises(ConfigError, match="deadline_s"):
            roll(client, IN_PLACE, deadline_s=-1)


def directory(rig: HostsRig, client: Cluster, name: str) -> Path:
    return rig.hosts[rig.where(client)[name]].state.procs / name


@pytest.mark.slow
def test_all_are_replaced_though_nothing_differs(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        pids = {each.pid for each in client.status().instances}
        assert roll(client, {}) == []
        roll(client, {}, is_again=True)
        assert over(rig, client).revision == 1
        assert not pids & {each.pid for each in client.status().instances}


@pytest.mark.slow
def test_a_change_of_weights_without_room_takes_turns(rig) -> None:
    rig.add("h1", "h2", "h3", num_gpus=1)
    with rig.up(rig.settings(models=[rig.model("m", 3, engine="vllm")])) as client:
        rig.reaches(client, ClusterState.READY)
        assert "meanwhile fewer serve" in roll(client, APART)[-1]
        done = over(rig, client)
        assert (done.instances_new, done.is_switched) == (3, True)
        assert {each.model for each in specs(rig, client)} == {"/other"}
        (switch,) = events(rig, "rollout.switched")
        ended = [each for each in events(rig, "instance.replaced") if each["at"] < switch["at"]]
        assert len(ended) == 2, "then there are as many new ones as are left"


@pytest.mark.slow
def test_a_head_that_falls_before_it_has_written_the_settings_loses_nothing(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        before = rig.state.settings.read_text()
        roll(client, IN_PLACE)
    rig.end_head()
    rig.state.settings.write_text(before)
    with rig.up() as client:
        over(rig, client)
        assert {each.sim.step_base_ms for each in specs(rig, client) if each.sim} == {9}
        assert "step_base_ms" in rig.state.settings.read_text()


@pytest.mark.slow
def test_what_was_being_emptied_before_has_no_longer_than_what_is_replaced(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings(models=[rig.model("m", 3)])) as client:
        rig.reaches(client, ClusterState.READY)
        for name in ("m-0", "m-1", "m-2"):
            (directory(rig, client, name) / "busy").touch()
        rig.eventually(lambda: bool(client.instance("m-2").load), "its load is known")
        client.scale("m", ScaleRequest(min=2, max=2))
        rig.eventually(lambda: found(client).instances_leaving == 1, "it is emptied, for long")
        roll(client, APART, deadline_s=1)
        done = over(rig, client)
        assert (done.instances_new, done.instances_leaving) == (2, 0)

"""Where the head is by what hosts say, what a move needs, and what it lays out."""

from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml

from llx.bootstrap.cluster_secrets import read_secrets
from llx.bootstrap.head_move import (
    HeadMove,
    Kept,
    Sight,
    confirm_move,
    find_move,
    head_of,
    kept,
    newest_copy,
    refuse_stale_head,
    seat_head,
    survey,
)
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.hosts_look import Outlook, ask_head
from llx.bootstrap.hosts_plan import head_settings
from llx.bootstrap.hosts_up import _Apply, tell_settings, to_lock
from llx.bootstrap.hosts_world import Crew
from llx.cluster.rollout_file import Generation, Rollout, RolloutState
from llx.core.model import TERMS_PER_SEAT, Term
from llx.errors import ConflictError, HostError, UnreachableError
from llx.head_copy import HeadCopy, HeadMoved
from llx.settings import ClusterSettings, Platform, dump_cluster
from llx.specs import HostSpec
from tests.bootstrap.fake_shell import FakeShell

NAMES = ("h1", "h2", "h3")
LAYOUT = HostLayout(PurePosixPath("/home/u"), 1000, "c")
STATE = str(LAYOUT.state)


def spec(host: str, head: str = "h1", cluster_id: str = "id") -> HostSpec:
    return HostSpec(
        cluster="c", cluster_id=cluster_id, host=host, address=f"10.0.0.{host[1]}", head=head,
        head_address=f"10.0.0.{head[1]}", state_dir=STATE, models_dir="/m", cache_dir="/c",
        python="/p", platform="cpu", first_port=20000, is_tls=True, ray_tmp="/t",
    )  # fmt: skip


def sight(
    host: str, head: str = "h1", *, own: int = 0, heard: int = 0, copy: HeadCopy | None = None
) -> Sight:
    return Sight(spec(host, head), Term(own), Term(heard), copy)


def settings(**changes: object) -> ClusterSettings:
    values = {"cluster": "c", "hosts": list(NAMES), "models": [{"name": "m", "model": "o/n"}]}
    return ClusterSettings.model_validate({**values, **changes})


def crew(*names: str) -> Crew:
    found = Crew()
    for name in names:
        shell = FakeShell(name)
        for verb in ("rm", "mkdir"):
            shell.answer(verb)
        found.shells[name], found.layouts[name] = shell, LAYOUT
        shell.put(msgspec.json.encode(spec(name)), str(LAYOUT.spec))
        shell.put(b"KEYS", f"{STATE}/keys.json")
        shell.put(b"RAY", f"{STATE}/ray.token")
    return found


def content(found: Crew, host: str, name: str) -> str:
    data = found.shells[host].read(f"{STATE}/{name}")
    assert data is not None, name
    return data.decode()


def test_what_hosts_know_is_read_and_strange_hosts_are_left_out() -> None:
    found = crew("h1", "h2", "h3")
    for host, name, text in (
        ("h1", "term", "7\n"),
        ("h2", "procs/agent/term", "id 8\n"),
        ("h3", "procs/agent/term", "other 99\n"),
        ("h3", "term", "nonsense"),
        ("h3", "head-copy.json", '{"term": 6, "number": 1, "files": {}}'),
    ):
        found.shells[host].put(text.encode(), f"{STATE}/{name}")
    found.shells["h4"], found.layouts["h4"] = FakeShell("h4"), LAYOUT
    sights = survey(found, ["h1", "h2", "h3", "h4", "h5"])
    assert {name: each.newest_term for name, each in sights.items()} == {"h1": 7, "h2": 8, "h3": 6}


def test_the_head_is_where_the_newest_term_says() -> None:
    back = {"h1": sight("h1", own=7), "h3": sight("h3", "h2", heard=TERMS_PER_SEAT + 1)}
    newest = head_of(back)
    assert newest is not None
    assert newest.head == "h2"
    with pytest.raises(ConflictError, match="its head is h2, not h1"):
        refuse_stale_head(back, "h1")
    refuse_stale_head(back, "h2")
    refuse_stale_head({}, "h1")


def test_a_move_that_broke_off_is_made_again() -> None:
    """The next head was seated, and no host obeys it yet."""
    sights = {"h2": sight("h2", own=TERMS_PER_SEAT, heard=7), "h3": sight("h3", heard=7)}
    move = find_move(crew("h2", "h3"), sights, "h2")
    assert move is not None
    assert (move.former, move.is_former_near, move.away) == ("h1", False, ("h1",))


def test_hosts_that_only_this_machine_does_not_reach_are_not_taken_for_lost() -> None:
    sights = {"h1": sight("h1", own=7), "h2": sight("h2", heard=7)}
    good_order = find_move(crew("h1", "h2"), sights, "h2")
    assert good_order is not None
    assert good_order.away == (), "h3"
    lost = find_move(crew("h2"), {"h2": sights["h2"]}, "h2")
    assert lost is not None
    assert lost.away == ("h1",)


def test_no_move_is_needed_where_the_head_is_or_nothing_runs() -> None:
    assert find_move(crew("h1"), {"h1": sight("h1", own=1)}, "h1") is None
    assert find_move(crew("h1"), {}, "h1") is None


def test_a_host_that_is_not_part_of_the_cluster_cannot_be_its_head() -> None:
    sights = {"h1": sight("h1", own=1), "h3": sight("h3", heard=1)}
    with pytest.raises(ConflictError, match="h2 is not part of the running cluster c"):
        find_move(crew(*NAMES), sights, "h2")


def test_a_head_that_other_hosts_reach_is_not_lost() -> None:
    class Line:
        def close(self) -> None: ...

    found = crew("h2", "h3")
    found.shells["h3"].streams["10.0.0.1", 20009] = Line()
    sights = {"h2": sight("h2", heard=1), "h3": sight("h3", heard=1)}
    with pytest.raises(ConflictError, match=r"h1 is alive: h3 reach it at 10\.0\.0\.1"):
        find_move(found, sights, "h2")


def planned(found: Crew) -> HeadMove:
    """h1 is lost, the head goes to h2."""
    for name in found.shells:
        found.shells[name].put(b"id 7\n", f"{STATE}/procs/agent/term")
    move = find_move(found, survey(found, list(NAMES)), "h2")
    assert move is not None
    assert (move.former, move.is_former_near) == ("h1", False)
    return move


def test_a_move_is_looked_at_again_before_it_is_made() -> None:
    found = crew("h2", "h3")
    move = planned(found)
    assert confirm_move(move, found, Crew()) == move
    with pytest.raises(ConflictError, match="h1 can be reached again"):
        confirm_move(move, found, crew("h1"))


def test_a_head_that_somebody_else_has_moved_meanwhile_is_not_moved_again() -> None:
    found = crew("h2", "h3")
    move = planned(found)
    found.shells["h3"].put(msgspec.json.encode(spec("h3", "h3")), str(LAYOUT.spec))
    found.shells["h3"].put(f"{TERMS_PER_SEAT + 1}\n".encode(), f"{STATE}/term")
    with pytest.raises(ConflictError, match="the head is on h3 by now, not h1"):
        confirm_move(move, found, Crew())


def test_settings_are_those_that_the_cluster_was_told_last() -> None:
    found = crew("h1", "h2")
    text = dump_cluster(settings(gateway={"port": 8111}))
    near = HeadMove("h2", "h1", True, (), {})
    assert kept(near, found) == Kept(None, [])
    found.shells["h1"].put(text.encode(), f"{STATE}/cluster.yaml")
    told = kept(near, found)
    assert told.settings is not None
    assert told.settings.gateway.port == 8111
    copy = HeadCopy(Term(7), 1, {"cluster.yaml": text, "rollouts.json": "[]"})
    lost = HeadMove("h2", "h1", False, ("h1",), {"h2": sight("h2", copy=copy)})
    assert kept(lost, crew("h2")) == told
    broken = HeadCopy(Term(7), 1, {"cluster.yaml": "models: 7"})
    move = HeadMove("h2", "h1", False, (), {"h2": sight("h2", copy=broken)})
    assert kept(move, found).settings is None


def plan_of(wanted: ClusterSettings) -> Any:
    return SimpleNamespace(
        settings=wanted, head=SimpleNamespace(name="h2"), state_dir=Path("/"), can_probe=False,
        upgrade_deadline_s=None,
    )  # fmt: skip


def copy_of(told: ClusterSettings, state: RolloutState | None = None) -> HeadCopy:
    rollout = Rollout({}, {}, 0, 0, 1, 9.0, 3.0, "ann", 0.0, state or RolloutState.DONE)
    generations = {"m": Generation(1, 0, 1, rollout), "n": Generation()}
    rollouts = msgspec.json.encode(generations).decode()
    text = dump_cluster(head_settings(plan_of(told), Platform.CPU, {}))
    return HeadCopy(Term(7), 1, {"cluster.yaml": text, "rollouts.json": rollouts})


def lost_head(copy: HeadCopy, wanted: ClusterSettings, *, keeps: bool = False) -> Outlook:
    """h1 is lost, h2 is to be the head."""
    sights = {name: sight(name, heard=7, copy=copy) for name in ("h2", "h3")}
    move = HeadMove("h2", "h1", is_former_near=False, away=("h1",), sights=sights)
    return Outlook(
        plan_of(wanted), crew("h2", "h3"), Crew(), (), {}, Platform.CPU, None, {}, "up", None, True,
        move=move, keeps_settings=keeps,
    )  # fmt: skip


NO_WORLD: Any = SimpleNamespace()


@pytest.mark.parametrize("state", [RolloutState.RUNNING, RolloutState.FAILED])
def test_settings_are_refused_before_the_head_moves_if_a_rollout_is_under_way(state) -> None:
    wanted = settings(gateway={"port": 9001})
    with pytest.raises(ConflictError, match="while m is being rolled out"):
        ask_head(lost_head(copy_of(settings(), state), wanted), NO_WORLD)
    assert ask_head(lost_head(copy_of(wanted, state), wanted), NO_WORLD) == []
    assert ask_head(lost_head(copy_of(settings(), state), wanted, keeps=True), NO_WORLD) is None


def test_a_file_that_is_older_than_a_rollout_is_refused_before_the_head_moves() -> None:
    newer = [{"name": "m", "model": "o/n", "engine_args": {"max_num_seqs": 9}}]
    told = copy_of(settings(models=newer))
    with pytest.raises(ConflictError, match=r"while it does: models\.m\.engine_args\.max_num_seqs"):
        ask_head(lost_head(told, settings()), NO_WORLD)
    more = settings(models=[{**newer[0], "instances": 2}])
    assert ask_head(lost_head(told, more), NO_WORLD) == ["model m: 1 → 2 instances"]


def test_settings_that_change_while_the_prompt_is_open_are_looked_at_again() -> None:
    wanted = settings(gateway={"max_requests": 9})
    outlook = lost_head(copy_of(settings()), wanted)
    assert outlook.move is not None
    ask_head(outlook, NO_WORLD)
    begun = copy_of(settings(), RolloutState.RUNNING)
    for shell in outlook.crew.shells.values():
        shell.put(msgspec.json.encode(begun), f"{STATE}/head-copy.json")  # type: ignore[attr-defined]

    def connect(*_: object, **__: object) -> Any:
        raise UnreachableError("gone")

    world: Any = SimpleNamespace(connect=connect, asker="ann")
    held: Any = {"h2": None}
    farewell: Any = None
    applying = _Apply(outlook, world, lambda _: None, held, farewell)
    with pytest.raises(ConflictError, match="while m is being rolled out"):
        applying._move_head(outlook.move)
    laid = [argv for each in outlook.crew.shells.values() for argv in each.argvs]  # type: ignore[attr-defined]
    assert not [argv for argv in laid if argv[0] == "rm"], "nothing has been moved"


def test_without_a_file_nothing_is_told_to_the_cluster() -> None:
    class Control:
        def put_settings(self, yaml: str, **_: object) -> list[str]:
            return [yaml.partition("\n")[0]]

    told: Any = Control()
    plan = SimpleNamespace(settings=settings())
    outlook: Any = SimpleNamespace(keeps_settings=True, plan=plan, platform=None, addresses={})
    assert tell_settings(outlook, told, "ann") == []


def test_a_move_locks_all_hosts_within_reach_in_one_order() -> None:
    found = crew("h3", "h2", "h1")
    found.errors["h3"] = UnreachableError("gone since")
    plan = SimpleNamespace(head=SimpleNamespace(name="h2"))
    near: Any = SimpleNamespace(plan=plan, crew=found, move=HeadMove("h2", "h1", True, (), {}))
    assert to_lock(near) == ["h1", "h2"]
    none: Any = SimpleNamespace(plan=plan, crew=found, move=None)
    assert to_lock(none) == ["h2"]


def test_the_newest_copy_counts() -> None:
    old, new = HeadCopy(Term(2), 9, {"a": "old"}), HeadCopy(Term(3), 1, {"a": "new"})
    found = {"h2": sight("h2", copy=old), "h3": sight("h3", copy=new), "h4": sight("h4")}
    assert newest_copy(found) == {"a": "new"}
    assert newest_copy({"h4": sight("h4")}) == {}


def seated(found: Crew, copy: HeadCopy | None, **changes: object) -> None:
    sights = {"h2": sight("h2", heard=7, copy=copy), "h3": sight("h3", heard=9)}
    move = HeadMove("h2", "h1", is_former_near=False, away=("h1",), sights=sights)
    seat_head(move, found, settings(**changes), user="ann", log_dir=Path("/"), proceed=lambda: None)


def test_what_the_next_head_begins_with() -> None:
    found = crew("h2", "h3")
    told = settings(gateway={"port": 9001}, head="h1")
    copy = HeadCopy(Term(7), 3, {"cluster.yaml": dump_cluster(told), "cordons.json": '["h3"]'})
    seated(found, copy)
    secrets = read_secrets(found.shells["h2"], LAYOUT)
    assert secrets is not None
    assert (secrets.cluster_id, secrets.keys.reveal()) == ("id", "KEYS")
    assert secrets.ray_token.reveal() != "RAY", "what the lost head has is worth nothing"
    assert content(found, "h2", "term") == f"{TERMS_PER_SEAT}\n"
    begun = yaml.safe_load(content(found, "h2", "cluster.yaml"))
    assert (begun["head"], begun["gateway"]["port"]) == ("h2", 9001)
    assert content(found, "h2", "cordons.json") == '["h3"]'
    moved = msgspec.json.decode(content(found, "h2", "moved.json"), type=HeadMoved)
    assert moved == HeadMoved("h1", "ann", ["h1"])
    (removed,) = [argv for argv in found.shells["h2"].argvs if argv[0] == "rm"]
    assert f"{STATE}/tls/host.pem" in removed, "it is of the former authority"
    assert {f"{STATE}/gcs", f"{STATE}/placement.json", f"{STATE}/policies.json"} < set(removed)


@pytest.mark.parametrize("text", ["{", "head: 3", "cluster: c\nmodels: []\n"])
def test_settings_that_cannot_be_read_are_those_asked_for(text: str) -> None:
    found = crew("h2", "h3")
    seated(found, HeadCopy(Term(7), 3, {"cluster.yaml": text}), gateway={"port": 9002})
    begun = yaml.safe_load(content(found, "h2", "cluster.yaml"))
    assert (begun["head"], begun["gateway"]["port"]) == ("h2", 9002)


def test_a_host_without_keys_cannot_take_over() -> None:
    found = crew("h2", "h3")
    found.shells["h2"].files.pop(f"{STATE}/keys.json")
    with pytest.raises(HostError, match="has not the cluster's keys"):
        seated(found, None)


def test_a_host_that_falls_silent_is_said() -> None:
    found = crew("h2", "h3")
    found.shells["h2"].is_dead = True
    with pytest.raises(UnreachableError):
        seated(found, None)

"""The live driver of the scheduler: who hears what, and what the core is told."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from llx.cluster.scheduling.live import ROUND_S, LiveScheduler
from llx.cluster.scheduling.members import Present
from llx.cluster.scheduling.recordings import Recordings, open_recordings
from llx.core.model import (
    ClassName,
    InstanceId,
    Nanos,
    PoolName,
    RequestId,
    Term,
)
from llx.core.prefix_blocks import packed
from llx.core.scheduler.commands import Move
from llx.core.scheduler.config import PoolConfig, PriorityClass
from llx.core.scheduler.dispatch import ByInstance
from llx.core.scheduler.events import InstanceState, MoveEnded, MoveOutcome, Ticked
from llx.core.scheduler.policies import Policies
from llx.core.scheduler.scheduler import Scheduler
from llx.errors import WireError
from llx.recording import Recording, command_bytes
from llx.wire import Held, Load, NotPlaced, Place, Placed, PlacementAnswer, Prefixes

G, H = b"gateway-0#1", b"gateway-1#1"
M = PoolName("m")
A, B = InstanceId("m-0"), InstanceId("m-1")
CONFIG = PoolConfig(
    name=M,
    classes=(
        PriorityClass(ClassName("urgent"), 0),
        PriorityClass(ClassName("normal"), 10, queue_limit=2),
    ),
    max_requests=4,
)


def report(*, free: int = 10, running: int = 0, covers: tuple[str, ...] = ()) -> Load:
    return Load(
        0, 0, Nanos(1), 10, free, 16, running, 0, 0, 0, 0, {10: (running, 0, 0)},
        covers=[RequestId(each) for each in covers],
    )  # fmt: skip


class NoMoves:
    def order(self, move: Move) -> MoveEnded | None:
        return MoveEnded(move.pool, move.move, MoveOutcome.NONE)

    def ended(self, move: object) -> MoveEnded | None:
        return None

    def why(self, move: object) -> str:
        return "because"


class Rig:
    def __init__(self, *instances: InstanceId, recorder: Recordings | None = None) -> None:
        self.said: list[tuple[bytes, PlacementAnswer]] = []
        self.live = LiveScheduler(
            Term(3),
            lambda gateway, answer: self.said.append((gateway, answer)),
            NoMoves(),
            Policies(),
            recorder,
        )
        self.live.configure([CONFIG])
        self.follow(*instances)
        for instance in instances:
            self.report(instance)
        self.live.open()

    def follow(self, *instances: InstanceId, **wanted: InstanceState) -> None:
        self.live.follow(
            Present(each, M, f"tcp://{each}", wanted.get(each.replace("-", "_"), InstanceState.UP))
            for each in instances
        )

    def report(self, instance: InstanceId, **more: object) -> None:
        load = report(**more)  # type: ignore[arg-type]
        self.live.on_report(instance, load.instance_load(), load)

    def place(self, request: str, *, ask: int = 1, tokens: int = 15, **more: object) -> None:
        gateway = more.pop("gateway", G)
        cls = ClassName(str(more.pop("cls", "normal")))
        waited = Nanos(int(str(more.pop("waited", 0))))
        prefix = packed(more.pop("prefix", ()))  # type: ignore[call-overload]
        held = Nanos(int(str(more.pop("held")))) if "held" in more else None
        place = Place(M, RequestId(request), ask, cls, tokens, waited, "", prefix, 16, held)
        self.live.place(gateway, place)  # type: ignore[arg-type]

    def heard(self) -> list[tuple[bytes, PlacementAnswer]]:
        said, self.said = self.said, []
        return said


def placed(request: str, instance: InstanceId, ask: int = 1) -> Placed:
    return Placed(Term(3), RequestId(request), ask, instance)


def test_a_burst_spreads_and_the_answer_quotes_the_ask() -> None:
    rig = Rig(A, B)
    for number in range(4):
        rig.place(f"r{number}", ask=number)
    answers = [answer for _, answer in rig.heard()]
    assert all(isinstance(each, Placed) for each in answers)
    assert [each.ask for each in answers] == [0, 1, 2, 3]
    assert sorted(each.instance for each in answers if isinstance(each, Placed)) == [A, A, B, B]


def test_nothing_is_answered_before_all_instances_are_known() -> None:
    rig = Rig()
    rig.live._is_open = False
    rig.place("r")
    assert rig.heard() == []


def test_what_has_no_room_is_held_and_placed_when_there_is_in_class_order() -> None:
    rig = Rig(A)
    rig.place("big", tokens=159)
    assert rig.heard() == [(G, placed("big", A))]
    rig.report(A, free=0, running=1, covers=("big",))
    rig.place("late", gateway=H)
    rig.place("soon", cls="urgent", ask=7)
    assert [(who, type(answer)) for who, answer in rig.heard()] == [(H, Held), (G, Held)]
    rig.report(A, free=2, running=1)
    assert rig.heard() == [(G, placed("soon", A, ask=7))]
    rig.report(A, free=2, running=1, covers=("soon",))
    assert rig.heard() == [(H, placed("late", A))]


def test_a_report_covers_what_it_says_and_nothing_else() -> None:
    rig = Rig(A)
    for number in range(4):
        rig.place(f"r{number}")
    rig.heard()
    rig.report(A, free=9, running=1, covers=("r0",))
    rig.place("more")
    [(_, answer)] = rig.heard()
    assert isinstance(answer, Held), "three are on their way still, one runs: that is all it takes"


def test_a_request_asked_for_again_is_answered_where_it_was_asked_last() -> None:
    rig = Rig()
    rig.place("r", gateway=G, ask=1)
    rig.place("r", gateway=H, ask=2)
    assert [(who, answer.ask) for who, answer in rig.heard()] == [(G, 1), (H, 2)]
    rig.follow(A)
    rig.report(A)
    assert rig.heard() == [(H, placed("r", A, ask=2))]


def test_time_that_was_waited_elsewhere_counts() -> None:
    rig = Rig()
    rig.place("young")
    rig.place("old", waited=5_000_000_000)
    rig.heard()
    rig.follow(A)
    rig.report(A, free=1)
    assert rig.heard() == [(G, placed("old", A))]


def test_one_held_before_is_taken_into_a_full_queue() -> None:
    rig = Rig()
    for number in range(5):
        rig.place(f"r{number}")
    assert isinstance(rig.heard()[-1][1], NotPlaced), "it is full"
    rig.place("held", waited=10**9, held=10**9)
    [(_, answer)] = rig.heard()
    assert isinstance(answer, Held)


def test_one_held_before_is_given_the_time_of_its_class_and_not_less() -> None:
    rig = Rig()
    rig.place("old", waited=700 * 10**9)
    rig.place("moved", waited=700 * 10**9, held=10**9)
    rig.heard()
    rig.live.tell(Ticked())
    assert [(each.request, type(each)) for _, each in rig.heard()] == [("old", NotPlaced)]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    rig = Rig()
    for number in range(3):
        rig.place(f"r{number}")
    *_, (who, answer) = rig.heard()
    assert who == G
    assert isinstance(answer, NotPlaced)
    assert (answer.request, answer.reason) == ("r2", "queue full")
    assert answer.retry_after_s >= 1
    rig.live.place(G, Place(PoolName("x"), RequestId("r"), 9, ClassName("normal"), 1, Nanos(0)))
    [(_, answer)] = rig.heard()
    assert isinstance(answer, NotPlaced)
    assert (answer.reason, answer.retry_after_s) == ("no such pool", 0.0)


def test_what_is_withdrawn_or_of_a_gateway_that_is_gone_is_never_placed() -> None:
    rig = Rig()
    rig.place("a", cls="urgent")
    rig.place("b", gateway=H, cls="urgent")
    rig.place("c", cls="urgent")
    rig.live.withdraw(G, RequestId("a"))
    rig.live.withdraw(G, RequestId("b"))  # not its own
    rig.live.forget(H)
    rig.heard()
    rig.follow(A)
    rig.report(A)
    assert rig.heard() == [(G, placed("c", A))]


def test_a_dispatch_that_could_not_be_used_counts_no_longer() -> None:
    rig = Rig(A)
    rig.place("big", tokens=159)
    rig.place("next")
    rig.heard()
    rig.live.withdraw(G, RequestId("big"))
    assert rig.heard() == [(G, placed("next", A))]


def test_a_lost_instance_gets_nothing_until_it_reports_again() -> None:
    rig = Rig(A)
    rig.live.on_down(A)
    rig.place("r")
    rig.live.on_up(A)
    rig.live.tell(Ticked())
    [(_, answer)] = rig.heard()
    assert isinstance(answer, Held)
    rig.report(A)
    assert rig.heard() == [(G, placed("r", A))]


def test_a_cordon_holds_through_a_loss_and_ends_after_it() -> None:
    rig = Rig(A)
    rig.follow(A, m_0=InstanceState.CORDONED)
    rig.live.on_down(A)
    rig.live.on_up(A)
    rig.report(A)
    rig.place("r")
    assert isinstance(rig.heard()[0][1], Held)
    rig.live.on_down(A)
    rig.follow(A)
    rig.report(A)
    assert rig.heard() == [], "it is uncordoned, and lost"
    rig.live.on_up(A)
    rig.report(A)
    assert rig.heard() == [(G, placed("r", A))]


def test_an_instance_that_runs_anew_is_another() -> None:
    rig = Rig(A)
    rig.place("big", tokens=159)
    rig.heard()
    rig.live.follow([Present(A, M, "tcp://elsewhere", InstanceState.UP)])
    rig.report(A)
    rig.place("again", tokens=159)
    assert rig.heard() == [(G, placed("again", A))], "nothing of the former counts"


def test_rules_change_while_requests_wait() -> None:
    rig = Rig(A)
    rig.report(A, free=10, running=4)
    rig.place("r")
    assert isinstance(rig.heard()[0][1], Held)
    rig.live.configure([PoolConfig(name=M, classes=CONFIG.classes, max_requests=5)])
    assert rig.heard() == [(G, placed("r", A))]


async def test_a_live_recording_replays_byte_for_byte(tmp_path: Path) -> None:
    recorder = open_recordings(tmp_path, Term(3))
    assert recorder is not None
    rig = Rig(A, B, recorder=recorder)
    for number in range(12):
        rig.place(f"r{number}", cls="urgent" if number % 3 else "normal", ask=number)
    rig.live.on_down(B)
    rig.report(A, free=9, running=1, covers=("r0", "r1"))
    rig.follow(A, B, m_0=InstanceState.CORDONED)
    rig.live.withdraw(G, RequestId("r11"))
    rig.live.on_up(B)
    rig.report(B)
    rig.live.configure([replace(CONFIG, dispatch="prefix_aware")])
    rig.live.on_prefixes(M, B, caches(1, 2))
    rig.place("alike", tokens=70, prefix=(1, 2, 3))
    running = asyncio.create_task(rig.live.run())
    await asyncio.sleep(ROUND_S * 1.5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    recording, core = Recording(tmp_path / "term-3.jsonl"), Scheduler(Policies())
    assert recording.origin == "cluster"
    kinds, hits = set(), set()
    for entry in recording.entries():
        assert command_bytes(core.handle(entry.event, entry.at)) == entry.commands, entry.line
        kinds.add(type(entry.event).__name__)
        hits.update(getattr(entry.event, "prefix_hits", ()))
    assert recording.stopped is None
    assert hits == {(B, 32)}
    assert {"PoolConfigured", "RequestArrived", "LoadReported", "InstanceChanged"} <= kinds
    assert "Ticked" in kinds


def test_recordings_of_the_last_terms_are_kept(tmp_path: Path) -> None:
    for term in range(8, 13):
        recorder = open_recordings(tmp_path, Term(term))
        assert recorder is not None
        recorder.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "term-10.jsonl", "term-11.jsonl", "term-12.jsonl",
    ]  # fmt: skip
    (tmp_path / "file").touch()
    assert open_recordings(tmp_path / "file" / "x", Term(1)) is None


async def test_a_core_that_fails_ends_the_head_whoever_told_it() -> None:
    failing = ByInstance(lambda _: 1 / 0, "nothing")
    live = LiveScheduler(Term(3), lambda *_: None, NoMoves(), Policies({"failing": failing}))
    live.configure([replace(CONFIG, dispatch="failing")])
    live.follow([Present(A, M, "tcp://a", InstanceState.UP)])
    load = report()
    with pytest.raises(ZeroDivisionError):
        live.on_report(A, load.instance_load(), load)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(live.run(), 5)


def test_what_waits_is_listed_in_the_order_of_its_queue_with_its_name_and_age() -> None:
    rig = Rig(A)
    rig.report(A, free=0, running=1)
    rig.place("r1", tokens=20)
    rig.place("r2", waited=5 * 10**9)
    rig.place("u", cls="urgent")
    found = rig.live.waiting()
    assert [(each.request, each.priority_class, each.position) for each in found] == [
        ("u", "urgent", 1), ("r2", "normal", 1), ("r1", "normal", 2),
    ]  # fmt: skip
    assert [each.nominated for each in found] == [A, A, ""]
    assert (found[2].model, found[2].priority, found[2].tokens) == (M, 10, 20)
    assert found[1].waited_s >= 5
    rig.live.withdraw(G, RequestId("u"))
    assert [each.request for each in rig.live.waiting()] == ["r2", "r1"]


def test_one_that_is_asked_for_under_another_class_goes_over_and_can_be_replayed(
    tmp_path: Path,
) -> None:
    recorder = open_recordings(tmp_path, Term(3))
    assert recorder is not None
    rig = Rig(A, recorder=recorder)
    rig.report(A, free=0, running=1)
    rig.place("r", ask=4)
    rig.place("r", ask=4, cls="urgent")
    (waits,) = rig.live.waiting()
    assert (waits.priority_class, waits.position) == ("urgent", 1)
    assert [type(answer) for _, answer in rig.heard()] == [Held, Held]
    (known,) = rig.live.decisions.find("r")
    assert known.priority_class == "urgent"
    assert "from normal to urgent" in [each.why for each in known.decisions]
    recorder.close()
    again = Scheduler(Policies())
    for entry in Recording(tmp_path / "term-3.jsonl").entries():
        assert command_bytes(again.handle(entry.event, entry.at)) == entry.commands


def caches(*added: int, is_whole: bool = True, removed: tuple[int, ...] = ()) -> Prefixes:
    return Prefixes(1, 1, 0, is_whole, packed(added), packed(removed))


def by_prefix(*instances: InstanceId) -> Rig:
    rig = Rig(*instances)
    rig.live.configure([replace(CONFIG, dispatch="prefix_aware")])
    return rig


def test_a_request_goes_to_whoever_has_most_of_its_beginning_and_the_reasons_say_so() -> None:
    rig = by_prefix(A, B)
    rig.live.on_prefixes(M, A, caches(1, 2))
    rig.live.on_prefixes(M, B, caches(1, 2, 3, 9))
    rig.place("r", tokens=70, prefix=(1, 2, 3, 4))
    assert rig.heard() == [(G, placed("r", B))]
    [known] = rig.live.decisions.find("r")
    assert "cached tokens 48" in known.decisions[-1].why
    rig.live.on_prefixes(M, B, caches(is_whole=False, removed=(2,)))
    rig.place("s", tokens=70, prefix=(1, 2, 3, 4))
    assert rig.heard() == [(G, placed("s", A))]


def test_what_an_instance_had_is_forgotten_with_its_session_and_with_its_life() -> None:
    for lose in (lambda rig: rig.live.on_down(B), lambda rig: rig.follow(A)):
        rig = by_prefix(A, B)
        rig.live.on_prefixes(M, B, caches(1, 2, 3))
        lose(rig)
        rig.live.on_up(B)
        rig.follow(A, B)
        rig.report(B)
        rig.place("r", tokens=70, prefix=(1, 2, 3))
        assert rig.heard() == [(G, placed("r", A))], "neither has it, and A has joined first"


def test_only_pools_whose_policy_looks_at_requests_want_to_know() -> None:
    rig = Rig(A, B)
    assert rig.live.by_prefix == frozenset()
    rig.live.on_prefixes(M, B, caches(1, 2, 3))
    rig.live.configure([replace(CONFIG, dispatch="prefix_aware")])
    assert rig.live.by_prefix == {M}
    rig.place("r", tokens=70, prefix=(1, 2, 3))
    assert rig.heard() == [(G, placed("r", A))], "what was told before was not wanted"
    rig.live.on_prefixes(PoolName("other"), B, caches(1, 2, 3))
    rig.place("s", tokens=70, prefix=(1, 2, 3))
    [(_, answer)] = rig.heard()
    assert "cached" not in rig.live.decisions.find("s")[0].decisions[-1].why, answer
    rig.live.configure([CONFIG])
    assert rig.live.by_prefix == frozenset()


def test_names_cut_short_are_refused() -> None:
    rig = by_prefix(A)
    for added, removed in ((b"1234567", b""), (b"", b"123456789")):
        with pytest.raises(WireError, match=r"m-0's prefix cache"):
            rig.live.on_prefixes(M, A, Prefixes(1, 1, 0, True, added, removed))
    with pytest.raises(WireError, match="the prefix of r"):
        rig.live.place(G, Place(M, RequestId("r"), 1, ClassName("x"), 9, Nanos(0), "", b"1", 16))
    assert rig.live.decisions.find("r") == []


def test_what_is_decided_is_counted_and_one_that_waits_once() -> None:
    rig = Rig(A)
    rig.report(A, free=1)
    rig.place("r", tokens=60)
    rig.place("r", tokens=60, ask=2, waited=2_000_000_000, held=2_000_000_000)
    rig.report(A)
    (placed_at_last,) = [each for _, each in rig.heard() if isinstance(each, Placed)]
    assert placed_at_last.instance == A
    tally = rig.live.tally
    assert [(what, count) for (_, what, _), count in tally.decisions.items()] == [
        ("held", 1),
        ("placed", 1),
    ]
    (waits,) = tally.waits.values()
    assert 2.0 <= waits.sum < 10.0
    assert tally.took["m"].buckets()[-1][1] == 2


def test_a_pool_that_is_not_wanted_any_more_goes_with_its_last_instance() -> None:
    rig = Rig(A)
    rig.live.configure([])
    rig.follow(A)
    assert rig.live.in_use(M) == {A}, "it has an instance yet"
    rig.follow()
    assert rig.live._scheduler.pools == {}
    rig.live.pause([M])
    rig.live.configure([CONFIG])
    rig.follow(A)
    assert rig.live.in_use(M) == {A}

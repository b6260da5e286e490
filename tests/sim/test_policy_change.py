"""Other rules on what was recorded: what they would have decided over its last minutes."""

from dataclasses import replace

import pytest

from llx.cluster.scheduling.opening import opening_events
from llx.core.scheduler.config import Rescheduling
from llx.core.scheduler.policies import Policies
from llx.core.scheduler.scheduler import Scheduler
from llx.errors import ConfigError
from llx.recording import Recorder, Recording
from llx.sim.cluster import Cluster
from llx.sim.policy_change import compare_rules
from llx.sim.presets import paper_cluster
from llx.sim.workload import generated
from tests.sim.test_replay import BAND, FIXED, recorded

pytestmark = pytest.mark.sim

NUM = 200


def same(pool):
    return pool


def by_turns(pool):
    return replace(pool, dispatch="round_robin", is_immediate=True)


def busy(path, policy="llx"):
    """More requests than two instances have room for at a time."""
    with Recorder(path, origin="simulator") as recorder:
        requests = generated("m-m", 12.0, NUM, 3, high_share=0.2)
        Cluster(paper_cluster(policy, 2), iter(requests), observe=recorder.record).run(3)
    return Recording(path)


def part_of(whole, path, at):
    """What a head would have recorded had it begun with event `at`."""
    core, recorder = Scheduler(Policies()), None
    for number, entry in enumerate(whole.entries()):
        if number == at:
            events = list(opening_events(core.pools.values(), entry.at))
            recorder = Recorder(path, origin="cluster", opening=len(events))
            for each in events:
                recorder.record(each, entry.at, ())
        commands = core.handle(entry.event, entry.at)
        if recorder is not None:
            recorder.record(entry.event, entry.at, commands)
    recorder.close()
    return Recording(path)


@pytest.mark.parametrize("scaling", [FIXED, BAND])
@pytest.mark.parametrize("policy", ["llx", "llumnix", "round-robin"])
def test_the_same_rules_decide_the_same_and_are_the_recorded_ones(tmp_path, policy, scaling):
    whole = recorded(tmp_path / "r", policy, 3, scaling=scaling)
    seen = compare_rules(whole, Policies(), same, 1e6)
    assert seen.other == seen.in_force
    assert seen.in_force.dispatched == seen.same == seen.repeatable == 80
    assert (seen.elsewhere, seen.only_other, seen.only_in_force, seen.examples) == (0, 0, 0, ())
    assert seen.repeated == 80
    assert seen.in_force == seen.recorded
    assert seen.is_all


def test_a_recording_that_begins_amid_a_term_is_close(tmp_path):
    whole = busy(tmp_path / "r")
    sending = [
        number for number, each in enumerate(whole.entries()) if b'["Dispatch"' in each.commands
    ]
    part = part_of(whole, tmp_path / "p", sending[len(sending) // 2])
    assert part.opening > 2
    seen = compare_rules(part, Policies(), same, 1e6)
    assert seen.other == seen.in_force
    assert seen.repeatable > 20
    assert seen.repeated >= 0.9 * seen.repeatable


def test_other_rules_send_some_elsewhere_and_say_why(tmp_path):
    whole = busy(tmp_path / "r")
    seen = compare_rules(whole, Policies(), by_turns, 1e6)
    assert seen.elsewhere > 5
    assert seen.same + seen.elsewhere + seen.only_in_force == NUM
    assert len(seen.examples) == 5
    assert "round_robin" in seen.examples[0].other
    assert "round_robin" not in seen.examples[0].in_force
    assert (seen.other.waited, seen.other.waiting) == (0, 0)
    assert seen.in_force.waited == seen.recorded.waited > 0
    assert seen.in_force.waited_max_s >= seen.in_force.waited_mean_s > 0


def test_moves_that_were_not_ordered_in_fact_do_not_come_about(tmp_path):
    whole = busy(tmp_path / "r", "round-robin")

    def moving(pool):
        return replace(pool, rescheduling=Rescheduling())

    seen = compare_rules(whole, Policies(), moving, 1e6)
    assert seen.recorded.moves == seen.in_force.moves == {}
    assert seen.other.moves["balance"] > 0


def test_only_the_last_of_it_counts_and_other_rules_hold_from_there(tmp_path):
    whole = busy(tmp_path / "r")
    _, last = whole.span()
    sent = [entry.at for entry in whole.entries() if b'["Dispatch"' in entry.commands]
    over_s = (last - sent[len(sent) // 2]) / 1e9
    seen = compare_rules(whole, Policies(), by_turns, over_s)
    assert seen.over_s == pytest.approx(over_s, abs=0.01)
    assert not seen.is_all
    late = sum(
        entry.commands.count(b'["Dispatch"')
        for entry in whole.entries()
        if entry.at >= last - round(over_s * 1e9)
    )
    assert 0 < seen.recorded.dispatched == seen.in_force.dispatched == late < NUM
    assert all(each.ago_s <= seen.over_s for each in seen.examples)


def test_pools_that_are_not_meant_are_left_out(tmp_path):
    whole = busy(tmp_path / "r")
    seen = compare_rules(whole, Policies(), by_turns, 1e6, lambda pool: pool == "other")
    assert (seen.recorded.dispatched, seen.same, seen.elsewhere) == (0, 0, 0)


def test_a_policy_that_is_not_here_and_a_recording_of_nothing(tmp_path):
    whole = busy(tmp_path / "r")
    with pytest.raises(ConfigError, match="nosuch"):
        compare_rules(whole, Policies(), lambda pool: replace(pool, dispatch="nosuch"), 1e6)
    Recorder(tmp_path / "e", origin="cluster").close()
    with pytest.raises(ConfigError, match="nothing is recorded"):
        compare_rules(Recording(tmp_path / "e"), Policies(), same, 1e6)

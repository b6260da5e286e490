"""Recordings of simulated runs through the scheduler."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llx.core.model import Nanos
from llx.core.scheduler.config import Scaling
from llx.core.scheduler.freeness import Freeness
from llx.core.scheduler.policies import Policies
from llx.errors import ConfigError
from llx.recording import Recorder, Recording
from llx.sim.cluster import Cluster
from llx.sim.presets import POLICIES, paper_cluster
from llx.sim.replay import compare, replay
from llx.sim.workload import generated
from tests.example_counts import of_a_hundred

pytestmark = pytest.mark.sim

FIXED = Scaling()
BAND = Scaling("band", 1, 4, Freeness(10.0), Freeness(60.0), Nanos(10**9), Nanos(2 * 10**9))


def recorded(path, policy, seed, *, scaling=FIXED):
    config = paper_cluster(policy, 2)
    config = replace(config, pool=replace(config.pool, scaling=scaling))
    with Recorder(path, origin="simulator") as recorder:
        requests = generated("m-m", 4.0, 80, seed, high_share=0.2)
        Cluster(config, iter(requests), observe=recorder.record).run(seed)
    return Recording(path)


def unwatched(_count):
    pass


@settings(
    max_examples=of_a_hundred(10),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(sorted(POLICIES)),
    st.integers(0, 99),
    st.sampled_from([FIXED, BAND]),
    st.data(),
)
def test_a_run_replays_byte_for_byte_and_a_flipped_line_is_caught(
    tmp_path, policy, seed, scaling, data
):
    path = tmp_path / "r.jsonl"
    seen = replay(recorded(path, policy, seed, scaling=scaling), Policies(), unwatched)
    assert (seen.difference, seen.stopped) == (None, None)
    assert seen.commands["Dispatch"] == 80

    lines = path.read_text().splitlines(keepends=True)
    telling = [at for at, line in enumerate(lines) if '"commands":[[' in line]
    flipped = data.draw(st.sampled_from(telling))
    entry = json.loads(lines[flipped])
    expected = json.dumps(entry.pop("commands")[1:], separators=(",", ":"))
    lines[flipped] = lines[flipped].partition('"commands":')[0] + f'"commands":{expected}}}\n'
    path.write_text("".join(lines))
    seen = replay(Recording(path), Policies(), unwatched)
    assert seen.difference.line == flipped + 1
    assert (seen.difference.expected, seen.difference.event) == (expected, entry["event"])
    assert seen.events == flipped - 1


def test_an_event_that_was_otherwise_is_caught(tmp_path):
    path = tmp_path / "r.jsonl"
    recorded(path, "llx", 1)
    text = path.read_text()
    path.write_text(text.replace('"num_tokens":', '"num_tokens":9', 1))
    assert replay(Recording(path), Policies(), unwatched).difference is not None


def test_the_same_rules_would_have_sent_each_request_to_the_same_place(tmp_path):
    recording = recorded(tmp_path / "r.jsonl", "infaas", 1)
    seen = compare(recording, Policies(), lambda config: config, unwatched)
    assert (seen.same, seen.elsewhere, seen.only_recorded, seen.only_other) == (80, 0, 0, 0)
    assert seen.recorded_commands == seen.other_commands


def test_other_rules_would_have_sent_some_elsewhere(tmp_path):
    recording = recorded(tmp_path / "r.jsonl", "llx", 1, scaling=BAND)
    other = POLICIES["round-robin"]
    seen = compare(
        recording,
        Policies(),
        lambda config: replace(config, dispatch=other.dispatch, is_immediate=True),
        unwatched,
    )
    assert seen.elsewhere > 10
    assert seen.same + seen.elsewhere + seen.only_recorded + seen.only_other == seen.requests == 80
    assert f", {POLICIES['llx'].dispatch}: " in seen.first[0].recorded
    assert "round_robin" in seen.first[0].other


def test_a_policy_that_is_not_here_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    recorded(path, "llx", 1)
    ours = f'"dispatch":"{POLICIES["llx"].dispatch}"'
    path.write_text(path.read_text().replace(ours, '"dispatch":"fewest"'))
    with pytest.raises(ConfigError, match=r"r.jsonl:2: no dispatch policy 'fewest'"):
        replay(Recording(path), Policies(), unwatched)

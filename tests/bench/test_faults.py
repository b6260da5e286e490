"""What a benchmark does to its cluster, and that it waits for the cluster afterwards."""

import asyncio
import threading
import time

import pytest
from pydantic import ValidationError

from llx.api import InstanceState, RolloutStatus
from llx.bench import fault_injector
from llx.bench.cluster_watch import ClusterWatch, FaultNote
from llx.bench.fault_injector import Injector
from llx.bench.scenario import Fault, Scenario
from llx.client import Cluster
from llx.errors import (
    ConfigError,
    ConflictError,
    DeadlineError,
    LlxError,
    NotFoundError,
    UnreachableError,
)
from tests.cli.servers import FakeHead, cluster_status

LOAD = {
    "requests": 1,
    "arrivals": {"rate": 1},
    "lengths": {"prompt": 1, "output": 1},
}  # fmt: skip


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(fault_injector, "_CALM_S", 0.0)
    status = cluster_status("http://127.0.0.1:1")
    ready = [each.model_copy(update={"state": InstanceState.READY}) for each in status.instances]
    with FakeHead(status.model_copy(update={"instances": ready})).running() as fake:
        yield fake


@pytest.fixture
def injector(fake, tmp_path):
    fake.register(tmp_path)
    with Cluster.for_cluster(tmp_path) as control:
        yield lambda *faults, strike=None: Injector(control, "tiny", faults, "me", strike)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"do": "kill"}, "kill takes instance"),
        ({"do": "kill", "host": "h1"}, "kill takes instance"),
        ({"do": "partition", "instance": "m-0", "for_s": 1}, "partition takes host"),
        ({"do": "partition", "host": "h1"}, "partition takes for_s"),
        ({"do": "drain", "instance": "m-0", "for_s": 1}, "drain has no for_s"),
        ({"do": "rollout", "instance": "m-0"}, "rollout takes neither"),
        ({"do": "slow", "instance": "m-0", "for_s": 3601}, "less than or equal to 3600"),
        ({"do": "slow", "instance": "m-0", "for_s": 0}, "greater than 0"),
        ({"do": "kill", "instance": "m" * 101}, "at most 100 characters"),
        ({"do": "explode", "instance": "m-0"}, "Input should be"),
    ],
)
def test_a_fault_says_whom_it_hits_and_for_how_long(fault, why):
    with pytest.raises(ValidationError, match=why):
        Fault(at_s=0, **fault)


def test_a_variant_may_have_faults_of_its_own_or_none():
    scenario = Scenario.model_validate(
        {
            "name": "s",
            "workload": LOAD,
            "faults": [{"at_s": 1, "do": "drain", "instance": "m-0"}],
            "variants": [
                {"name": "same"},
                {"name": "calm", "faults": []},
                {"name": "kill", "faults": [{"at_s": 2, "do": "kill", "instance": "m-1"}]},
            ],
        }
    )
    done = [[each.do for each in scenario.faults_of(variant)] for variant in scenario.variants]
    assert done == [["drain"], [], ["kill"]]
    assert [each.do for each in scenario.all_faults] == ["drain", "kill"]


def test_another_server_has_no_faults():
    with pytest.raises(ValidationError, match="a variant with a url has none"):
        Scenario.model_validate(
            {
                "name": "s",
                "workload": LOAD,
                "faults": [{"at_s": 1, "do": "rollout"}],
                "variants": [{"name": "other", "url": "http://127.0.0.1:1"}],
            }
        )


def test_what_is_done_on_a_host_is_done_by_who_is_there(injector):
    fault = Fault(at_s=0, do="kill", instance="tiny-0")
    with pytest.raises(ConfigError):
        injector(fault)
    struck = []
    injector(fault, strike=struck.append).do(fault)
    assert struck == [fault]


def rollout(state, model="tiny"):
    return RolloutStatus(model=model, revision=1, generation=0, state=state, reason="no room")


def test_a_rollout_is_waited_for(fake, injector):
    fake.rollout = [rollout("running"), rollout("paused"), rollout("done")]
    fault = Fault(at_s=0, do="rollout")
    rolled = injector(fault)
    rolled.do(fault)
    rolled.put_back()
    asked = [each.split()[0:2] for each in fake.asked if "rollout" in each]
    assert asked[0][0] == "PUT"
    assert [method for method, _ in asked[1:]] == ["GET"] * 3, "until it was over"


def test_who_does_not_come_back_is_named(fake, injector, monkeypatch):
    monkeypatch.setattr(fault_injector, "_READY_S", 0.3)
    [first, *others] = fake.found.instances
    gone = first.model_copy(update={"state": InstanceState.STARTING})
    fake.found = fake.found.model_copy(update={"instances": [gone, *others]})
    fault = Fault(at_s=0, do="restart", instance=first.name)
    restarted = injector(fault)
    restarted.put_back()  # nothing was done yet, so there is nothing to wait for
    restarted.do(fault)
    with pytest.raises(DeadlineError, match=first.name):
        restarted.put_back()


class Control:
    """A cluster: the states of `tiny-0` at each look, and whom it does not answer for a while.

    The last state stays.
    """

    def __init__(self, *states, rollouts=()):
        self.states = list(states)
        self.found = list(rollouts)
        self.away = 0
        """So many questions get no answer."""
        self.looked_at = []
        self.uncordoned = []
        self.drain_ends = threading.Event()
        self.drains = threading.Event()

    def _answer(self):
        self.away -= 1
        if self.away >= 0:
            raise UnreachableError("the head is away")

    def status(self):
        self._answer()
        self.looked_at.append(time.monotonic())
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        status = cluster_status("http://127.0.0.1:1")
        first = status.instances[0].model_copy(update={"state": state})
        return status.model_copy(update={"instances": [first]})

    def rollouts(self):
        return self.found

    def rollout(self, model, request):
        pass

    def restart_instance(self, name, *, user, deadline_s):
        if name != "tiny-0":
            raise NotFoundError(f"no {name}")

    def drain_instance(self, name, *, user, deadline_s):
        self.drains.set()
        assert self.drain_ends.wait(20), "nobody has ended it"

    def cordon_instance(self, name, *, is_on, user):
        self._answer()
        self.restart_instance(name, user=user, deadline_s=0)
        assert not is_on
        self.uncordoned.append(name)
        self.drain_ends.set()


READY, STARTING = InstanceState.READY, InstanceState.STARTING


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(fault_injector, "_POLL_S", 0.03)
    monkeypatch.setattr(fault_injector, "_CALM_S", 0.05)


def injected(control, fault, strike=None):
    made = Injector(control, "tiny", [fault], "me", strike)
    made.do(fault)
    return made


RESTART = Fault(at_s=0, do="restart", instance="tiny-0")
ROLLOUT = Fault(at_s=0, do="rollout")


def test_calm_is_calm_at_a_stretch(hasty):
    control = Control(READY, STARTING, READY)
    injected(control, RESTART).put_back()
    assert time.monotonic() - control.looked_at[2] >= 0.05, "counted from when it was ready again"


def test_a_head_that_is_away_for_a_moment_ends_nothing(hasty):
    control = Control(READY)
    control.away = 4
    injected(control, RESTART).put_back()
    assert control.uncordoned == ["tiny-0"], "once, when there was an answer"


def test_a_head_that_stays_away_is_what_it_says_at_the_deadline(hasty, monkeypatch):
    monkeypatch.setattr(fault_injector, "_READY_S", 0.2)
    control = Control(READY)
    control.away = 10_000
    with pytest.raises(DeadlineError, match="tiny-0 is cordoned, the head is away"):
        injected(control, RESTART).put_back()


def test_whom_nobody_knows_is_not_waited_for(hasty):
    made = Injector(Control(READY), "tiny", [], "me", None)
    with pytest.raises(NotFoundError):
        made.do(Fault(at_s=0, do="restart", instance="nobody"))
    made.put_back()


def test_a_rollout_that_has_failed_ends_the_benchmark(hasty):
    others = [rollout("failed", "other"), rollout("running", "another")]
    injected(Control(READY, rollouts=[*others, rollout("done")]), ROLLOUT).put_back()
    with pytest.raises(ConflictError, match="rollout of tiny has failed: no room"):
        injected(Control(READY, rollouts=[rollout("failed")]), ROLLOUT).put_back()


def test_what_lasts_is_over_so_long_after_it_was_struck(hasty):
    struck = []

    def strike(fault):
        time.sleep(0.2)
        struck.append(time.monotonic())

    fault = Fault(at_s=0, do="freeze", instance="tiny-0", for_s=0.2)
    injected(Control(READY), fault, strike).put_back()
    assert time.monotonic() - struck[0] >= 0.2 + 0.05


def watched(control, *faults, strike=None, until):
    """The notes of a run that is over as soon as `until` holds."""
    notes = []
    made = Injector(control, "tiny", faults, "me", strike)
    watch = ClusterWatch(control, "m", made, notes.append)

    async def play():
        task = asyncio.create_task(watch.run())
        async with asyncio.timeout(20):
            while not until([each for each in notes if isinstance(each, FaultNote)]):
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(play())
    return {each.words: each.error for each in notes if isinstance(each, FaultNote)}


def test_a_fault_that_is_not_done_is_noted():
    def strike(fault):
        raise LlxError("no such process")

    assert watched(
        Control(READY),
        Fault(at_s=0, do="kill", instance="tiny-0"),
        Fault(at_s=3600, do="partition", host="h2", for_s=1),
        Fault(at_s=3600, do="rollout"),
        strike=strike,
        until=lambda notes: notes,
    ) == {
        "kill tiny-0": "no such process",
        "partition h2": "the run was over before",
        "rollout": "the run was over before",
    }


def test_a_drain_ends_with_the_run():
    control = Control(READY)
    drain = Fault(at_s=0, do="drain", instance="tiny-0")
    notes = watched(control, drain, until=lambda _: control.drains.is_set())
    assert notes == {"drain tiny-0": "the run was over before it was done"}
    assert control.uncordoned == ["tiny-0"]

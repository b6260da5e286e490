"""What is so about hosts and units, by what is heard of them, and what must be done about it.

One step for one host or unit at a time; nothing here waits.
"""

import time

from llx.agent.host_view import Observed
from llx.api import HostState, InstanceState
from llx.cluster.driving.actions import Actions, tell_wait
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.host_unit import HostUnit
from llx.cluster.fleet.unit import Unit, assess


class Judging:
    """Judges hosts and units of a fleet."""

    def __init__(self, fleet: Fleet, actions: Actions) -> None:
        self._fleet = fleet
        self._actions = actions

    def judge(self, host: HostUnit, now: float) -> None:
        """Bring a host's state up to date; take back what runs on one that is heard again."""
        units = self._fleet.units_on(host.name)
        before = host.state
        if not host.judge(now, is_heard=any(self._fleet.is_heard(unit) for unit in units)):
            return
        self._actions.note_host(host.state.value, host.name, detail=host.detail)
        if host.answers and before in {HostState.AGENT_AWAY, HostState.LOST, HostState.FAILED}:
            for unit in units:
                self._take_back(unit, host)

    def _take_back(self, unit: Unit, host: HostUnit) -> None:
        """Its host is back. What ended meanwhile has failed, if perhaps for its host's sake."""
        if unit.is_busy or unit.retry_at is not None or unit.state is InstanceState.FAILED:
            return
        if host.view is None or host.viewed_at < unit.acted_at:
            return
        seen = host.view.processes.get(unit.name)
        if seen is not None and seen.is_running:
            return
        if not unit.is_ours or unit.is_leaving:
            unit.is_ours, unit.known = False, []
            return
        unit.observed = seen
        ending = "its files are gone" if seen is None else seen.record.ending
        self._actions.fail(unit, f"{ending}, while its host was away", is_excused=True)

    def listen(self, unit: Unit, now: float) -> None:
        """Note when it was heard of."""
        heard_at = self._fleet.heard_at(unit, now)
        if heard_at is not None:
            unit.heard_at = heard_at

    def look_at(self, unit: Unit, now: float) -> None:
        """Bring a unit's state up to date and begin what is to be done about it."""
        host = self._fleet.hosts.get(unit.host)
        if host is None or unit.is_busy:
            return
        if not host.answers:
            if not self._fleet.is_stopping:
                self._bear(unit, host)
            return
        # What was observed before an action ended is out of date: such a unit waits.
        if host.view is None or host.viewed_at < unit.acted_at:
            return
        unit.observed = host.view.processes.get(unit.name)
        if not self._fleet.is_stopping:
            self._advance(unit, unit.observed, host, now)

    def _bear(self, unit: Unit, host: HostUnit) -> None:
        """Its host's agent does not answer."""
        if unit.state in {InstanceState.FAILED, InstanceState.STOPPED}:
            return
        if unit.retry_at is not None:
            self._bear_pause(unit, host)
        elif self._fleet.is_heard(unit):
            unit.state = InstanceState.READY
            unit.detail = f"the agent of {host.name} does not answer"
        elif not unit.known:
            if host.state is HostState.LOST and unit.is_ours:
                unit.state, unit.detail = InstanceState.LOST, f"{host.name} is lost"
            else:
                unit.detail = f"waiting for {host.name}: {host.detail}"
        elif host.state is not HostState.STARTING:
            unit.state = InstanceState.LOST
            unit.detail = f"{host.name} is lost" if host.state is HostState.LOST else "not heard of"

    def _bear_pause(self, unit: Unit, host: HostUnit) -> None:
        """Likewise, while it waits to be started again: it cannot be before that host is back."""
        if host.state is HostState.AGENT_AWAY:
            unit.state, where = InstanceState.STARTING, f"waits for the agent of {host.name}"
        elif host.state is HostState.LOST:
            unit.state, where = InstanceState.LOST, f"{host.name} is lost"
        else:
            unit.state, where = InstanceState.LOST, f"{host.name}: {host.detail}"
        unit.detail = f"{where}; last: {unit.last_failure}"

    def _advance(self, unit: Unit, seen: Observed | None, host: HostUnit, now: float) -> None:
        if unit.state in {InstanceState.FAILED, InstanceState.STOPPED}:
            return
        is_running = seen is not None and seen.is_running
        if unit.is_leaving and not is_running:
            unit.known = []
            return
        if unit.retry_at is not None:
            if now < unit.retry_at:
                tell_wait(unit, now)
            else:
                self._actions.act(unit, self._actions.start_again(unit))
            return
        if not unit.is_ours:
            if seen is None or not is_running:
                self._begin(unit, seen, now)
                return
            self._adopt(unit, seen, host)
        if seen is None:
            self._actions.fail(unit, "its files are gone")
            return
        timeout_s = self._fleet.settings.runtime.start_timeout_s
        found = assess(seen, now=time.time(), start_timeout_s=timeout_s)
        if found.state is InstanceState.FAILED:
            self._actions.fail(unit, found.detail)
            return
        unit.state, unit.detail = found.state, found.detail
        if found.state is InstanceState.READY:
            self._note_ready(unit, seen, now)
        elif unit.last_failure:
            unit.detail = "; ".join(filter(None, [found.detail, f"last: {unit.last_failure}"]))

    def _begin(self, unit: Unit, seen: Observed | None, now: float) -> None:
        """It is to run and does not: start it, at once unless it has failed before."""
        if unit.doubt:  # starting it may be what its agent fell silent of
            ending = "" if seen is None else f"; its last run: {seen.record.ending}"
            self._actions.fail(unit, f"it did not come up: {unit.doubt}{ending}", is_excused=True)
        elif unit.owes_pause:
            unit.wait(now)
            tell_wait(unit, now)
        else:
            self._actions.act(unit, self._actions.start(unit))

    def _note_ready(self, unit: Unit, seen: Observed, now: float) -> None:
        assert seen.said is not None, "it says so itself"
        unit.known = list(seen.said.addresses)
        if unit.ready_since is None and unit.ready_after_s is None:
            unit.ready_after_s = round(max(0.0, seen.said.at - seen.record.started_at), 3)
            self._actions.note("ready", unit, after_s=unit.ready_after_s)
        unit.note_ready(now)
        if self._fleet.is_outdated(unit, seen.spec):
            unit.detail = "runs with older settings until it is restarted"

    def _adopt(self, unit: Unit, seen: Observed, host: HostUnit) -> None:
        unit.is_ours = unit.was_ready = True
        unit.owes_pause, unit.doubt, unit.started = False, "", seen.spec
        assert host.view is not None, "that is where it was seen"
        held = host.view.held.get(unit.name)
        unit.devices = [] if held is None else held.devices
        self._actions.note("adopted", unit, host=host.name, pid=seen.record.child_pid)

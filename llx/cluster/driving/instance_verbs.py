"""What is done to one instance on an operator's word: cordon, drain, restart."""

import asyncio
from collections.abc import Callable

from llx.api import InstanceState, InstanceStatus, StopReport
from llx.cluster.driving.actions import Actions
from llx.cluster.driving.draining import EMPTY, Draining
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.errors import ConflictError


class InstanceVerbs:
    """Acts on single instances of a fleet.

    `keep`: uses an instance again that is being removed, if it is; may raise `ConflictError`.
    """

    def __init__(
        self,
        fleet: Fleet,
        actions: Actions,
        draining: Draining,
        keep: Callable[[Unit], None],
    ) -> None:
        self._fleet = fleet
        self._keep = keep
        self._actions = actions
        self._draining = draining
        self._drained: set[str] = set()

    def cordon(self, name: str, *, is_on: bool, user: str) -> InstanceStatus:
        """Give an instance nothing new from now on, or use it again; outlives the head.

        A restart takes that back, too. To use it again ends a drain that is under way, also that
        of an instance which is being removed.

        Raises:
            NotFoundError: There is none of that name.
            ConflictError: It is being removed, and that cannot be taken back.
        """
        unit = self._fleet.instance_unit(name)
        if not is_on:
            self._keep(unit)
        if unit.is_cordoned is not is_on:
            unit.is_cordoned = is_on
            self._actions.note("cordoned" if is_on else "uncordoned", unit, user=user)
            self._actions.wake()
        return self._fleet.instance(name)

    async def drain(self, name: str, deadline_s: float, user: str) -> StopReport:
        """Cordon an instance and empty it: its requests move, what cannot may finish.

        It stays up, and cordoned. What has not finished at the deadline goes on there.

        Raises:
            NotFoundError: There is none of that name.
            ConflictError: It is not ready, it is being drained, or the cluster stops.
        """
        unit = self._fleet.instance_unit(name)
        if self._fleet.is_stopping:
            raise ConflictError(f"{self._fleet.settings.cluster} is being stopped")
        if name in self._drained or unit.state is InstanceState.DRAINING:
            raise ConflictError(f"{name} is being drained already")
        if unit.state is not InstanceState.READY or unit.is_busy:
            raise ConflictError(f"{name} is {unit.state}", remedy=f"llx inst get {name}")
        self.cordon(name, is_on=True, user=user)
        self._actions.note("drain_asked", unit, user=user, deadline_s=deadline_s)
        self._drained.add(name)
        draining = self._actions.own(self._drain(unit, deadline_s, user), f"drain-{name}")
        return await asyncio.shield(draining)

    def begin_restart(self, unit: Unit, user: str, deadline_s: float) -> None:
        """Drain an instance that is not busy, if it serves, and start it anew."""
        serves = unit.state is InstanceState.READY and bool(unit.known) and deadline_s > 0
        if serves:
            unit.state, unit.detail = InstanceState.DRAINING, EMPTY
        else:
            unit.state, unit.detail = InstanceState.STOPPING, "restart asked for"
        action = self._drain_and_restart if serves else self._restart
        self._actions.act(unit, action(unit, user, deadline_s))

    async def _drain(self, unit: Unit, deadline_s: float, user: str) -> StopReport:
        try:
            done = await self._draining.drain(
                unit,
                deadline_s,
                user=user,
                why=f"{unit.name} is drained",
                is_wanted=lambda: unit.is_cordoned,
            )
        finally:
            self._drained.discard(unit.name)
        report = StopReport(
            finished=done.finished,
            cut=0,
            moved=done.moved,
            not_moved=done.not_moved,
            remaining=done.left,
        )
        self._actions.note("drained", unit, user=user, **figures(report))
        return report

    async def _drain_and_restart(self, unit: Unit, user: str, deadline_s: float) -> None:
        self._actions.note("draining", unit, deadline_s=deadline_s)
        why = f"{unit.name} is restarted"
        done = await self._draining.drain(unit, deadline_s, user=user, why=why)
        if self._fleet.is_stopping:  # that lets streams finish, and ends it afterwards
            return
        report = StopReport(
            finished=done.finished, cut=done.left, moved=done.moved, not_moved=done.not_moved
        )
        self._actions.note("drained", unit, user=user, **figures(report))
        unit.state, unit.detail = InstanceState.STOPPING, "restart asked for"
        await self._actions.restart(unit)

    async def _restart(self, unit: Unit, _user: str, _deadline_s: float) -> None:
        await self._actions.restart(unit)


def figures(report: StopReport) -> dict[str, str | float | None]:
    """A report for the audit trail; what is zero or empty is left out, but for the two oldest."""
    found: dict[str, str | float | None] = {"finished": report.finished, "cut": report.cut}
    more: dict[str, str | float | None] = {
        "moved": report.moved,
        "remaining": report.remaining,
        "not_moved": "; ".join(report.not_moved),
        "not_stopped": ", ".join(report.not_stopped),
    }
    return {**found, **{key: value for key, value in more.items() if value}}

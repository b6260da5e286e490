"""Whether requests can move: what stands in the way at their instances, and at themselves."""

from llx.api import InstanceState
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.cluster.requests.listing import Located
from llx.errors import ConflictError
from llx.specs import InstanceSpec
from llx.wire import LEAVING

SERVING = frozenset({InstanceState.READY, InstanceState.DRAINING})
"""States of instances that may have requests."""

_CORDONED = "is cordoned: it takes nothing new"


def why_no_target(fleet: Fleet, unit: Unit) -> str:
    """Why an instance takes no requests of others now, in words; empty: it does."""
    if unit.state is not InstanceState.READY:
        return f"is {unit.state}"
    if not fleet.loads.is_up(unit.name) or len(unit.known) < 2:
        return "is not connected"
    if fleet.is_cordoned(unit):
        return _CORDONED
    return _cannot(fleet, unit)


def why_no_source(fleet: Fleet, unit: Unit) -> str:
    """Why an instance cannot give requests away now, in words; empty: it can."""
    if unit.state not in SERVING:
        return f"is {unit.state}"
    if not fleet.loads.is_up(unit.name):
        return "is not connected"
    return _cannot(fleet, unit)


def why_pinned(fleet: Fleet, located: Located) -> str:
    """Why a request cannot move now, in words; empty: it can."""
    if located.waits is not None:
        return "waits in the central queue: it goes where there is room first"
    if reason := why_moving(fleet, located):
        return reason
    return f"pinned: {located.view.pinned}" if located.view.pinned else ""


def why_moving(fleet: Fleet, located: Located) -> str:
    """Whether a request is being moved, in words; empty: it is not."""
    move = fleet.moves.open_of(located.request)
    if move is not None:
        return f"is being moved already ({move.id})"
    if located.view.state == LEAVING:
        return "is on its way to another instance"
    return ""


def check_ends(fleet: Fleet, source: Unit, target: Unit) -> None:
    """Whether anything can move from the one to the other.

    Raises:
        ConflictError: It cannot; says which of them is to blame, and what to do.
    """
    if source is target:
        raise ConflictError(
            f"{source.name} is both source and target", remedy="name another target"
        )
    if pool_of(source) != pool_of(target):
        raise ConflictError(
            f"{source.name} serves {pool_of(source)}, {target.name} serves {pool_of(target)}:"
            " a request stays with its model",
            remedy=f"name an instance of {pool_of(source)}: llx inst ls",
        )
    reason = why_no_source(fleet, source)
    if reason:
        raise ConflictError(f"{source.name} {reason}", remedy=f"llx inst get {source.name}")
    reason = why_no_target(fleet, target)
    if reason:
        uncordon = _uncordon(fleet, target) if reason == _CORDONED else ""
        remedy = uncordon or "name another target: llx inst ls"
        raise ConflictError(f"{target.name} {reason}", remedy=remedy)


def model_of(unit: Unit) -> str:
    """The model that an instance serves."""
    assert isinstance(unit.spec, InstanceSpec), f"{unit.name} is an instance"
    return unit.spec.pool


def pool_of(unit: Unit) -> str:
    """The pool of an instance: a generation of a model, within which requests move."""
    assert isinstance(unit.spec, InstanceSpec), f"{unit.name} is an instance"
    return unit.spec.pool_key


def _uncordon(fleet: Fleet, unit: Unit) -> str:
    """What uses an instance again; empty if it is not cordoned."""
    host = fleet.hosts.get(unit.host)
    verbs = [f"llx inst uncordon {unit.name}"] if unit.is_cordoned else []
    if host is not None and host.is_cordoned:
        verbs.append(f"llx host uncordon {unit.host}")
    return " and ".join(verbs)


def _cannot(fleet: Fleet, unit: Unit) -> str:
    info = fleet.loads.info(unit.name)
    if info is not None and info.cannot_migrate:
        return f"cannot move requests: {info.cannot_migrate}"
    return ""

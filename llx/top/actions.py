"""What can be done to what is selected: the question to be confirmed, then the call. No screens.

An operator's wish is either an `Action`, or the reason why there is none.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llx.api import (
    HostStatus,
    InstanceState,
    InstanceStatus,
    MigrateReport,
    MigrateRequest,
    RequestChange,
    RequestChangeReport,
    RequestStatus,
    RequestVerb,
    Snapshot,
    StopReport,
)
from llx.top.panes import Pane
from llx.top.source import Control

DRAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Selected:
    """What a key of the keyboard is about: a row of a pane."""

    pane: Pane
    key: str


@dataclass(frozen=True, slots=True)
class Action:
    """`perform` does it once `question` is answered with yes, and says what came of it."""

    question: str
    perform: Callable[[Control], str]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing to be done, and why."""

    why: str


def targets(snapshot: Snapshot, selected: Selected) -> list[str] | Refusal:
    """Instances that a request, or the requests of an instance, could move to, the freest first."""
    match selected.pane:
        case Pane.REQUESTS:
            request = _request(snapshot, selected.key)
            if request is None:
                return Refusal("that request has ended")
            if request.state == "queued":
                return Refusal("it waits for an instance in the central queue")
            if request.pinned:
                return Refusal(f"it is pinned: {request.pinned}")
            source, model = request.instance, request.model
        case Pane.INSTANCES:
            instance = _instance(snapshot, selected.key)
            if instance is None:
                return Refusal("that instance is gone")
            if instance.cannot_migrate:
                return Refusal(f"{instance.name}: {instance.cannot_migrate}")
            source, model = instance.name, instance.model
        case _:
            return Refusal("select a request, or an instance whose requests are to move")
    others = [
        each
        for each in snapshot.status.instances
        if each.model == model and each.name != source and each.state is InstanceState.READY
    ]
    if not others:
        return Refusal(f"there is no other instance of {model} that is ready")
    others.sort(key=lambda each: -(each.load.freeness if each.load else float("-inf")))
    return [each.name for each in others]


def migrate(snapshot: Snapshot, selected: Selected, target: str, user: str) -> Action | Refusal:
    """Move one request, or all of an instance."""
    if selected.pane is Pane.REQUESTS:
        request = _request(snapshot, selected.key)
        if request is None:
            return Refusal("that request has ended")
        ask = MigrateRequest(request=request.id, target=target, user=user)
        what = f"{request.name or request.id} ({request.num_blocks} blocks)"
        source = request.instance
    else:
        load = next(each.load for each in snapshot.status.instances if each.name == selected.key)
        num = 0 if load is None else load.running + load.waiting
        ask = MigrateRequest(source=selected.key, target=target, user=user)
        what, source = f"all {num} requests", selected.key
    return Action(
        f"Move {what} from {source} to {target}?",
        lambda control: _migrate_words(control.migrate(ask)),
    )


def drain(snapshot: Snapshot, selected: Selected, user: str) -> Action | Refusal:
    """Empty an instance or a host."""
    name = selected.key
    if selected.pane is Pane.INSTANCES:
        load = next((each.load for each in snapshot.status.instances if each.name == name), None)
        num = 0 if load is None else load.running + load.waiting
        return Action(
            f"Drain {name}? It takes nothing new, its {num} requests move to others.",
            lambda control: _drain_words(
                name, control.drain_instance(name, deadline_s=DRAIN_S, user=user)
            ),
        )
    if selected.pane is Pane.HOSTS:
        return Action(
            f"Drain host {name}? It takes nothing new, its requests move to other hosts; what "
            f"cannot move and has not finished after {DRAIN_S:.0f} s is cut.",
            lambda control: _drain_words(
                name, control.drain_host(name, deadline_s=DRAIN_S, user=user)
            ),
        )
    return Refusal("select an instance or a host to drain")


def cordon(snapshot: Snapshot, selected: Selected, user: str) -> Action | Refusal:
    """Give an instance or a host nothing new; if it is so already, use it again."""
    name = selected.key
    if selected.pane is Pane.INSTANCES:
        instance = _instance(snapshot, name)
        if instance is None:
            return Refusal("that instance is gone")
        is_on = not instance.is_cordoned

        def perform(control: Control) -> str:
            return _cordon_words(control.cordon_instance(name, is_on=is_on, user=user))
    elif selected.pane is Pane.HOSTS:
        host = next((each for each in snapshot.status.hosts if each.name == name), None)
        if host is None:
            return Refusal("that host is gone")
        is_on = not host.is_cordoned

        def perform(control: Control) -> str:
            return _cordon_words(control.cordon_host(name, is_on=is_on, user=user))
    else:
        return Refusal("select an instance or a host to cordon")
    question = f"Give {name} nothing new from now on?" if is_on else f"Use {name} again?"
    return Action(question, perform)


def cancel(snapshot: Snapshot, selected: Selected, user: str) -> Action | Refusal:
    """Cancel a request, or give up a migration."""
    if selected.pane is Pane.REQUESTS:
        return _cancel_request(snapshot, selected.key, user)
    if selected.pane is not Pane.MIGRATIONS:
        return Refusal("select a request to cancel, or a migration to give up")
    move = next((each for each in snapshot.migrations if each.id == selected.key), None)
    if move is None or move.outcome is not None:
        return Refusal("that migration is over")

    def perform(control: Control) -> str:
        control.cancel_migration(move.id, user=user)
        return f"{move.id}: asked to be given up"

    return Action(f"Give up {move.id}? The request stays on {move.source}.", perform)


def _cancel_request(snapshot: Snapshot, key: str, user: str) -> Action | Refusal:
    request = _request(snapshot, key)
    if request is None:
        return Refusal("that request has ended")
    ask = RequestChange(ids=[request.id], user=user)
    return Action(
        f"Cancel {request.name or request.id}? Its client gets an error.",
        lambda control: _change_words(
            control.change_requests(RequestVerb.CANCEL, ask), "is cancelled"
        ),
    )


def classes(snapshot: Snapshot, selected: Selected) -> list[str] | Refusal:
    """The classes that a request could be of."""
    if selected.pane is not Pane.REQUESTS:
        return Refusal("select a request for another class")
    request = _request(snapshot, selected.key)
    if request is None:
        return Refusal("that request has ended")
    others = [each for each in snapshot.status.priority_classes if each != request.priority_class]
    return others or Refusal("there is no other priority class")


def set_priority(snapshot: Snapshot, selected: Selected, name: str, user: str) -> Action | Refusal:
    """Serve a request as of another class."""
    request = _request(snapshot, selected.key)
    if request is None:
        return Refusal("that request has ended")
    ask = RequestChange(ids=[request.id], priority_class=name, user=user)
    return Action(
        f"Serve {request.name or request.id} as {name} from now on?",
        lambda control: _change_words(
            control.change_requests(RequestVerb.SET_PRIORITY, ask), f"is {name}"
        ),
    )


def _request(snapshot: Snapshot, key: str) -> RequestStatus | None:
    return next((each for each in snapshot.requests.requests if each.id == key), None)


def _instance(snapshot: Snapshot, key: str) -> InstanceStatus | None:
    return next((each for each in snapshot.status.instances if each.name == key), None)


def _change_words(report: RequestChangeReport, done: str) -> str:
    words = [f"{each.name or each.id} {done}" for each in report.changed]
    return "; ".join(words + [each.reason for each in report.not_changed])


def _migrate_words(report: MigrateReport) -> str:
    words = [f"{len(report.migrations)} on their way" if report.migrations else "nothing moves"]
    words += [f"{each.name or each.request} {each.reason}" for each in report.left_out[:3]]
    return "; ".join(words)


def _drain_words(name: str, report: StopReport) -> str:
    words = [f"{name}: {report.moved} moved, {report.finished} finished"]
    words += [f"{report.cut} cut"] if report.cut else []
    words += [f"{report.remaining} remain"] if report.remaining else []
    return ", ".join(words)


def _cordon_words(found: InstanceStatus | HostStatus) -> str:
    return f"{found.name} gets nothing new" if found.is_cordoned else f"{found.name} is used again"

"""The tables of queues and rules, and the lines that explain a request."""

import time
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel

from llx.api import ExplainedRequest, PolicyStatus, QueueStatus, RolloutStatus
from llx.cli.render import Column


def queue_columns() -> list[Column[QueueStatus]]:
    """Of `llx queue`."""
    return [
        Column("model", lambda each: each.model),
        Column("class", lambda each: each.priority_class),
        Column("priority", lambda each: str(each.priority), is_number=True, is_wide_only=True),
        Column("waiting", lambda each: str(each.waiting), is_number=True),
        Column("oldest", lambda each: _seconds(each.oldest_s), is_number=True),
        Column("for", lambda each: each.nominated or "-"),
        Column("limit", lambda each: str(each.limit), is_number=True),
        Column("max wait", lambda each: _seconds(each.max_wait_s), is_number=True),
    ]


class PolicyRow(BaseModel):
    """One key of a model's rules."""

    model: str
    key: str
    value: str
    is_changed: bool


def policy_rows(policies: Sequence[PolicyStatus]) -> list[PolicyRow]:
    """Of `llx policy show`: all keys, and whether moves by rule are paused."""
    rows = []
    for each in policies:
        paused = "yes" if each.is_paused else "no"
        rows.append(
            PolicyRow(model=each.model, key="(paused)", value=paused, is_changed=each.is_paused)
        )
        rows += [
            PolicyRow(model=each.model, key=key, value=value, is_changed=key in each.changed)
            for key, value in _flat("", each.scheduling)
        ]
    return rows


def policy_columns() -> list[Column[PolicyRow]]:
    """Of `llx policy show`."""
    return [
        Column("model", lambda each: each.model),
        Column("key", lambda each: each.key),
        Column("value", lambda each: each.value),
        Column("changed", lambda each: "yes" if each.is_changed else "-"),
    ]


def rollout_columns() -> list[Column[RolloutStatus]]:
    """Of `llx rollout`."""
    return [
        Column("model", lambda each: each.model),
        Column("revision", lambda each: str(each.revision), is_number=True),
        Column("generation", lambda each: str(each.generation), is_number=True, is_wide_only=True),
        Column(
            "rollout", lambda each: f"back, {each.state}" if each.is_back else each.state or "-"
        ),
        Column(
            "new",
            lambda each: (
                f"{each.instances_new}/{each.instances_wanted}"
                if each.state
                else str(each.instances_new)
            ),
            is_number=True,
        ),
        Column("former", lambda each: str(each.instances_former), is_number=True),
        Column("leaving", lambda each: str(each.instances_leaving), is_number=True),
        Column("moved", lambda each: str(each.moved), is_number=True),
        Column("finished", lambda each: str(each.finished), is_number=True),
        Column("cut", lambda each: str(each.cut), is_number=True),
        Column("why", lambda each: each.reason or "-"),
    ]


def rollout_text(found: RolloutStatus) -> str:
    """How far a rollout is, on one line."""
    parts = [f"{found.instances_new} of {found.instances_wanted} new ready"]
    if found.is_apart:
        parts.append("new requests go there" if found.is_switched else "beside the former")
    if found.instances_former:
        parts.append(f"{found.instances_former} former")
    if found.instances_leaving:
        parts.append(f"{found.instances_leaving} being emptied")
    parts.append(f"moved {found.moved}, finished {found.finished}, cut {found.cut}")
    return f"{found.model}: {'; '.join(parts)}"


def explained_lines(each: ExplainedRequest) -> Iterator[str]:
    """What was decided about a request, a line each."""
    name = f"{each.name} " if each.name else ""
    yield f"{name}({each.request}), {each.model}, {each.priority_class or 'no class'}"
    for decision in each.decisions:
        at = time.strftime("%H:%M:%S", time.localtime(decision.at))
        where = f" {decision.instance}" if decision.instance else ""
        yield f"  {at}  {decision.what}{where}: {decision.why}"


def _flat(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            text = ", ".join(str(each) for each in value) if isinstance(value, list) else str(value)
            yield f"{prefix}{key}", text


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"

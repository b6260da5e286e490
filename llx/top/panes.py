"""The panes of the screen. Another one is an entry in `PANES`. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Generic, TypeVar

from llx.api import Snapshot
from llx.top.columns import (
    class_columns,
    class_lines,
    gateway_columns,
    host_columns,
    instance_columns,
    migration_columns,
    request_columns,
)
from llx.top.table import Column, Sheet, Sorting, make_sheet

T = TypeVar("T")


class Pane(StrEnum):
    """One table of the screen."""

    INSTANCES = "instances"
    REQUESTS = "requests"
    MIGRATIONS = "migrations"
    CLASSES = "classes"
    HOSTS = "hosts"
    GATEWAYS = "gateways"


@dataclass(frozen=True, slots=True)
class _Kind(Generic[T]):
    """How a pane is made."""

    rows: Callable[[Snapshot], Sequence[T]]
    key: Callable[[T], str]
    columns: Callable[[Snapshot], Sequence[Column[T]]]
    sorting: Sorting


def sheet_of(
    pane: Pane,
    snapshot: Snapshot,
    *,
    width: int,
    sorting: Sorting | None = None,
    match: str = "",
) -> Sheet:
    """A pane's rows, sorted and filtered: `match` is part of some cell, letters great or small."""
    kind = PANES[pane]
    return make_sheet(
        kind.rows(snapshot),
        kind.columns(snapshot),
        kind.key,
        width=width,
        sorting=sorting or kind.sorting,
        match=match,
    )


def default_sorting(pane: Pane) -> Sorting:
    """How a pane is sorted unless asked otherwise."""
    return PANES[pane].sorting


PANES: MappingProxyType[Pane, _Kind] = MappingProxyType(  # type: ignore[type-arg]  # of any row
    {
        Pane.INSTANCES: _Kind(
            lambda snapshot: snapshot.status.instances,
            lambda each: each.name,
            instance_columns,
            Sorting("name"),
        ),
        Pane.REQUESTS: _Kind(
            lambda snapshot: snapshot.requests.requests,
            lambda each: each.id,
            request_columns,
            Sorting("age", is_reversed=True),
        ),
        Pane.MIGRATIONS: _Kind(
            lambda snapshot: snapshot.migrations,
            lambda each: each.id,
            migration_columns,
            Sorting("age"),
        ),
        Pane.CLASSES: _Kind(
            class_lines,
            lambda each: f"{each.model}/{each.priority}",
            class_columns,
            Sorting("class"),
        ),
        Pane.HOSTS: _Kind(
            lambda snapshot: snapshot.status.hosts,
            lambda each: each.name,
            host_columns,
            Sorting("host"),
        ),
        Pane.GATEWAYS: _Kind(
            lambda snapshot: snapshot.status.gateways,
            lambda each: each.name,
            gateway_columns,
            Sorting("gateway"),
        ),
    }
)

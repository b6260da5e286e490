"""Everything about one instance, request, migration, class, host or gateway. Pure."""

import time

from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llx.api import Snapshot
from llx.figures import span
from llx.top.actions import Selected
from llx.top.panes import PANES, Pane, sheet_of
from llx.top.plain import grid_of

_SELDOM = {"load", "api_version"}


def describe(snapshot: Snapshot, selected: Selected, width: int) -> RenderableType | None:
    """Its fields, and the requests and migrations that it has to do with; None: it is gone."""
    kind = PANES[selected.pane]
    found = next((row for row in kind.rows(snapshot) if kind.key(row) == selected.key), None)
    if found is None:
        return None
    parts: list[RenderableType] = [_fields(found, snapshot.at)]
    for pane, related in _related(snapshot, selected).items():
        sheet = sheet_of(pane, related, width=width)
        if sheet.rows:
            parts += [Text(""), Text(f"{pane} {len(sheet.rows)}", style="bold"), grid_of(sheet)]
    return Group(*parts)


def _related(snapshot: Snapshot, selected: Selected) -> dict[Pane, Snapshot]:
    """Panes, and snapshots of which only what belongs there is left."""
    name = selected.key
    match selected.pane:
        case Pane.INSTANCES:
            requests = [each for each in snapshot.requests.requests if each.instance == name]
            moves = [each for each in snapshot.migrations if name in {each.source, each.target}]
        case Pane.REQUESTS:
            requests = []
            moves = [each for each in snapshot.migrations if each.request == name]
        case Pane.CLASSES:
            requests = [
                each
                for each in snapshot.requests.requests
                if f"{each.model}/{each.priority}" == name
            ]
            moves = []
        case _:
            requests, moves = [], []
    found = snapshot.requests.model_copy(update={"requests": requests})
    less = snapshot.model_copy(update={"requests": found, "migrations": moves[::-1]})
    return {Pane.REQUESTS: less, Pane.MIGRATIONS: less}


def _fields(found: object, now: float) -> Table:
    """Names and values; what is empty is left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _values(found):
        if value not in (None, "", [], {}):
            table.add_row(name.replace("_", " "), _said(name, value, now))
    return table


def _values(found: object) -> list[tuple[str, object]]:
    if not isinstance(found, BaseModel):
        return [(name, getattr(found, name)) for name in found.__slots__]  # type: ignore[attr-defined]
    values = [(name, value) for name, value in found if name not in _SELDOM]
    load = getattr(found, "load", None)
    return values + (list(load) if isinstance(load, BaseModel) else [])


def _said(name: str, value: object, now: float) -> str:
    if name.endswith("_at") and isinstance(value, float):
        clock = time.strftime("%H:%M:%S", time.localtime(value))
        return f"{clock}, {span(now - value)} ago"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list):
        return ", ".join(getattr(each, "label", "") or str(each) for each in value)
    return str(value)

"""Which panes are on the screen, and how high each is. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from llx.top.panes import Pane

LEFT = (Pane.INSTANCES, Pane.REQUESTS)
RIGHT = (Pane.MIGRATIONS, Pane.CLASSES, Pane.HOSTS, Pane.GATEWAYS)
WIDE = 200
"""From so many characters on the panes stand in two columns."""
_FRAME = 2
"""Lines of a pane that are no rows: its title and its headings."""
_FEWEST = 4
"""Rows that a pane may be cut to, if it has more, to make room for another."""
_SMALL = 6
"""Rows that each pane gets before any gets more; the requests have room for so many always."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Lines of each pane that is shown, frame included, from the top of its column."""

    is_wide: bool
    heights: dict[Pane, int]


def plan_layout(
    width: int,
    height: int,
    rows: Mapping[Pane, int],
    focused: Pane,
    *,
    is_zoomed: bool = False,
) -> Layout:
    """Lay panes with so many `rows` out on `width` × `height` characters.

    In one column there are as many panes as fit, the focused one in any case; zoomed it is alone.
    Whatever is left over goes to the requests, or to the lowest pane.
    """
    if is_zoomed:
        return Layout(is_wide=False, heights={focused: height})
    if width >= WIDE:
        heights = _column(LEFT, height, rows, focused) | _column(RIGHT, height, rows, focused)
        return Layout(is_wide=True, heights=heights)
    return Layout(is_wide=False, heights=_column((*LEFT, *RIGHT), height, rows, focused))


def _column(
    panes: tuple[Pane, ...], height: int, rows: Mapping[Pane, int], focused: Pane
) -> dict[Pane, int]:
    heights = _fitting(panes, height, rows, focused)
    left = height - sum(heights.values())
    for most in (_SMALL, height):
        for pane, lines in heights.items():
            wanted = _FRAME + min(max(rows[pane], 1), most)
            more = max(0, min(wanted - lines, left))
            heights[pane] += more
            left -= more
    last = Pane.REQUESTS if Pane.REQUESTS in heights else list(heights)[-1]
    heights[last] += left
    return heights


def _fitting(
    panes: tuple[Pane, ...], height: int, rows: Mapping[Pane, int], focused: Pane
) -> dict[Pane, int]:
    """As many panes, from the first, as there is room for, each as low as it may be."""
    lowest = {each: _FRAME + min(max(rows[each], 1), _FEWEST) for each in panes}
    if Pane.REQUESTS in panes:
        lowest[Pane.REQUESTS] = _FRAME + _SMALL
    shown: dict[Pane, int] = {}
    room = height - (lowest[focused] if focused in panes else 0)
    for pane in panes:
        if pane is focused:
            shown[pane] = lowest[pane]
        elif lowest[pane] <= room:
            shown[pane] = lowest[pane]
            room -= lowest[pane]
        else:
            room = 0
    return shown or {panes[0]: height}

"""What all pictures have in common: paper, colours, axes, files. By matplotlib (the extra `plots`).

Figures are made without pyplot, so nothing global changes, and without times or random ids, so the
same runs give the same file.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from llx.errors import ConfigError

COLORS: Final = ("#2a6fbb", "#e07b39", "#3b8f5c", "#8d5fb5", "#c4476c", "#6b6f76", "#b59a1c")
_INK, _FAINT = "#33373d", "#e4e6e9"
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.edgecolor": "#9a9ea5", "axes.labelcolor": _INK, "text.color": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": _FAINT, "axes.axisbelow": True, "legend.frameon": False,
    "svg.hashsalt": "llx", "savefig.facecolor": "white",
}  # fmt: skip
_WIDTH: Final = 10.0
_WIDE: Final = 300
"""From here on an axis of times is labelled by powers of ten only."""
NINES: Final = (
    (0.0, "0 %"),
    (math.log10(2), "50 %"),
    (1.0, "90 %"),
    (2.0, "99 %"),
    (3.0, "99.9 %"),
)

Area = Figure | SubFigure
Drawing = tuple[float, Callable[[Area], None]]
"""A height in inches, and what draws into an area."""


def kind_of(path: Path) -> str:
    """The kind of picture that a file's name asks for.

    Raises:
        ConfigError: None that is known.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("svg", "png", "pdf"):
        raise ConfigError(f"{path}: a picture's name ends in .svg, .png or .pdf")
    return kind


def save(path: Path, parts: Sequence[Drawing]) -> None:
    """Write a picture of these parts, one below the other; its kind is the file's ending.

    Raises:
        ConfigError: The file cannot be written, or is of no known kind.
    """
    data = _rendered(parts, kind_of(path))
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def as_svg(part: Drawing) -> str:
    """One part, to be put into a page."""
    text = _rendered([part], "svg").decode()
    return text[text.index("<svg") :]


def _rendered(parts: Sequence[Drawing], kind: str) -> bytes:
    with mpl.rc_context(_STYLE):
        heights = [height for height, _ in parts]
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        areas = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)
        for area, (_, draw) in zip(areas[:, 0], parts, strict=True):
            draw(area)
        data = io.BytesIO()
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        figure.savefig(data, format=kind, dpi=160, metadata=metadata)
        return data.getvalue()


def heading(area: Area, title: str) -> None:
    """What an area shows."""
    area.suptitle(title, x=0.01, ha="left", fontweight="bold")


def legend_beside(area: Area, axes: Axes) -> None:
    """One for all panels, beside the heading."""
    handles, labels = axes.get_legend_handles_labels()
    legend = area.legend(
        handles, labels, loc="upper right", ncols=len(labels), handlelength=1.2, borderpad=0
    )
    legend.set_in_layout(False)


def legend_above(axes: Axes) -> None:
    """One of a panel's own, where it hides nothing of it."""
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, borderpad=0,
        ncols=len(axes.get_legend_handles_labels()[1]), handlelength=1.2,
    )  # fmt: skip


def colors() -> Iterable[str]:
    """Without end."""
    return itertools.cycle(COLORS)


def plain_numbers(axes: Axes) -> None:
    """0.1, 1, 10 instead of powers; 2 and 5 between them where there is room."""
    low, high = axes.get_xlim()
    is_wide = low > 0 and high / low > _WIDE
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())

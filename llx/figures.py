"""Figures as text, short and to be read: the tables of `llx` and the panes of `llx top`."""

from collections.abc import Sequence


def span(seconds: float) -> str:
    """A duration, roughly: ``12s``, ``3m``, ``5h``, ``2d``."""
    seconds = max(0.0, seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def milliseconds(value: float | None) -> str:
    """A short time: ``0.42 ms``, ``12 ms``, ``3.4 s``."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"


def size_text(size_bytes: float) -> str:
    """A size, to be read: ``512 B``, ``3.5 MiB``, ``12 GiB``."""
    size, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"


def rate_text(rate: float) -> str:
    """Bytes per second, to be read."""
    return f"{size_text(rate)}/s" if rate > 0 else "-"


def cores_text(cores: float) -> str:
    """CPU cores in use: ``0.04``, ``3.1``, ``57``."""
    return f"{cores:.2f}" if cores < 1 else f"{cores:.1f}" if cores < 10 else f"{cores:.0f}"


def percents_text(shares: Sequence[float | None]) -> str:
    """How busy each of some devices is: ``87% 0% -``; a dash alone: of none it is known."""
    if all(each is None for each in shares):
        return "-"
    return " ".join("-" if each is None else f"{each:.0f}%" for each in shares)

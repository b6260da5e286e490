"""A page about a benchmark: what ran where, its figures, its pictures. One file, nothing beside."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llx import __version__
from llx.bench.run_directory import Results
from llx.bench.summary import Figures
from llx.errors import ConfigError
from llx.sim.page import STYLE, drawing

if TYPE_CHECKING:
    from types import ModuleType

_COLUMNS: Final = (
    ("ok", "completed", 0),
    ("failed", "failed", 0),
    ("requests/s", "request_throughput", 2),
    ("good/s", "request_goodput", 2),
    ("tokens/s", "output_throughput", 0),
    ("TTFT P50", "median_ttft_ms", 1),
    ("P99", "p99_ttft_ms", 1),
    ("TPOT P50", "median_tpot_ms", 1),
    ("P99", "p99_tpot_ms", 1),
    ("ITL P50", "median_itl_ms", 1),
    ("P99", "p99_itl_ms", 1),
    ("E2E P50", "median_e2el_ms", 0),
    ("P99", "p99_e2el_ms", 0),
    ("late P99", "p99_llx_lateness_ms", 2),
    ("moves", "llx_migrations", 0),
    ("preemptions", "llx_preemptions", 0),
    ("instances", "llx_instances", 1),
)
_STYLE: Final = (
    STYLE
    + """th:first-child, td:first-child { text-align: left; }
tr.part td { color: #6b7178; border-bottom-color: #f2f3f5; }
tr.part td:first-child { padding-left: 1.6rem; }
details pre { font-size: 12px; background: #f6f7f8; padding: .8rem; overflow-x: auto; }
"""
)


def pictures() -> "ModuleType":
    """`llx.bench.pictures`.

    Raises:
        InstallError: What draws them is not installed.
    """
    with drawing():
        from llx.bench import pictures
    return pictures


def write_report(path: Path, results: Results, drawn: Sequence[str]) -> None:
    """Write the page.

    Args:
        path: Where.
        results: What was measured.
        drawn: Its pictures, as SVG.

    Raises:
        ConfigError: It cannot be written.
    """
    scenario = (results.path / "scenario.yaml").read_text(encoding="utf-8")
    name = html.escape(results.scenario.name)
    text = "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><meta charset="utf-8"><title>{name}</title>',
            f"<style>{_STYLE}</style>",
            f"<h1>{name}</h1>",
            f"<p>{html.escape(_about(results))}</p>",
            _table(results),
            *drawn,
            f"<details><summary>Scenario</summary><pre>{html.escape(scenario)}</pre></details>",
            f"<p><small>llx {__version__}</small></p></html>",
        ]
    )
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _about(results: Results) -> str:
    about, machine = results.about, results.about["machine"]
    repetitions = max(len(results.of(each)) for each in results.variants)
    target = about["target"]
    processor = machine["processor"] or "unknown processor"
    text = (
        f"Model {target['model']} at {target['url'] or 'the simulator'}, {about['date']}, "
        f"from {machine['name']}"
        f" ({machine['cpus']} × {processor}). Medians over {repetitions}"
        f" repetition{'s' if repetitions > 1 else ''}; times in milliseconds, counted from when a"
        " request should have been sent."
    )
    limits = results.scenario.slo.model_dump(exclude_none=True)
    if limits:
        stated = ", ".join(
            f"{key.partition('_')[0]} ≤ {value:g} ms" for key, value in limits.items()
        )
        text += f" Good: {stated}."
    if not all(each.summary["llx_is_whole"] for each in results.runs):
        text += " A run was interrupted: its figures are of a part."
    if missing := results.faults_not_done():
        text += f" Faults that were not done: {'; '.join(missing)}."
    return text


def _table(results: Results) -> str:
    head = "".join(f"<th>{title}</th>" for title in ("variant", *(each[0] for each in _COLUMNS)))
    body = "\n".join(
        f'<tr class="{"part" if is_part else "whole"}"><td>{html.escape(name)}</td>'
        + "".join(f"<td>{_cell(figures, key, digits)}</td>" for _, key, digits in _COLUMNS)
        + "</tr>"
        for name, is_part, figures in results.rows()
    )
    return f'<div class="table"><table><tr>{head}</tr>\n{body}\n</table></div>'


def _cell(figures: Figures, key: str, digits: int) -> str:
    value = figures.get(key)
    return "–" if value is None else f"{value:.{digits}f}"

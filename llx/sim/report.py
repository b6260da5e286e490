"""A page about a plan that has been run: what it was, its figures, its pictures. One file."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llx import __version__
from llx.errors import ConfigError
from llx.sim.figures import Interval, Row
from llx.sim.page import STYLE, drawing
from llx.sim.plan import Plan
from llx.sim.supply import Mix, Supply

if TYPE_CHECKING:
    from types import ModuleType

_COLUMNS: Final = (
    ("request mean, s", "request_mean_s", 1.0, False),
    ("P50", "request_p50_s", 1.0, False),
    ("P99", "request_p99_s", 1.0, False),
    ("prefill mean, s", "prefill_mean_s", 1.0, False),
    ("P50", "prefill_p50_s", 1.0, False),
    ("P99", "prefill_p99_s", 1.0, False),
    ("P99 ratio", "prefill_p99_s", 1.0, True),
    ("decode mean, ms", "decode_mean_s", 1e3, False),
    ("P99", "decode_p99_s", 1e3, False),
    ("P99 ratio", "decode_p99_s", 1.0, True),
    ("good, %", "good_share", 100.0, False),
    ("loss, s", "preemption_loss_s", 1.0, False),
    ("refused", "refused", 1.0, False),
    ("moves", "moves", 1.0, False),
    ("downtime P50, ms", "downtime_p50_s", 1e3, False),
    ("instances", "instances", 1.0, False),
)
_STYLE: Final = (
    STYLE
    + """th { vertical-align: bottom; }
th.word, td.word { text-align: left; }
small { color: #80868e; }
"""
)


def pictures() -> "ModuleType":
    """`llx.sim.pictures`.

    Raises:
        InstallError: What draws them is not installed.
    """
    with drawing():
        from llx.sim import pictures
    return pictures


def write_report(
    path: Path, plan: Plan, supply: Supply, rows: Sequence[Row], drawn: Sequence[str]
) -> None:
    """Write the page.

    Args:
        path: Where.
        plan: What was run.
        supply: Its requests.
        rows: Its figures.
        drawn: Its pictures, as SVG.

    Raises:
        ConfigError: The file cannot be written.
    """
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>llx sim run</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body>
<h1>{html.escape(_title(plan))}</h1>
<p>{html.escape(_description(plan, supply))}</p>
<div class="table">{_table(rows)}</div>
<p>Prefill is the time to the first token (TTFT), decode the time for each token after it (TPOT),
loss the time that preemptions took, over all requests. ± is half a 95&nbsp;% interval over seeds
(Student's t). Ratios are to the first policy, seed by seed. Pictures of the course of a run show
the first seed.</p>
{"".join(drawn)}
<p>Simulated by llx {__version__}. Equal seeds give equal runs.</p>
</body></html>
"""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _title(plan: Plan) -> str:
    return " · ".join(each.policy for each in plan.variants)


def _description(plan: Plan, supply: Supply) -> str:
    first = plan.variants[0].cluster
    lengths = plan.source.lengths
    what = f"lengths {lengths.name}" if isinstance(lengths, Mix) else f"of {lengths.path.name}"
    rates = [f"{each:g}" for each in plan.rates if each is not None]
    pace = f"at {', '.join(rates)} requests/s" if rates else "at the trace's own times"
    seeds = ", ".join(map(str, plan.seeds))
    return (
        f"{first.num_instances} instances of {first.engine.num_blocks} blocks of "
        f"{first.engine.block_size} tokens; {supply.count} requests, {what}, {pace}; seeds {seeds}."
    )


def _table(rows: Sequence[Row]) -> str:
    has_rates = len({row.rate for row in rows}) > 1
    shown = [each for each in _COLUMNS if any(_value(row, each) is not None for row in rows)]
    words = [*(["rate"] if has_rates else []), "policy", "class"]
    head = "".join(f'<th class="word">{each}</th>' for each in words)
    head += "".join(f"<th>{each[0]}</th>" for each in shown)
    lines = []
    for row in rows:
        texts = [*([f"{row.rate or 0:g}"] if has_rates else []), row.policy, row.priority_class]
        cells = "".join(f'<td class="word">{html.escape(each)}</td>' for each in texts)
        cells += "".join(f"<td>{_cell(_value(row, each), each[2])}</td>" for each in shown)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _value(row: Row, column: tuple[str, str, float, bool]) -> Interval | None:
    _, name, _, is_ratio = column
    figure = row.figures.get(name)
    return figure.ratio if figure is not None and is_ratio else figure


def _cell(value: Interval | None, unit: float) -> str:
    if value is None:
        return ""
    text = f"{value.mean * unit:.3g}"
    if value.high is None:
        return text
    return f"{text} <small>± {(value.high - value.mean) * unit:.2g}</small>"

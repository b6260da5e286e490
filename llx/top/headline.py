"""The two lines above the panes: what the cluster is, and its totals. Pure."""

from rich.text import Text

from llx.api import InstanceState, Snapshot
from llx.figures import milliseconds, span
from llx.top.drawing import bar, count_text, sparkline, state_text
from llx.top.trend import Trend, totals_of

_GAP = "  "
_NARROW = 100
"""Below so many characters lines of the past and bars are short."""


def cluster_line(snapshot: Snapshot, width: int) -> Text:
    """Name, state, where it serves, versions; what there is no room for is left out."""
    status = snapshot.status
    ready = sum(each.state is InstanceState.READY for each in status.instances)
    parts = [
        Text(status.cluster, style="bold"),
        state_text(status.state).append(f" {ready}/{len(status.instances)}"),
        Text(f"up {span(snapshot.at - status.started_at)}"),
        Text(f"{status.url}/v1"),
        Text(f"{status.platform}, vLLM {status.vllm_version}"),
        Text(f"llx {status.llx_version}"),
        Text(f"term {status.term}"),
    ]
    return _joined(parts, width)


def totals_line(snapshot: Snapshot, trend: Trend, width: int) -> Text:
    """Requests, tokens per second and blocks, with how they went; migrations; failures."""
    totals = totals_of(snapshot)
    past = 8 if width < _NARROW else 16 if width < 2 * _NARROW else 40
    rates, rate = trend.token_rates, trend.tokens_per_s
    tokens = Text("tok/s ").append("-" if rate is None else count_text(rate), style="bold")
    if len(rates) > 1:
        tokens.append(" ").append_text(sparkline(rates, past))
    blocks = Text("kv ").append_text(bar(totals.kv, past)).append(f" {100 * totals.kv:.0f}%")
    if width >= _NARROW and len(rates) > 1:
        blocks.append(" ").append_text(sparkline([p.kv for p in trend.points], past, top=1.0))
    moves = Text("moves ").append(str(totals.moving), style="bold cyan" if totals.moving else "")
    parts = [
        _figure("run", totals.running),
        _figure("wait", totals.waiting, "bold yellow"),
        tokens,
        blocks,
        moves,
        *([] if totals.downtime_ms is None else [_downtime(totals.downtime_ms)]),
        _figure("failed", totals.failed, "bold red"),
        _figure("refused", totals.refused, "bold yellow"),
        _figure("requests", totals.requests),
    ]
    return _joined(parts, width)


def _downtime(value: float) -> Text:
    return Text("downtime ").append(milliseconds(value), style="bold")


def _figure(name: str, value: int, style: str = "bold") -> Text:
    return Text(f"{name} ").append(count_text(value), style=style if value else "")


def _joined(parts: list[Text], width: int) -> Text:
    """As many of them, from the left, as there is room for."""
    line = Text()
    for part in parts:
        gap = _GAP if line else ""
        if line.cell_len + len(gap) + part.cell_len > width:
            break
        line.append(gap).append_text(part)
    return line

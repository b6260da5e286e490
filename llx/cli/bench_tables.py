"""What `llx bench` prints: the results of a run directory, and comparisons."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from llx.cli.render import Column, emit, print_table, table
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.bench.compare import Ratio
    from llx.bench.run_directory import Results

_SHOWN_ERRORS = 5


class VariantRow(BaseModel):
    """A variant: how often it ran, and the median of each figure; of its classes, too."""

    model_config = ConfigDict(frozen=True)

    variant: str
    priority_class: str = ""
    runs: int
    figures: dict[str, float | None]


def rows_of(results: "Results") -> list[VariantRow]:
    """One row for each variant, and below it one for each class that was asked for."""
    found: list[VariantRow] = []
    variant = ""
    for name, is_class, figures in results.rows():
        variant = variant if is_class else name
        found.append(
            VariantRow(
                variant=variant,
                priority_class=name if is_class else "",
                runs=len(results.of(variant)),
                figures=figures,
            )
        )
    return found


def emit_results(session: Session, results: "Results") -> None:
    """Print results in the session's format; on stderr, faults not done and why requests failed."""
    rows = rows_of(results)

    def show(is_wide: bool) -> None:
        print_table(session.out, table(result_columns(), rows, is_wide=is_wide))

    emit(session.out, session.output, rows, results.variants, show)
    for text in results.faults_not_done()[:_SHOWN_ERRORS]:
        session.err.print(f"not done: {text}", markup=False, soft_wrap=True)
    for text, count in errors_of(results)[:_SHOWN_ERRORS]:
        session.err.print(f"{count} × {text}", markup=False, soft_wrap=True)


def errors_of(results: "Results") -> list[tuple[str, int]]:
    """Why requests failed, the most frequent reason first."""
    counts: dict[str, int] = {}
    for run in results.runs:
        for text, count in run.summary["llx_errors"].items():
            counts[text] = counts.get(text, 0) + count
    return sorted(counts.items(), key=lambda item: -item[1])


def result_columns() -> list[Column[VariantRow]]:
    """Latencies in milliseconds, rates per second."""

    def number(
        title: str, name: str, digits: int = 1, *, is_wide_only: bool = False
    ) -> Column[VariantRow]:
        def cell(row: VariantRow) -> str:
            value = row.figures.get(name)
            return "-" if value is None else f"{value:.{digits}f}"

        return Column(title, cell, is_wide_only, is_number=True)

    def name_of(row: VariantRow) -> str:
        return f"  {row.priority_class}" if row.priority_class else row.variant

    return [
        Column("variant", name_of),
        Column("runs", lambda row: str(row.runs), is_wide_only=True, is_number=True),
        number("ok", "completed", 0),
        number("failed", "failed", 0),
        number("req/s", "request_throughput"),
        number("good/s", "request_goodput"),
        number("tok/s", "output_throughput", 0),
        number("ttft p50", "median_ttft_ms"),
        number("ttft p99", "p99_ttft_ms"),
        number("tpot p50", "median_tpot_ms"),
        number("tpot p99", "p99_tpot_ms", is_wide_only=True),
        number("itl p50", "median_itl_ms", is_wide_only=True),
        number("itl p99", "p99_itl_ms"),
        number("e2e p50", "median_e2el_ms", 0, is_wide_only=True),
        number("e2e p99", "p99_e2el_ms", 0, is_wide_only=True),
        number("late p99", "p99_llx_lateness_ms", 2),
        number("moves", "llx_migrations", 0),
        number("preempted", "llx_preemptions", 0),
        number("instances", "llx_instances", is_wide_only=True),
        number("kv used", "llx_kv_used", 2, is_wide_only=True),
        number("kv spread", "llx_kv_spread", 2, is_wide_only=True),
    ]


class RatioRow(BaseModel):
    """A figure of both sides, their ratio and its 95% interval; latencies in milliseconds."""

    model_config = ConfigDict(frozen=True)

    figure: str
    base: float
    other: float
    ratio: float
    low: float
    high: float
    bound: float | None
    verdict: str


def emit_ratios(session: Session, ratios: "Sequence[Ratio]") -> None:
    """Print a comparison in the session's format."""
    rows = [
        RatioRow(
            figure=each.name,
            base=each.base,
            other=each.other,
            ratio=each.ratio,
            low=each.low,
            high=each.high,
            bound=each.bound,
            verdict=each.verdict,
        )
        for each in ratios
    ]

    def show(is_wide: bool) -> None:
        print_table(session.out, table(ratio_columns(), rows, is_wide=is_wide))

    emit(session.out, session.output, rows, [each.figure for each in rows], show)


def ratio_columns() -> list[Column[RatioRow]]:
    """Both sides, and what to make of them."""
    return [
        Column("figure", lambda row: row.figure),
        Column("base", lambda row: f"{row.base:.2f}", is_number=True),
        Column("other", lambda row: f"{row.other:.2f}", is_number=True),
        Column("ratio", lambda row: f"{row.ratio:.3f}", is_number=True),
        Column("95% interval", lambda row: f"{row.low:.3f} to {row.high:.3f}", is_number=True),
        Column("bound", lambda row: "" if row.bound is None else f"{row.bound:g}", is_number=True),
        Column("verdict", lambda row: row.verdict),
    ]

"""What `llx bench` prints: the results of a run directory, and comparisons."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from llx.cli.render import Column, emit, print_table, table
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.bench.run_directory import Results


class VariantRow(BaseModel):
    """A variant: how often it ran, and the median of each figure; of its classes, too."""

    model_config = ConfigDict(frozen=True)

    variant: str
    priority_class: str = ""
    runs: int
    figures: dict[str, float | None]


def rows_of(results: "Results") -> list[VariantRow]:
    """One row for each variant, and below it one for each class if there are several."""
    from llx.bench.run_directory import medians

    rows = []
    for name in results.variants:
        runs = results.of(name)
        rows.append(VariantRow(variant=name, runs=len(runs), figures=medians(runs)))
        for each in results.scenario.workload.classes:
            found = [r.summary["llx_classes"].get(each) for r in runs]
            figures = _medians([e for e in found if e is not None])
            rows.append(
                VariantRow(variant=name, priority_class=each, runs=len(runs), figures=figures)
            )
    return rows


def emit_results(session: Session, results: "Results") -> None:
    """Print results in the session's format."""
    rows = rows_of(results)

    def show(is_wide: bool) -> None:
        print_table(session.out, table(result_columns(), rows, is_wide=is_wide))

    emit(session.out, session.output, rows, results.variants, show)


def result_columns() -> list[Column[VariantRow]]:
    """Latencies in milliseconds, rates per second."""

    def number(title: str, name: str, digits: int = 1, *, is_wide_only: bool = False) -> Any:
        def cell(row: VariantRow) -> str:
            value = row.figures.get(name)
            return "-" if value is None else f"{value:.{digits}f}"

        return Column[VariantRow](title, cell, is_wide_only, is_number=True)

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
        number("p99", "p99_ttft_ms"),
        number("tpot p50", "median_tpot_ms"),
        number("p99", "p99_tpot_ms"),
        number("itl p50", "median_itl_ms", is_wide_only=True),
        number("p99", "p99_itl_ms"),
        number("e2e p50", "median_e2el_ms", 0, is_wide_only=True),
        number("p99", "p99_e2el_ms", 0, is_wide_only=True),
        number("late p99", "p99_llx_lateness_ms", 2),
        number("moves", "llx_migrations", 0),
    ]


def _medians(found: list[Mapping[str, float | None]]) -> dict[str, float | None]:
    import statistics

    names = found[0] if found else ()
    values = {name: [v for e in found if (v := e.get(name)) is not None] for name in names}
    return {name: statistics.median(v) if v else None for name, v in values.items()}

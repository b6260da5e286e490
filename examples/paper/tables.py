"""Tables of what `runs.py` has found: beside the paper's figures, and one policy beside another.

python examples/paper/tables.py results.jsonl
"""

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # for `runs`, when this is run as a script
from runs import HEADROOM, HIGHEST, LOWEST, read

from llx.sim.presets import A10_LLAMA_7B
from llx.sim.workload import HIGH, generated

Line = dict[str, Any]

PAPER = {
    ("s-s", "infaas"): (9.3, 1.60, 40.0, 0.061, 0.122, 0.20),
    ("s-s", "paper"): (9.1, 1.30, 28.0, 0.062, 0.124, 0.17),
    ("m-m", "infaas"): (14.3, 0.47, 5.7, 0.053, 0.115, 0.58),
    ("m-m", "paper"): (13.7, 0.25, 2.7, 0.054, 0.100, 0.0),
    ("l-l", "infaas"): (25.8, 0.63, 2.8, 0.049, 0.119, 0.69),
    ("l-l", "paper"): (25.4, 0.30, 2.5, 0.050, 0.109, 0.0),
    ("l-s", "infaas"): (6.7, 0.74, 6.3, 0.048, 0.093, 0.0),
    ("l-s", "paper"): (6.7, 0.64, 4.7, 0.049, 0.102, 0.0),
}
"""Read off the paper's figure 11 at the lowest rates: the columns of `COLUMNS`."""
COLUMNS = (
    "request_mean", "prefill_mean", "prefill_p99", "decode_mean", "decode_p99", "loss_mean",
)  # fmt: skip
_STUDENT = {2: 12.7, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 10: 2.26, 20: 2.09}
"""Two-sided 95 % points, by the number of values."""


def beside_the_paper(lines: Sequence[Line]) -> Iterable[str]:
    """Means over the seeds, with standard errors; under them the paper's figures."""
    spreads = "prefill mean / P99 | decode mean / P99"
    yield f"| workload | policy | seeds | request mean | {spreads} | loss |"
    yield "|---|---|---|---|---|---|---|"
    for workload, rate in LOWEST.items():
        for policy in ("round-robin", "infaas", "paper", "llx"):
            found = [_all(each) for each in _of(lines, workload, rate, policy)]
            if found:
                means = [_mean([each[name] for each in found]) for name in COLUMNS]
                yield _row(f"{workload} {rate:g}", policy, str(len(found)), means)
            if (workload, policy) in PAPER:
                paper = [f"{each:g}" for each in PAPER[workload, policy]]
                yield _row("", "*in the paper*", "1", paper)


def _row(workload: str, policy: str, seeds: str, cells: Sequence[str]) -> str:
    request, prefill, late, decode, slow, loss = cells
    head = f"| {workload} | {policy} | {seeds} | {request} "
    return f"{head}| {prefill} / {late} | {decode} / {slow} | {loss} |"


def paired(lines: Sequence[Line], rates: dict[str, float]) -> Iterable[str]:
    """`llx` over `paper`, run by run: geometric means and their 95 % intervals."""
    columns = ("prefill_p99", "prefill_mean", "request_mean", "decode_mean", "decode_p99")
    yield "| workload | seeds | " + " | ".join(each.replace("_", " ") for each in columns) + " |"
    yield "|---" * (len(columns) + 2) + "|"
    for workload, rate in rates.items():
        ours, theirs = (
            {each["run"]["seed"]: _all(each) for each in _of(lines, workload, rate, policy)}
            for policy in ("llx", "paper")
        )
        seeds = sorted(ours.keys() & theirs.keys())
        if len(seeds) > 1:
            cells = (
                _interval([ours[seed][name] / theirs[seed][name] for seed in seeds])
                for name in columns
            )
            yield f"| {workload} {rate:g} | {len(seeds)} | " + " | ".join(cells) + " |"


def urgent(lines: Sequence[Line]) -> Iterable[str]:
    """With priorities over without: gains of the high class, what the normal class pays."""
    names = ("request_mean", "prefill_mean", "prefill_p99", "decode_mean")
    yield (
        "| CV | policy | headroom, share | seeds | class | "
        + " | ".join(each.replace("_", " ") for each in names)
        + " |"
    )
    yield "|---" * 9 + "|"
    found = [each for each in lines if each["run"]["experiment"] == "priorities"]
    for cv in sorted({each["run"]["cv"] for each in found}):
        for policy, headroom, share in _HEADROOMS:
            blind = _by_seed(found, cv, policy, 0, 1.0)
            seeing = _by_seed(found, cv, policy, headroom, share)
            seeds = sorted(blind.keys() & seeing.keys())
            for name in ("high", "normal") if seeds else ():
                cells = (
                    _interval([seeing[s][name][key] / blind[s][name][key] for s in seeds])
                    for key in names
                )
                head = f"| {cv:g} | {policy} | {headroom}, {share:g} | {len(seeds)} | {name} | "
                yield head + " | ".join(cells) + " |"


def alone(lines: Sequence[Line]) -> Iterable[str]:
    """The most that priorities can give: each urgent request alone on an engine, over without.

    Of llx's runs without priorities, as `urgent`'s ratios.
    """
    names = ("request_mean", "prefill_mean", "prefill_p99")
    yield "| CV | seeds | " + " | ".join(each.replace("_", " ") for each in names) + " |"
    yield "|---" * 5 + "|"
    found = [each for each in lines if each["run"]["experiment"] == "priorities"]
    for cv in sorted({each["run"]["cv"] for each in found}):
        runs = [
            each
            for each in found
            if (each["run"]["cv"], each["run"]["policy"]) == (cv, "llx") and each["run"]["is_blind"]
        ]
        best = [_alone(each["run"]) for each in runs]
        cells = (
            _interval(
                [b[n] / each["classes"]["high"][n] for b, each in zip(best, runs, strict=True)]
            )
            for n in names
        )
        yield f"| {cv:g} | {len(runs)} | " + " | ".join(cells) + " |"


def _alone(run: dict[str, Any]) -> dict[str, float]:
    """Seconds that a run's urgent requests take when nothing else is there, steps alone."""
    requests = generated(
        run["workload"], run["rate"], run["num_requests"], run["seed"], high_share=run["high_share"]
    )
    step, whole, prefill = A10_LLAMA_7B.step_time, [], []
    for each in requests:
        if each.priority_class == HIGH:
            num, gaps = each.num_prompt, each.num_outputs - 1
            prefill.append(step.of(num, 0, num, num * num, 0) / 1e9)
            first, last = (step.of(0, 1, end, 0, end) for end in (num + 1, num + gaps))
            whole.append(prefill[-1] + gaps * (first + last) / 2e9)
    prefill.sort()
    return {
        "request_mean": statistics.fmean(whole),
        "prefill_mean": statistics.fmean(prefill),
        "prefill_p99": prefill[math.ceil(0.99 * len(prefill)) - 1],
    }


_HEADROOMS = [
    (policy, headroom, share) for policy, some in HEADROOM.items() for headroom, share in some
]


def _by_seed(
    lines: Sequence[Line], cv: float, policy: str, headroom: int, share: float
) -> dict[int, dict[str, dict[str, float]]]:
    """The figures of each class, of runs with priorities like this; no headroom: without."""
    wanted = (cv, policy, headroom, share)
    return {
        run["seed"]: each["classes"]
        for each in lines
        if (run := each["run"])
        and wanted == (run["cv"], run["policy"], run["headroom"], run.get("headroom_share", 1.0))
    }


def scaled(lines: Sequence[Line]) -> Iterable[str]:
    """Instances and latency by band; a policy's curve is to be compared at equal latency."""
    yield "| start, CV | policy | rule | band | seeds | instances | prefill mean | prefill P99 |"
    yield "|---" * 8 + "|"
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for each in _scaling(lines):
        run = each["run"]
        key = run["start_s"], run["cv"], run["policy"], run["rule"], tuple(run["band"])
        groups.setdefault(key, []).append(each)
    for (start_s, cv, policy, rule, band), group in sorted(groups.items()):
        instances = _mean([each["instances"] for each in group])
        cells = (
            _mean([_all(each)[name] for each in group]) for name in ("prefill_mean", "prefill_p99")
        )
        limits = f"{band[0]:g}-{band[1]:g}"
        yield (
            f"| {start_s:g} s, {cv:g} | {policy} | {rule} | {limits} | {len(group)} | {instances} "
            + "".join(f"| {each} " for each in cells)
            + "|"
        )


def saved(lines: Sequence[Line]) -> Iterable[str]:
    """Instances that llx saves at the same P99 of prefill: 1 - its own / as many as others need.

    What others need is read off their curve, seed by seed: between two bands the logarithm of P99
    goes evenly. A seed whose curve does not come down to llx's P99 has no figure.
    """
    yield "| start, CV | llx's band | llx's P99 | against | seeds | saved at that P99 |"
    yield "|---" * 6 + "|"
    curves: dict[tuple[Any, ...], dict[int, list[tuple[float, float]]]] = {}
    points: dict[tuple[Any, ...], dict[int, tuple[float, float]]] = {}
    for each in _scaling(lines):
        run, point = each["run"], (each["instances"], _all(each)["prefill_p99"])
        where, who = (run["start_s"], run["cv"]), (run["policy"], run["rule"])
        if who == ("llx", "demand"):
            points.setdefault((*where, tuple(run["band"])), {})[run["seed"]] = point
        else:
            curves.setdefault((*where, *who), {}).setdefault(run["seed"], []).append(point)
    for (start_s, cv, band), own in sorted(points.items()):
        for (other_start, other_cv, policy, rule), seeds in sorted(curves.items()):
            if (other_start, other_cv) != (start_s, cv):
                continue
            shares = [
                100 * (1 - own[seed][0] / needed)
                for seed, curve in seeds.items()
                if seed in own and (needed := _needed(curve, own[seed][1])) is not None
            ]
            p99 = _mean([each[1] for each in own.values()])
            cell = f"{_spread(shares)} %" if shares else "its P99 is never as low"
            yield (
                f"| {start_s:g} s, {cv:g} | {band[0]:g}-{band[1]:g} | {p99} | {policy} {rule} | "
                f"{len(shares)} of {len(own)} | {cell} |"
            )


def _needed(curve: Sequence[tuple[float, float]], p99: float) -> float | None:
    """Instances at which a curve comes down to a P99; None if it does not."""
    before: tuple[float, float] | None = None
    for instances, found in sorted(curve):
        if found <= p99:
            if before is None:
                return instances
            share = math.log(before[1] / p99) / math.log(before[1] / found)
            return before[0] + share * (instances - before[0])
        before = instances, found
    return None


def _scaling(lines: Sequence[Line]) -> list[Line]:
    return [each for each in lines if each["run"]["experiment"] == "scaling"]


def fragmented(lines: Sequence[Line]) -> Iterable[str]:
    """Per cent of rounds at which somebody waits for blocks that are free, in all."""
    policies = ("infaas", "paper", "llx")
    yield "| workload | " + " | ".join(policies) + " |"
    yield "|---" * (len(policies) + 1) + "|"
    for workload, rate in LOWEST.items():
        shares = [
            [
                100 * each["fragmented"]
                for each in _of(lines, workload, rate, policy)
                if "fragmented" in each
            ]
            for policy in policies
        ]
        if all(shares):
            cells = (_mean(each) for each in shares)
            yield f"| {workload} {rate:g} | " + " | ".join(cells) + " |"


def _of(lines: Sequence[Line], workload: str, rate: float, policy: str) -> list[Line]:
    wanted = ("latency", workload, rate, policy)
    keys = ("experiment", "workload", "rate", "policy")
    return [each for each in lines if tuple(each["run"][key] for key in keys) == wanted]


def _all(line: Line) -> dict[str, float]:
    found: dict[str, float] = line["classes"]["all"]
    return found


def _mean(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{mean:.3g} ± {error:.1g}" if error else f"{mean:.3g}"


def _spread(values: Sequence[float]) -> str:
    """Mean, and the 95 % interval of it by Student's distribution."""
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return f"{mean:.0f}"
    half = _student(count) * statistics.stdev(values) / math.sqrt(count)
    return f"{mean:.0f} ({mean - half:.0f} to {mean + half:.0f})"


def _student(count: int) -> float:
    return next(_STUDENT[each] for each in sorted(_STUDENT, reverse=True) if each <= count)


def _interval(ratios: Sequence[float]) -> str:
    """Geometric mean, and the 95 % interval of it by Student's distribution."""
    logs = [math.log(each) for each in ratios]
    mean, count = statistics.fmean(logs), len(logs)
    if count == 1:
        return f"{ratios[0]:.3g}"
    half = _student(count) * statistics.stdev(logs) / math.sqrt(count)
    low, high = math.exp(mean - half), math.exp(mean + half)
    return f"{math.exp(mean):.3g} ({low:.3g}-{high:.3g})"


def main() -> None:
    """Print every table that there are lines for."""
    lines = [line for name in sys.argv[1:] for line in read(Path(name))]
    tables = {
        "Beside the paper": beside_the_paper(lines),
        "llx over the paper's policy, lowest rates": paired(lines, LOWEST),
        "llx over the paper's policy, highest rates": paired(lines, HIGHEST),
        "With priorities over without": urgent(lines),
        "Alone over without priorities": alone(lines),
        "Auto-scaling": scaled(lines),
        "Instances saved at equal P99": saved(lines),
        "Fragmentation": fragmented(lines),
    }
    for title, table in tables.items():
        print(f"\n{title}\n")
        print("\n".join(table))


if __name__ == "__main__":
    main()

"""Which series and labels the dashboard and the alerts of docs/metrics.md use. A reading of PromQL
that knows no more of it than they need, and refuses what it does not know."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "examples" / "grafana" / "llx.json"
DOCS = ROOT / "docs" / "metrics.md"

FUNCTIONS = {
    "sum", "max", "min", "rate", "increase", "changes", "absent", "histogram_quantile",
    "label_values",
}  # fmt: skip
PROMETHEUS_OWN = {"up": {"job", "instance"}}
_SELECTED = re.compile(r"([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?(?:\[[^\]]*\])?")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass
class Used:
    """What an expression uses: labels by series, and those that it groups or names by."""

    series: dict[str, set[str]] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)


def used(expression: str, legend: str = "") -> Used:
    """Of one expression and the legend of its lines."""
    found = Used(groups=set(re.findall(r"\{\{\s*(\w+)\s*\}\}", legend)))
    if names := re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", expression):
        found.series[names[1]] = {names[2]}
        return found

    def grouped(match: re.Match[str]) -> str:
        found.groups |= {each.strip() for each in match[1].split(",")}
        return " "

    rest = re.sub(r"\bby\s*\(([^)]*)\)", grouped, _STRING.sub('""', expression))
    for match in _SELECTED.finditer(rest):
        name, labels = match[1], match[2] or ""
        if rest[match.end(1) :].lstrip().startswith("("):
            assert name in FUNCTIONS, f"{name}: no function that this knows, in {expression}"
            continue
        assert ":" in name or name in PROMETHEUS_OWN, f"{name}: no series, in {expression}"
        keys = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels))
        found.series.setdefault(name, set()).update(keys)
    assert found.series, f"no series in {expression}"
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """All of the dashboard and the docs, with the legend of each."""
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]
    for note in board["annotations"]["list"]:
        yield note["expr"], ""
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"], ""
    alerts = DOCS.read_text().partition("Worth an alert:")[2].partition("\n## ")[0]
    for row in re.findall(r"^\|[^|]*\| (`.*`.*) \|$", alerts, flags=re.MULTILINE):
        for each in re.findall(r"`([^`]+)`", row):
            yield each, ""


def missing(there: Mapping[str, set[str]]) -> list[str]:
    """What is used and is not `there`: labels by name of sample."""
    there = {**PROMETHEUS_OWN, **there}
    wrong = []
    for expression, legend in expressions():
        found = used(expression, legend)
        known: set[str] = {"le"}
        for name, labels in found.series.items():
            if name not in there:
                wrong.append(f"{name}: no such series: {expression}")
                continue
            known |= there[name]
            if labels - there[name]:
                wrong.append(f"{name}: no labels {sorted(labels - there[name])}: {expression}")
        if found.groups - known and all(name in there for name in found.series):
            wrong.append(f"no labels {sorted(found.groups - known)}: {expression}")
    return wrong

"""The Grafana dashboard and the alerts against the series that llx says it has.

`tests/e2e/test_metrics.py` asks a running cluster, for vLLM's too.
"""

import json

import pytest

from llx.cluster.metrics.series import SERIES, Kind
from llx.gateway.counters import Counters
from llx.gateway.metrics import GatewayMetrics
from tests.dashboard import DASHBOARD, expressions, missing, used


def promised():
    """Labels by name of sample."""
    there = {}
    for each in SERIES.values():
        endings = {
            Kind.GAUGE: [""],
            Kind.COUNTER: ["_total"],
            Kind.HISTOGRAM: ["_bucket", "_sum", "_count"],
        }[each.kind]
        there |= {each.name + ending: set(each.labels) for ending in endings}
    for family in GatewayMetrics(lambda: [("m", 1, Counters())])._own():
        there |= {sample.name: set(sample.labels) for sample in family.samples}
    return there


def test_what_the_dashboard_and_the_alerts_use_is_there():
    assert [each for each in missing(promised()) if "vllm:" not in each] == []


def test_every_kind_of_series_is_looked_at():
    names = {name for expression, _ in expressions() for name in used(expression).series}
    subjects = {name.removeprefix("llx:").split("_")[0] for name in names if "llx:" in name}
    assert subjects >= {
        "cluster", "instances", "instance", "gateway", "host", "queue", "decisions", "migrations",
        "events", "requests", "term",
    }  # fmt: skip
    assert any(name.startswith("vllm:") for name in names)


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("llx:nothing", "llx:nothing: no such series"),
        ('llx:term{host="x"}', "no labels ['host']"),
        ("sum by (host) (llx:term)", "no labels ['host']"),
    ],
)
def test_the_reading_finds_what_is_wrong(monkeypatch, expression, wrong):
    monkeypatch.setattr("tests.dashboard.expressions", lambda: iter([(expression, "")]))
    [found] = missing(promised())
    assert wrong in found


def test_what_it_does_not_know_it_refuses():
    with pytest.raises(AssertionError, match="no function"):
        used("sum(predict_linear(llx:term[5m], 3))")
    with pytest.raises(AssertionError, match="no series"):
        used("llx:term / something")


def test_panels_do_not_overlap_and_have_ids_of_their_own():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)

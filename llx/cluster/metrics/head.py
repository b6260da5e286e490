"""The head's page: looked at and counted on its event loop, written out beside it."""

import asyncio

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response
from prometheus_client.metrics_core import Metric

from llx.api import MoveOutcome
from llx.cluster.driving.rollout_verb import RolloutVerb
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.metrics.page import CONTENT_TYPE, Page, render
from llx.cluster.metrics.state import tell_cluster, tell_rollouts, tell_scheduling
from llx.cluster.metrics.tally import ORDERED_BY, MoveTally, SchedulerTally
from llx.cluster.scheduling.live import LiveScheduler
from llx.cluster.scheduling.steering import Steering


class HeadMetrics:
    """Collects what the head knows and has counted."""

    def __init__(
        self,
        fleet: Fleet,
        scheduler: LiveScheduler,
        steering: Steering,
        rollouts: RolloutVerb,
        audit: AuditTrail,
    ) -> None:
        self._fleet = fleet
        self._scheduler = scheduler
        self._steering = steering
        self._rollouts = rollouts
        self._audit = audit

    def collect(self) -> list[Metric]:
        """All families, now. Call it on the head's event loop."""
        fleet, page = self._fleet, Page()
        heard = [
            name for name, unit in fleet.gateways.items() if fleet.gateway_view(unit) is not None
        ]
        tell_cluster(page, fleet.status(), heard)
        tell_scheduling(page, self._steering.queues().queues, self._steering.policies().policies)
        tell_rollouts(page, self._rollouts.statuses().rollouts)
        for kind, count in self._audit.counts.items():
            page.add("events", count, kind)
        _tell_decisions(page, self._scheduler.tally)
        page.add("migrations_open", len(fleet.moves.open()))
        _tell_moves(page, fleet.moves.tally)
        return page.families()


def add_metrics_route(app: FastAPI, metrics: HeadMetrics) -> None:
    """Add ``/metrics``, where scrapers look for it."""

    @app.get("/metrics", response_class=PlainTextResponse)
    async def page() -> Response:
        """The head's metrics in Prometheus' text format."""
        families = metrics.collect()
        # Thousands of lines take a tenth of a second, which the scheduler has not to spare.
        text = await asyncio.to_thread(render, families)
        return Response(text, media_type=CONTENT_TYPE)


def _tell_decisions(page: Page, tally: SchedulerTally) -> None:
    for (model, what, why), count in tally.decisions.items():
        page.add("decisions", count, model, what, why)
    for model, took in tally.took.items():
        page.add_histogram("decision_seconds", took, model)
    for (model, priority_class), waits in tally.waits.items():
        page.add_histogram("placement_wait_seconds", waits, model, priority_class)


def _tell_moves(page: Page, tally: MoveTally) -> None:
    for by in ORDERED_BY:  # also those that never were, so that the first is a change
        for outcome in MoveOutcome:
            page.add("migrations", tally.ended[by, outcome], by, outcome)
    page.add_histogram("migration_downtime_seconds", tally.downtime)
    page.add_histogram("migration_seconds", tally.took)
    page.add_histogram("migration_bytes", tally.size)

"""The control API's part about what has happened. What is kept is `AuditTrail`'s."""

import time
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query

from llx.api import API_VERSION, EventList
from llx.cluster.events.reader import EventFilter, read_events

Word = Annotated[str, Query(max_length=256)]


def add_event_routes(app: FastAPI, path: Path) -> None:
    """Add them to the application; `path`: where the trail lies."""

    @app.get(f"/{API_VERSION}/events")
    def events(
        last_s: Annotated[
            float | None, Query(ge=0, description="Only of so long; default: however old.")
        ] = None,
        after: Annotated[str, Query(max_length=64, description="A cursor.")] = "",
        kind: Annotated[list[str] | None, Query(max_length=32)] = None,
        match: Word = "",
        limit: Annotated[int, Query(ge=1, le=100_000)] = 1000,
    ) -> EventList:
        """What has happened and what was done, the oldest first."""
        # What events have as their time is this clock's; the operator's may differ.
        since = 0.0 if last_s is None else time.time() - last_s
        return read_events(path, EventFilter(since, after, tuple(kind or ()), match, limit))

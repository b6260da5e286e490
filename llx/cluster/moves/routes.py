"""The control API's part about migrations. What is done is `Migrations`'."""

import time
from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Query

from llx.api import (
    API_VERSION,
    ClusterStatus,
    MigrateReport,
    MigrateRequest,
    MigrationList,
    MigrationStatus,
    Snapshot,
)
from llx.cluster.moves.migrations import Migrations
from llx.cluster.requests.page import RequestFilter
from llx.cluster.requests.requests import Requests
from llx.cluster.requests.routes import Limit, Word

User = Annotated[str, Query(max_length=256, description="Who asks, for the audit trail.")]
_Ids = Annotated[list[str], Query(alias="id", max_length=1000, description="Only these.")]


def add_migration_routes(app: FastAPI, migrations: Migrations) -> None:
    """Add them to the application."""

    @app.post(f"/{API_VERSION}/migrations")
    async def migrate(request: MigrateRequest) -> MigrateReport:
        """Move requests; answers when that has begun."""
        user = request.user[:256]
        return await migrations.migrate(request.model_copy(update={"user": user}))

    @app.get(f"/{API_VERSION}/migrations")
    async def list_migrations(ids: _Ids = []) -> MigrationList:  # noqa: B006 - never changed
        """Migrations, the oldest first: those that are open, and the last that are over."""
        return migrations.history(ids)

    @app.get(f"/{API_VERSION}/migrations/{{migration}}")
    async def get_migration(migration: str) -> MigrationStatus:
        """One migration."""
        return migrations.get(migration).status()

    @app.post(f"/{API_VERSION}/migrations/{{migration}}/cancel")
    async def cancel(migration: str, user: User = "") -> MigrationStatus:
        """Ask for a migration to be given up; how it ends shows later."""
        return migrations.cancel(migration, user).status()


def add_snapshot_route(
    app: FastAPI, status: Callable[[], ClusterStatus], requests: Requests, migrations: Migrations
) -> None:
    """Add what `llx top` asks for once a second, perhaps over a slow line: all in one answer."""

    @app.get(f"/{API_VERSION}/snapshot")
    async def snapshot(max_requests: Limit, max_over: Limit, match: Word = "") -> Snapshot:
        """The cluster, the requests that match, and the migrations, now."""
        found = await requests.page(RequestFilter(match=match, limit=max_requests))
        return Snapshot(
            at=time.time(),
            status=status(),
            requests=found,
            migrations=migrations.latest(max_over),
        )

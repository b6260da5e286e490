"""The control API's part about requests and migrations. What is done is `Migrations`'."""

from typing import Annotated

from fastapi import FastAPI, Query

from llx.api import (
    API_VERSION,
    MigrateReport,
    MigrateRequest,
    MigrationList,
    MigrationStatus,
    RequestList,
)
from llx.cluster.migrations import Migrations

User = Annotated[str, Query(max_length=256, description="Who asks, for the audit trail.")]
_Ids = Annotated[list[str], Query(alias="id", max_length=1000, description="Only these.")]


def add_migration_routes(app: FastAPI, migrations: Migrations) -> None:
    """Add them to the application."""

    @app.get(f"/{API_VERSION}/requests")
    async def requests() -> RequestList:
        """All requests, with the instance that has each."""
        return await migrations.requests()

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

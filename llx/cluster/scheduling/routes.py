"""The control API's part about the scheduler. What is done is `Steering`'s."""

from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse

from llx.api import API_VERSION, Explanation, PolicyList, PolicyUpdate, QueueList
from llx.cluster.moves.routes import User
from llx.cluster.scheduling.steering import Steering, SteerVerb

_Model = Annotated[str, Query(max_length=256, description="Of which model; empty: of all.")]


def add_scheduling_routes(app: FastAPI, steering: Steering) -> None:
    """Add them to the application."""

    @app.get(f"/{API_VERSION}/queues")
    async def queues() -> QueueList:
        """All central queues."""
        return steering.queues()

    @app.get(f"/{API_VERSION}/policies")
    async def policies() -> PolicyList:
        """How each model is scheduled."""
        return steering.policies()

    @app.put(f"/{API_VERSION}/policies")
    async def update(update: PolicyUpdate) -> PolicyList:
        """Schedule models by other rules, from now on; what waits keeps its place."""
        return steering.update(update.model_copy(update={"user": update.user[:256]}))

    @app.post(f"/{API_VERSION}/policies/{{verb}}")
    async def steer(verb: SteerVerb, model: _Model = "", user: User = "") -> PolicyList:
        """Pause or resume moves by rule, or make one round of them, also when paused."""
        return steering.steer(verb, model, user)

    @app.get(f"/{API_VERSION}/recording", response_class=StreamingResponse)
    async def recording(
        last_s: Annotated[float, Query(ge=0, le=86400, description="So long, or more.")] = 300.0,
        whole: Annotated[bool, Query(description="From its beginning on.")] = False,
    ) -> StreamingResponse:
        """What the scheduler was told and answered lately: a recording, JSON lines."""
        # Two files are opened; they are read in a thread, as fast as the client takes them.
        pieces = steering.recording(None if whole else last_s)
        return StreamingResponse(pieces, media_type="application/x-ndjson")

    @app.get(f"/{API_VERSION}/explain/{{request}}")
    async def explain(request: str) -> Explanation:
        """What was decided about a request, and why."""
        return await steering.explain(request)

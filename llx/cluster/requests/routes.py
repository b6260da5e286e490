"""The control API's part about requests. What is done is `Requests`' and `RequestVerbs`'."""

from typing import Annotated

from fastapi import FastAPI, Query

from llx.api import API_VERSION, RequestChange, RequestChangeReport, RequestList, RequestVerb
from llx.cluster.requests.page import RequestFilter
from llx.cluster.requests.requests import Requests
from llx.cluster.requests.verbs import RequestVerbs

Word = Annotated[str, Query(max_length=256)]
Limit = Annotated[int, Query(ge=0, le=100_000)]


def add_request_routes(app: FastAPI, listed: Requests, verbs: RequestVerbs) -> None:
    """Add them to the application."""

    @app.get(f"/{API_VERSION}/requests")
    async def requests(
        instance: Word = "",
        model: Word = "",
        state: Word = "",
        priority_class: Word = "",
        match: Word = "",
        pinned: bool | None = None,
        offset: Limit = 0,
        limit: Limit | None = None,
    ) -> RequestList:
        """Requests, with the instance that has each; `match`: part of an id or of such a word."""
        wanted = RequestFilter(
            instance=instance, model=model, state=state, priority_class=priority_class,
            match=match, is_pinned=pinned, offset=offset, limit=limit,
        )  # fmt: skip
        return await listed.page(wanted)

    @app.get(f"/{API_VERSION}/requests/{{request}}")
    async def request(request: str) -> RequestList:
        """One request by any of its ids, with all its generations."""
        return await listed.get(request)

    @app.post(f"/{API_VERSION}/requests/changes/{{verb}}")
    async def change(verb: RequestVerb, ask: RequestChange) -> RequestChangeReport:
        """Do something to requests; answers when it is done, as far as it could be."""
        return await verbs.change(verb, ask.model_copy(update={"user": ask.user[:256]}))

"""Requests that vLLM's application stumbles over while it reads them.

vLLM answers `ValueError`, `TypeError` and its own errors with what they mean. But it takes parts of
some requests for granted, as the first content of a message that may have none, and what comes of
that is an `IndexError` or the like, and 500, though nothing has failed but the request.
"""

import logging
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from vllm.entrypoints.serve.exception_handling.handlers.exception import exception_handler

from llx.gateway import context
from llx.gateway.refusals import Refusal

log = logging.getLogger(__name__)

KINDS = (LookupError, AttributeError)
"""What comes of parts that are not there."""


def answer_them(app: Any) -> None:
    """Have vLLM's application answer them with 400 (`app`: its FastAPI)."""
    for kind in KINDS:
        app.exception_handler(kind)(_answer)
    app.middleware_stack = app.build_middleware_stack()  # what vLLM has built knows none of them


async def _answer(request: Request, error: Exception) -> Response:
    http = context.current.get()
    if http is None or http.is_read:
        return await exception_handler(request, error)
    log.warning("app.unreadable name=%s", http.request_id, exc_info=error)
    what = f"a part of the request is missing or of another kind than expected: {error}"
    refusal = Refusal(HTTPStatus.BAD_REQUEST, "BadRequestError", what)
    return Response(refusal.body(), refusal.status, media_type="application/json")

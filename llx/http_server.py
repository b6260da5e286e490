"""The HTTP server under both of a cluster's APIs: uvicorn, which waits for nobody for ever.

uvicorn has a limit for silence between two requests, and none for the first byte of the first one
or for a head that comes byte by byte. Connections of that kind would be kept until there are no
descriptors left, or no place among those that `limit_concurrency` allows. How long a body
may take is for the applications to say.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

_HEAD_S = 10.0
_TICKS_BETWEEN_LOOKS = 10
"""uvicorn's ticks are a tenth of a second."""


class BoundedServer(uvicorn.Server):
    """uvicorn without signal handlers, that hangs up on whoever does not come to the point.

    A connection on which no request is being answered has the configured `timeout_keep_alive` for
    silence, and `head_s` more for the head of the next request.
    """

    def __init__(self, config: uvicorn.Config, head_s: float = _HEAD_S) -> None:
        super().__init__(config)
        self._idle_since: dict[Any, float] = {}
        self._patience_s = config.timeout_keep_alive + head_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Also close what has been idle for too long."""
        if counter % _TICKS_BETWEEN_LOOKS == 0:
            self._close_idle(time.monotonic())
        return await super().on_tick(counter)

    def _close_idle(self, now: float) -> None:
        idle = [each for each in self.server_state.connections if _is_idle(each)]
        self._idle_since = {each: self._idle_since.get(each, now) for each in idle}
        for connection, since in self._idle_since.items():
            if now - since > self._patience_s:
                connection.transport.abort()


def _is_idle(connection: Any) -> bool:
    cycle = connection.cycle
    return cycle is None or cycle.response_complete

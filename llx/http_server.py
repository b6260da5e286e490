"""The HTTP server under both of a cluster's APIs: uvicorn, which waits for nobody for ever.

uvicorn has a limit for silence between two requests, and none for the first byte of the first one
or for a head that comes byte by byte. Connections of that kind would be kept until there are no
descriptors left, or no place among those that `limit_concurrency` allows. How long a body
may take is for the applications to say.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

_HEAD_S = 10.0
_TICKS_BETWEEN_LOOKS = 10
"""uvicorn's ticks are a tenth of a second."""


@dataclass(frozen=True, slots=True)
class _Rest:
    """A connection with nothing to answer; as long as nothing of this changes, nothing happens."""

    cycle: Any
    """The last request; None: there was none. Looks are rare: others may come between two."""
    num_unsent: int
    """Bytes of the answer that the client has yet to take."""


class BoundedServer(uvicorn.Server):
    """uvicorn without signal handlers, that hangs up on whoever does not come to the point.

    A connection on which no request is being answered has the configured `timeout_keep_alive` for
    silence, and `head_s` more for the head of the next request; or for the client to take some of
    what is left of an answer.
    """

    def __init__(self, config: uvicorn.Config, head_s: float = _HEAD_S) -> None:
        super().__init__(config)
        self._rests: dict[Any, tuple[_Rest, float]] = {}
        """By connection, with since when."""
        self._patience_s = config.timeout_keep_alive + head_s
        self.is_listening = asyncio.Event()
        """Set once connections are taken; before, a socket that is bound refuses them."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Also say when it is done."""
        await super().startup(sockets)
        self.is_listening.set()

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
        former, self._rests = self._rests, {}
        for connection in list(self.server_state.connections):
            rest = _rest_of(connection)
            if rest is None:
                continue
            last, since = former.get(connection, (None, now))
            self._rests[connection] = rest, since if rest == last else now
            if rest == last and now - since > self._patience_s:
                connection.transport.abort()


def _rest_of(connection: Any) -> _Rest | None:
    cycle = connection.cycle
    if cycle is None or cycle.response_complete:
        return _Rest(cycle, connection.transport.get_write_buffer_size())
    return None

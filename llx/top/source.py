"""Where snapshots come from: a thread that asks for one after the other, and starts over.

Never more than one request is under way. When nobody answers, as while the head or the SSH
connection is renewed, a new connection is made at each turn until somebody does.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from llx.api import (
    HostStatus,
    InstanceStatus,
    MigrateReport,
    MigrateRequest,
    MigrationStatus,
    RequestChange,
    RequestChangeReport,
    RequestVerb,
    Snapshot,
    StopReport,
)
from llx.errors import LlxError

log = logging.getLogger(__name__)

MAX_REQUESTS = 500
MAX_OVER = 50


class Control(Protocol):
    """What of `llx.client.Cluster` is used here."""

    def snapshot(self, *, max_requests: int, max_over: int, match: str = "") -> Snapshot:
        """The cluster at one moment."""

    def migrate(self, request: MigrateRequest) -> MigrateReport:
        """Move requests."""

    def change_requests(self, verb: RequestVerb, ask: RequestChange) -> RequestChangeReport:
        """Do something to requests."""

    def cancel_migration(self, migration: str, *, user: str = "") -> MigrationStatus:
        """Ask for a migration to be given up."""

    def cordon_instance(self, name: str, *, is_on: bool, user: str = "") -> InstanceStatus:
        """Give an instance nothing new, or use it again."""

    def cordon_host(self, name: str, *, is_on: bool, user: str = "") -> HostStatus:
        """Give a host nothing new, or use it again."""

    def drain_instance(self, name: str, *, deadline_s: float = 60.0, user: str = "") -> StopReport:
        """Cordon an instance and empty it."""

    def drain_host(self, name: str, *, deadline_s: float = 60.0, user: str = "") -> StopReport:
        """Cordon a host and empty it."""

    def close(self) -> None:
        """Close the connections."""


Connect = Callable[[], Control]


class Poller:
    """Asks for snapshots in a thread of its own.

    Args:
        connect: Makes a connection; may take its time and fail.
        interval_s: From the beginning of one look to that of the next; more if one takes longer.
        on_snapshot: Gets each, in that thread.
        on_failure: Likewise what went wrong instead.
    """

    def __init__(
        self,
        connect: Connect,
        interval_s: float,
        on_snapshot: Callable[[Snapshot], None],
        on_failure: Callable[[LlxError], None],
    ) -> None:
        self._connect = connect
        self._interval_s = interval_s
        self._on_snapshot = on_snapshot
        self._on_failure = on_failure
        self._control: Control | None = None
        self._wake = threading.Event()
        self._is_over = False
        self.match = ""
        """Only requests with this in them are asked for."""

    def start(self) -> None:
        """Begin. The thread ends with the process, also amid a look that hangs."""
        threading.Thread(target=self._run, name="llx-top-poller", daemon=True).start()

    def hurry(self) -> None:
        """Look again now, or as soon as the present look is over."""
        self._wake.set()

    def stop(self) -> None:
        """End after the present look."""
        self._is_over = True
        self._wake.set()

    def _run(self) -> None:
        while not self._is_over:
            begun = time.monotonic()
            self._look()
            self._wake.wait(max(0.0, begun + self._interval_s - time.monotonic()))
            self._wake.clear()
        self._drop()

    def _look(self) -> None:
        try:
            if self._control is None:
                self._control = self._connect()
            found = self._control.snapshot(
                max_requests=MAX_REQUESTS, max_over=MAX_OVER, match=self.match
            )
        except LlxError as error:
            self._give_up(error)
        except Exception as error:  # the thread's edge: the next look may do better
            log.exception("top.look_failed")
            self._give_up(LlxError(f"{type(error).__name__}: {error}"))
        else:
            self._on_snapshot(found)

    def _give_up(self, error: LlxError) -> None:
        with contextlib.suppress(Exception):  # what is broken need not close well
            self._drop()
        self._control = None
        self._on_failure(error)

    def _drop(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            control.close()

"""Reports of an engine's prefix cache: the two ends of it, one at an endpoint, one at a link.

    link      Ping(ask 7) ──────────────►                                       endpoint
              ◄─ Prefixes(ask 7, 0, all) ◄─ Prefixes(ask 7, 1, ±) … lost … ◄─ Prefixes(ask 7, 3, ±)
              Ping(ask 8) ──────────────►                    a number is missing: all of it again

A ping that is lost comes again, and one that comes again changes nothing.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from llx.agent.prefix_log import PrefixLog
from llx.wire import Prefixes

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Asker:
    """A peer that asked. `told`: the number of the last change that it was told of, or None."""

    ask: int
    number: int = 0
    told: int | None = None


class PrefixReports:
    """The endpoint's end.

    Args:
        changes: What the engine has cached.
        want: Has the engine note it, as long as anybody asks. Called on the input thread.
    """

    def __init__(self, changes: PrefixLog, want: Callable[[bool], None]) -> None:
        self._log = changes
        self._want = want
        self._askers: dict[int, _Asker] = {}

    def ask(self, peer: int, ask: int) -> bool:
        """Input thread: a peer asks (`Ping.prefixes`). True if that is new."""
        asker = self._askers.get(peer)
        if ask == 0:
            self.leave(peer)
            return False
        if asker is not None and asker.ask == ask:
            return False
        self._askers[peer] = _Asker(ask)
        if len(self._askers) == 1 and asker is None:
            self._want(True)
        return True

    def leave(self, peer: int) -> None:
        """Input thread: a peer asks no longer, or has gone."""
        if self._askers.pop(peer, None) is not None and not self._askers:
            self._want(False)

    def next(self, peer: int, session: int) -> Prefixes | None:
        """Sender thread: what to tell that peer now."""
        asker = self._askers.get(peer)
        if asker is None or (news := self._log.since(asker.told)) is None:
            return None
        number, asker.number, asker.told = asker.number, asker.number + 1, news.upto
        return Prefixes(session, asker.ask, number, news.is_whole, news.added, news.removed)


class PrefixFeed:
    """The link's end. Used on the event loop alone.

    Args:
        tell: Is given every report, in order and without a gap.
    """

    def __init__(self, tell: Callable[[Prefixes], None]) -> None:
        self._tell = tell
        self._ask = 0
        self._next = 0
        self._is_wanted = False

    @property
    def ask(self) -> int:
        """What to send as `Ping.prefixes`."""
        return self._ask if self._is_wanted else 0

    def want(self, is_wanted: bool) -> None:
        """Ask, or ask no longer."""
        if is_wanted and not self._is_wanted:
            self.begin_anew()
        self._is_wanted = is_wanted

    def begin_anew(self) -> None:
        """What was told counts no longer: ask for everything."""
        self._ask += 1
        self._next = 0

    def hear(self, report: Prefixes) -> None:
        """A report has come."""
        if report.ask != self.ask:
            return  # it was on its way when we asked anew
        if report.number != self._next:
            log.info("prefixes.lost number=%s expected=%s", report.number, self._next)
            self.begin_anew()
            return
        self._next += 1
        self._tell(report)

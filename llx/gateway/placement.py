"""Where requests go: asked of the scheduler, and found without it when it does not answer.

    PoolClient         Placement                        scheduler
        │ ── ask ────────► │ ── Place(ask 7) ─────────────► │
        │                  │ ◄──────────── Held(7) ──────── │   no instance has room
        │                  │ ── Place(ask 7, waited) ─────► │   now and then, while it waits
        │                  │ ◄──────────── Held(7) ──────── │
        │ ◄── placed ───── │ ◄──────────── Placed(7, i) ─── │

A request waits here, in its gateway; the scheduler knows its class and size. Whatever becomes of
the scheduler, no request is lost with it:

- No first answer within `FIRST_ANSWER_S`, or no line: the request is *bypassed*. The pool's client
  dispatches it by what its own links report (`llx.gateway.roster`). So are others for `_AWAY_S`.
- One that is held is asked for again every `_RENEW_S`, with the time that it has waited, in all
  and in its class; more seldom in a long queue, for which the scheduler is not to hear of more
  than `_RENEWALS_PER_S`. If nothing is heard of the scheduler for `_SILENT_S`, or nothing of that
  request for as many renewals, it is bypassed.
- Of a scheduler of a new term everything is asked again at once; it takes in what was held before,
  however many wait by then. Answers of an older one count not.

Whatever was bypassed or given up is withdrawn, and so is what is placed and not wanted.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol, assert_never

from llx.core.model import ClassName, InstanceId, Nanos, PoolName, RequestId, Term, Tokens
from llx.wire import Held, NotPlaced, Place, Placed, PlacementAnswer, Withdraw

log = logging.getLogger(__name__)

FIRST_ANSWER_S: Final = 0.25
_AWAY_S: Final = 1.0
_RENEW_S: Final = 2.0
_RENEWALS_PER_S: Final = 250.0
_SILENT_S: Final = 6.0
_LATE_S: Final = 0.05
_MISSED_S: Final = 0.1
_MOST_MISSES: Final = 3
"""So often a request is placed where it cannot be sent; then it is bypassed."""


class Placeable(Protocol):
    """Whose requests are placed: a pool's client. Called on the event loop, must not block."""

    def placed(self, request: RequestId, instance: InstanceId) -> bool:
        """Send the request there; false if that is not possible now."""

    def bypassed(self, request: RequestId) -> None:
        """The scheduler does not answer: dispatch it without."""

    def refused(self, request: RequestId, answer: NotPlaced) -> None:
        """It gets no instance."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that wants an instance: see `Place`.

    `since`: when it came; `until`: when it must have its instance to be done in time, None: nobody
    has said. Monotonic seconds.
    """

    pool: PoolName
    request: RequestId
    priority_class: ClassName
    num_tokens: Tokens
    since: float
    name: str = ""
    prefix: bytes = b""
    prefix_block: int = 0
    until: float | None = None


@dataclass(slots=True, eq=False)
class _Asked:
    """What waits for an answer.

    `heard_at`: when the scheduler last said something of it. `held_since`: when it came into its
    class; None until it has been held. `num_waiting`: so many were held with it, at all gateways.
    """

    wanted: Wanted
    owner: Placeable
    ask: int
    timer: asyncio.TimerHandle
    heard_at: float
    is_held: bool = False
    held_since: float | None = None
    num_misses: int = 0
    num_waiting: int = 0

    @property
    def renew_s(self) -> float:
        """Until it is asked for again."""
        return max(_RENEW_S, self.num_waiting / _RENEWALS_PER_S)


class Placement:
    """One for a gateway, over all pools. Used on the event loop alone."""

    def __init__(self) -> None:
        self._line: Callable[[Place | Withdraw], bool] = lambda _: False
        self._asked: dict[RequestId, _Asked] = {}
        self._numbers = itertools.count(1)
        self._term = Term(0)
        self._away_until = 0.0
        self._heard_at = 0.0

    def __contains__(self, request: RequestId) -> bool:
        return request in self._asked

    def __len__(self) -> int:
        return len(self._asked)

    def use_line(self, send: Callable[[Place | Withdraw], bool]) -> None:
        """Send to the scheduler by `send`, which is false if nobody takes it now."""
        self._line = send

    # ------------------------------------------------------------------ pools' side

    def ask(self, wanted: Wanted, owner: Placeable) -> None:
        """Have a request placed; `owner` is told where, perhaps at once."""
        assert wanted.request not in self._asked, f"{wanted.request} is asked for already"
        ask = next(self._numbers)
        now = time.monotonic()
        if now < self._away_until or not self._line(_place(wanted, ask, None, now)):
            owner.bypassed(wanted.request)
            return
        timer = self._expect(FIRST_ANSWER_S, wanted.request, ask)
        self._asked[wanted.request] = _Asked(wanted, owner, ask, timer, now)

    def withdraw(self, request: RequestId) -> None:
        """A request wants no instance any longer; nothing if it was not asked for."""
        if self._take(request) is not None:
            self._line(Withdraw(request))

    def reclass(self, request: RequestId, priority_class: ClassName) -> None:
        """A request is of another class from now on; nothing if it was not asked for."""
        asked = self._asked.get(request)
        if asked is not None:
            now = time.monotonic()
            if priority_class != asked.wanted.priority_class and asked.held_since is not None:
                asked.held_since = now
            asked.wanted = replace(asked.wanted, priority_class=priority_class)
            self._ask_again(asked, now)

    # ------------------------------------------------------------------ the scheduler's side

    def hear_term(self, term: Term) -> None:
        """A scheduler of that term is there: whatever waits is asked of it, if it is new."""
        if term <= self._term:
            return
        is_first = not self._term
        self._term, self._away_until = term, 0.0
        if is_first:
            return  # whatever was asked was asked of this one
        log.info("placement.new_term term=%s waiting=%s", term, len(self._asked))
        now = time.monotonic()
        for asked in self._asked.values():
            self._ask_again(asked, now)

    def hear(self, answer: PlacementAnswer) -> None:
        """The scheduler answers."""
        if answer.term < self._term:
            return
        self._away_until, self._heard_at = 0.0, time.monotonic()
        asked = self._asked.get(answer.request)
        if asked is not None and asked.ask == answer.ask:
            self._take_answer(asked, answer)
        elif asked is None and not isinstance(answer, NotPlaced):
            # It has crossed a word of ours: of giving up, or that asked anew for what was placed.
            self._line(Withdraw(answer.request))
        self.hear_term(answer.term)

    def _take_answer(self, asked: _Asked, answer: PlacementAnswer) -> None:
        match answer:
            case Held(num_waiting=num_waiting):
                self._hold(asked, num_waiting)
            case Placed(instance=instance):
                self._go(asked, instance)
            case NotPlaced():
                self._take(answer.request)
                asked.owner.refused(answer.request, answer)
            case _:
                assert_never(answer)

    def _hold(self, asked: _Asked, num_waiting: int) -> None:
        asked.heard_at, asked.num_waiting = time.monotonic(), num_waiting
        if asked.held_since is None:
            asked.held_since = asked.wanted.since
        if not asked.is_held:
            asked.is_held = True
            asked.timer.cancel()
            asked.timer = self._later(asked.renew_s, self._renew, asked.wanted.request)

    def _go(self, asked: _Asked, instance: InstanceId) -> None:
        wanted = asked.wanted
        self._take(wanted.request)
        if asked.owner.placed(wanted.request, instance):
            return
        # The scheduler will know soon that it is not there, or this gateway that it is.
        log.info("placement.missed request=%s instance=%s", wanted.request, instance)
        self._line(Withdraw(wanted.request))
        if asked.num_misses + 1 >= _MOST_MISSES:
            asked.owner.bypassed(wanted.request)
            return
        asked.num_misses += 1
        asked.is_held = False
        asked.ask = next(self._numbers)  # what is still said of the one before does not count
        asked.timer = self._later(_MISSED_S, self._again, wanted.request)
        self._asked[wanted.request] = asked

    # ------------------------------------------------------------------ timers

    def _again(self, request: RequestId) -> None:
        """Ask once more for what could not go where it was placed."""
        asked, now = self._asked[request], time.monotonic()
        asked.heard_at = now
        self._ask_again(asked, now)
        asked.timer = self._expect(FIRST_ANSWER_S, request, asked.ask)

    def _expect(self, within_s: float, request: RequestId, ask: int) -> asyncio.TimerHandle:
        """The first answer is to come within so long."""
        due = asyncio.get_running_loop().time() + within_s
        return self._later(within_s, self._unanswered, request, ask, due)

    def _unanswered(self, request: RequestId, ask: int, due: float) -> None:
        """The first answer has not come in time; or this process is late, and reads it next."""
        if asyncio.get_running_loop().time() - due > _LATE_S:
            self._asked[request].timer = self._expect(_LATE_S, request, ask)
            return
        log.warning("placement.unanswered request=%s ask=%s", request, ask)
        self._away_until = time.monotonic() + _AWAY_S
        self._give_up(request)

    def _renew(self, request: RequestId) -> None:
        """Ask anew for what is held, or give the scheduler up."""
        asked, now = self._asked[request], time.monotonic()
        if self._is_silent(asked, now):
            log.warning("placement.silent request=%s", request)
            self._give_up(request)
            return
        self._ask_again(asked, now)
        asked.timer = self._later(asked.renew_s, self._renew, request)

    def _is_silent(self, asked: _Asked, now: float) -> bool:
        silent_s = _SILENT_S * asked.renew_s / _RENEW_S
        return now - self._heard_at >= _SILENT_S or now - asked.heard_at >= silent_s

    def _give_up(self, request: RequestId) -> None:
        asked = self._take(request)
        assert asked is not None, "its timer ends with it"
        self._line(Withdraw(request))
        asked.owner.bypassed(request)

    # ------------------------------------------------------------------ leaves

    def _ask_again(self, asked: _Asked, now: float) -> None:
        self._line(_place(asked.wanted, asked.ask, asked.held_since, now))

    def _take(self, request: RequestId) -> _Asked | None:
        asked = self._asked.pop(request, None)
        if asked is not None:
            asked.timer.cancel()
        return asked

    def _later(
        self, after_s: float, action: Callable[..., None], *arguments: object
    ) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(after_s, action, *arguments)


def _place(wanted: Wanted, ask: int, held_since: float | None, now: float) -> Place:
    return Place(
        wanted.pool,
        wanted.request,
        ask,
        wanted.priority_class,
        wanted.num_tokens,
        _nanos(now - wanted.since),
        wanted.name,
        wanted.prefix,
        wanted.prefix_block,
        None if held_since is None else _nanos(now - held_since),
        None if wanted.until is None else _nanos(max(0.0, wanted.until - now)),
    )


def _nanos(seconds: float) -> Nanos:
    return Nanos(int(seconds * 1e9))

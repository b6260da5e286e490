"""What each tenant may take of this gateway: requests at a time, requests and tokens per minute.

Rates are buckets: they fill evenly and hold one minute's worth. Tokens are charged as they are
computed, prompt and outputs; who has overdrawn waits until it is paid back, and nothing that was
taken is cut. Pure but for who asks: the time is given.
"""

import math
from dataclasses import dataclass, field
from http import HTTPStatus

from llx.gateway.refusals import RETRY_AFTER_S, Refusal
from llx.specs import TenantSpec

_MINUTE_S = 60.0


@dataclass(slots=True)
class _Bucket:
    """Filled at `per_minute`, up to that, or to 1 if that is less. None: without a limit."""

    per_minute: float | None
    level: float = field(init=False)
    at: float = -math.inf

    def __post_init__(self) -> None:
        self.level = self._most

    @property
    def _most(self) -> float:
        return max(1.0, self.per_minute or 0.0)

    def lacks(self, amount: float, now: float) -> float:
        """Seconds until there is so much; 0 if there is."""
        if self.per_minute is None:
            return 0.0
        self._fill(now)
        return max(0.0, amount - self.level) * _MINUTE_S / self.per_minute

    def take(self, amount: float, now: float) -> None:
        if self.per_minute is not None:
            self._fill(now)
            self.level -= amount

    def _fill(self, now: float) -> None:
        assert self.per_minute is not None, "it has a limit"
        gained = max(0.0, now - self.at) * self.per_minute / _MINUTE_S
        self.level = min(self._most, self.level + gained)
        self.at = max(now, self.at)


class TenantAccount:
    """What one tenant has here."""

    def __init__(self, spec: TenantSpec) -> None:
        self._spec = spec
        self._requests = _Bucket(spec.requests_per_minute)
        self._tokens = _Bucket(spec.tokens_per_minute)
        self.num_open = 0

    def enter(self, now: float) -> Refusal | None:
        """Take a request in, or say why not; `leave` follows, once, for each that was taken."""
        name, most = self._spec.name, self._spec.max_requests
        if most is not None and self.num_open >= most:
            return _too_many(f"{name} has {self.num_open} requests in flight here already", 0.0)
        # One token must be there: whoever has paid back may ask.
        if wait_s := self._tokens.lacks(1, now):
            return _too_many(f"{name} has used up its tokens per minute", wait_s)
        if wait_s := self._requests.lacks(1, now):
            return _too_many(f"{name} has used up its requests per minute", wait_s)
        self._requests.take(1, now)
        self.num_open += 1
        return None

    def leave(self) -> None:
        """A request has ended."""
        self.num_open -= 1

    def charge(self, num_tokens: int, now: float) -> None:
        """So many tokens of its were taken, or made."""
        self._tokens.take(num_tokens, now)


def _too_many(message: str, wait_s: float) -> Refusal:
    after_s = max(RETRY_AFTER_S, math.ceil(wait_s))
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, "TooManyRequests", message, after_s)

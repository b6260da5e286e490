"""Between gateways and the scheduler."""

import msgspec

from llx.core.model import Epoch, InstanceId, PoolName, RequestId, Term
from llx.wire.message import Message


class Member(msgspec.Struct, frozen=True):
    """An instance that gateways may use."""

    instance: InstanceId
    pool: PoolName
    address_in: str
    address_out: str
    is_cordoned: bool = False


class GatewayHello(Message, frozen=True, tag="gateway-hello"):
    """A gateway presents itself to the scheduler; repeated as its heartbeat.

    `host` is where it runs: another than where a gateway of that name is to run, and it is one that
    was given up, beyond a partition say.
    """

    gateway: str
    url: str
    pid: int
    host: str
    term: Term
    version: int


class Members(Message, frozen=True, tag="members"):
    """The full list of instances; replaces any of a lower (term, version)."""

    term: Term
    version: int
    members: list[Member]


class MoveSeen(msgspec.Struct, frozen=True):
    """A change of owner as the gateway saw it.

    `downtime_ms`: between the source's last and the target's first token; `itl_ms`: the median of
    the request's 32 gaps before, 0 if there were less than 8. The stall is their difference.
    """

    request: RequestId
    epoch: Epoch
    source: InstanceId
    target: InstanceId
    num_tokens: int
    downtime_ms: float
    itl_ms: float


class GatewayReport(Message, frozen=True, tag="gateway-report"):
    """What a gateway has in hand, for `llx status`. Counters run since its start.

    `moves`: the last ones, oldest first; each is repeated in several reports.
    """

    gateway: str
    in_flight: int
    num_requests: int
    num_finished: int
    num_failed: int
    num_refused: int
    output_tokens: int
    connected: list[InstanceId]
    moves: list[MoveSeen] = []

"""Between gateways and the scheduler."""

import msgspec

from llx.core.model import ClassName, Epoch, InstanceId, Nanos, PoolName, RequestId, Term
from llx.specs import ApiKeySpec, PoolSpec
from llx.wire.message import Message


class Member(msgspec.Struct, frozen=True):
    """An instance that gateways may use."""

    instance: InstanceId
    pool: PoolName
    address_in: str
    address_out: str
    is_cordoned: bool = False


class PoolOffer(msgspec.Struct, frozen=True):
    """A pool that gateways are to have a front end for.

    Of the pools of a model, the one that `is_current` gets its new requests, from when its front
    end is open; the others keep the streams that they have. With a higher `attempt` a gateway whose
    front end has failed tries anew.
    """

    spec: PoolSpec
    is_current: bool = True
    attempt: int = 0


class Unusable(msgspec.Struct, frozen=True):
    """A pool whose front end could not be made or opened: at which attempt, and why."""

    attempt: int
    reason: str


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
    llx_version: str = ""


class Members(Message, frozen=True, tag="members"):
    """The full list of instances; replaces any of a lower (term, version).

    `by_prefix`: pools where it matters which instance has the beginning of a prompt cached.
    `pools`: all there are.
    `api_keys`: who is let in from now on, in place of what the gateway was started with; None: that
    stays, while an empty list lets in everybody.
    """

    term: Term
    version: int
    members: list[Member]
    by_prefix: list[PoolName] = []
    pools: list[PoolOffer] = []
    api_keys: list[ApiKeySpec] | None = None


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


class InstancePace(msgspec.Struct, frozen=True):
    """How an instance has served lately, as a gateway saw it.

    `ttft`, `itl`: first tokens and gaps between tokens, counted by `latency_buckets.bucket_of`.
    """

    tokens_per_s: float
    ttft: dict[int, int]
    itl: dict[int, int]


class GatewayReport(Message, frozen=True, tag="gateway-report"):
    """What a gateway has in hand, for `llx status`. Counters run since its start.

    `moves`: the last ones, oldest first; each is repeated in several reports. `open`: pools whose
    front end can serve; `unusable`: those whose front end could not be made or opened. `paces`: of
    the instances that anything came of lately. `certificate`: what it shows clients, PEM, and when
    that ends; empty: it does not speak TLS.
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
    open: list[PoolName] = []
    unusable: dict[PoolName, Unusable] = {}
    paces: dict[InstanceId, InstancePace] = {}
    certificate: str = ""
    certificate_ends_at: float = 0.0


# ---------------------------------------------------------------- gateway → scheduler: placement


class Place(Message, frozen=True, tag="place"):
    """A request wants an instance. Answered by `Placed`, `Held` or `NotPlaced`.

    A request that is held is asked for again now and then: it keeps its place, and a scheduler that
    has begun meanwhile learns of it.

    Attributes:
        pool: Of which model.
        request: Its id.
        ask: Numbers what this gateway asks, from 1; every answer quotes it, so that a late one is
            not taken for the present one.
        priority_class: A class's name.
        num_tokens: To be computed before its next token.
        waited: Since it came to its gateway.
        name: What operators know it by (`Add.name`).
        prefix: Its first blocks as `Prefixes` names them, where the pool is in `Members.by_prefix`.
        prefix_block: Tokens of such a block.
        held: Since it came into its class, if it has been held; None: not yet.
        patience: So long it may still wait and be done in time; None: its client has not said.
    """

    pool: PoolName
    request: RequestId
    ask: int
    priority_class: ClassName
    num_tokens: int
    waited: Nanos
    name: str = ""
    prefix: bytes = b""
    prefix_block: int = 0
    held: Nanos | None = None
    patience: Nanos | None = None


class Withdraw(Message, frozen=True, tag="withdraw"):
    """A request wants an instance no longer, or cannot go where it was placed."""

    request: RequestId


class Changed(Message, frozen=True, tag="changed"):
    """Answers `CancelRequests` and `ReclassRequests`: what became of those that this gateway has.

    `not_done`: those for which it has not come about, each with why.
    """

    change: int
    done: list[RequestId]
    not_done: list[tuple[RequestId, str]]


# ---------------------------------------------------------------- scheduler → gateway: operators


class CancelRequests(Message, frozen=True, tag="cancel-requests"):
    """End those of these requests that you have, and tell their clients. Answered by `Changed`.

    `change` numbers what is asked of gateways, and is quoted by the answer.
    """

    term: Term
    change: int
    requests: list[RequestId]


class ReclassRequests(Message, frozen=True, tag="reclass-requests"):
    """Have those of these requests that you have served as of another class, from now on.

    Answered by `Changed` when the instances that have them do so. `priority`: the integer of the
    class, as vLLM sees it.
    """

    term: Term
    change: int
    requests: list[RequestId]
    priority_class: ClassName
    priority: int


# ---------------------------------------------------------------- scheduler → gateway: placement


class Placed(Message, frozen=True, tag="placed"):
    """Send the request to the instance now. `ask`: see `Place`."""

    term: Term
    request: RequestId
    ask: int
    instance: InstanceId


class Held(Message, frozen=True, tag="held"):
    """The request waits in the central queue, with `num_waiting` of its class, itself included."""

    term: Term
    request: RequestId
    ask: int
    num_waiting: int


class NotPlaced(Message, frozen=True, tag="not-placed"):
    """The request gets no instance.

    `reason`: the value of a `Refusal` of `llx.core.scheduler.commands`.
    `retry_after_s`: when there may be room; 0 where it makes no sense to try again.
    """

    term: Term
    request: RequestId
    ask: int
    reason: str
    retry_after_s: float

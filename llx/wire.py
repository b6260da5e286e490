"""Messages between processes: msgspec structs, versioned, size-limited. Nothing is unpickled.

A message is one *header* frame, at times followed by *payload* frames that belong to the engine
(vLLM's own msgpack of a request or of outputs), which this module carries and never opens:

    frame 0   1 byte wire version · msgpack of a tagged struct below
    frame 1…  payload (Add, Outputs, Call, Reply only)

Every message that changes or reports who owns a request carries the request's *epoch*; outputs
carry the *offset* of their first token as well; messages of the scheduler carry its *term*. A
receiver drops what is older than what it knows. See ARCHITECTURE.md, "Who owns a request".
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from llx.core.model import (
    Blocks,
    ClassLoad,
    Epoch,
    InstanceId,
    InstanceLoad,
    MigrationId,
    Nanos,
    PoolName,
    RequestId,
    Term,
    Tokens,
)
from llx.errors import WireError

T = TypeVar("T")

WIRE_VERSION = 1
MAX_HEADER_BYTES = 4 << 20
MAX_FRAMES = 1 << 13
"""vLLM sends a frame per larger tensor: prompt logprobs of a batch are hundreds."""
MAX_MESSAGE_BYTES = 256 << 20
"""Upper bound of one frame; a ZMQ socket drops the connection of a peer that exceeds it."""
MAX_ID_BYTES = 512


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all messages: encoded as an array headed by the class name."""


# ---------------------------------------------------------------- gateway, scheduler → instance


class Hello(_Message, frozen=True, tag="hello"):
    """Opens a session; repeated until `Ready` or `Refused` arrives.

    `peer` is a process, not a role: two gateways of one name are two peers. `session` is new for
    each connection attempt of a peer. An instance that sees a new session of a peer it knows drops
    what the older session left behind before it answers.
    """

    peer: str
    session: int
    role: str
    llx_version: str
    vllm_version: str
    term: Term = Term(0)


class Ping(_Message, frozen=True, tag="ping"):
    """Renews the peer's lease. Requests of a peer whose lease ends are aborted."""

    session: int


class Bye(_Message, frozen=True, tag="bye"):
    """The peer leaves in good order; its requests are aborted at once."""

    session: int


class Add(_Message, frozen=True, tag="add"):
    """A new request. Payload: the engine's own encoding of it.

    `seq` numbers the ADDs of one session from 1; load reports quote the last one that the engine's
    scheduler has taken in (`Load.seen`). `name` is what operators know the request by
    (``x-llx-request-id``); several generations of one HTTP request share it. `outputs`: tokens that
    it has produced already, at an instance that was lost; it goes on after them.
    """

    request: RequestId
    epoch: Epoch
    seq: int
    name: str = ""
    outputs: list[int] = []


class Abort(_Message, frozen=True, tag="abort"):
    """End these requests, each only if the instance holds it at that epoch or an earlier one."""

    requests: list[tuple[RequestId, Epoch]]


class Call(_Message, frozen=True, tag="call"):
    """A utility call; only names on the instance's list are admitted. Payload: its arguments."""

    call: int
    method: str


class Ruling(_Message, frozen=True, tag="ruling"):
    """The arbiter's word on who owns a request (gateway → the source of a migration).

    `is_yours`: the source has it again, under `epoch`, and goes on. Else what it holds under an
    epoch lower than `epoch` is not its own any more, and it frees that.
    """

    request: RequestId
    epoch: Epoch
    is_yours: bool


# ---------------------------------------------------------------- scheduler → instance


class Target(msgspec.Struct, frozen=True):
    """Where requests are to go: an instance and its two addresses."""

    instance: InstanceId
    address_in: str
    address_out: str


class MigrateOrder(_Message, frozen=True, tag="migrate"):
    """Move a request from the instance that gets this. Answered by `MigrationNews`.

    `is_checked`: compare a digest of the copied KV at both ends before the target goes on with it.
    `is_blocking`: the request stops before the first copy, the baseline for live migration.
    `reuse_prefix`: the target may use blocks that its prefix cache has, if its settings say so too.
    """

    migration: MigrationId
    request: RequestId
    target: Target
    term: Term
    is_checked: bool = False
    is_blocking: bool = False
    reuse_prefix: bool = True


class CancelMigration(_Message, frozen=True, tag="cancel-migration"):
    """Give a migration up, if it can still be."""

    migration: MigrationId


# ---------------------------------------------------------------- source → target instance


class Reserve(_Message, frozen=True, tag="reserve"):
    """Opens a migration: take this request in under `epoch` once it is committed.

    Payload: the request as its gateway sent it. `gateway` is the peer that holds its stream, which
    must have a session with the target as well. `compatibility` must be equal at both ends.
    `num_tokens` is what blocks are wanted for; 0 of a request that has no KV.
    """

    migration: MigrationId
    request: RequestId
    epoch: Epoch
    gateway: str
    name: str
    compatibility: str
    num_tokens: int
    reuse_prefix: bool = True


class Extend(_Message, frozen=True, tag="extend"):
    """Blocks are wanted for `num_tokens` tokens in all by now. Answered like `Reserve`."""

    migration: MigrationId
    num_tokens: int


class Commit(_Message, frozen=True, tag="commit"):
    """The target owns the request as soon as stage `stage` of the copy has arrived.

    `outputs`: every token generated so far. `num_computed`: tokens whose KV has been copied.
    """

    migration: MigrationId
    stage: int
    outputs: list[int]
    num_computed: int


class AbortMigration(_Message, frozen=True, tag="abort-migration"):
    """The source gives up: free what is held for it."""

    migration: MigrationId
    reason: str


# ---------------------------------------------------------------- instance → gateway, scheduler


class InstanceInfo(msgspec.Struct, frozen=True):
    """What an instance is, fixed for its life."""

    instance: InstanceId
    pool: PoolName
    engine: str
    llx_version: str
    vllm_version: str
    model: str
    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    tensor_parallel: int
    pid: int
    cannot_migrate: str = ""
    """Why its requests cannot move; empty if they can."""


class Ready(_Message, frozen=True, tag="ready"):
    """Answers `Hello`: the session stands. `engine_ready` is the engine's own ready message."""

    session: int
    info: InstanceInfo
    engine_ready: bytes


NO_SESSION = "no such session: its lease is over, or the instance is another by now"


class Refused(_Message, frozen=True, tag="refused"):
    """Answers `Hello`: this peer may not join, and why. Or a `Ping` of no session: `NO_SESSION`."""

    session: int
    reason: str


class Outputs(_Message, frozen=True, tag="outputs"):
    """One step's outputs. Payload: the engine's encoding, its outputs in the order of `owners`.

    `owners[k]` = (epoch, offset): the ownership epoch under which output k was made and the number
    of tokens of that request emitted before it.
    """

    session: int
    owners: list[tuple[Epoch, int]]


class Load(_Message, frozen=True, tag="load"):
    """A load report, sent on change. `seen`: see `Add.seq`; it is the receiving peer's own."""

    session: int
    seen: int
    at: Nanos
    total: int
    free: int
    block_size: int
    num_running: int
    num_waiting: int
    waiting_demand: int
    waiting_tokens: int
    num_preempted: int
    classes: dict[int, tuple[int, int, int]]
    """Priority integer → running, waiting, blocks demanded by the waiting."""

    def instance_load(self) -> InstanceLoad:
        """The report as the core's value.

        Raises:
            WireError: The numbers contradict each other.
        """
        if not 0 <= self.free <= self.total or self.block_size < 1:
            raise WireError(f"load report with {self.free} of {self.total} blocks free")
        return InstanceLoad(
            total=Blocks(self.total),
            free=Blocks(self.free),
            block_size=Tokens(self.block_size),
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            waiting_demand=Blocks(self.waiting_demand),
            waiting_tokens=Tokens(self.waiting_tokens),
            num_preempted=self.num_preempted,
            classes={
                priority: ClassLoad(running, waiting, Blocks(demand))
                for priority, (running, waiting, demand) in self.classes.items()
            },
        )


class Reply(_Message, frozen=True, tag="reply"):
    """Answers `Call`. Payload: the engine's encoding of the result, unless `error` says why not."""

    call: int
    error: str = ""


class AskOwner(_Message, frozen=True, tag="ask-owner"):
    """The source to the arbiter: I held `request` under `epoch` and gave it away; whose is it?

    Answered by a `Ruling`, or not yet: the source asks again.
    """

    request: RequestId
    epoch: Epoch


class Moving(_Message, frozen=True, tag="moving"):
    """The source to the arbiter: `request` may go on at `target`, under ``epoch + 1``.

    Sent after the last output that the source has made under `epoch`, and before the commit.
    """

    request: RequestId
    epoch: Epoch
    target: InstanceId


class Route(msgspec.Struct, frozen=True):
    """How one rank of an instance is reached for KV.

    `host_id` is equal for two ends that can use `local`, the name of a unix socket.
    """

    host_id: str
    address: str
    local: str


class Reserved(_Message, frozen=True, tag="reserved"):
    """Answers `Reserve` and `Extend`: the request's whole block table at the target.

    The first `num_reused_tokens` tokens are in the target's prefix cache and need no copy.
    `routes`, by rank, and `token`, which admits there, come with the answer to `Reserve` alone.
    """

    migration: MigrationId
    num_tokens: int
    blocks: list[int]
    num_reused_tokens: int
    routes: list[Route] = []
    token: bytes = b""


class MigrationRefused(_Message, frozen=True, tag="migration-refused"):
    """The target has given the migration up, and will never own the request by it."""

    migration: MigrationId
    reason: str


class Committed(_Message, frozen=True, tag="committed"):
    """Answers `Commit`: the target goes on with the request."""

    migration: MigrationId


class Dropped(_Message, frozen=True, tag="dropped"):
    """The target had gone on with the request and has it no more: the gateway says whose it is."""

    migration: MigrationId
    reason: str


class MigrationNews(_Message, frozen=True, tag="migration-news"):
    """How a migration gets on; sent to schedulers on change, and at most every 50 ms besides.

    `state`: of the source's machine. `is_over`: nothing more will come. `outcome`, when over:
    ``moved``, ``kept`` (it goes on at the source) or ``gone`` (the request has ended).
    Times are milliseconds since the migration began; `rate` is bytes per second of copying.
    `cut_ms` is when the request left the batch, 0 before. `transport` is how its KV went, and
    `transport_why` why in no better way (`llx.ports.Copied`); empty until some has arrived.
    """

    migration: MigrationId
    request: RequestId
    name: str
    target: InstanceId
    state: str
    epoch: Epoch
    stage: int = 0
    num_stages: int = 0
    blocks_copied: int = 0
    blocks_reused: int = 0
    num_tokens: int = 0
    size_bytes: int = 0
    rate: float = 0.0
    elapsed_ms: float = 0.0
    cut_ms: float = 0.0
    is_over: bool = False
    outcome: str = ""
    reason: str = ""
    transport: str = ""
    transport_why: str = ""


class RequestView(msgspec.Struct, frozen=True):
    """A request as its instance sees it; the utility ``llx_requests`` answers with a list of them.

    Attributes:
        id: `RequestId`.
        name: What operators know it by (`Add.name`).
        peer: Index of the session that holds its stream.
        priority: The integer that vLLM sees; lower is more urgent.
        state: ``waiting``, ``running``, ``preempted``, or ``leaving`` while it is being moved away.
        num_prompt: Tokens of its prompt.
        num_tokens: Those, and what has been generated.
        num_blocks: KV blocks that it holds.
        size_bytes: Bytes of those blocks, over all ranks.
        arrival: When it came to its gateway, in seconds since 1970.
        pinned: Why it cannot move; empty if it can.
    """

    id: str
    name: str
    peer: int
    priority: int
    state: str
    num_prompt: int
    num_tokens: int
    num_blocks: int
    size_bytes: int
    arrival: float
    pinned: str = ""


class Dead(_Message, frozen=True, tag="dead"):
    """The engine is gone; nothing more will come of this instance."""

    reason: str


# ---------------------------------------------------------------- scheduler ↔ gateway


class Member(msgspec.Struct, frozen=True):
    """An instance that gateways may use."""

    instance: InstanceId
    pool: PoolName
    address_in: str
    address_out: str
    is_cordoned: bool = False


class GatewayHello(_Message, frozen=True, tag="gateway-hello"):
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


class Members(_Message, frozen=True, tag="members"):
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


class GatewayReport(_Message, frozen=True, tag="gateway-report"):
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


ToTarget = Reserve | Extend | Commit | AbortMigration
FromTarget = Reserved | MigrationRefused | Committed | Dropped
ToLlumlet = Ruling | MigrateOrder | CancelMigration | ToTarget
FromLlumlet = AskOwner | Moving | MigrationNews | FromTarget
ToInstance = Hello | Ping | Bye | Add | Abort | Call | ToLlumlet
FromInstance = Ready | Refused | Outputs | Load | Reply | Dead | FromLlumlet
ToScheduler = GatewayHello | GatewayReport
FromScheduler = Members

_encoder = msgspec.msgpack.Encoder()
_version_byte = bytes([WIRE_VERSION])


def encode(message: _Message) -> bytes:
    """The header frame of `message`."""
    return _version_byte + _encoder.encode(message)


class Decoder(Generic[T]):
    """Decodes header frames of one union of messages, for example ``Decoder(ToInstance)``.

    Ids longer than `MAX_ID_BYTES` and frames longer than `MAX_HEADER_BYTES` are refused.
    """

    def __init__(self, union: type[T] | object) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(union)

    def decode(self, frame: bytes | memoryview) -> T:
        """The message in `frame`.

        Raises:
            WireError: The frame is empty, too long, of another wire version, or not a message of
                this union.
        """
        size = len(frame)
        if not 1 <= size <= MAX_HEADER_BYTES:
            raise WireError(f"header frame of {size} bytes (1 to {MAX_HEADER_BYTES} allowed)")
        if frame[0] != WIRE_VERSION:
            raise WireError(
                f"wire version {frame[0]} (this side speaks {WIRE_VERSION})",
                remedy="run the same llx version on every host",
            )
        try:
            message = self._decoder.decode(memoryview(frame)[1:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"not a message: {error}") from None
        _check_ids(message)
        return message


def check_frames(frames: Sequence[bytes | memoryview]) -> None:
    """Refuse a multipart message of an absurd shape.

    Raises:
        WireError: No frame, too many frames, or too many bytes in all.
    """
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise WireError(f"message of {len(frames)} frames (1 to {MAX_FRAMES} allowed)")
    total = sum(len(frame) for frame in frames)
    if total > MAX_MESSAGE_BYTES:
        raise WireError(f"message of {total} bytes ({MAX_MESSAGE_BYTES} allowed)")


def _check_ids(message: object) -> None:
    match message:
        case Add(request=request, name=name):
            ids = [request, RequestId(name or "-")]
        case Ruling(request=request):
            ids = [request]
        case MigrateOrder(migration=migration, request=request):
            ids = [RequestId(migration), request]
        case Reserve(migration=migration, request=request, gateway=gateway):
            ids = [RequestId(migration), request, RequestId(gateway)]
        case CancelMigration() | Extend() | Commit() | AbortMigration():
            ids = [RequestId(message.migration)]
        case Abort(requests=requests):
            ids = [request for request, _ in requests]
        case Hello(peer=peer):
            ids = [RequestId(peer)]
        case _:
            return
    for each in ids:
        if not 0 < len(each) <= MAX_ID_BYTES:
            raise WireError(f"id of {len(each)} characters (1 to {MAX_ID_BYTES} allowed)")

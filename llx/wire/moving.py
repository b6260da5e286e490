"""Migrations: orders, the two ends and the arbiter, and news of them."""

import msgspec

from llx.core.model import Epoch, InstanceId, MigrationId, Nanos, RequestId, Term
from llx.wire.message import Message


class Target(msgspec.Struct, frozen=True):
    """Where requests are to go: an instance and its two addresses."""

    instance: InstanceId
    address_in: str
    address_out: str


class ByRule(msgspec.Struct, frozen=True):
    """What the source may choose from, and how: `llx.core.scheduler.move_rule.MoveRule`."""

    choice: str
    least_priority: int | None
    about: int | None
    at_most: int
    rest: Nanos
    most_tokens: int | None = None


class MigrateOrder(Message, frozen=True, tag="migrate"):
    """Move a request from the instance that gets this. Answered by `MigrationNews`.

    `request` is empty where the source is to choose one by `rule`.

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
    rule: ByRule | None = None


class CancelMigration(Message, frozen=True, tag="cancel-migration"):
    """Give a migration up, if it can still be."""

    migration: MigrationId


class Reserve(Message, frozen=True, tag="reserve"):
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


class Extend(Message, frozen=True, tag="extend"):
    """Blocks are wanted for `num_tokens` tokens in all by now. Answered like `Reserve`."""

    migration: MigrationId
    num_tokens: int


class Commit(Message, frozen=True, tag="commit"):
    """The target owns the request as soon as stage `stage` of the copy has arrived.

    `outputs`: every token generated so far. `num_computed`: tokens whose KV has been copied.
    `priority`: what it has by now; the payload of `Reserve` has the one that it came with.
    """

    migration: MigrationId
    stage: int
    outputs: list[int]
    num_computed: int
    priority: int = 0


class AbortMigration(Message, frozen=True, tag="abort-migration"):
    """The source gives up: free what is held for it."""

    migration: MigrationId
    reason: str


class Route(msgspec.Struct, frozen=True):
    """How one rank of an instance is reached for KV.

    `host_id` is equal for two ends that can use `local`, the name of a unix socket.
    """

    host_id: str
    address: str
    local: str


class Reserved(Message, frozen=True, tag="reserved"):
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


class MigrationRefused(Message, frozen=True, tag="migration-refused"):
    """The target has given the migration up, and will never own the request by it."""

    migration: MigrationId
    reason: str


class Committed(Message, frozen=True, tag="committed"):
    """Answers `Commit`: the target goes on with the request."""

    migration: MigrationId


class Dropped(Message, frozen=True, tag="dropped"):
    """The target had gone on with the request and has it no more: the gateway says whose it is."""

    migration: MigrationId
    reason: str


class AskOwner(Message, frozen=True, tag="ask-owner"):
    """The source to the arbiter: I held `request` under `epoch` and gave it away; whose is it?

    Answered by a `Ruling`, or not yet: the source asks again.
    """

    request: RequestId
    epoch: Epoch


class Moving(Message, frozen=True, tag="moving"):
    """The source to the arbiter: `request` may go on at `target`, under ``epoch + 1``.

    Sent after the last output that the source has made under `epoch`, and before the commit.
    """

    request: RequestId
    epoch: Epoch
    target: InstanceId


class Ruling(Message, frozen=True, tag="ruling"):
    """The arbiter's word on who owns a request (gateway → the source of a migration).

    `is_yours`: the source has it again, under `epoch`, and goes on. Else what it holds under an
    epoch lower than `epoch` is not its own any more, and it frees that.
    """

    request: RequestId
    epoch: Epoch
    is_yours: bool


class MigrationNews(Message, frozen=True, tag="migration-news"):
    """How a migration gets on; sent to schedulers on change, and at most every 50 ms besides.

    `state`: of the source's machine. `is_over`: nothing more will come. `outcome`, when over:
    ``moved``, ``kept`` (it goes on at the source), ``gone`` (the request has ended), or ``none``:
    by its rule the source had none to move, and `request` is empty.
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

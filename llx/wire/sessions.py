"""Sessions with an instance, the requests in them, and what it reports."""

from collections.abc import Sequence
from typing import Final

import msgspec

from llx.core.model import (
    Blocks,
    ClassLoad,
    Epoch,
    InstanceId,
    InstanceLoad,
    Nanos,
    PoolName,
    RequestId,
    Term,
    Tokens,
)
from llx.errors import WireError
from llx.wire.message import Message


class Hello(Message, frozen=True, tag="hello"):
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
    resumes: bool = False
    """The session goes on over new connections (`Rekey`); without such a session it is refused."""


class Rekeyed(Message, frozen=True, tag="rekeyed"):
    """Answers `Rekey`: the peer's last word on this connection."""

    session: int


class Ping(Message, frozen=True, tag="ping"):
    """Renews the peer's lease. Requests of a peer whose lease ends are aborted.

    `report_every_s`: how often at most the peer wants to hear of the load; it has other instances.
    `prefixes`: 0, or the peer wants `Prefixes`; a number that is new asks for all of them anew.
    """

    session: int
    report_every_s: float = 0.0
    prefixes: int = 0


class Bye(Message, frozen=True, tag="bye"):
    """The peer leaves in good order; its requests are aborted at once."""

    session: int


class Add(Message, frozen=True, tag="add"):
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


class Abort(Message, frozen=True, tag="abort"):
    """End these requests, each only if the instance holds it at that epoch or an earlier one."""

    requests: list[tuple[RequestId, Epoch]]


class Call(Message, frozen=True, tag="call"):
    """A utility call; only names on the instance's list are admitted. Payload: its arguments."""

    call: int
    method: str


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
    prefix_block: int = 0
    """Tokens of a block of its prefix cache; 0: it has none, or does not tell what is in it."""
    compatibility: str = ""
    """What must be equal of two instances for requests to move between them; empty: not known."""


class Ready(Message, frozen=True, tag="ready"):
    """Answers `Hello`: the session stands. `engine_ready` is the engine's own ready message."""

    session: int
    info: InstanceInfo
    engine_ready: bytes


class Rekey(Message, frozen=True, tag="rekey"):
    """The instance's last word on this connection: it is about to listen with other keys.

    The peer answers `Rekeyed`, holds back what it has to say, and when its connections end dials
    anew with the keys of that listener and says `Hello` again, with the same session, which goes on
    as if nothing had been. A peer that does not answer loses its session.
    """

    session: int
    listener_public: str


NO_SESSION = "no such session: its lease is over, or the instance is another by now"


class Refused(Message, frozen=True, tag="refused"):
    """Answers `Hello`: this peer may not join, and why. Or a `Ping` of no session: `NO_SESSION`.

    `term`: the newest that the instance has heard of, if the peer's is an older one.
    """

    session: int
    reason: str
    term: Term = Term(0)


class Outputs(Message, frozen=True, tag="outputs"):
    """One step's outputs. Payload: the engine's encoding, its outputs in the order of `owners`.

    `owners[k]` = (epoch, offset): the ownership epoch under which output k was made and the number
    of tokens of that request emitted before it.
    """

    session: int
    owners: list[tuple[Epoch, int]]


class Load(Message, frozen=True, tag="load"):
    """A load report, sent on change. `seen`: see `Add.seq`; it is the receiving peer's own.

    `covers`, to schedulers alone: requests that have come and that no report sent before has told
    of. `queue_head`: blocks that the first waiting request lacks; None: nobody waits, or not known.
    `num_preemptions`: since the engine's start, where `num_preempted` wait for their blocks right
    now; None: not known.
    """

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
    covers: list[RequestId] = []
    queue_head: int | None = None
    num_preemptions: int | None = None

    def instance_load(self, classes: dict[int, ClassLoad] | None = None) -> InstanceLoad:
        """The report as the core's value; `classes`: of a report with the same, to be shared.

        Raises:
            WireError: The numbers contradict each other.
        """
        if not 0 <= self.free <= self.total or self.block_size < 1:
            raise WireError(f"load report with {self.free} of {self.total} blocks free")
        if classes is None:
            classes = {
                priority: ClassLoad(running, waiting, Blocks(demand))
                for priority, (running, waiting, demand) in self.classes.items()
            }
        return InstanceLoad(
            total=Blocks(self.total),
            free=Blocks(self.free),
            block_size=Tokens(self.block_size),
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            waiting_demand=Blocks(self.waiting_demand),
            waiting_tokens=Tokens(self.waiting_tokens),
            num_preempted=self.num_preempted,
            classes=classes,
        )


class Prefixes(Message, frozen=True, tag="prefixes"):
    """What an instance's prefix cache has gained and lost since the message before.

    Sent to who asks for it (`Ping.prefixes`, quoted as `ask`). `number` counts the messages of an
    ask from 0; where one is missing it was lost. `is_whole`: `added` is all that is there, as in
    the first one. Blocks are named as in `llx.core.prefix_blocks`.
    """

    session: int
    ask: int
    number: int
    is_whole: bool
    added: bytes
    removed: bytes = b""


class Reply(Message, frozen=True, tag="reply"):
    """Answers `Call`. Payload: the engine's encoding of the result, unless `error` says why not."""

    call: int
    error: str = ""


LEAVING: Final = "leaving"
"""State of a request that goes to another instance."""


class RequestView(msgspec.Struct, frozen=True, gc=False):
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


class OldestRequests(msgspec.Struct, frozen=True):
    """What the utility ``llx_oldest_requests`` answers, of so many as it is asked for.

    Attributes:
        num: All that the instance has.
        views: The oldest of them, the oldest first; then those of the others that are leaving.
    """

    num: int
    views: list[RequestView]


def oldest_of(views: Sequence[RequestView], count: int) -> OldestRequests:
    """An instance's answer, of all that it has."""
    by_age = sorted(views, key=lambda each: (each.arrival, each.id))
    leaving = [each for each in by_age[count:] if each.state == LEAVING]
    return OldestRequests(len(by_age), by_age[:count] + leaving)


class Dead(Message, frozen=True, tag="dead"):
    """The engine is gone; nothing more will come of this instance."""

    reason: str

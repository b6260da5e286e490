"""Messages between processes: msgspec structs, versioned, size-limited. Nothing is unpickled.

A message is one *header* frame, at times followed by *payload* frames that belong to the engine
(vLLM's own msgpack of a request or of outputs), which this module carries and never opens:

    frame 0   1 byte wire version · msgpack of a tagged struct below
    frame 1…  payload (Add, Outputs, Call, Reply only)

Every message that changes or reports who owns a request carries the request's *epoch*; outputs
carry the *offset* of their first token as well; messages of the scheduler carry its *term*. A
receiver drops what is older than what it knows. See ARCHITECTURE.md, "Who owns a request".
"""

from llx.wire.codec import (
    MAX_FRAMES,
    MAX_HEADER_BYTES,
    MAX_ID_BYTES,
    MAX_MESSAGE_BYTES,
    WIRE_VERSION,
    Decoder,
    check_frames,
    encode,
)
from llx.wire.line import (
    CancelRequests,
    Changed,
    GatewayHello,
    GatewayReport,
    Held,
    InstancePace,
    Member,
    Members,
    MoveSeen,
    NotPlaced,
    Place,
    Placed,
    PoolOffer,
    ReclassRequests,
    Unusable,
    Withdraw,
)
from llx.wire.moving import (
    AbortMigration,
    AskOwner,
    ByRule,
    CancelMigration,
    Commit,
    Committed,
    Dropped,
    Extend,
    MigrateOrder,
    MigrationNews,
    MigrationRefused,
    Moving,
    Reserve,
    Reserved,
    Route,
    Ruling,
    Target,
)
from llx.wire.sessions import (
    LEAVING,
    NO_SESSION,
    Abort,
    Add,
    Bye,
    Call,
    Dead,
    Hello,
    InstanceInfo,
    Load,
    OldestRequests,
    Outputs,
    Ping,
    Prefixes,
    Ready,
    Refused,
    Rekey,
    Rekeyed,
    Reply,
    RequestView,
    oldest_of,
)
from llx.wire.steps import StepRow, StepRows

__all__ = [
    "LEAVING",
    "MAX_FRAMES",
    "MAX_HEADER_BYTES",
    "MAX_ID_BYTES",
    "MAX_MESSAGE_BYTES",
    "NO_SESSION",
    "WIRE_VERSION",
    "Abort",
    "AbortMigration",
    "Add",
    "AskOwner",
    "ByRule",
    "Bye",
    "Call",
    "CancelMigration",
    "CancelRequests",
    "Change",
    "Changed",
    "Commit",
    "Committed",
    "Dead",
    "Decoder",
    "Dropped",
    "Extend",
    "FromInstance",
    "FromLlumlet",
    "FromScheduler",
    "FromTarget",
    "GatewayHello",
    "GatewayReport",
    "Held",
    "Hello",
    "InstanceInfo",
    "InstancePace",
    "Load",
    "Member",
    "Members",
    "MigrateOrder",
    "MigrationNews",
    "MigrationRefused",
    "MoveSeen",
    "Moving",
    "NotPlaced",
    "OldestRequests",
    "Outputs",
    "Ping",
    "Place",
    "Placed",
    "PlacementAnswer",
    "PoolOffer",
    "Prefixes",
    "Ready",
    "ReclassRequests",
    "Refused",
    "Rekey",
    "Rekeyed",
    "Reply",
    "RequestView",
    "Reserve",
    "Reserved",
    "Route",
    "Ruling",
    "StepRow",
    "StepRows",
    "Target",
    "ToInstance",
    "ToLlumlet",
    "ToScheduler",
    "ToTarget",
    "Unusable",
    "Withdraw",
    "check_frames",
    "encode",
    "oldest_of",
]

ToTarget = Reserve | Extend | Commit | AbortMigration
FromTarget = Reserved | MigrationRefused | Committed | Dropped
ToLlumlet = Ruling | MigrateOrder | CancelMigration | ToTarget
FromLlumlet = AskOwner | Moving | MigrationNews | FromTarget
ToInstance = Hello | Rekeyed | Ping | Bye | Add | Abort | Call | ToLlumlet
FromInstance = Ready | Refused | Rekey | Outputs | Load | Prefixes | Reply | Dead | FromLlumlet
ToScheduler = GatewayHello | GatewayReport | Place | Withdraw | Changed
PlacementAnswer = Placed | Held | NotPlaced
Change = CancelRequests | ReclassRequests
FromScheduler = Members | PlacementAnswer | Change

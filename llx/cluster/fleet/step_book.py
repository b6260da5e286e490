"""What an instance's steps cost: asked of it when somebody wants to know. The head keeps none."""

import msgspec

from llx.agent.link import encode_arguments
from llx.api import InstanceSteps
from llx.cluster.fleet.fleet import Fleet
from llx.errors import DeadlineError, RemoteError, UnreachableError
from llx.specs import model_of_pool
from llx.wire import StepRows

STEPS_CALL = "llx_steps"
_ASK_S = 5.0
_AT_A_TIME = 1000
"""Rows in one answer: the head encodes them while everybody else waits."""


async def read_steps(fleet: Fleet, name: str, first: int) -> InstanceSteps:
    """The steps of an instance from number `first` on, as far as it has them and one answer holds.

    Raises:
        NotFoundError: There is none of that name.
        UnreachableError: It is not connected.
        RemoteError: Its answer makes no sense.
        DeadlineError: It does not answer.
    """
    unit = fleet.instance_unit(name)
    info = fleet.loads.info(unit.name)
    if info is None:
        raise UnreachableError(f"instance {name} is not connected")
    try:
        frames = await fleet.loads.call(unit.name, STEPS_CALL, encode_arguments(), _ASK_S)
        kept = msgspec.msgpack.decode(b"".join(frames), type=StepRows)
    except TimeoutError:
        raise DeadlineError(f"{name} did not answer in {_ASK_S:g} s") from None
    except msgspec.DecodeError as error:
        raise RemoteError(f"{name}: its answer makes no sense: {error}") from None
    skipped = max(0, first - kept.first)
    rows = kept.rows[skipped : skipped + _AT_A_TIME]
    return InstanceSteps(
        instance=name,
        model=model_of_pool(info.pool),
        num_blocks=info.num_blocks,
        block_size=info.block_size,
        max_model_len=info.max_model_len,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        first=kept.first + skipped,
        end=kept.first + len(kept.rows),
        steps=[msgspec.structs.astuple(row) for row in rows],
    )

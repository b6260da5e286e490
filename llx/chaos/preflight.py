"""What hosts must bear, asked before the first fault is done."""

from collections.abc import Mapping

from llx.chaos import inject
from llx.chaos.inject import Hand
from llx.chaos.plan import ChaosPlan, FaultKind
from llx.errors import ConflictError, LlxError


def check_partitions(plan: ChaosPlan, hands: Mapping[str, Hand]) -> None:
    """Whether every host that the plan may cut off, of those by name, lets us.

    Raises:
        ConflictError: Names each that does not, and why.
    """
    targets = {each.target for each in plan.faults if each.kind is FaultKind.PARTITION}
    is_any = any(each.role for each in plan.faults if each.kind is FaultKind.PARTITION)
    reasons = []
    for name, hand in hands.items():
        if not is_any and name not in targets:
            continue
        try:
            inject.check_partition(hand)
        except LlxError as error:
            reasons.append(f"{name}: {error.message.removeprefix('partition: ')}")
    if reasons:
        raise ConflictError(
            f"partition cannot be done: {'; '.join(reasons)}",
            remedy="log in there as one who may, or leave partitions out; nothing was done",
        )

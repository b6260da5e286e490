"""What a pool's client writes down of the life of each request: a line at each change of state.

With what the scheduler and the instances write it is what ``llx logs --request`` puts together. The
first line ties the ids to one another, so that all others need one of them only. Nothing here is
called at each token.
"""

from vllm.v1.engine import FinishReason

from llx.core.model import Epoch, InstanceId, PoolName
from llx.gateway.sent import Sent
from llx.log import get_log

log = get_log(__name__)


def accepted(pool: PoolName, sent: Sent) -> None:
    """It has come, and is going to be placed."""
    http = sent.http
    log.info(
        "pool.accepted",
        request=sent.request,
        name=sent.name,
        client=None if http is None else http.client_id,
        tenant=None if http is None else http.tenant,
        model=pool,
        priority_class=sent.priority_class,
        num_prompt=sent.prompt_tokens,
    )


def dispatched(sent: Sent, instance: InstanceId, epoch: Epoch) -> None:
    """It has been sent to an instance; again, if it lost the one before."""
    if not sent.why_again:
        log.info("pool.dispatched", request=sent.request, instance=instance, epoch=epoch)
        return
    log.warning(
        "pool.placed_again",
        request=sent.request,
        instance=instance,
        epoch=epoch,
        num_outputs=len(sent.outputs),
        reason=sent.why_again,
    )


def finished(sent: Sent, reason: FinishReason) -> None:
    """Its instance has ended it, and its last tokens are here."""
    log.info("pool.finished", request=sent.request, reason=reason, num_outputs=len(sent.outputs))


def left(sent: Sent) -> None:
    """The front end wants no more of it: a stop string has come, or its client has gone."""
    log.info("pool.left", request=sent.request, num_outputs=len(sent.outputs))

"""The instances of one pool as a gateway sees them, and the choice among them."""

import asyncio
import logging
from collections.abc import Iterable

from llx.agent.link import InstanceLink
from llx.core.dispatch import POLICIES, Candidate, Decision
from llx.core.model import Blocks, InstanceId, blocks_for

log = logging.getLogger(__name__)


class Roster:
    """Links to the pool's instances.

    Args:
        max_slots: Metric slots to tell instances apart; a slot is an instance's for as long as
            the gateway lives, so that counters never change hands.
        policy: Name of the dispatch policy (`llx.core.dispatch.POLICIES`).
    """

    def __init__(self, max_slots: int, policy: str = "freest") -> None:
        self._links: dict[InstanceId, InstanceLink] = {}
        self._slots: dict[InstanceId, int] = {}
        self._max_slots = max_slots
        self._dispatch = POLICIES[policy]
        self.is_by_prefix = False
        """Whether the scheduler looks for a request's beginning in prefix caches."""
        self.ready_event = asyncio.Event()

    def join(self, link: InstanceLink) -> None:
        """Add an instance; it takes part once its session stands."""
        instance = link.member.instance
        assert instance not in self._links, f"{instance} joined twice"
        self._links[instance] = link
        self._slots.setdefault(instance, len(self._slots) % self._max_slots)

    def leave(self, instance: InstanceId) -> InstanceLink | None:
        """Remove an instance."""
        link = self._links.pop(instance, None)
        self.update()
        return link

    def get(self, instance: InstanceId) -> InstanceLink | None:
        """The link of an instance."""
        return self._links.get(instance)

    def links(self) -> list[InstanceLink]:
        """All links, connected or not."""
        return list(self._links.values())

    def ready(self) -> list[InstanceLink]:
        """Links whose session stands and whose load is known."""
        return [link for link in self._links.values() if link.is_ready and link.load is not None]

    def prefix_block(self) -> int:
        """Tokens of a block of the instances' prefix caches; 0: nobody wants to know of them.

        Where they differ it is the first one's, and the others are not found to have anything.
        """
        if not self.is_by_prefix:
            return 0
        infos = (link.info for link in self._links.values() if link.info is not None)
        return next((info.prefix_block for info in infos if info.prefix_block), 0)

    def update(self) -> None:
        """Re-evaluate whether any instance can take requests; call when a link changes."""
        if any(True for _ in self._eligible()):
            self.ready_event.set()
        else:
            self.ready_event.clear()

    def slot(self, instance: InstanceId) -> int:
        """The metric slot of an instance that has joined at some time."""
        return self._slots[instance]

    def slot_names(self) -> dict[str, str]:
        """Metric slot (as vLLM labels it) → instance name."""
        return {str(slot): str(instance) for instance, slot in self._slots.items()}

    def choose(self, prompt_tokens: int) -> tuple[InstanceLink, Blocks, Decision] | None:
        """Dispatch a request of that many prompt tokens; None if no instance can take it.

        Cordoned instances are left out. The returned demand is what to charge the ledger with.
        """
        links = {link.member.instance: link for link in self._eligible()}
        if not links:
            return None
        some = next(iter(links.values())).load
        assert some is not None
        demand = blocks_for(prompt_tokens + 1, some.block_size)
        decision = self._dispatch(list(_candidates(links.values())), demand)
        return links[decision.chosen], demand, decision

    def _eligible(self) -> Iterable[InstanceLink]:
        return (link for link in self.ready() if not link.member.is_cordoned)


def _candidates(links: Iterable[InstanceLink]) -> Iterable[Candidate]:
    for link in links:
        assert link.load is not None
        yield Candidate(
            link.member.instance, link.load, link.ledger.num_requests, link.ledger.demand
        )

"""The scheduler's connections to instances: their load reports and what they are.

Each ready instance is dialled as a peer of role ``scheduler``, which sends no requests.
"""

import asyncio
import time
from collections.abc import Sequence

import zmq.asyncio

from llx.agent.link import InstanceLink, peer_of_process
from llx.core.model import InstanceId, InstanceLoad, Term
from llx.curve import ClusterKeys
from llx.log import get_log
from llx.wire import FromLlumlet, InstanceInfo, Member, Outputs

log = get_log(__name__)


class LoadWatch:
    """Links to all members; itself the owner that they report to."""

    def __init__(self, keys: ClusterKeys, term: Term) -> None:
        self._keys = keys
        self._term = term
        self._peer = peer_of_process("scheduler")
        self._context = zmq.asyncio.Context()
        self._links: dict[InstanceId, InstanceLink] = {}
        self._reported_at: dict[InstanceId, float] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def follow(self, members: Sequence[Member]) -> None:
        """Make the links match `members`; a changed address is another instance."""
        wanted = {member.instance: member for member in members}
        for instance, link in list(self._links.items()):
            member = wanted.get(instance)
            if member is None or _addresses(member) != _addresses(link.member):
                self._drop(instance)
        for instance, member in wanted.items():
            if instance not in self._links:
                link = InstanceLink(
                    self._context,
                    self._keys,
                    member,
                    peer=self._peer,
                    role="scheduler",
                    events=self,
                    term=self._term,
                )
                self._links[instance] = link
                link.start()

    def is_up(self, instance: str) -> bool:
        """Whether a session stands: the instance was heard of within the link's own seconds."""
        link = self._links.get(InstanceId(instance))
        return link is not None and link.is_ready

    def load(self, instance: str) -> tuple[InstanceLoad, float] | None:
        """The last report while the session stands, and its age in seconds."""
        link = self._links.get(InstanceId(instance))
        if link is None or not link.is_ready or link.load is None:
            return None
        return link.load, time.monotonic() - self._reported_at[link.member.instance]

    def info(self, instance: str) -> InstanceInfo | None:
        """What the instance said it is."""
        link = self._links.get(InstanceId(instance))
        return None if link is None else link.info

    def refusal(self, instance: str) -> str:
        """Why the instance refuses this head; empty if it does not."""
        link = self._links.get(InstanceId(instance))
        return "" if link is None else link.refusal

    async def close(self) -> None:
        """Close every link."""
        for instance in list(self._links):
            self._drop(instance)
        await asyncio.gather(*self._closing, return_exceptions=True)
        self._context.destroy(linger=0)

    def _drop(self, instance: InstanceId) -> None:
        link = self._links.pop(instance)
        self._reported_at.pop(instance, None)
        task = asyncio.get_running_loop().create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # ------------------------------------------------------------------ what links report

    def on_ready(self, link: InstanceLink) -> None:
        """Its load follows."""

    def on_down(self, link: InstanceLink, reason: str) -> None:
        """The process is watched through its shim; the link redials."""
        if self._links.get(link.member.instance) is link:
            log.warning("instance.link_down", instance=link.member.instance, reason=reason)

    def on_outputs(self, link: InstanceLink, header: Outputs, payload: list[memoryview]) -> None:
        """The scheduler sends no requests, so nothing comes."""

    def on_load(self, link: InstanceLink, load: InstanceLoad) -> None:
        """The link keeps it; this keeps when."""
        if self._links.get(link.member.instance) is link:
            self._reported_at[link.member.instance] = time.monotonic()

    def on_llumlet(self, link: InstanceLink, message: FromLlumlet) -> None:
        """News of migrations."""


def _addresses(member: Member) -> tuple[str, str]:
    return member.address_in, member.address_out

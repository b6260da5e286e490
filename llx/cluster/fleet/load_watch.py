"""The scheduler's connections to instances: load reports, what they are, migrations.

Each ready instance is dialled as a peer of role ``scheduler``, which sends no requests.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import Protocol

import zmq.asyncio

from llx.agent.dial_turns import DialTurns
from llx.agent.link import InstanceLink, peer_of_process, report_interval_s
from llx.agent.prefix_reports import PrefixFeed
from llx.agent.socket_reader import SocketReader
from llx.core.model import InstanceId, InstanceLoad, PoolName, Term
from llx.curve import KeySource, make_wide
from llx.errors import UnreachableError
from llx.log import get_log
from llx.ports import Frame
from llx.wire import (
    FromLlumlet,
    InstanceInfo,
    Load,
    Member,
    MigrationNews,
    Outputs,
    Prefixes,
    ToLlumlet,
)

log = get_log(__name__)


class LlumletEvents(Protocol):
    """Who is told of migrations; called on the event loop, must not block."""

    def on_news(self, instance: InstanceId, news: MigrationNews) -> None:
        """An instance says how a migration away from it gets on."""

    def on_link_down(self, instance: InstanceId, reason: str) -> None:
        """Nothing is heard of an instance any more; its link may come back."""


class LoadEvents(Protocol):
    """Who is told of instances' loads; called on the event loop, must not block."""

    def on_up(self, instance: InstanceId) -> None:
        """Its session stands."""

    def on_report(self, instance: InstanceId, load: InstanceLoad, report: Load) -> None:
        """It has reported: the load, and all that it said."""

    def on_prefixes(self, pool: PoolName, instance: InstanceId, report: Prefixes) -> None:
        """It has said what is in its prefix cache; see `LoadWatch.want_prefixes`."""

    def on_down(self, instance: InstanceId) -> None:
        """Nothing is heard of it any more; its link may come back."""


class LoadWatch:
    """Links to all members; itself the owner that they report to."""

    def __init__(self, keys: KeySource, term: Term) -> None:
        self.keys = keys
        self._term = term
        self._peer = peer_of_process("scheduler")
        self._context = zmq.asyncio.Context()
        make_wide(self._context)
        self._links: dict[InstanceId, InstanceLink] = {}
        self._turns = DialTurns()
        self._reader = SocketReader()
        self._reported_at: dict[InstanceId, float] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._llumlets: LlumletEvents | None = None
        self._events: LoadEvents | None = None

    def tell_loads(self, events: LoadEvents) -> None:
        """Tell `events` of loads from now on."""
        self._events = events

    def listen(self, events: LlumletEvents) -> None:
        """Tell `events` of migrations from now on."""
        self._llumlets = events

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
                    self.keys,
                    member,
                    peer=self._peer,
                    role="scheduler",
                    events=self,
                    term=self._term,
                    prefixes=PrefixFeed(partial(self._on_prefixes, member.pool, instance)),
                    turns=self._turns,
                    read=self._reader.read_all,
                )
                self._links[instance] = link
                link.start()
        for link in self._links.values():
            link.report_every_s = report_interval_s(len(self._links))

    def want_prefixes(self, pools: Collection[PoolName]) -> None:
        """Have the instances of these pools, and no others, say what is in their prefix caches."""
        for link in self._links.values():
            link.prefixes.want(link.member.pool in pools)

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

    def not_with(self, listener_public: str) -> list[str]:
        """The instances that are not known to listen with that key."""
        return sorted(
            instance
            for instance, link in self._links.items()
            if not link.is_ready or link.listener_public != listener_public
        )

    def num_preemptions(self, instance: str) -> int | None:
        """Since its engine's start, by the last report; None: not known."""
        link = self._links.get(InstanceId(instance))
        return None if link is None or link.report is None else link.report.num_preemptions

    def info(self, instance: str) -> InstanceInfo | None:
        """What the instance said it is."""
        link = self._links.get(InstanceId(instance))
        return None if link is None else link.info

    def infos(self) -> list[InstanceInfo]:
        """What those that have ever been connected said they are."""
        return [link.info for link in self._links.values() if link.info is not None]

    def refusal(self, instance: str) -> str:
        """Why the instance refuses this head; empty if it does not."""
        link = self._links.get(InstanceId(instance))
        return "" if link is None else link.refusal

    def newer_term(self) -> Term:
        """The newest by which an instance refuses this head; 0: none does."""
        return max((link.newer_term for link in self._links.values()), default=Term(0))

    def tell_llumlet(self, instance: str, message: ToLlumlet) -> None:
        """Send a message to an instance's llumlet.

        Raises:
            UnreachableError: It is not connected.
        """
        self._link(instance).tell_llumlet(message)

    async def call(
        self, instance: str, method: str, payload: Sequence[Frame], timeout_s: float
    ) -> list[memoryview]:
        """Call a utility of an instance; returns the result's frames.

        Raises:
            UnreachableError: It is not connected, or was not to the end.
            RemoteError: It refused or failed the call.
            TimeoutError: No answer in time.
        """
        return await self._link(instance).call(method, payload, timeout_s)

    def _link(self, instance: str) -> InstanceLink:
        link = self._links.get(InstanceId(instance))
        if link is None:
            raise UnreachableError(f"instance {instance} is not connected")
        return link

    async def close(self) -> None:
        """Close every link."""
        self._llumlets = self._events = None
        for instance in list(self._links):
            self._drop(instance)
        await asyncio.gather(*self._closing, return_exceptions=True)
        self._reader.close()
        self._context.destroy(linger=0)

    def _drop(self, instance: InstanceId) -> None:
        link = self._links.pop(instance)
        self._reported_at.pop(instance, None)
        task = asyncio.get_running_loop().create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        self._tell_down(instance, "it is not in use any more")

    def _tell_down(self, instance: InstanceId, reason: str) -> None:
        if self._llumlets is not None:
            self._llumlets.on_link_down(instance, reason)

    # ------------------------------------------------------------------ what links report

    def on_ready(self, link: InstanceLink) -> None:
        """Its load follows."""
        if self._is_present(link) and self._events is not None:
            self._events.on_up(link.member.instance)

    def on_down(self, link: InstanceLink, reason: str) -> None:
        """The process is watched through its shim; the link redials."""
        if self._is_present(link):
            log.warning("instance.link_down", instance=link.member.instance, reason=reason)
            self._tell_down(link.member.instance, reason)
            if self._events is not None:
                self._events.on_down(link.member.instance)

    def on_outputs(self, link: InstanceLink, header: Outputs, payload: list[memoryview]) -> None:
        """The scheduler sends no requests, so nothing comes."""

    def on_load(self, link: InstanceLink, load: InstanceLoad) -> None:
        """The link keeps it; this keeps when."""
        if self._is_present(link):
            self._reported_at[link.member.instance] = time.monotonic()
            if self._events is not None:
                assert link.report is not None, "it has just come"
                self._events.on_report(link.member.instance, load, link.report)

    def _on_prefixes(self, pool: PoolName, instance: InstanceId, report: Prefixes) -> None:
        link = self._links.get(instance)
        if link is not None and link.is_ready and self._events is not None:
            self._events.on_prefixes(pool, instance, report)

    def on_llumlet(self, link: InstanceLink, message: FromLlumlet) -> None:
        """News of migrations; the rest is for gateways and other instances."""
        if (
            self._is_present(link)
            and self._llumlets is not None
            and isinstance(message, MigrationNews)
        ):
            self._llumlets.on_news(link.member.instance, message)

    def _is_present(self, link: InstanceLink) -> bool:
        return self._links.get(link.member.instance) is link


def _addresses(member: Member) -> tuple[str, str]:
    return member.address_in, member.address_out

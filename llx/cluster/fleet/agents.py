"""How the head reaches node agents: one that lives in this process, or one on another host."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from llx.agent.devices import Need
from llx.agent.host_view import HostView
from llx.agent.log_file import LogPart
from llx.agent.node import NodeAgent
from llx.agent.processes import ShimRecord
from llx.head_copy import HeadCopy
from llx.specs import GatewaySpec, InstanceSpec


class AgentPort(Protocol):
    """One host's node agent. What `NodeAgent` raises comes through as it is.

    Every method raises `UnreachableError` when the agent does not answer within a deadline of the
    method's own; whether the action was done is then unknown, and what `observe` says later counts.
    """

    @property
    def host(self) -> str:
        """The host's name."""

    async def observe(self) -> HostView:
        """The host now. Answers within 2 s or raises."""

    async def start_instance(
        self, spec: InstanceSpec, needs: Sequence[Need], cores_each: int | None
    ) -> list[str]:
        """Give it devices and start it; returns the devices.

        Args:
            spec: As the head knows it; the agent fills in what is particular to its host.
            needs: Of all instances that are to run on this host, so that each gets its fair part.
            cores_each: Cores per instance, if the operator said so.

        Raises:
            ConflictError: It runs already, or there are not enough devices.
            RemoteError: It cannot be started; says why.
        """

    async def start_gateway(self, spec: GatewaySpec) -> None:
        """Start a gateway.

        Raises:
            ConflictError: It runs already.
            RemoteError: It cannot be started; says why.
        """

    async def stop(self, name: str, grace_s: float) -> ShimRecord | None:
        """Stop a process: TERM, KILL after `grace_s`; returns when it is gone. None: there is none.

        Other calls go on meanwhile; a second stop with less grace cuts the first one short.

        Raises:
            RemoteError: Something of it cannot be killed; names the pids.
        """

    async def release(self, name: str) -> None:
        """Give the devices of an instance back.

        Raises:
            ConflictError: Something of it is still there, and may use them.
        """

    async def forget(self, name: str) -> None:
        """Forget a process that has ended, but for its logs."""

    async def keep_copy(self, copy: HeadCopy) -> None:
        """Keep what the head must remember, for one on another host."""

    async def read_log(self, name: str, offset: int | None, limit: int, tail: int) -> LogPart:
        """Part of the log of a process there, also of ``agent`` and ``ray``.

        Raises:
            NotFoundError: There is none.
        """


class AgentsSource(Protocol):
    """Where the driver gets agents from. Hosts may come and go while the head runs."""

    def agent(self, host: str) -> AgentPort:
        """The agent of a host of the cluster; does not wait: the port connects when it is used."""

    async def remove(self, host: str) -> None:
        """The host is part of the cluster no more, all of ours there has ended: end its agent.

        Does not raise for a host that cannot be reached.
        """


class LocalAgent:
    """An agent in this process; its blocking calls run in threads."""

    def __init__(self, node: NodeAgent) -> None:
        self._node = node
        self._looking: asyncio.Future[HostView] | None = None

    @property
    def host(self) -> str:
        """The host's name."""
        return self._node.place.host

    async def observe(self) -> HostView:
        """See `AgentPort`."""
        # A look that hangs is waited for, not repeated: each would hold a thread.
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(asyncio.to_thread(self._node.view))
        return await asyncio.shield(self._looking)

    async def start_instance(
        self, spec: InstanceSpec, needs: Sequence[Need], cores_each: int | None
    ) -> list[str]:
        """See `AgentPort`."""
        return await asyncio.to_thread(self._node.start_instance, spec, needs, cores_each)

    async def start_gateway(self, spec: GatewaySpec) -> None:
        """See `AgentPort`."""
        await asyncio.to_thread(self._node.start_gateway, spec)

    async def stop(self, name: str, grace_s: float) -> ShimRecord | None:
        """See `AgentPort`."""
        return await asyncio.to_thread(self._node.stop, name, grace_s)

    async def release(self, name: str) -> None:
        """See `AgentPort`."""
        await asyncio.to_thread(self._node.release, name)

    async def forget(self, name: str) -> None:
        """See `AgentPort`."""
        await asyncio.to_thread(self._node.forget, name)

    async def keep_copy(self, copy: HeadCopy) -> None:
        """See `AgentPort`."""
        await asyncio.to_thread(self._node.keep_copy, copy)

    async def read_log(self, name: str, offset: int | None, limit: int, tail: int) -> LogPart:
        """See `AgentPort`."""
        return await asyncio.to_thread(self._node.read_log, name, offset, limit, tail)


class LocalAgents:
    """The one agent of a cluster on this machine."""

    def __init__(self, node: NodeAgent) -> None:
        self._agent = LocalAgent(node)

    def agent(self, host: str) -> AgentPort:
        """See `AgentsSource`."""
        assert host == self._agent.host, f"{host}: there is only {self._agent.host}"
        return self._agent

    async def remove(self, host: str) -> None:
        """See `AgentsSource`; this host stays."""

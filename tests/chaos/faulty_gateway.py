"""A gateway without HTTP: its membership, roster and engine client, and nothing of vLLM above them.

The test says which instances there are and what to generate; each output that the client lets
through, which is what vLLM's front end would see, is told back.
"""

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import uvloop
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest, FinishReason

from llx.agent.link import InstanceLink
from llx.core.model import InstanceLoad, PoolName, Term
from llx.curve import ClusterKeys
from llx.gateway.engine_client import PoolClient
from llx.gateway.generations import Generations
from llx.gateway.members import Membership
from llx.gateway.placement import Placement
from llx.gateway.roster import Roster
from llx.log import configure_logging
from llx.wire import Member, Members
from tests.chaos.control import Control, Message
from tests.chaos.faults import Faults, wrap_messages

POOL = "tiny"


class _ToldMembership(Membership):
    """Tells the test which instances can be used."""

    control: Control
    told: list[str] | None = None

    def on_ready(self, link: InstanceLink) -> None:
        super().on_ready(link)
        self.tell(link)

    def on_down(self, link: InstanceLink, reason: str) -> None:
        super().on_down(link, reason)
        self.tell(link)

    def on_load(self, link: InstanceLink, load: InstanceLoad) -> None:
        super().on_load(link, load)
        self.tell(link)

    def tell(self, link: InstanceLink) -> None:
        ready = [each.member.instance for each in self._pool(link).roster.ready()]
        if ready != self.told:
            self.told = ready
            self.control.tell("ready", instances=ready)


class _Gateway:
    def __init__(self, control: Control, keys: ClusterKeys) -> None:
        self._control = control
        self._roster = Roster(64)
        placement = Placement()
        self._client = PoolClient(
            None,
            False,
            None,
            pool=PoolName(POOL),
            roster=self._roster,
            placement=placement,
            num_slots=64,
        )
        pool: Any = SimpleNamespace(
            roster=self._roster,
            spec=SimpleNamespace(name=POOL, key=POOL),
            is_open=True,
            client=self._client,
        )
        self._membership = _ToldMembership(
            "gateway", keys, Generations([pool], lambda _: pool), placement
        )
        self._membership.control = control
        self._version = 0

    async def obey(self, command: Message) -> None:
        match command["what"]:
            case "members":
                self._version += 1
                members = [msgspec.convert(each, Member) for each in command["members"]]
                self._membership.apply(Members(Term(1), self._version, members))
                self._membership.told = [each.member.instance for each in self._roster.ready()]
                self._control.tell("ready", instances=self._membership.told)
                self._control.tell("members")
            case "open":
                await self._client.add_request_async(_request(command))
            case "leave":
                await self._client.abort_requests_async([command["request"]])
                self._control.tell("left", request=command["request"])
            case "in-flight":
                self._control.tell("in-flight", num=self._client.num_in_flight)

    async def pass_outputs_on(self) -> None:
        while True:
            batch = await self._client.get_output_async()
            moved = {str(move.request) for move in self._client.moves.last()}
            for each in batch.outputs:
                finish = each.finish_reason
                self._control.tell(
                    "output",
                    request=each.request_id,
                    tokens=list(each.new_token_ids),
                    finish=None if finish is None else FinishReason(finish).name,
                    is_moved=each.request_id in moved,
                )


def _request(command: Message) -> EngineCoreRequest:
    params = SamplingParams(temperature=0.0, max_tokens=command["max_tokens"], ignore_eos=True)
    return EngineCoreRequest(
        request_id=command["request"],
        prompt_token_ids=command["prompt"],
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=command["arrival"],
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def main(control: Control, keys_path: str) -> int:
    """Serve until killed."""
    configure_logging(logging.INFO)
    faults = Faults(control)
    wrap_messages(faults)
    uvloop.run(_serve(control, faults, ClusterKeys.load(Path(keys_path))))
    return 0


async def _serve(control: Control, faults: Faults, keys: ClusterKeys) -> None:
    loop = asyncio.get_running_loop()
    gateway = _Gateway(control, keys)
    commands: asyncio.Queue[Message] = asyncio.Queue()

    def obey(command: Message) -> None:
        if command["what"] in {"members", "open", "leave", "in-flight"}:
            loop.call_soon_threadsafe(commands.put_nowait, command)
        else:
            faults.obey(command)

    control.serve(obey)
    control.tell("phase", phase="ready", addresses=[])
    passing = loop.create_task(gateway.pass_outputs_on())
    while True:
        next_one = loop.create_task(commands.get())
        await asyncio.wait({passing, next_one}, return_when=asyncio.FIRST_COMPLETED)
        if passing.done():
            passing.result()
        await gateway.obey(next_one.result())

"""A gateway without HTTP for a crowd's instances: ``python -m tests.bench.crowd_client DIR RATE``.

Once all instances are connected, requests are placed by the gateway's own code
(`llx.gateway.placement`) over the line to the head, at RATE a second, and sent to the instances
over their real sockets; who owns a stream is judged by `llx.core.streams`, so that moves come
about. One socket reads what all instances say. From the first line on its input on, each placement
is timed; at the second line, what has happened is printed and begins anew.
"""

import asyncio
import json
import random
import secrets
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from llx import __version__
from llx.agent.engine_codec import (
    EngineCoreRequest,
    SamplingParams,
    decode_outputs,
)
from llx.agent.engine_codec import (
    encode as encode_payload,
)
from llx.core.model import ClassName, InstanceId, PoolName, RequestId, Term, Tokens
from llx.core.streams import Streams, Verdict
from llx.curve import ClusterKeys, make_dialer, make_wide
from llx.gateway.placement import Placement, Wanted
from llx.open_files import raise_file_limit
from llx.pins import VLLM_VERSION
from llx.wire import (
    Add,
    AskOwner,
    Decoder,
    FromInstance,
    FromScheduler,
    GatewayHello,
    GatewayReport,
    Hello,
    Load,
    Member,
    Members,
    Moving,
    NotPlaced,
    Outputs,
    Ping,
    Ready,
    Ruling,
    encode,
)

_PING_S = 3.0
_REPORT_S = 2.0
_POLL_S = 0.005


@dataclass
class Seen:
    """What has happened since it was last asked."""

    since: float = field(default_factory=time.monotonic)
    trips_ms: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class Client:
    """One gateway process; also the owner of what it has placed."""

    def __init__(self, folder: Path, load: dict[str, Any]) -> None:
        self._keys = ClusterKeys.load(folder / "state/keys.json")
        self._line_address = (folder / "line").read_text()
        self._load = load
        self._pools = list(load["pools"]), list(load["pools"].values())
        self._num_instances = sum(load["pools"].values())
        self._name = f"gateway-0#{secrets.token_hex(6)}"
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        make_wide(self._context)
        self._out = self._dial()
        self._out.setsockopt(zmq.RCVHWM, 0)
        self._inward: dict[InstanceId, zmq.Socket[Any]] = {}
        self._sessions: dict[InstanceId, int] = {}
        self._by_session: dict[int, InstanceId] = {}
        self._ready: set[InstanceId] = set()
        self._seqs: Counter[InstanceId] = Counter()
        self._streams = Streams()
        self._sources: dict[RequestId, InstanceId] = {}
        self._asked_at: dict[RequestId, float] = {}
        self._known = (Term(0), 0)
        self._decoder: Decoder[FromInstance] = Decoder(FromInstance)
        self._rng = random.Random(1)
        self.placement = Placement()
        self.seen = Seen()

    def _dial(self) -> "zmq.Socket[Any]":
        socket = self._context.socket(zmq.DEALER)
        make_dialer(socket, self._keys)
        socket.setsockopt(zmq.IDENTITY, self._name.encode())
        return socket

    # ------------------------------------------------------------------ the head's line

    async def run(self) -> None:
        context = zmq.asyncio.Context()
        line = context.socket(zmq.DEALER)
        make_dialer(line, self._keys)
        line.setsockopt(zmq.IDENTITY, self._name.encode())
        line.connect(self._line_address)

        def to_scheduler(message: Any) -> bool:
            return line.send(encode(message), zmq.DONTWAIT).exception() is None

        self.placement.use_line(to_scheduler)
        await asyncio.gather(
            self._hear(line), self._beat(line), self._read(), self._renew(), self._ask(),
        )  # fmt: skip

    async def _beat(self, line: zmq.asyncio.Socket) -> None:
        while True:
            term, version = self._known
            hello = GatewayHello("gateway-0", "http://127.0.0.1:1", 1, "localhost", term, version)
            await line.send(encode(hello))
            connected = sorted(self._ready)
            await line.send(encode(GatewayReport("gateway-0", 0, 0, 0, 0, 0, 0, connected)))
            await asyncio.sleep(0.5)

    async def _hear(self, line: zmq.asyncio.Socket) -> None:
        decoder: Decoder[FromScheduler] = Decoder(FromScheduler)
        while True:
            message = decoder.decode((await line.recv_multipart())[0])
            if isinstance(message, Members):
                self._known = (message.term, message.version)
                self._follow(message.members)
                self.placement.hear_term(message.term)
            else:
                self._hear_answer(message)

    def _hear_answer(self, answer: Any) -> None:
        asked_at = self._asked_at.pop(answer.request, None)
        if asked_at is not None:
            self.seen.trips_ms.append((time.monotonic() - asked_at) * 1e3)
            self.seen.counts[type(answer).__name__] += 1
        self.placement.hear(answer)

    # ------------------------------------------------------------------ requests

    async def _ask(self) -> None:
        rate, due = self._load["rate"], time.monotonic()
        number = 0
        while True:
            due += self._rng.expovariate(rate)
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            if len(self._ready) < self._num_instances:
                due = time.monotonic()
                await asyncio.sleep(0.1)
                continue
            number += 1
            now, request = time.monotonic(), RequestId(f"r{number}")
            self._asked_at[request] = now
            tokens = Tokens(self._load["prompt"])
            pool = PoolName(self._rng.choices(*self._pools)[0])
            self.placement.ask(Wanted(pool, request, ClassName("default"), tokens, now), self)

    def placed(self, request: RequestId, instance: InstanceId) -> bool:
        if instance not in self._ready:
            return False
        outputs = self._rng.randint(*self._load["outputs"])
        params = SamplingParams(temperature=0.0, max_tokens=outputs, ignore_eos=True)
        prompt = [1 + self._rng.randrange(900) for _ in range(self._load["prompt"])]
        message = EngineCoreRequest(
            request, prompt, None, params, None, time.time(), None, None, None
        )
        self._seqs[instance] += 1
        epoch = self._streams.own(request, instance)
        self._send(instance, Add(request, epoch, self._seqs[instance]), encode_payload(message))
        return True

    def bypassed(self, request: RequestId) -> None:
        self._asked_at.pop(request, None)
        self.seen.counts["bypassed"] += 1

    def refused(self, _request: RequestId, _answer: NotPlaced) -> None: ...

    # ------------------------------------------------------------------ instances

    def _follow(self, members: list[Member]) -> None:
        for each in members:
            if each.instance not in self._inward:
                socket = self._inward[each.instance] = self._dial()
                socket.connect(each.address_in)
                self._out.connect(each.address_out)
                session = self._sessions[each.instance] = secrets.randbits(62)
                self._by_session[session] = each.instance

    def _send(self, instance: InstanceId, message: Any, *payload: bytes) -> None:
        self._inward[instance].send_multipart([encode(message), *payload], zmq.DONTWAIT)

    async def _renew(self) -> None:
        """Hello to those that have not answered, a ping to those that have."""
        while True:
            for count, (instance, session) in enumerate(list(self._sessions.items())):
                if instance in self._ready:
                    self._send(instance, Ping(session, _REPORT_S))
                else:
                    self._send(
                        instance,
                        Hello(self._name, session, "gateway", __version__, VLLM_VERSION),
                    )
                if count % 20 == 0:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(_PING_S if len(self._ready) == len(self._sessions) else 0.5)

    async def _read(self) -> None:
        """All that instances say; a timer, since steps are long and latencies not theirs."""
        while True:
            for _ in range(200):
                try:
                    frames = self._out.recv_multipart(zmq.DONTWAIT)
                except zmq.Again:
                    break
                self._take(self._decoder.decode(frames[0]), frames[1:])
            await asyncio.sleep(_POLL_S)

    def _take(self, message: Any, payload: list[bytes]) -> None:
        match message:
            case Ready(info=info):
                self._ready.add(info.instance)
            case Outputs(session=session, owners=owners):
                self._outputs(self._by_session[session], owners, payload)
            case Load():
                self.seen.counts["reports here"] += 1
            case Moving(request=request, epoch=epoch, target=target):
                stream = self._streams.get(request)
                if stream is not None:
                    self._sources[request] = stream.owner
                    self._streams.note_target(request, stream.owner, epoch, target)
            case AskOwner(request=request, epoch=epoch):
                self._rule(request, epoch)

    def _outputs(self, sender: InstanceId, owners: list[Any], payload: list[bytes]) -> None:
        for output, (epoch, offset) in zip(decode_outputs(payload).outputs, owners, strict=True):
            request, num_new = RequestId(output.request_id), len(output.new_token_ids)
            stream = self._streams.get(request)
            former = None if stream is None else stream.owner
            verdict = self._streams.judge(request, sender, epoch, offset, num_new)
            self.seen.counts[f"output {verdict.value}"] += 1
            if verdict is Verdict.MOVES and former is not None:
                self._send(former, Ruling(request, epoch, is_yours=False))
            if output.finish_reason is not None and verdict in {Verdict.COUNTS, Verdict.MOVES}:
                self._streams.end(request)
                self.seen.counts["finished"] += 1

    def _rule(self, request: RequestId, epoch: Any) -> None:
        """The one socket does not say who asks: it is who said last that it gives this away."""
        source = self._sources.get(request)
        if source is None:
            return
        answer = self._streams.ask(request, source, epoch)
        if answer is not None:
            self._send(source, Ruling(request, answer.epoch, answer.is_yours))

    def told(self) -> dict[str, Any]:
        """What has happened, and begin anew."""
        seen, self.seen = self.seen, Seen()
        return {
            "seconds": time.monotonic() - seen.since,
            "ready": len(self._ready),
            "streams": len(self._streams),
            "trips_ms": seen.trips_ms,
            "counts": seen.counts,
        }


async def main() -> None:
    raise_file_limit()
    client = Client(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2]))
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(client.run())
    while not running.done():
        asked = loop.run_in_executor(None, sys.stdin.readline)
        await asyncio.wait([asked, running], return_when=asyncio.FIRST_COMPLETED)
        if asked.done() and not asked.result():
            break
        sys.stdout.write(json.dumps(client.told()) + "\n")
        sys.stdout.flush()
    if running.done():
        running.result()


if __name__ == "__main__":
    asyncio.run(main())

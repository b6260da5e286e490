"""Hundreds of stand-ins for instances on one thread: ``python -m tests.bench.stand_ins SPEC``.

To the head and the client they are instances: sockets, keys, sessions, reports, outputs, answers.
There is no engine behind them: a request that comes runs at once, has a token more at every step,
and its outputs are sent in one message at its end. So a machine of two cores has 5,000 reports a
second, which as many whole engines (`tests.bench.crowd`) cannot make. Asked to move a request by a
rule they say that they have none to move.

Besides what they run, each lists `listed` requests that wait there, for verbs that list. Says where
each can be reached, serves until its input ends.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from llx import __version__
from llx.agent.engine_codec import (
    EngineCoreOutput,
    EngineCoreOutputs,
    FinishReason,
    decode_request,
)
from llx.agent.engine_codec import encode as encode_payload
from llx.core.model import Epoch, InstanceId, Nanos, PoolName, RequestId
from llx.curve import Authenticator, ClusterKeys, make_listener, make_wide
from llx.open_files import raise_file_limit
from llx.pins import VLLM_VERSION
from llx.specs import SimSpec
from llx.wire import (
    NO_SESSION,
    Abort,
    Add,
    Bye,
    Call,
    Decoder,
    Hello,
    InstanceInfo,
    Load,
    MigrateOrder,
    MigrationNews,
    Outputs,
    Ping,
    Ready,
    Refused,
    Reply,
    ToInstance,
    encode,
    oldest_of,
)
from llx.wire import RequestView as View

_LEASE_S: Final = 10.0
_POLL_MS: Final = 10
_AT_LEAST_S: Final = 0.02
_TOKEN: Final = 7
_LIST: Final = "llx_requests"
_OLDEST: Final = "llx_oldest_requests"


class StandInsSpec(msgspec.Struct, frozen=True):
    """Which of them a process has. `listed`: see the module."""

    names: list[str]
    pool: str
    keys_path: str
    sim: SimSpec
    listed: int = 0


@dataclass(slots=True)
class _Peer:
    session: int
    role: str
    expires_at: float
    every_s: float = 0.0
    reported_at: float = 0.0
    seen: int = 0
    covers: list[RequestId] = field(default_factory=list)
    reported: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Running:
    peer: bytes
    epoch: Epoch
    num_prompt: int
    num_outputs: int
    began: float


class StandIn:
    """One of them."""

    def __init__(self, name: str, spec: StandInsSpec, context: "zmq.Context[Any]") -> None:
        keys = ClusterKeys.load(Path(spec.keys_path))
        self._sim = spec.sim
        self._step_s = spec.sim.step_base_ms / 1e3
        self.inward, self._outward = (context.socket(zmq.ROUTER) for _ in range(2))
        for socket in (self.inward, self._outward):
            make_listener(socket, keys)
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
            socket.bind("tcp://127.0.0.1:*")
        self._info = InstanceInfo(
            instance=InstanceId(name), pool=PoolName(spec.pool), engine="sim",
            llx_version=__version__, vllm_version=VLLM_VERSION, model="/m",
            num_blocks=spec.sim.num_blocks, block_size=spec.sim.block_size, max_model_len=4096,
            max_num_seqs=spec.sim.max_num_seqs,
            max_num_batched_tokens=spec.sim.max_num_batched_tokens,
            tensor_parallel=1, pid=os.getpid(), compatibility="stand-in",
        )  # fmt: skip
        self._peers: dict[bytes, _Peer] = {}
        self._running: dict[RequestId, _Running] = {}
        self._parked = [
            View(f"cmpl-{name}-{n}-0", f"llx-{name}-{n}", 0, 0, "waiting", 16, 16, 0, 0, 1.7e9 + n)
            for n in range(spec.listed)
        ]

    @property
    def addresses(self) -> tuple[str, str]:
        last = (each.getsockopt_string(zmq.LAST_ENDPOINT) for each in (self.inward, self._outward))
        inward, outward = map(str, last)
        return inward, outward

    def hear(self, decoder: "Decoder[ToInstance]") -> None:
        """All that has come."""
        while True:
            try:
                identity, header, *payload = self.inward.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._take(identity, decoder.decode(header), payload, time.monotonic())

    def _take(self, identity: bytes, message: Any, payload: list[bytes], now: float) -> None:
        peer = self._peers.get(identity)
        match message:
            case Hello(session=session, role=role):
                if peer is None or peer.session != session:
                    self._end(identity)
                    self._peers[identity] = peer = _Peer(session, role, 0.0)
                peer.expires_at, peer.reported = now + _LEASE_S, None
                self._say(identity, Ready(session, self._info, b""))
            case Ping(session=session):
                if peer is None:
                    self._say(identity, Refused(session, NO_SESSION))
                else:
                    peer.expires_at, peer.every_s = now + _LEASE_S, message.report_every_s
            case _ if peer is None:
                pass
            case Bye():
                self._end(identity)
            case Add(request=request, epoch=epoch, seq=seq):
                peer.seen = seq
                self._add(identity, request, epoch, payload, now)
            case Abort(requests=requests):
                for request, _ in requests:
                    self._running.pop(request, None)
            case Call(call=call, method=method):
                self._answer(identity, call, method, payload, now)
            case MigrateOrder(migration=migration, target=target):
                news = MigrationNews(
                    migration, RequestId(""), "", target.instance, "idle", Epoch(0),
                    is_over=True, outcome="none",
                )  # fmt: skip
                self._say(identity, news)

    def _add(
        self, peer: bytes, request: RequestId, epoch: Epoch, payload: Sequence[bytes], now: float
    ) -> None:
        asked = decode_request(payload)
        params, prompt = asked.sampling_params, asked.prompt_token_ids or []
        num_outputs = (params.max_tokens if params is not None else None) or 16
        self._running[request] = _Running(peer, epoch, len(prompt), num_outputs, now)
        for each in self._peers.values():
            if each.role == "scheduler":
                each.covers.append(request)

    def _answer(
        self, peer: bytes, call: int, method: str, payload: Sequence[bytes], now: float
    ) -> None:
        if method not in (_LIST, _OLDEST):
            self._say(peer, Reply(call, f"{method!r} is not an admitted utility"))
            return
        running = [
            View(request, request, 0, 0, "running", each.num_prompt, self._tokens(each, now),
                 self._blocks(each, now), 0, time.time() + each.began - now)
            for request, each in self._running.items()
        ]  # fmt: skip
        views = [*running, *self._parked]
        if method == _LIST:
            self._say(peer, Reply(call), encode_payload(views))
        else:
            (count,) = msgspec.msgpack.decode(payload[0], type=tuple[int])
            self._say(peer, Reply(call), encode_payload(oldest_of(views, count)))

    def _end(self, peer: bytes) -> None:
        self._peers.pop(peer, None)
        for request in [key for key, each in self._running.items() if each.peer == peer]:
            del self._running[request]

    # ------------------------------------------------------------------ as time goes by

    def step(self, now: float) -> float:
        """End what has all its tokens, and report what has changed; returns when to look again."""
        over = [
            (request, each)
            for request, each in self._running.items()
            if self._tokens(each, now) >= each.num_prompt + each.num_outputs
        ]
        for request, each in over:
            del self._running[request]
            self._finish(request, each)
        for identity, peer in list(self._peers.items()):
            if peer.expires_at < now:
                self._end(identity)
            elif peer.reported is None or now - peer.reported_at >= peer.every_s:
                self._report(identity, peer, now)
        due = [each.reported_at + each.every_s for each in self._peers.values() if each.reported]
        return max(now + _AT_LEAST_S, min(due, default=now + self._step_s))

    def _finish(self, request: RequestId, each: _Running) -> None:
        tokens = [_TOKEN] * each.num_outputs
        output = EngineCoreOutput(request, tokens, finish_reason=FinishReason.LENGTH)
        outputs = EngineCoreOutputs(outputs=[output], timestamp=time.monotonic())
        session = self._peers[each.peer].session
        self._say(each.peer, Outputs(session, [(each.epoch, 0)]), encode_payload(outputs))

    def _report(self, identity: bytes, peer: _Peer, now: float) -> None:
        used = sum(self._blocks(each, now) for each in self._running.values())
        figures = (used, len(self._running), peer.seen)
        if figures == peer.reported and not peer.covers:
            return
        peer.reported, peer.reported_at, total = figures, now, self._sim.num_blocks
        running = len(self._running)
        load = Load(
            peer.session, peer.seen, Nanos(time.monotonic_ns()), total, max(0, total - used),
            self._sim.block_size, running, 0, 0, 0, 0,
            {0: (running, 0, 0)} if running else {}, peer.covers, None, 0,
        )  # fmt: skip
        peer.covers = []
        self._say(identity, load)

    def _tokens(self, each: _Running, now: float) -> int:
        return each.num_prompt + min(each.num_outputs, int((now - each.began) / self._step_s))

    def _blocks(self, each: _Running, now: float) -> int:
        return -(-self._tokens(each, now) // self._sim.block_size)

    def _say(self, peer: bytes, message: Any, *payload: bytes) -> None:
        self._outward.send_multipart([peer, encode(message), *payload], zmq.DONTWAIT)


def serve(them: Sequence[StandIn]) -> None:
    """For ever."""
    poller, decoder = zmq.Poller(), Decoder[ToInstance](ToInstance)
    by_socket = {each.inward: each for each in them}
    for socket in by_socket:
        poller.register(socket, zmq.POLLIN)
    due = [(0.0, number) for number in range(len(them))]
    while True:
        for socket, _ in poller.poll(_POLL_MS):
            by_socket[socket].hear(decoder)
        now = time.monotonic()
        while due[0][0] <= now:
            _, number = heappop(due)
            heappush(due, (them[number].step(now), number))


def main() -> None:
    raise_file_limit()
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=StandInsSpec)
    context: zmq.Context[Any] = zmq.Context(io_threads=1)
    make_wide(context)
    Authenticator(context, ClusterKeys.load(Path(spec.keys_path)))
    them = [StandIn(name, spec, context) for name in spec.names]
    addresses = {name: each.addresses for name, each in zip(spec.names, them, strict=True)}
    threading.Thread(target=serve, args=(them,), daemon=True).start()
    print(json.dumps(addresses), flush=True)
    sys.stdin.read()  # ends with whoever started this, however that ends


if __name__ == "__main__":
    main()
    os._exit(0)

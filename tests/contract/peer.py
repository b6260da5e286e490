"""A peer of an instance, speaking raw wire messages over blocking sockets.

Everything that arrives is filed by kind; `until` reads on until a condition holds. Offsets and
epochs of outputs are checked as they come.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import msgspec
import zmq

from llx import __version__
from llx.agent.engine_codec import (
    EngineCoreOutput,
    EngineCoreRequest,
    FinishReason,
    SamplingParams,
    decode_outputs,
    encode,
)
from llx.core.model import Epoch, RequestId, Term
from llx.core.prefix_blocks import unpacked
from llx.curve import ClusterKeys, make_dialer
from llx.pins import VLLM_VERSION
from llx.ports import Frame
from llx.wire import (
    Abort,
    Add,
    Bye,
    Call,
    Dead,
    Decoder,
    FromInstance,
    Hello,
    Load,
    Outputs,
    Ping,
    Prefixes,
    Ready,
    Refused,
    Reply,
    ToInstance,
)
from llx.wire import encode as encode_header

WAIT_S = 30.0
_PING_EVERY_S = 0.2
_sessions = itertools.count(1000)
_names = itertools.count()


@dataclass
class Stream:
    """What has come of one request under one epoch."""

    epoch: int
    tokens: list[int] = field(default_factory=list)
    outputs: list[EngineCoreOutput] = field(default_factory=list)
    finish: FinishReason | None = None


class Peer:
    """One session with one instance."""

    def __init__(
        self,
        keys: ClusterKeys,
        address_in: str,
        address_out: str,
        *,
        name: str | None = None,
        vllm_version: str = VLLM_VERSION,
        llx_version: str = __version__,
        is_pinging: bool = True,
    ) -> None:
        self.name = name or f"peer-{next(_names)}"
        self.session = next(_sessions)
        self.streams: dict[tuple[str, int], Stream] = {}
        self.loads: list[Load] = []
        self.replies: dict[int, tuple[Reply, list[bytes]]] = {}
        self.ready: Ready | None = None
        self.refused: Refused | None = None
        self.dead: Dead | None = None
        self.is_pinging = is_pinging
        self.prefix_ask = 0
        self.cached: set[int] = set()
        """By what was told since it asked."""
        self.num_prefix_reports = 0
        self._versions = (llx_version, vllm_version)
        self._seqs = itertools.count(1)
        self._calls = itertools.count(1)
        self._decoder: Decoder[FromInstance] = Decoder(FromInstance)
        self._context = zmq.Context()
        self._in, self._out = (self._dial(keys, each) for each in (address_in, address_out))
        self._ping_at = 0.0

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Vanish without a goodbye."""
        self._context.destroy(linger=2000)

    def _dial(self, keys: ClusterKeys, address: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.DEALER)
        make_dialer(socket, keys)
        socket.setsockopt(zmq.IDENTITY, self.name.encode())
        socket.connect(address)
        return socket

    # ---------------------------------------------------------------- to the instance

    def send(self, message: ToInstance, payload: Sequence[Frame] = ()) -> None:
        self.send_raw([encode_header(message), *payload])

    def send_raw(self, frames: Sequence[Frame]) -> None:
        self._in.send_multipart(list(frames))

    def say_hello(self, peer: str | None = None) -> None:
        llx_version, vllm_version = self._versions
        self.send(
            Hello(peer or self.name, self.session, "gateway", llx_version, vllm_version, Term(0))
        )

    def join(self) -> Ready:
        """Open the session; hello is repeated, as the way back may not stand yet."""
        deadline = time.monotonic() + WAIT_S
        while self.ready is None and self.refused is None:
            assert time.monotonic() < deadline, "no answer to hello"
            self.say_hello()
            self.read(0.1)
        assert self.ready is not None, f"refused: {self.refused}"
        return self.ready

    def add(
        self,
        request: str,
        prompt: Sequence[int],
        *,
        epoch: int = 1,
        max_tokens: int = 8,
        priority: int = 0,
        params: SamplingParams | None = None,
        outputs: Sequence[int] = (),
    ) -> Stream:
        message = EngineCoreRequest(
            request,
            list(prompt),
            None,
            params or SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True),
            None,
            time.time(),
            None,
            None,
            None,
            priority=priority,
            external_req_id=request,
        )
        return self.add_raw(request, [encode(message)], epoch=epoch, outputs=outputs)

    def add_raw(
        self,
        request: str,
        payload: Sequence[Frame],
        *,
        epoch: int = 1,
        outputs: Sequence[int] = (),
    ) -> Stream:
        """Send an ADD; `outputs` are tokens that it has already, and so has its stream."""
        stream = self.streams.setdefault((request, epoch), Stream(epoch, list(outputs)))
        header = Add(RequestId(request), Epoch(epoch), next(self._seqs), outputs=list(outputs))
        self.send(header, payload)
        return stream

    def abort(self, request: str, epoch: int = 1) -> None:
        self.send(Abort([(RequestId(request), Epoch(epoch))]))

    def bye(self) -> None:
        self.send(Bye(self.session))

    def call(self, method: str, *arguments: object) -> tuple[Reply, Any]:
        """Call a utility; returns the reply and its plain result."""
        call = next(self._calls)
        self.send(Call(call, method), [encode(list(arguments))])
        self.until(lambda: call in self.replies)
        reply, frames = self.replies[call]
        return reply, msgspec.msgpack.decode(frames[0]) if frames else None

    def sync(self) -> None:
        """Return when the engine has taken in everything sent before."""
        self.call("is_sleeping")

    # ---------------------------------------------------------------- from the instance

    def until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"{self.name}: nothing came of it in {timeout_s} s"
            self.read(min(left, 0.1))

    def until_load(self, condition: Callable[[Load], bool], timeout_s: float = WAIT_S) -> None:
        """Until a report like that is the latest; the first may come after the first tokens."""
        self.until(lambda: bool(self.loads) and condition(self.loads[-1]), timeout_s)

    def finish(self, *streams: Stream) -> None:
        self.until(lambda: all(stream.finish is not None for stream in streams))

    def read(self, timeout_s: float) -> bool:
        """File what arrives first within `timeout_s`; renews the lease on the way."""
        if self.is_pinging and time.monotonic() >= self._ping_at:
            self._ping_at = time.monotonic() + _PING_EVERY_S
            self.send(Ping(self.session, prefixes=self.prefix_ask))
        if not self._out.poll(round(timeout_s * 1000)):
            return False
        header, *payload = self._out.recv_multipart()
        self._file(self._decoder.decode(header), payload)
        return True

    def _file(self, message: FromInstance, payload: list[bytes]) -> None:
        match message:
            case Outputs(session=session):
                if session == self.session:  # an older one of this name may have some under way
                    self._file_outputs(message, payload)
            case Load(session=session):
                if session == self.session:
                    self.loads.append(message)
            case Prefixes():
                self._file_prefixes(message)
            case Reply(call=call):
                self.replies[call] = (message, payload)
            case Ready(session=session):
                if session == self.session:
                    self.ready = message
            case Refused(session=session):
                if session == self.session:
                    self.refused = message
            case Dead():
                self.dead = message

    def _file_prefixes(self, message: Prefixes) -> None:
        if message.session != self.session:
            return
        assert (message.ask, message.number) == (self.prefix_ask, self.num_prefix_reports)
        assert message.is_whole or message.number, "the first one has everything"
        self.num_prefix_reports += 1
        known = set() if message.is_whole else self.cached
        self.cached = (known | set(unpacked(message.added))) - set(unpacked(message.removed))

    def _file_outputs(self, message: Outputs, payload: list[bytes]) -> None:
        outputs = decode_outputs(payload).outputs
        assert len(outputs) == len(message.owners)
        for output, (epoch, offset) in zip(outputs, message.owners, strict=True):
            stream = self.streams[(output.request_id, epoch)]
            assert stream.finish is None, f"{output.request_id}: an output after the last"
            assert offset == len(stream.tokens), f"{output.request_id}: a gap or a repetition"
            stream.tokens.extend(output.new_token_ids)
            stream.outputs.append(output)
            stream.finish = output.finish_reason

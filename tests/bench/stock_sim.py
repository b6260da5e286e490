"""vLLM's own API server, unmodified, on the simulated engine: the baseline of `overhead.py`.

    python tests/bench/stock_sim.py --model DIR --port P --step-ms 8 [options of vLLM's server]

The same `SimEngine` as an instance's, in a process of its own, behind the sockets that vLLM's front
end expects of an engine core (``EngineCoreProc.process_input_sockets`` and its sibling for outputs)
instead of llx's endpoint. So what `overhead.py` measures is the gateway and the endpoint, and not
the engine. Run by the node environment's Python.
"""

import argparse
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq

from llx.agent.engine_codec import EngineCoreOutputs, UtilityOutput, encode
from llx.agent.sim_core import SimEngine
from llx.agent.sim_engine import CoreThread, make_engine, ready_response
from llx.agent.sim_model import read_model
from llx.core.model import Epoch, RequestId
from llx.ports import Frame
from llx.specs import SimSpec
from llx.wire import Add, Call, FromInstance, Load, Outputs, Reply

Payload = Callable[[], Sequence[Frame]]
ADD, ABORT, UTILITY = b"\x00", b"\x01", b"\x03"
ENGINE_IDENTITY = (0).to_bytes(2, "little")


class RequestName(msgspec.Struct, array_like=True):
    """The first field of vLLM's EngineCoreRequest; the rest is skipped."""

    request_id: str


class StockSockets:
    """An engine core's side of vLLM's front end; implements `llx.agent.sim_core.Outlet`."""

    def __init__(self, address_in: str, address_out: str, ready: bytes) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._in = self._connect(zmq.DEALER, address_in)
        self._out = self._connect(zmq.PUSH, address_out)
        self._in.send(ready)
        self._outbox: queue.SimpleQueue[tuple[FromInstance, Payload | None]] = queue.SimpleQueue()

    def _connect(self, kind: int, address: str) -> "zmq.Socket[Any]":
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        if kind == zmq.DEALER:
            socket.setsockopt(zmq.IDENTITY, ENGINE_IDENTITY)
        socket.connect(address)
        return socket

    def emit(self, peer: int, message: FromInstance, payload: Payload | None = None) -> None:
        self._outbox.put((message, payload))

    def report(self, load: Load, seen: dict[int, int]) -> None:
        pass

    def send_loop(self) -> None:
        while True:
            message, payload = self._outbox.get()
            frames = payload() if payload is not None else [encode(None)]
            if isinstance(message, Reply):
                result = msgspec.msgpack.decode(frames[0])
                output = UtilityOutput(message.call, message.error or None, (None, result))
                frames = [encode(EngineCoreOutputs(utility_output=output))]
            assert isinstance(message, Outputs | Reply)
            self._out.send_multipart(frames, copy=False)

    def receive_loop(self, engine: SimEngine) -> None:
        names = msgspec.msgpack.Decoder(RequestName)
        num_adds = 0
        while True:
            kind, *payload = [frame.buffer for frame in self._in.recv_multipart(copy=False)]
            if kind == ADD:
                num_adds += 1
                name = RequestId(names.decode(payload[0]).request_id)
                engine.add(0, Add(name, Epoch(1), num_adds), payload)
            elif kind == ABORT:
                aborted = msgspec.msgpack.decode(payload[0], type=list[str])
                engine.abort(0, [(RequestId(each), Epoch(1)) for each in aborted])
            elif kind == UTILITY:
                _client, call, method, _arguments = msgspec.msgpack.decode(payload[0])
                engine.call(0, Call(call, method), [])


def run_engine(model: str, sim: SimSpec, address_in: str, address_out: str) -> None:
    """The engine's process; ends with its standard input."""
    facts = read_model(model, {})
    engine, config = make_engine(sim, facts)
    ready = encode(ready_response(config, dtype=facts.dtype, name="stock"))
    sockets = StockSockets(address_in, address_out, ready)
    CoreThread(engine, sockets).start()
    threading.Thread(target=sockets.send_loop, daemon=True).start()
    threading.Thread(target=sockets.receive_loop, args=(engine,), daemon=True).start()
    sys.stdin.read()


def run_server(model: str, rest: list[str], address_in: str, address_out: str) -> None:
    """vLLM's API server, told that its engine is managed by somebody else."""
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import setup_server
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    ours = [f"--model={model}", "--host=127.0.0.1", "--scheduling-policy=priority"]
    args = parser.parse_args([*ours, "--enforce-eager", "--disable-uvicorn-access-log", *rest])
    validate_parsed_serve_args(args)
    address, listener = setup_server(args, reuse_port=False)
    engine = {"input_address": address_in, "output_address": address_out}
    uvloop.run(run_server_worker(address, listener, args, client_config=engine))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--step-ms", type=float, default=8.0, help="fixed length of a step")
    parser.add_argument("--engine", nargs=2, metavar=("IN", "OUT"), help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    if args.engine is not None:
        sim = SimSpec(
            step_base_ms=args.step_ms,
            step_ms_per_prefill_token=0.0,
            step_ms_per_decode=0.0,
            step_ms_per_context_ktoken=0.0,
        )
        run_engine(args.model, sim, *args.engine)
        return
    with tempfile.TemporaryDirectory(prefix="stock-sim-") as folder:
        addresses = [f"ipc://{Path(folder) / name}" for name in ("in", "out")]
        engine = subprocess.Popen(
            [sys.executable, __file__, f"--model={args.model}", f"--step-ms={args.step_ms}",
             "--engine", *addresses],
            stdin=subprocess.PIPE,
        )  # fmt: skip
        try:
            run_server(args.model, rest, *addresses)
        finally:
            engine.send_signal(signal.SIGTERM)
            engine.wait()


if __name__ == "__main__":
    main()

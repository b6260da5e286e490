"""A gateway without an API: real line to the scheduler, made-up requests in flight.

The first pool's `serve_args` say how it behaves: ``fake``: ready (default), taken; ``in_flight``:
requests in hand; ``finish_s``: how long they take to finish once it is told to stop (default 0),
unless there is a file ``finish`` in the gateway's directory: then they finish at once.

A pool of which the model is ``/unusable`` cannot be served, unless there is a file ``mended`` in
the gateway's directory when it is tried.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import zmq
import zmq.asyncio

from llx.agent.link import peer_of_process
from llx.core.model import Term
from llx.curve import ClusterKeys, make_dialer
from llx.gateway.scheduler_address import SchedulerAddress
from llx.specs import GatewaySpec, Phase, StatusFile, load_spec
from llx.wire import (
    Decoder,
    FromScheduler,
    GatewayHello,
    GatewayReport,
    Members,
    PoolOffer,
    Unusable,
    encode,
)

signal.alarm(600)  # whatever becomes of the test


class FakeGateway:
    def __init__(self, spec: GatewaySpec, scheduler: SchedulerAddress) -> None:
        self.scheduler = scheduler
        args = spec.pools[0].serve_args
        self.spec = spec
        self.in_flight = int(args.get("in_flight", 0))
        self.finish_s = float(args.get("finish_s", 0))
        self.finished = 0
        self.known = (Term(0), 0)
        self.connected: list = []
        self.open: list = []
        self.unusable: dict = {}
        self.stop_at: float | None = None

    async def run(self) -> None:
        context = zmq.asyncio.Context()
        dealer = context.socket(zmq.DEALER)
        make_dialer(dealer, ClusterKeys.load(Path(self.spec.keys_path)))
        dealer.setsockopt(zmq.IDENTITY, peer_of_process(self.spec.name).encode())
        address = self.scheduler.now()
        dealer.connect(address)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        receiver = asyncio.create_task(self.receive(dealer))
        while not (self.stop_at is not None and self.in_flight == 0):
            self.work()
            if self.scheduler.now() != address:
                dealer.disconnect(address)
                address = self.scheduler.now()
                dealer.connect(address)
            hello = GatewayHello(
                self.spec.name, "http://127.0.0.1:1", os.getpid(), self.spec.on_host, *self.known
            )
            await dealer.send(encode(hello))
            await dealer.send(encode(self.report()))
            await asyncio.sleep(0.02)
        receiver.cancel()
        dealer.close(500)
        context.term()

    def stop(self) -> None:
        self.stop_at = time.monotonic()

    def work(self) -> None:
        if self.stop_at is None:
            return
        if time.monotonic() >= self.stop_at + self.finish_s or Path("finish").exists():
            self.in_flight, self.finished = 0, self.in_flight

    def report(self) -> GatewayReport:
        total = self.in_flight + self.finished
        return GatewayReport(
            self.spec.name, self.in_flight, total, self.finished, 0, 7, 70, self.connected,
            open=self.open, unusable=self.unusable,
        )  # fmt: skip

    def serve(self, offers: list[PoolOffer]) -> None:
        for offer in offers:
            key = offer.spec.key
            known = self.unusable.get(key)
            if offer.spec.model == "/unusable" and (known is None or known.attempt < offer.attempt):
                self.unusable[key] = Unusable(offer.attempt, "no tokenizer")
                if Path("mended").exists():
                    del self.unusable[key]

    async def receive(self, dealer: zmq.asyncio.Socket) -> None:
        decoder: Decoder = Decoder(FromScheduler)
        while True:
            message = decoder.decode((await dealer.recv_multipart())[0])
            assert isinstance(message, Members)
            if (message.term, message.version) > self.known:
                self.known = (message.term, message.version)
                pools = {pool.key for pool in self.spec.pools}
                pools |= {each.spec.key for each in message.pools}
                self.serve(message.pools)
                self.open = sorted(pools - self.unusable.keys())
                mine = [each for each in message.members if each.pool in pools]
                self.connected = [each.instance for each in mine]
                cordoned = ",".join(each.instance for each in mine if each.is_cordoned)
                names = ",".join(self.connected)
                tenants = [each.tenant for each in message.api_keys or []]
                print(f"let in: {','.join(tenants)}", flush=True)
                print(f"members term={message.term} {names}", flush=True)
                print(f"cordoned: {cordoned}", flush=True)


def main() -> int:
    spec = load_spec(Path(sys.argv[1]), GatewaySpec)
    status = StatusFile(Path(spec.status_path))
    if spec.pools[0].serve_args.get("fake") == "taken":
        status.write(Phase.FAILED, "127.0.0.1:8000: Address already in use")
        return 5
    status.write(Phase.READY, addresses=["http://127.0.0.1:1"])
    scheduler = SchedulerAddress(Path(sys.argv[1]), spec.scheduler_address)
    asyncio.run(FakeGateway(spec, scheduler).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Two instances, a gateway and a scheduler's ears, of which all but the last can be harmed."""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import zmq

from llx import __version__
from llx.agent.sim_model import read_model
from llx.core.engine_state import EngineRequest
from llx.core.model import InstanceId, MigrationId, Nanos, PoolName, RequestId, Term
from llx.core.token_model import HashedTokens
from llx.curve import ClusterKeys
from llx.pins import VLLM_VERSION
from llx.specs import EngineKind, InstanceSpec, MigrationSpec, SimSpec, save_spec
from llx.wire import (
    CancelMigration,
    FromInstance,
    Hello,
    Member,
    MigrateOrder,
    MigrationNews,
    Target,
)
from tests.chaos.children import Child, Zygote
from tests.chaos.forwarder import Forwarder, Switchboard
from tests.contract.peer import Peer

POOL = "tiny"
SIM = SimSpec(
    step_base_ms=6.0,
    num_blocks=600,
    block_size=4,
    max_num_seqs=8,
    max_num_batched_tokens=1024,
    kv_bytes_per_token=256,
)
MIGRATION = MigrationSpec(
    max_out=1, max_in=2, chunk_bytes=16 << 10, bandwidth_bytes_s=300_000, checksum=True
)
"""Few at a time: what is left of a move is in the way of those after it. And so slow that a request
grows by some blocks during the first stage."""
MODEL = {"vocab_size": 768, "max_position_embeddings": 4096, "dtype": "float32"}
NUM_PROMPT = 200
NUM_LASTING = 2000
"""Tokens that a stream would have: it must not end while it is to be moved, however long that takes
on a machine that is busy."""
NUM_TO_END = 700
"""Those of one that is read to its end."""
NUM_READ_ON = 8
"""A stream that has so many tokens more goes on."""
QUICK_S = 20.0
"""What takes no waiting for anybody's deadline is done by then, on a machine that is very busy."""
ROLES = {"source": "a", "target": "b"}


class Scheduler(Peer):
    """What the scheduler is to an instance; keeps what it hears of migrations."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.news: dict[str, MigrationNews] = {}

    @property
    def socket(self) -> "zmq.Socket[bytes]":
        """For pollers."""
        return self._out

    def say_hello(self, peer: str | None = None) -> None:
        versions = (__version__, VLLM_VERSION)
        self.send(Hello(peer or self.name, self.session, "scheduler", *versions, Term(1)))

    def _file(self, message: FromInstance, payload: list[bytes]) -> None:
        if isinstance(message, MigrationNews):
            self.news[message.migration] = message
        else:
            super()._file(message, payload)


@dataclass
class Client:
    """What a client has read of one request."""

    request: str
    expected: list[int]
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    is_moved: bool = False


@dataclass
class Place:
    """An instance, and the ways to it."""

    child: Child
    addresses: list[str]
    to_gateway: list[Forwarder]
    to_llumlet: list[Forwarder]
    scheduler: Scheduler

    def close(self) -> None:
        self.child.kill()
        self.scheduler.close()
        for each in (*self.to_gateway, *self.to_llumlet):
            each.close()


class Model:
    """What the simulated engine says to a prompt that stays where it is."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model"
        self.path.mkdir()
        (self.path / "config.json").write_text(json.dumps(MODEL))
        self.facts = read_model(str(self.path), {})

    def answer(self, prompt: list[int], num_tokens: int) -> list[int]:
        num_blocks = -(-(len(prompt) + num_tokens) // SIM.block_size)
        tokens = HashedTokens(
            self.facts.vocabulary,
            num_blocks=num_blocks,
            block_size=SIM.block_size,
            bytes_per_token=SIM.kv_bytes_per_token,
        )
        asked = EngineRequest(RequestId("r"), tuple(prompt), num_tokens, Nanos(0))
        said, blocks = list(prompt), list(range(num_blocks))
        tokens.compute(said, 0, len(prompt), blocks)
        for _ in range(num_tokens):
            said.append(tokens.sample(asked, len(said), blocks, frozenset()))
            tokens.compute(said, len(said) - 1, len(said), blocks)
        return said[len(prompt) :]


class World:
    """The processes of one worker, and what they have said. Used by one thread."""

    def __init__(
        self, zygote: Zygote, switchboard: Switchboard, folder: Path, model: Model, name: str
    ) -> None:
        self._zygote = zygote
        self._switchboard = switchboard
        self._folder = folder / name
        self._folder.mkdir()
        self.keys = ClusterKeys.create()
        self.keys.save(self._folder / "keys.json")
        self._model = model
        self._numbers = itertools.count(1)
        self.places: dict[str, Place] = {}
        self.gateway: Child | None = None
        self.ready: list[str] = []
        self.clients: dict[str, Client] = {}
        self.logs: list[Path] = []
        self._born: list[Child] = []
        self.counts: dict[str, Any] = {}
        """Threads and descriptors of each process, by its name, after the world's first move."""

    # ------------------------------------------------------------------ life and death

    def mend(self, *, is_tcp: bool = False) -> None:
        """Start whoever is dead, and wait until all know each other."""
        is_changed = False
        for name in ROLES.values():
            place = self.places.get(name)
            if place is None or not place.child.is_alive:
                if place is not None:
                    place.close()
                self.places[name] = self._start(name)
                is_changed = True
        if self.gateway is None or not self.gateway.is_alive:
            self.gateway = self._fork("gateway", "gateway", self._folder / "keys.json")
            is_changed = True
        if is_changed:
            self._tell_members(is_target_open=False)
        for child in list(self.children()):
            child.reins.tell("clear", is_tcp=is_tcp)
            self.answer(child, "clear")
        self.until(lambda: sorted(self.ready) == ["a", "b"], "the gateway reaches all", QUICK_S)

    def listen_anew(self, name: str) -> None:
        """Open another session of the scheduler with an instance: the one before has ended."""
        place = self.places[name]
        place.scheduler.close()
        place.scheduler = Scheduler(self.keys, *place.addresses)
        place.scheduler.join()

    def children(self) -> list[Child]:
        """All that live."""
        self._born = [each for each in self._born if each.is_alive]
        return self._born

    def child(self, party: str) -> Child:
        """``source``, ``target`` or ``gateway``."""
        child = self.gateway if party == "gateway" else self.places[ROLES[party]].child
        assert child is not None, "it was started"
        return child

    def close(self) -> None:
        """End all."""
        for place in self.places.values():
            place.close()
        if self.gateway is not None:
            self.gateway.kill()

    def _start(self, name: str) -> Place:
        spec = InstanceSpec(
            name=name,
            pool=POOL,
            engine=EngineKind.SIM,
            model=str(self._model.path),
            engine_args={},
            tensor_parallel=1,
            bind_host="127.0.0.1",
            keys_path=str(self._folder / "keys.json"),
            status_path=str(self._folder / f"{name}.status"),
            sim=SIM,
            migration=MIGRATION,
        )
        save_spec(self._folder / f"{name}.json", spec)
        child = self._fork(name, "instance", self._folder / f"{name}.json")
        phase = self.answer(child, "phase", lambda said: said["phase"] == "ready")
        ways = [
            [Forwarder(self._switchboard, each) for each in phase["addresses"]] for _ in range(2)
        ]
        scheduler = Scheduler(self.keys, *phase["addresses"])
        scheduler.join()
        return Place(child, phase["addresses"], *ways, scheduler)

    def _fork(self, name: str, main: str, argument: Path) -> Child:
        log = self._folder / f"{name}-{next(self._numbers)}.log"
        self.logs.append(log)
        child = self._zygote.fork(name, main, argument, log)
        self._born.append(child)
        return child

    def _tell_members(self, *, is_target_open: bool) -> None:
        """Whom the gateway may use; the target only once the request is at the source."""
        assert self.gateway is not None, "it was started"
        self.gateway.reins.tell("members", members=self._members(is_target_open))
        self.answer(self.gateway, "members")

    def _members(self, is_target_open: bool) -> list[Any]:
        return [
            msgspec.to_builtins(
                Member(
                    InstanceId(name),
                    PoolName(POOL),
                    *(each.address for each in place.to_gateway),
                    is_cordoned=name != "a" and not is_target_open,
                )
            )
            for name, place in self.places.items()
        ]

    # ------------------------------------------------------------------ hearing

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float) -> Any:
        """Listen to everybody until it holds; returns what it returned."""
        deadline = time.monotonic() + timeout_s
        while not (result := condition()):
            left = deadline - time.monotonic()
            assert left > 0, f"not in {timeout_s:g} s: {what}"
            self.listen(min(left, 0.1))
        return result

    def pass_time(self, duration_s: float) -> None:
        """Listen for so long: the time that a fault takes."""
        deadline = time.monotonic() + duration_s
        while (left := deadline - time.monotonic()) > 0:
            self.listen(min(left, 0.1))

    def listen(self, timeout_s: float) -> None:
        """File what comes first within `timeout_s`, and renew leases."""
        children = [each for each in self.children() if each.reins.is_open]
        schedulers = [p.scheduler for p in self.places.values() if p.child.is_alive]
        poller = zmq.Poller()
        for child in children:
            poller.register(child.reins.fileno(), zmq.POLLIN)
        for scheduler in schedulers:
            poller.register(scheduler.socket, zmq.POLLIN)
        poller.poll(round(timeout_s * 1000))
        for scheduler in schedulers:
            while scheduler.read(0):
                pass
        for child in children:
            for said in child.reins.hear():
                self._file(child, said)
            assert child.reins.is_open or not child.is_alive, f"{child.name} has died by itself"

    def answer(
        self,
        child: Child,
        what: str,
        is_it: Callable[[Any], bool] = lambda _: True,
        timeout_s: float = QUICK_S,
    ) -> Any:
        """The next thing of that kind that a process says; everything before it is forgotten."""

        def look() -> Any:
            while child.said:
                said = child.said.popleft()
                if said["what"] == what and is_it(said):
                    return said
            assert child.reins.is_open, f"{child.name} has died"
            return None

        return self.until(look, f"{child.name} says {what!r}", timeout_s)

    def _file(self, child: Child, said: Any) -> None:
        match said["what"]:
            case "ready":
                if child is self.gateway:
                    self.ready = said["instances"]
            case "output":
                client = self.clients.get(said["request"])
                if client is not None:
                    client.tokens += said["tokens"]
                    client.is_moved = client.is_moved or said["is_moved"]
                    assert client.finish is None, f"{client.request}: output after the last"
                    client.finish = said["finish"]
            case _:
                child.said.append(said)

    # ------------------------------------------------------------------ doing

    def open(self, num_outputs: int = NUM_LASTING) -> Client:
        """A client asks for a generation, and reads its first two tokens."""
        number = next(self._numbers)
        vocabulary = self._model.facts.vocabulary
        prompt = [vocabulary.pick(number * 7919 + k * k, frozenset()) for k in range(NUM_PROMPT)]
        client = Client(f"r{number}", self._model.answer(prompt, num_outputs))
        self.clients = {client.request: client}
        self._tell_members(is_target_open=False)
        self.child("gateway").reins.tell(
            "open",
            request=client.request,
            prompt=prompt,
            max_tokens=num_outputs,
            arrival=time.time(),
        )
        self.until(lambda: len(client.tokens) >= 2, "the request has two tokens", QUICK_S)
        self._tell_members(is_target_open=True)
        return client

    def read_on(self, client: Client, timeout_s: float) -> None:
        """Until the stream has gone on for some tokens, or ended."""
        num = len(client.tokens) + NUM_READ_ON
        self.until(
            lambda: client.finish is not None or len(client.tokens) >= num,
            "the stream goes on",
            timeout_s,
        )

    def leave(self, client: Client) -> None:
        """The client goes away; returns when the gateway knows."""
        gateway = self.child("gateway")
        gateway.reins.tell("leave", request=client.request)
        self.answer(gateway, "left")

    def order(self, client: Client) -> MigrationId:
        """The scheduler orders its move."""
        migration = MigrationId(f"m-{client.request}")
        target = self.places["b"]
        self.places["a"].scheduler.send(
            MigrateOrder(
                migration,
                RequestId(client.request),
                Target(InstanceId("b"), *(each.address for each in target.to_llumlet)),
                Term(1),
                is_checked=True,
            )
        )
        return migration

    def cancel(self, migration: MigrationId) -> None:
        """The scheduler cancels it."""
        self.places["a"].scheduler.send(CancelMigration(migration))

    def is_empty(self, name: str) -> bool:
        """Whether an instance holds no block and no request, by its own last report."""
        loads = self.places[name].scheduler.loads
        del loads[:-1]
        return bool(loads) and (
            loads[-1].free == loads[-1].total
            and loads[-1].num_running == loads[-1].num_waiting == 0
        )

    def check_leaks(self) -> None:
        """No process has more threads or descriptors than after the world's first move."""
        for child in self.children():
            counted = self._count(child)
            known = self.counts.setdefault(child.name, counted)
            deadline = time.monotonic() + QUICK_S
            while any(len(counted[kind]) > len(known[kind]) for kind in ("threads", "fds")):
                more = f"{child.name} gathers: {known} before, {counted} now"
                assert time.monotonic() < deadline, more
                self.pass_time(0.1)
                counted = self._count(child)

    def _count(self, child: Child) -> Any:
        child.reins.tell("count")
        return self.answer(child, "count")

    def tail(self) -> str:
        """What the last processes said last."""
        return "\n".join(
            f"---- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in self.logs[-6:]
        )

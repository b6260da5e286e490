"""A rank's agent against peers that lie, dawdle and flood; its bounds, its budget, its end."""

import contextlib
import fcntl
import os
import random
import socket
import threading
import time
import zlib
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from llx.agent.transport import rank
from llx.agent.transport.budget import Budget
from llx.agent.transport.frames import (
    HEADER_BYTES,
    Header,
    Hello,
    Kind,
    Last,
    encode_blocks,
    encode_hello,
)
from llx.agent.transport.medium import SourceEnd
from llx.agent.transport.medium_shm import ShmSource
from llx.agent.transport.medium_tcp import TcpSource
from llx.agent.transport.rank import RankAgent
from llx.agent.transport.sockets import connect_local, connect_tcp
from llx.agent.transport.source_wire import SourceWire
from llx.core.model import MigrationId, RequestId
from llx.errors import ConflictError, LlxError, RemoteError
from llx.specs import MigrationSpec
from tests.contract.kv_rig import (
    BLOCK_BYTES,
    CHUNK_BLOCKS,
    NUM_BLOCKS,
    SPEC,
    WAIT_S,
    Answer,
    BytesStore,
    End,
    Heard,
    count_fds,
    end_here,
    wait_until,
)

TOKEN = b"0123456789abcdef"
M = MigrationId("m-1")
HELLO = Hello(M, TOKEN, "plain", BLOCK_BYTES, CHUNK_BLOCKS, is_checked=False, has_crc=True)
FULL = memoryview(bytes(range(256)) * (CHUNK_BLOCKS * BLOCK_BYTES // 256))
BLOCKS = encode_blocks(range(CHUNK_BLOCKS))


@pytest.fixture
def end():
    made = end_here()
    made.stores[0].fill(1)
    yield made
    made.transport.stop()


@pytest.fixture(params=["tcp", "local"])
def dial(request, end):
    """Opens connections to `end`; they are closed afterwards."""
    [route] = end.transport.routes
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        one = connect_tcp(route.address) if request.param == "tcp" else connect_local(route.local)
        opened.append(one)
        return one

    yield connect
    while Admitted.open:
        Admitted.open.pop().close()
    for one in opened:
        one.close()


class Admitted:
    """A source that has been admitted, and says what a test would have it say."""

    open: ClassVar[list["Admitted"]] = []
    """Closed by the fixture `dial`, whose connections they use."""

    def __init__(self, connection: socket.socket, end: End, hello: Hello = HELLO) -> None:
        end.transport.expect(MigrationId(hello.migration), TOKEN, range(NUM_BLOCKS))
        self.wire = SourceWire(connection, hello)
        self.wire.greet()
        store = BytesStore(NUM_BLOCKS, BLOCK_BYTES)
        own_end = SourceEnd(self.wire, store, Budget(0), threading.Event())
        self._medium = ShmSource(own_end) if self.wire.is_local else TcpSource(own_end)
        self.open.append(self)

    def close(self) -> None:
        self._medium.close()

    def send_chunk(self, data: memoryview, flip: int) -> None:
        """In stage 0, its checksum flipped."""
        head = Header(Kind.CHUNK, 0, 0, CHUNK_BLOCKS, zlib.crc32(data) ^ flip, len(data)).encode()
        if isinstance(self._medium, ShmSource):
            slot, view = self._medium.buffer()
            view[: len(data)] = data
            head = Header(
                Kind.CHUNK, slot, 0, CHUNK_BLOCKS, zlib.crc32(data) ^ flip, len(data)
            ).encode()
            data = memoryview(b"")
        self.wire.connection.sendall(head + BLOCKS.tobytes() + bytes(data))


def works(end: End) -> None:
    """A migration between `end` and itself still gets through."""
    name = MigrationId(f"probe-{random.random()}")
    end.transport.expect(name, TOKEN, [1])
    end.transport.open(name, end.transport.routes, TOKEN, is_checked=False)
    answer = Answer()
    end.transport.send(name, 0, [0], [1], state_of=None, done=answer)
    assert answer.get() == BLOCK_BYTES
    end.transport.finish(name)
    end.transport.close(name)


# ---------------------------------------------------------------------- lies


def test_garbage_ends_its_own_connection_only(end, dial) -> None:
    rng = random.Random(1)
    before = bytes(end.stores[0].data)
    for size in (1, HEADER_BYTES, 100, 5000):
        connection = dial()
        with contextlib.suppress(OSError):
            connection.sendall(rng.randbytes(size))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    for size in (HEADER_BYTES, 4000):  # by one that has been admitted
        migration = f"g-{size}"
        Admitted(connection := dial(), end, msgspec.structs.replace(HELLO, migration=migration))
        with contextlib.suppress(OSError):
            connection.sendall(rng.randbytes(size))
        assert end.heard.next()[0] == migration
    assert bytes(end.stores[0].data) == before
    works(end)


@pytest.mark.parametrize(
    "header",
    [
        Header(Kind.CHUNK, num_blocks=CHUNK_BLOCKS + 1, size=(CHUNK_BLOCKS + 1) * BLOCK_BYTES),
        Header(Kind.CHUNK, num_blocks=CHUNK_BLOCKS, size=CHUNK_BLOCKS * BLOCK_BYTES - 1),
        Header(Kind.CHUNK, num_blocks=1, size=2**60),
        Header(Kind.CHUNK, mark=9, num_blocks=1, size=BLOCK_BYTES),
        Header(Kind.END, num_blocks=1),
        Header(Kind.HELLO),
        Header(Kind.ARRIVED),
    ],
)
def test_what_is_out_of_bounds_is_answered_and_ends_it(end, dial, header: Header) -> None:
    connection = dial()
    if header.mark and connection.family != socket.AF_UNIX:
        return  # slots are of shared memory alone
    wire = Admitted(connection, end).wire
    with contextlib.suppress(OSError):
        connection.sendall(header.encode() + bytes(BLOCK_BYTES + 64))
    assert wire.failure_said()
    assert end.heard.next()[0] == M
    works(end)


def test_a_stage_that_has_ended_stays_so(end, dial) -> None:
    wire = Admitted(dial(), end).wire
    wire.end_stage(0, Last.NO, 0, 0, b"")
    with pytest.raises(RemoteError, match="has ended"):
        wire.end_stage(0, Last.NO, 0, 0, b"")


def test_a_checksum_that_differs_is_found_before_anything_is_written(end, dial) -> None:
    before = bytes(end.stores[0].data)
    source = Admitted(dial(), end)
    source.send_chunk(FULL, flip=1)
    with pytest.raises((LlxError, OSError)):
        source.wire.end_stage(0, Last.NO, CHUNK_BLOCKS, 0, b"")
    migration, reason = end.heard.next()
    assert migration == M
    assert "checksum" in str(reason)
    assert bytes(end.stores[0].data) == before


def test_a_byte_changed_on_the_way_is_found(end) -> None:
    """Through a relay that flips one bit of the blocks."""
    source = end_here()
    relay = socket.create_server(("127.0.0.1", 0))
    address = end.transport.routes[0].address

    def flip() -> None:
        with relay, relay.accept()[0] as near, connect_tcp(address) as far:
            back = threading.Thread(target=pump, args=(far, near, None))
            back.start()
            pump(near, far, 6000)
            back.join()

    def pump(source: socket.socket, target: socket.socket, flip_at: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(4096)):
                if flip_at is not None and passed <= flip_at < passed + len(data):
                    data[flip_at - passed] ^= 1
                passed += len(data)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=flip)
    thread.start()
    route = msgspec.structs.replace(
        end.transport.routes[0],
        host_id="far",
        address=f"127.0.0.1:{relay.getsockname()[1]}",
    )
    end.transport.expect(M, TOKEN, range(10))
    source.transport.open(M, [route], TOKEN, is_checked=False)
    answer = Answer()
    source.transport.send(M, 0, list(range(10)), list(range(10)), state_of=None, done=answer)
    assert "checksum" in str(answer.get())
    assert "checksum" in str(end.heard.next()[1])
    source.transport.stop()
    thread.join()


def test_a_second_connection_of_a_migration_is_refused(end, dial) -> None:
    wire = Admitted(dial(), end).wire
    second = SourceWire(dial(), HELLO)
    with pytest.raises(RemoteError, match="has had its connection"):
        second.greet()
    wire.end_stage(0, Last.NO, 0, 0, b"")  # the first is none the worse


@pytest.mark.parametrize("lie", ["unsealed", "short", "no descriptor", "a file", "a pipe", "huge"])
def test_shared_memory_that_could_kill_is_refused(end, lie: str, tmp_path: Path) -> None:
    end.transport.expect(M, TOKEN, range(4))
    size = 2 * CHUNK_BLOCKS * BLOCK_BYTES
    memfd = os.memfd_create("lie", os.MFD_ALLOW_SEALING)
    os.ftruncate(memfd, size // 2 if lie == "short" else size)
    if lie != "unsealed":
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seals)
    reader, writer = os.pipe()
    (tmp_path / "f").write_bytes(bytes(size))
    file = os.open(tmp_path / "f", os.O_RDWR)
    fds = {"no descriptor": [], "a file": [file], "a pipe": [reader]}.get(lie, [memfd])
    slot_bytes = 2**40 if lie == "huge" else size // 2
    slots = Header(Kind.SLOTS, 2, size=slot_bytes)
    with connect_local(end.transport.routes[0].local) as connection:
        wire = SourceWire(connection, HELLO)
        assert wire.greet().medium == "shm"
        socket.send_fds(connection, [slots.encode()], fds)
        assert wire.failure_said()
    for fd in (memfd, reader, writer, file):
        os.close(fd)
    assert end.heard.next()[0] == M
    works(end)


def test_descriptors_that_nobody_asked_for_are_closed(end) -> None:
    works(end)  # all its threads have begun
    num_before = count_fds()
    for token in [b"wrong", TOKEN] * 10:
        migration = f"m-{random.random()}"
        end.transport.expect(MigrationId(migration), TOKEN, [])
        frame = encode_hello(msgspec.structs.replace(HELLO, migration=migration, token=token))
        with connect_local(end.transport.routes[0].local) as connection:
            socket.send_fds(connection, [frame[:HEADER_BYTES]], [0, 0, 0])
            connection.sendall(frame[HEADER_BYTES:])
            socket.send_fds(connection, [Header(Kind.FREED).encode()], [0, 0, 0])
            with contextlib.suppress(OSError):
                while connection.recv(4096):
                    pass
    wait_until(lambda: count_fds() <= num_before)


# ---------------------------------------------------------------------- strangers


def test_a_stranger_that_dawdles_is_shown_the_door() -> None:
    agent = RankAgent(BytesStore(1), SPEC, "127.0.0.1", stranger_s=2.0)
    agent.report_to(Heard())
    frame = encode_hello(HELLO)
    begin = time.monotonic()
    connections = connect_tcp(agent.route.address), connect_local(agent.route.local)
    for connection, said in zip(connections, (frame[:1], frame[:-1]), strict=True):
        connection.settimeout(20)
        connection.sendall(said[:HEADER_BYTES])
        connection.sendall(said[HEADER_BYTES:])
    for connection in connections:
        assert connection.recv(1) == b""
        connection.close()
    assert time.monotonic() - begin >= 2
    agent.stop()


def test_strangers_are_bounded_and_the_newest_gets_through(end, dial) -> None:
    strangers = [dial() for _ in range(rank.MAX_STRANGERS + 20)]
    works(end)
    for connection in strangers[:20]:
        connection.settimeout(20)
        assert connection.recv(1) == b""
    wait_until(
        lambda: (
            sum(thread.name == "kv-target" for thread in threading.enumerate())
            <= rank.MAX_STRANGERS + 1
        )
    )


# ---------------------------------------------------------------------- bounds


@pytest.mark.parametrize("kind", ["tcp", "local"])
def test_staging_is_what_both_ends_allow(kind: str) -> None:
    small = MigrationSpec(chunk_bytes=2 * BLOCK_BYTES)
    source, target = end_here(), end_here(small)
    source.stores[0].fill(3)
    target.transport.expect(M, TOKEN, range(NUM_BLOCKS))
    source.transport.open(M, target.routes(kind), TOKEN, is_checked=True)
    answer = Answer()
    every = list(range(NUM_BLOCKS))
    source.transport.send(M, 0, every, every, state_of=RequestId("r"), done=answer)
    assert answer.get() == NUM_BLOCKS * BLOCK_BYTES
    assert source.stores[0].data == target.stores[0].data
    assert source.stores[0].largest_call == target.stores[0].largest_call == 2 * BLOCK_BYTES
    source.transport.stop()
    target.transport.stop()


def test_a_block_larger_than_a_chunk_travels_alone() -> None:
    spec = MigrationSpec(chunk_bytes=BLOCK_BYTES // 2)
    source, target = end_here(spec), end_here(spec)
    source.stores[0].fill(3)
    target.transport.expect(M, TOKEN, [5, 6])
    source.transport.open(M, target.routes("local"), TOKEN, is_checked=False)
    answer = Answer()
    source.transport.send(M, 0, [1, 2], [5, 6], state_of=None, done=answer)
    assert answer.get() == 2 * BLOCK_BYTES
    assert target.stores[0].of(6) == source.stores[0].of(2)
    assert source.stores[0].largest_call == BLOCK_BYTES
    source.transport.stop()
    target.transport.stop()


def test_bandwidth_is_shared_and_bounded() -> None:
    size = 32 * BLOCK_BYTES
    spec = MigrationSpec(chunk_bytes=CHUNK_BLOCKS * BLOCK_BYTES, bandwidth_bytes_s=4 * size)
    source, target = end_here(spec), end_here()
    begin = time.monotonic()
    answers = []
    for number in range(2):
        name = MigrationId(f"m-{number}")
        blocks = list(range(32 * number, 32 * number + 32))
        target.transport.expect(name, TOKEN, blocks)
        source.transport.open(name, target.routes("tcp"), TOKEN, is_checked=False)
        answers.append(Answer())
        source.transport.send(name, 0, blocks, blocks, state_of=None, done=answers[-1])
    for answer in answers:
        assert answer.get() == size
    # Two at a quarter of a second each.
    assert time.monotonic() - begin >= 0.5
    source.transport.stop()
    target.transport.stop()


def test_the_short_last_stage_does_not_wait_for_the_long_one_before() -> None:
    """Its request stands still for it; the one before was paid for while it went on."""
    size = 32 * BLOCK_BYTES
    source, target = end_here(MigrationSpec(bandwidth_bytes_s=size)), end_here()
    last_s: list[float] = []
    while not last_s or (min(last_s) >= 0.5 and len(last_s) < 5):  # the machine may take longer
        name = MigrationId(f"m-{len(last_s)}")
        target.transport.expect(name, TOKEN, range(33))
        source.transport.open(name, target.routes("tcp"), TOKEN, is_checked=False)
        times = [time.monotonic()]
        for stage, blocks in enumerate((list(range(32)), [32])):
            answer = Answer()
            source.transport.send(name, stage, blocks, blocks, state_of=None, done=answer)
            answer.get()
            times.append(time.monotonic())
        assert times[1] - times[0] >= 1
        last_s.append(times[2] - times[1])
    assert min(last_s) < 0.5, "a 32nd of a second, and what the machine takes"
    source.transport.stop()
    target.transport.stop()


def test_waiting_for_bandwidth_ends_with_the_migration() -> None:
    source, target = end_here(MigrationSpec(bandwidth_bytes_s=1)), end_here()
    target.transport.expect(M, TOKEN, range(8))
    source.transport.open(M, target.routes("tcp"), TOKEN, is_checked=False)
    answers = [Answer(), Answer()]
    for stage, answer in enumerate(answers):
        source.transport.send(M, stage, [1] * 4, [2] * 4, state_of=None, done=answer)
    time.sleep(0.2)
    source.transport.close(M)
    for answer in answers:
        assert "closed" in str(answer.get())
    source.transport.stop()
    target.transport.stop()


def test_ports_are_of_the_range() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    agents = []
    with contextlib.suppress(ConflictError):
        agents = [RankAgent(BytesStore(1), SPEC, "127.0.0.1", (port, port))]
    assert agents, "the port was taken meanwhile"
    assert agents[0].route.address == f"127.0.0.1:{port}"
    with pytest.raises(ConflictError, match="taken"):
        RankAgent(BytesStore(1), SPEC, "127.0.0.1", (port, port))
    with pytest.raises(ConflictError, match="cannot be listened on"):
        RankAgent(BytesStore(1), SPEC, "203.0.113.7", (port, port + 1))
    agents[0].stop()


# ---------------------------------------------------------------------- the end


def test_stopping_leaves_no_thread_and_no_descriptor() -> None:
    num_fds, num_threads = count_fds(), threading.active_count()
    for kind in ("tcp", "local"):
        source, target = end_here(), end_here()
        target.stores[0].hold.clear()
        for number in range(6):  # under way, idle, unreachable, finished
            name = MigrationId(f"m-{number}")
            target.transport.expect(name, TOKEN, range(NUM_BLOCKS))
            source.transport.open(name, target.routes(kind), TOKEN, is_checked=False)
            blocks = list(range(20)) if number < 3 else []
            source.transport.send(name, 0, blocks, blocks, state_of=None, done=Answer())
        with connect_tcp(target.transport.routes[0].address):
            assert target.stores[0].is_inside.wait(WAIT_S)
            source.transport.stop()
            target.stores[0].hold.set()
            target.transport.stop()
            target.transport.stop()
    wait_until(lambda: threading.active_count() == num_threads)
    assert count_fds() == num_fds


def test_a_migration_leaves_nothing_once_it_is_over() -> None:
    source, target = end_here(), end_here()
    works(source)
    works(target)
    wait_until(lambda: all("kv-s" not in t.name for t in threading.enumerate()))
    num_fds, num_threads = count_fds(), threading.active_count()
    for number in range(10):
        name = MigrationId(f"m-{number}")
        target.transport.expect(name, TOKEN, [1])
        source.transport.open(name, target.routes("local"), TOKEN, is_checked=True)
        answer = Answer()
        source.transport.send(name, 0, [1], [1], state_of=RequestId("r"), done=answer)
        answer.get()
        if number % 2:
            target.transport.finish(name)
        else:
            target.transport.fence(name, lambda: None)
        source.transport.close(name)
    wait_until(lambda: threading.active_count() <= num_threads)
    wait_until(lambda: count_fds() <= num_fds)
    maps = Path("/proc/self/maps").read_text(encoding="ascii")
    assert "memfd:llx-kv" not in maps
    source.transport.stop()
    target.transport.stop()

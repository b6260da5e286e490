"""Keys replaced under sessions: nothing is lost, nobody keeps a connection of the former ones."""

import asyncio

import pytest
import zmq.asyncio

from llx import wire
from llx.agent import endpoint as endpoint_module
from llx.agent import link as link_module
from llx.agent.endpoint import InstanceEndpoint
from llx.agent.link import InstanceLink
from llx.core.model import Blocks, Epoch, InstanceId, PoolName, RequestId
from llx.curve import ClusterKeys, KeyFile, dump_ring, load_ring, make_dialer, rotation_rings
from tests.agent.test_link import Recorder, RecordingSink, info, load, soon

pytestmark = pytest.mark.slow


@pytest.fixture
def key_file(tmp_path):
    return Keys(tmp_path)


class Keys:
    """A key file of each host."""

    def __init__(self, folder):
        self.folder = folder
        self.first = ClusterKeys.create()

    def source(self, host):
        self.lay(host, (self.first,))
        return KeyFile(self.folder / host)

    def lay(self, host, ring):
        new = self.folder / f".{host}"
        new.write_text(dump_ring(ring))
        new.chmod(0o600)
        new.replace(self.folder / host)


@pytest.fixture
def instance(key_file):
    sink = RecordingSink()
    endpoint = InstanceEndpoint(
        key_file.source("there"), "127.0.0.1", sink=sink, allowed_calls=frozenset({"ping"}),
        info=info(), engine_ready=b"",
    )  # fmt: skip
    endpoint.report(load(), {})
    member = wire.Member(InstanceId("tiny-0"), PoolName("tiny"), *endpoint.start())
    yield endpoint, member, sink
    endpoint.close("test over")


@pytest.fixture
def patient(monkeypatch):
    """Nobody is given up for parting late: sessions must go on, on a busy machine, too."""
    monkeypatch.setattr(endpoint_module, "PART_S", 60.0)
    monkeypatch.setattr(link_module, "_BACK_S", 60.0)


@pytest.fixture
async def dial():
    context = zmq.asyncio.Context()
    links = []

    def start(member, keys, peer="gw"):
        recorder = Recorder()
        link = InstanceLink(context, keys, member, peer=peer, role="gateway", events=recorder)
        link.start()
        links.append(link)
        return link, recorder

    yield start
    for link in links:
        await link.close()
    context.destroy(linger=0)


async def until(is_so):
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_a_session_goes_on_over_other_keys_and_loses_nothing_in_either_direction(
    instance, dial, key_file, patient, monkeypatch
):
    monkeypatch.setattr(endpoint_module, "BACK_S", 60.0)  # no other change is begun before
    endpoint, member, sink = instance
    link, events = dial(member, key_file.source("here"))
    await soon(events.ready)
    link.add(RequestId("r0"), Epoch(1), Blocks(1), [b""])
    _, peer, *_ = await sink.next()
    old_new, new_old, new = rotation_rings((key_file.first,))
    key_file.lay("here", old_new)
    key_file.lay("there", old_new)
    key_file.lay("there", new_old)
    num = 0
    while link.listener_public != new[0].listener_public or num % 20:
        endpoint.emit(peer, wire.Outputs(0, [(Epoch(1), num)]))
        num += 1
        link.add(RequestId(f"r{num}"), Epoch(1), Blocks(1), [b""])
        await asyncio.sleep(0.005)
        assert num < 4000
    heard = [(await soon(events.outputs))[0].owners[0][1] for _ in range(num)]
    assert heard == list(range(num))
    added = [await sink.next() for _ in range(num)]
    assert [(kind, who, header.request) for kind, who, header, _ in added] == [
        ("add", peer, f"r{n + 1}") for n in range(num)
    ]
    assert events.down.empty()
    assert sink.events.empty()
    key_file.lay("here", new)
    key_file.lay("there", new)
    again, heard_again = dial(member, KeyFile(key_file.folder / "here"), peer="other")
    await soon(heard_again.ready)
    assert again.is_ready


async def test_who_has_the_former_keys_alone_loses_its_connection_and_gets_no_other(
    instance, dial, key_file
):
    _, member, sink = instance
    thief, events = dial(member, key_file.first, peer="thief")
    await soon(events.ready)
    thief.add(RequestId("stolen"), Epoch(1), Blocks(1), [b""])
    _, peer, *_ = await sink.next()
    new_old = rotation_rings((key_file.first,))[1]
    key_file.lay("there", new_old)
    await soon(events.down)
    assert await sink.next() == ("drop", peer)
    for address in (member.address_in, member.address_out):
        assert not await can_greet(address, key_file.first)
        assert await can_greet(address, new_old[0])
    assert not thief.is_ready


async def can_greet(address, keys):
    """Whether the handshake at that address succeeds, by what the socket says."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    make_dialer(socket, keys)
    monitor = socket.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_SUCCEEDED
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    )
    socket.connect(address)
    try:
        frames = await asyncio.wait_for(monitor.recv_multipart(), 20)
        return int.from_bytes(frames[0][:2], "little") == zmq.EVENT_HANDSHAKE_SUCCEEDED
    finally:
        socket.disable_monitor()
        monitor.close(0)
        socket.close(0)
        context.destroy(linger=0)


async def test_a_peer_that_was_told_later_finds_its_way_and_one_that_misses_it_begins_anew(
    instance, dial, key_file
):
    """Its host gets the file after the instance's: the session is lost, the link is not."""
    _, member, _ = instance
    link, events = dial(member, key_file.source("here"))
    await soon(events.ready)
    rings = rotation_rings((key_file.first,))
    key_file.lay("there", rings[1])
    await soon(events.down)
    key_file.lay("here", rings[0])
    await soon(events.ready)
    assert link.listener_public == rings[2][0].listener_public


async def test_several_rotations_in_a_row_keep_the_session(instance, dial, key_file, patient):
    _, member, sink = instance
    link, events = dial(member, key_file.source("here"))
    await soon(events.ready)
    ring = (key_file.first,)
    for _ in range(2):
        for step in rotation_rings(ring):
            for host in ("here", "there"):
                key_file.lay(host, step)
        ring = step
        await until(lambda now=ring[0]: link.listener_public == now.listener_public)
        link.add(RequestId("r"), Epoch(1), Blocks(1), [b""])
        kind, peer, *_ = await sink.next()
        assert (kind, peer) == ("add", 0)
    assert events.down.empty()


def test_a_rotation_that_was_cut_short_goes_on_with_the_same_keys(tmp_path):
    first = ClusterKeys.create()
    old_new, new_old, new = rotation_rings((first,))
    assert (old_new[0], new_old[1]) == (first, first)
    assert rotation_rings(old_new) == (old_new, new_old, new)
    assert rotation_rings(new_old) == (new_old, new)
    path = tmp_path / "keys.json"
    for ring in (old_new, new_old, new):
        path.write_text(dump_ring(ring))
        path.chmod(0o600)
        assert load_ring(path) == ring


def test_a_key_file_that_cannot_be_used_changes_nothing(key_file):
    source = key_file.source("here")
    path = key_file.folder / "here"
    for text in ("", "[]", "{}", '{"others": 3}', dump_ring((key_file.first,))[:-9]):
        path.write_text(text)
        assert source.ring() == (key_file.first,)
    path.unlink()
    assert source.ring() == (key_file.first,)
    ring = rotation_rings((key_file.first,))[0]
    key_file.lay("here", ring)
    assert source.ring() == ring

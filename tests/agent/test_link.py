"""A link and an endpoint over real sockets: sessions, keys, leases, reports, calls."""

import asyncio
import queue
from collections.abc import Sequence

import msgspec
import pytest
import zmq
import zmq.asyncio

from llx import __version__, wire
from llx.agent.endpoint import InstanceEndpoint
from llx.agent.link import InstanceLink, encode_arguments, peer_of_process
from llx.agent.prefix_log import PrefixLog
from llx.agent.prefix_reports import PrefixFeed, PrefixReports
from llx.core.model import Blocks, ClassLoad, Epoch, InstanceId, PoolName, RequestId, Term
from llx.core.prefix_blocks import unpacked
from llx.curve import Authenticator, ClusterKeys, make_dialer, make_listener
from llx.errors import ConfigError, RemoteError, UnreachableError
from llx.pins import VLLM_VERSION
from tests.ports import silent_port

R = RequestId("r")


class RecordingSink:
    """An engine that only writes down what reaches it."""

    def __init__(self):
        self.events = queue.SimpleQueue()

    def add(self, peer, header, payload: Sequence):
        self.events.put(("add", peer, header, [bytes(frame) for frame in payload]))

    def abort(self, peer, requests):
        self.events.put(("abort", peer, requests))

    def call(self, peer, header, payload):
        self.events.put(("call", peer, header, [bytes(frame) for frame in payload]))

    def drop_peer(self, peer):
        self.events.put(("drop", peer))

    async def next(self):
        return await asyncio.to_thread(self.events.get, True, 10)


class Recorder:
    """A link's owner that only writes down what it is told."""

    def __init__(self):
        self.ready, self.down = asyncio.Queue(), asyncio.Queue()
        self.outputs, self.loads = asyncio.Queue(), asyncio.Queue()
        self.reports = asyncio.Queue()

    def on_ready(self, link):
        self.ready.put_nowait(link)

    def on_down(self, link, reason):
        self.down.put_nowait(reason)

    def on_outputs(self, link, header, payload):
        self.outputs.put_nowait((header, [bytes(frame) for frame in payload]))

    def on_load(self, link, load):
        self.loads.put_nowait(load)
        self.reports.put_nowait(link.report)


async def soon(queue_):
    return await asyncio.wait_for(queue_.get(), 10)


async def refused(link):
    async with asyncio.timeout(20):
        while not link.refusal:
            await asyncio.sleep(0.01)


def info(**changes):
    fields = {
        "instance": InstanceId("tiny-0"),
        "pool": PoolName("tiny"),
        "engine": "fake",
        "llx_version": "0",
        "vllm_version": VLLM_VERSION,
        "model": "m",
        "num_blocks": 10,
        "block_size": 16,
        "max_model_len": 100,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "tensor_parallel": 1,
        "pid": 1,
    }
    return wire.InstanceInfo(**(fields | changes))


def load(running=0, free=10):
    return wire.Load(0, 0, 0, 10, free, 16, running, 0, 0, 0, 0, {})


@pytest.fixture
def keys():
    return ClusterKeys.create()


@pytest.fixture
def sink():
    return RecordingSink()


@pytest.fixture
def serve(keys, sink):
    endpoints = []

    def start(**options):
        options = {"info": info(), "engine_ready": b"engine says hi"} | options
        endpoint = InstanceEndpoint(
            keys, "127.0.0.1", sink=sink, allowed_calls=frozenset({"ping"}), **options
        )
        endpoint.report(load(), {})
        address_in, address_out = endpoint.start()
        endpoints.append(endpoint)
        member = wire.Member(InstanceId("tiny-0"), PoolName("tiny"), address_in, address_out)
        return endpoint, member

    yield start
    for endpoint in endpoints:
        endpoint.close("test over")


@pytest.fixture
async def dial(keys):
    context = zmq.asyncio.Context()
    links = []

    def start(member, *, peer="gw", role="gateway", with_keys=keys, term=None, prefixes=None):
        recorder = Recorder()
        link = InstanceLink(
            context, with_keys, member, peer=peer, role=role, events=recorder, term=term,
            prefixes=prefixes,
        )  # fmt: skip
        link.start()
        links.append(link)
        return link, recorder

    yield start
    for link in links:
        await link.close()
    context.destroy(linger=0)


async def test_a_session_stands_and_carries_requests_and_outputs(serve, dial, sink):
    endpoint, member = serve()
    link, events = dial(member)
    await soon(events.ready)
    assert link.engine_ready == b"engine says hi"
    assert link.info.num_blocks == 10
    link.add(R, Epoch(1), Blocks(2), [b"request"])
    kind, peer, header, payload = await sink.next()
    assert (kind, header, payload) == ("add", wire.Add(R, Epoch(1), 1), [b"request"])
    endpoint.emit(peer, wire.Outputs(0, [(Epoch(1), 0)]), lambda: [b"outputs"])
    header, payload = await soon(events.outputs)
    assert (header.owners, payload) == ([(1, 0)], [b"outputs"])
    link.abort([(R, Epoch(1))])
    assert await sink.next() == ("abort", peer, [(R, 1)])


async def test_reports_are_pushed_on_change_and_settle_the_ledger(serve, dial, sink):
    endpoint, member = serve()
    link, events = dial(member)
    await soon(events.ready)
    assert (await soon(events.loads)).num_running == 0
    link.add(R, Epoch(1), Blocks(2), [b""])
    _, peer, *_ = await sink.next()
    assert link.ledger.demand == 2
    endpoint.report(load(running=1, free=8), {peer: 1})
    report = await soon(events.loads)
    assert (report.num_running, report.used, link.ledger.demand) == (1, 2, 0)
    for _ in range(5):
        endpoint.report(load(running=1, free=8), {peer: 1})
    endpoint.report(load(running=2, free=6), {peer: 1})
    assert (await soon(events.loads)).num_running == 2
    assert events.loads.empty(), "unchanged reports are not sent"


async def test_the_classes_of_a_report_are_made_anew_only_when_they_change(serve, dial):
    endpoint, member = serve(report_interval_s=0.0)
    _, events = dial(member)
    await soon(events.loads)
    seen = []
    for free, classes in ((9, {0: (1, 0, 0)}), (8, {0: (1, 0, 0)}), (7, {0: (2, 1, 3)})):
        endpoint.report(msgspec.structs.replace(load(free=free), classes=classes), {})
        seen.append(await soon(events.loads))
    first, same, other = (each.classes for each in seen)
    assert [each.free for each in seen] == [9, 8, 7]
    assert first == {0: ClassLoad(1, 0, Blocks(0))}
    assert same is first
    assert other == {0: ClassLoad(2, 1, Blocks(3))}


async def test_a_link_that_asks_hears_of_prefixes_from_the_beginning_in_every_session(serve, dial):
    log, wanted = PrefixLog(), asyncio.Queue()
    loop = asyncio.get_running_loop()
    log.begin([1, 2])
    reports = PrefixReports(log, lambda want: loop.call_soon_threadsafe(wanted.put_nowait, want))
    endpoint, member = serve(prefixes=reports, lease_s=2)
    heard = asyncio.Queue()
    feed = PrefixFeed(heard.put_nowait)
    link, events = dial(member, peer="scheduler#1", role="scheduler", prefixes=feed)
    await soon(events.ready)
    feed.want(True)
    assert await soon(wanted)
    first = await soon(heard)
    assert (first.is_whole, set(unpacked(first.added))) == (True, {1, 2})
    log.add([3])
    log.remove([1])
    endpoint.report(load(running=1), {})
    change = await soon(heard)
    assert (change.is_whole, list(unpacked(change.added))) == (False, [3])
    assert list(unpacked(change.removed)) == [1]
    link._task.cancel()  # it falls silent, and its lease ends
    assert not await soon(wanted)
    await link.close()
    other, events = dial(member, peer="scheduler#2", role="scheduler", prefixes=feed)
    await soon(events.ready)
    again = await soon(heard)
    assert (again.number, again.is_whole, set(unpacked(again.added))) == (0, True, {2, 3})
    feed.want(False)
    assert await soon(wanted)
    assert not await soon(wanted)
    assert other.is_ready


async def test_a_report_tells_schedulers_of_all_that_has_come_even_if_it_replaces_another(
    serve, dial
):
    endpoint, member = serve(report_interval_s=0.05)
    _, heard = dial(member, peer="scheduler#1", role="scheduler")
    gateway, events = dial(member)
    for each in (heard, events):
        await soon(each.ready)
        await soon(each.reports)
    for number in range(20):
        ids = [RequestId(f"r{number}")] if number % 2 else []
        endpoint.report(msgspec.structs.replace(load(), covers=ids, queue_head=number), {})
    covered = []
    while len(covered) < 10:
        report = await soon(heard.reports)
        covered += report.covers
    assert covered == [f"r{number}" for number in range(1, 20, 2)]
    assert report.queue_head == 19
    assert gateway.report.covers == []
    endpoint.report(msgspec.structs.replace(load(), covers=[R], queue_head=19), {})
    report = await soon(heard.reports)
    assert report.covers == [R], "the same load, and yet news"


async def test_a_burst_of_reports_is_thinned_and_the_last_one_arrives(serve, dial):
    endpoint, member = serve(report_interval_s=0.05)
    _, events = dial(member)
    await soon(events.ready)
    await soon(events.loads)
    for n in range(1, 201):
        endpoint.report(load(running=n), {})
    seen = []
    while not seen or seen[-1] != 200:
        seen.append((await soon(events.loads)).num_running)
    assert len(seen) < 20


async def test_only_listed_utilities_reach_the_engine(serve, dial, sink):
    endpoint, member = serve()
    link, events = dial(member)
    await soon(events.ready)
    answer = asyncio.create_task(link.call("ping", encode_arguments(1, "a"), 10))
    _, peer, header, _ = await sink.next()
    endpoint.emit(peer, wire.Reply(header.call), lambda: [b"pong"])
    assert [bytes(frame) for frame in await answer] == [b"pong"]
    with pytest.raises(RemoteError, match="collective_rpc"):
        await link.call("collective_rpc", encode_arguments("os.system"), 10)
    assert sink.events.empty()


async def test_a_failed_call_says_why(serve, dial, sink):
    endpoint, member = serve()
    link, events = dial(member)
    await soon(events.ready)
    answer = asyncio.create_task(link.call("ping", [], 10))
    _, peer, header, _ = await sink.next()
    endpoint.emit(peer, wire.Reply(header.call, "no luck"))
    with pytest.raises(RemoteError, match="no luck"):
        await answer


async def test_a_silent_peer_loses_its_lease(keys, serve, sink):
    _, member = serve(lease_s=0.3)
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    make_dialer(socket, keys)
    socket.identity = b"gw"
    socket.connect(member.address_in)
    await socket.send(wire.encode(wire.Hello("gw", 1, "gateway", __version__, VLLM_VERSION)))
    await socket.send_multipart([wire.encode(wire.Add(R, Epoch(1), 1)), b"x"])
    _, peer, *_ = await sink.next()
    assert await sink.next() == ("drop", peer)
    context.destroy(linger=0)


async def test_a_report_lost_before_the_second_connection_stood_is_sent_again(keys, serve):
    """The in-connection can be first by any time; what a ROUTER cannot deliver yet, it drops."""
    endpoint, member = serve()
    context = zmq.asyncio.Context()
    sockets = []
    for _ in range(2):
        socket = context.socket(zmq.DEALER)
        make_dialer(socket, keys)
        socket.identity = b"gw"
        sockets.append(socket)
    to_instance, from_instance = sockets
    hello = wire.encode(wire.Hello("gw", 1, "gateway", __version__, VLLM_VERSION))
    to_instance.connect(member.address_in)
    await to_instance.send(hello)
    async with asyncio.timeout(10):
        while not any(peer.reported for peer in list(endpoint._peers.values())):
            await asyncio.sleep(0.01)
    from_instance.connect(member.address_out)
    decoder = wire.Decoder(wire.FromInstance)
    is_ready = has_load = False
    async with asyncio.timeout(10):
        while not (is_ready and has_load):
            if not is_ready:
                await to_instance.send(hello)
            if await from_instance.poll(100):
                message = decoder.decode((await from_instance.recv_multipart())[0])
                is_ready = is_ready or isinstance(message, wire.Ready)
                has_load = is_ready and isinstance(message, wire.Load)
    context.destroy(linger=0)


async def test_a_link_whose_lease_ended_unnoticed_finds_back(serve, dial, sink):
    """For example because this process stood still for longer than the lease."""
    _, member = serve(lease_s=0.2)  # pings come every second: the lease ends between two
    _, events = dial(member)
    await soon(events.ready)
    assert (await sink.next())[0] == "drop"
    assert "lease" in await soon(events.down)
    await soon(events.ready)


async def test_closing_a_link_says_goodbye(serve, dial, sink):
    _, member = serve()
    link, events = dial(member)
    await soon(events.ready)
    await link.close()
    assert (await sink.next())[0] == "drop"


async def test_a_new_session_supersedes_the_old_one_of_the_same_peer(serve, dial, sink):
    _, member = serve()
    first, events = dial(member, peer="gw")
    await soon(events.ready)
    first.add(R, Epoch(1), Blocks(1), [b""])
    _, old_peer, *_ = await sink.next()
    _, events_again = dial(member, peer="gw")
    await soon(events_again.ready)
    assert await sink.next() == ("drop", old_peer)


async def test_two_processes_of_one_name_do_not_cut_each_other_off(serve, dial, sink):
    """A gateway beyond a partition, and the one that was started in its place."""
    endpoint, member = serve()
    names = [peer_of_process("gateway-1") for _ in range(2)]
    assert names[0] != names[1]
    assert all(each.startswith("gateway-1#") for each in names)
    dialled = [dial(member, peer=each) for each in names]
    peers = []
    for number, (link, events) in enumerate(dialled):
        await soon(events.ready)
        link.add(R, Epoch(1), Blocks(1), [b""])
        kind, peer, *_ = await sink.next()
        assert kind == "add"
        peers.append(peer)
        endpoint.report(load(), dict.fromkeys(peers, 1))
        endpoint.emit(peer, wire.Outputs(0, [(Epoch(1), number)]), lambda: [b"outputs"])
        assert (await soon(events.outputs))[0].owners == [(1, number)]
    await asyncio.sleep(0.5)  # they would dial again every 0.2 s
    assert all(events.down.empty() for _, events in dialled)
    assert sink.events.empty()
    assert [link.ledger.demand for link, _ in dialled] == [0, 0]


async def test_two_peers_do_not_hear_each_other(serve, dial, sink):
    endpoint, member = serve()
    one, events_one = dial(member, peer="one")
    two, events_two = dial(member, peer="two")
    await soon(events_one.ready)
    await soon(events_two.ready)
    one.add(R, Epoch(1), Blocks(1), [b"one"])
    _, peer_one, *_ = await sink.next()
    two.add(R, Epoch(1), Blocks(1), [b"two"])
    _, peer_two, *_ = await sink.next()
    assert peer_one != peer_two
    endpoint.emit(peer_two, wire.Outputs(0, []), lambda: [b"for two"])
    assert (await soon(events_two.outputs))[1] == [b"for two"]
    assert events_one.outputs.empty()


async def test_the_end_of_an_engine_ends_the_session_and_its_calls(serve, dial, sink):
    endpoint, member = serve()
    link, events = dial(member)
    await soon(events.ready)
    answer = asyncio.create_task(link.call("ping", [], 10))
    await sink.next()
    endpoint.close("out of memory")
    assert "out of memory" in await soon(events.down)
    with pytest.raises(UnreachableError, match="out of memory"):
        await answer
    with pytest.raises(UnreachableError, match="not connected"):
        link.add(R, Epoch(1), Blocks(1), [b""])


async def test_a_link_redials_an_instance_that_comes_back(keys, serve, dial, sink):
    endpoint, member = serve()
    link, events = dial(member)
    await soon(events.ready)
    link.add(R, Epoch(1), Blocks(5), [b""])
    endpoint.close("restart")
    await soon(events.down)
    _, again = serve()
    link.member = again
    await soon(events.ready)
    assert link.ledger.demand == 0, "a new session starts a new ledger"


async def test_what_is_not_there_is_not_sent_hours_of_hellos_when_it_comes(keys, dial):
    context = zmq.asyncio.Context()
    authenticator = Authenticator(context, keys)
    listeners = [context.socket(zmq.ROUTER) for _ in range(2)]
    with silent_port() as one, silent_port() as other:
        addresses = [f"tcp://127.0.0.1:{port}" for port in (one, other)]
        dial(wire.Member(InstanceId("tiny-0"), PoolName("tiny"), *addresses))
        await asyncio.sleep(1.5)  # 30 hellos
        for listener, address in zip(listeners, addresses, strict=True):
            make_listener(listener, keys)
            listener.bind(address)
    await asyncio.wait_for(listeners[0].recv_multipart(), 10)
    await asyncio.sleep(0.1)
    count = 0
    while await listeners[0].poll(0):
        await listeners[0].recv_multipart()
        count += 1
    assert count < 10
    authenticator.stop()
    context.destroy(linger=0)


async def test_another_vllm_version_is_refused_with_the_reason(serve, dial):
    _, member = serve(info=info(vllm_version="0.31.0"))
    link, events = dial(member)
    await refused(link)
    assert "vLLM 0.32.0 may not join an instance of vLLM 0.31.0" in link.refusal
    assert events.ready.empty()


async def test_a_scheduler_of_an_older_term_is_fenced(serve, dial):
    _, member = serve()
    _, events = dial(member, peer="new", role="scheduler", term=Term(2))
    await soon(events.ready)
    old, old_events = dial(member, peer="old", role="scheduler", term=Term(1))
    await refused(old)
    assert "term 1 is over" in old.refusal
    assert old_events.ready.empty()


async def test_a_scheduler_of_a_newer_term_ends_the_session_of_an_older_one(serve, dial):
    _, member = serve()
    old, old_events = dial(member, peer="scheduler#a", role="scheduler", term=Term(1))
    await soon(old_events.ready)
    _, gateway = dial(member, peer="gw")
    await soon(gateway.ready)
    _, events = dial(member, peer="scheduler#b", role="scheduler", term=Term(2))
    await soon(events.ready)
    await soon(old_events.down)
    await refused(old)
    assert "term 1 is over" in old.refusal
    assert events.down.empty(), "the old one's dialling does not disturb the new one"
    assert gateway.down.empty()


async def test_malformed_messages_do_not_end_the_endpoint(keys, serve, dial, sink):
    _, member = serve()
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    make_dialer(socket, keys)
    socket.connect(member.address_in)
    for frames in ([b""], [b"\x01junk"], [b"\x02"], [b"x"] * 300, [b"\x01\x93\x01\x02\x03"]):
        await socket.send_multipart(frames)
    link, events = dial(member)
    await soon(events.ready)
    link.add(R, Epoch(1), Blocks(1), [b""])
    assert (await sink.next())[0] == "add"
    context.destroy(linger=0)


# ---------------------------------------------------------------------- keys


async def test_a_peer_with_other_keys_gets_nothing(serve, dial, sink, keys):
    """Neither a stranger's keys nor the listener's public key with a made-up dialer pair."""
    _, member = serve()
    mine, stranger = keys, ClusterKeys.create()
    half = ClusterKeys(
        mine.listener_public, stranger.listener_secret, stranger.dialer_public,
        stranger.dialer_secret,
    )  # fmt: skip
    _, events_a = dial(member, peer="a", with_keys=stranger)
    _, events_b = dial(member, peer="b", with_keys=half)
    _, events_c = dial(member, peer="c")
    await soon(events_c.ready)
    await asyncio.sleep(0.5)
    assert events_a.ready.empty()
    assert events_b.ready.empty()
    assert sink.events.empty()


async def test_a_peer_without_keys_gets_nothing(serve, dial, sink):
    _, member = serve()
    context = zmq.asyncio.Context()
    plain = context.socket(zmq.DEALER)
    plain.connect(member.address_out)
    plain_in = context.socket(zmq.DEALER)
    plain_in.connect(member.address_in)
    for _ in range(5):
        plain_in.send(wire.encode(wire.Hello("x", 1, "gateway", "0.1.0", VLLM_VERSION)))
        await asyncio.sleep(0.05)
    assert not await plain.poll(500)
    assert sink.events.empty()
    context.destroy(linger=0)


async def test_an_impostor_listener_is_not_believed(keys):
    """A listener without the cluster's listener secret cannot stand in for an instance."""
    context = zmq.asyncio.Context()
    impostor = context.socket(zmq.ROUTER)
    make_listener(impostor, ClusterKeys.create())
    authenticator = Authenticator(context, keys)
    port = impostor.bind_to_random_port("tcp://127.0.0.1")
    client = context.socket(zmq.DEALER)
    make_dialer(client, keys)
    client.connect(f"tcp://127.0.0.1:{port}")
    client.send(b"secret")
    assert not await impostor.poll(700)
    authenticator.stop()
    context.destroy(linger=0)


def test_keys_are_kept_private_and_are_not_shown(tmp_path, keys):
    path = tmp_path / "keys.json"
    keys.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ClusterKeys.load(path) == keys
    assert keys.dialer_secret.reveal() not in repr(keys)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="readable by others"):
        ClusterKeys.load(path)
    with pytest.raises(FileExistsError):
        keys.save(path)
    path.chmod(0o600)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="no usable cluster keys"):
        ClusterKeys.load(path)

"""What every engine behind an instance's endpoint must do, whatever it is made of."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from llx.agent.engine_codec import (
    EngineCoreReadyResponse,
    EngineCoreRequest,
    FinishReason,
    SamplingParams,
    encode,
)
from llx.core.model import Epoch, RequestId
from llx.curve import ClusterKeys, make_dialer
from llx.pins import VLLM_VERSION
from llx.specs import Phase
from llx.wire import (
    MAX_FRAMES,
    MAX_ID_BYTES,
    MAX_MESSAGE_BYTES,
    NO_SESSION,
    WIRE_VERSION,
    Abort,
    Add,
    Call,
    Load,
    Ping,
    Reply,
    StepRows,
)
from llx.wire import encode as encode_header
from tests.contract.conftest import Instance
from tests.contract.peer import WAIT_S, Peer, Stream

pytestmark = pytest.mark.contract

PROMPT = list(range(300, 320))
LONG = 3000
"""Tokens that nobody waits for."""


@pytest.fixture
def peer(engine: Instance) -> Iterator[Peer]:
    with engine.joined() as peer:
        yield peer


@pytest.fixture
def other(engine: Instance) -> Iterator[Peer]:
    with engine.joined() as peer:
        yield peer


def is_idle(load: Load) -> bool:
    return load.num_running == load.num_waiting == 0 and load.free == load.total


def wait_load(peer: Peer, *, running: int) -> None:
    peer.until_load(lambda load: load.num_running == running)


# ---------------------------------------------------------------- sessions


def test_hello_is_answered_with_what_the_instance_is(engine: Instance, engine_kind: str) -> None:
    with engine.joined() as peer:
        assert peer.ready is not None
        info = peer.ready.info
        assert (info.instance, info.pool, info.vllm_version) == ("tiny-0", "tiny", VLLM_VERSION)
        assert info.pid == engine.process.pid
        ready = msgspec.msgpack.decode(peer.ready.engine_ready, type=EngineCoreReadyResponse)
        assert ready.vllm_version == VLLM_VERSION
        longest = {"sim": 4096, "vllm": 1024}[engine_kind]
        assert ready.max_model_len == info.max_model_len == longest
        assert ready.block_size == info.block_size


def test_a_repeated_hello_keeps_the_session(peer: Peer) -> None:
    stream = peer.add("hello-again", PROMPT, max_tokens=30)
    for _ in range(3):
        peer.say_hello()
    peer.finish(stream)
    assert len(stream.tokens) == 30


def test_another_release_of_llx_that_speaks_the_same_may_join(engine: Instance) -> None:
    with engine.peer(llx_version="99") as peer:
        peer.join()
        stream = peer.add("of-another-release", PROMPT, max_tokens=3)
        peer.finish(stream)
        assert len(stream.tokens) == 3


def test_another_vllm_is_refused(engine: Instance) -> None:
    with engine.peer(is_pinging=False, vllm_version="0.31.9") as peer:
        while peer.refused is None:
            assert peer.ready is None
            peer.say_hello()
            peer.read(0.1)
        assert "0.31.9" in peer.refused.reason
        stream = peer.add("refused-peer", PROMPT)
        while peer.read(0.2):  # answers to the hellos before
            assert peer.ready is None
        assert stream.outputs == []


def test_a_name_that_is_not_the_sockets_identity_is_refused(engine: Instance) -> None:
    with engine.peer() as peer:
        while peer.refused is None:
            peer.say_hello("somebody-else")
            peer.read(0.1)


def test_without_hello_nothing_is_served(engine: Instance, other: Peer) -> None:
    with engine.peer(is_pinging=False) as peer:
        peer.add("no-session", PROMPT)
        peer.send(Call(1, "get_supported_tasks"), [encode([])])
        assert not peer.read(0.3)
    other.sync()


def test_a_ping_of_no_session_is_told_so(engine: Instance) -> None:
    with engine.peer() as peer:
        while peer.refused is None:
            peer.send(Ping(peer.session))
            peer.read(0.1)
        assert peer.refused.reason == NO_SESSION


def test_another_wire_version_is_not_read(peer: Peer) -> None:
    stream = peer.streams.setdefault(("wire", 1), Stream(1))
    header = encode_header(Add(RequestId("wire"), Epoch(1), 9))
    peer.send_raw([bytes([WIRE_VERSION + 1]) + header[1:], b""])
    peer.sync()
    assert stream.outputs == []


# ---------------------------------------------------------------- requests


def test_outputs_carry_epoch_and_contiguous_offsets(peer: Peer) -> None:
    # Peer._file_outputs checks each offset and files by epoch.
    stream = peer.add("offsets", PROMPT, epoch=7, max_tokens=20)
    peer.finish(stream)
    assert len(stream.tokens) == 20
    assert stream.finish is FinishReason.LENGTH
    assert stream.outputs[0].prefill_stats is not None


def test_the_same_prompt_gives_the_same_tokens(peer: Peer) -> None:
    first = peer.add("same-1", PROMPT)
    peer.finish(first)
    second = peer.add("same-2", PROMPT)
    changed = peer.add("same-3", [301, *PROMPT[1:]])
    peer.finish(second, changed)
    assert second.tokens == first.tokens
    assert changed.tokens != first.tokens


def test_a_stop_token_ends_a_request(peer: Peer) -> None:
    free = peer.add("stop-1", PROMPT)
    peer.finish(free)
    last = free.tokens[4]
    params = SamplingParams(
        temperature=0.0, max_tokens=8, stop_token_ids=[last], all_stop_token_ids=[last]
    )
    stopped = peer.add("stop-2", PROMPT, params=params)
    peer.finish(stopped)
    assert stopped.finish is FinishReason.STOP
    assert stopped.tokens == free.tokens[: free.tokens.index(last) + 1]


def test_many_requests_at_once_all_end(peer: Peer) -> None:
    streams = [
        peer.add(f"many-{k}", PROMPT[: 1 + k % 20], max_tokens=1 + k, priority=k % 3)
        for k in range(24)
    ]
    peer.finish(*streams)
    assert [len(stream.tokens) for stream in streams] == list(range(1, 25))


def test_abort_ends_a_request(peer: Peer) -> None:
    stream = peer.add("abort", PROMPT, max_tokens=LONG)
    peer.until(lambda: len(stream.tokens) > 2)
    peer.abort("abort")
    peer.sync()
    after = peer.add("abort-after", PROMPT)
    num_tokens = len(stream.tokens)
    peer.finish(after)
    assert len(stream.tokens) == num_tokens
    assert stream.finish in (None, FinishReason.ABORT)
    wait_load(peer, running=0)


def test_an_abort_of_an_older_epoch_is_ignored(peer: Peer) -> None:
    first = peer.add("epochs", PROMPT, epoch=1, max_tokens=LONG)
    peer.until(lambda: len(first.tokens) > 0)
    peer.abort("epochs", epoch=1)
    second = peer.add("epochs", PROMPT, epoch=2, max_tokens=20)
    peer.abort("epochs", epoch=1)
    peer.finish(second)
    assert len(second.tokens) == 20
    assert second.finish is FinishReason.LENGTH


def test_a_newer_abort_ends_an_older_epoch(peer: Peer) -> None:
    stream = peer.add("newer", PROMPT, epoch=3, max_tokens=LONG)
    peer.until(lambda: len(stream.tokens) > 0)
    peer.abort("newer", epoch=9)
    wait_load(peer, running=0)


def test_aborts_of_what_is_not_there_are_harmless(peer: Peer) -> None:
    twice = [(RequestId("ghost"), Epoch(1))] * 2
    peer.send(Abort(twice))
    stream = peer.add("ghost", PROMPT, max_tokens=LONG)
    peer.until(lambda: len(stream.tokens) > 0)
    peer.send(Abort(twice))
    wait_load(peer, running=0)
    peer.sync()


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_id_that_is_held_cannot_be_added_again(peer: Peer, epoch: int) -> None:
    first = peer.add("twice", PROMPT, epoch=2, max_tokens=20)
    again = peer.add("twice", PROMPT[:3], epoch=epoch, max_tokens=3)
    peer.finish(first)
    assert len(first.tokens) == 20
    if again is not first:
        assert again.outputs == []


def test_an_add_under_a_later_epoch_begins_anew(peer: Peer) -> None:
    """The arbiter has fenced the copy that is held, and placed the request where it runs."""
    first = peer.add("anew", PROMPT, epoch=2, max_tokens=LONG)
    peer.until(lambda: len(first.tokens) > 2)
    again = peer.add("anew", PROMPT, epoch=3, max_tokens=4)
    peer.finish(again)
    assert len(again.tokens) == 4
    assert first.finish is None
    wait_load(peer, running=0)


@pytest.mark.parametrize("num_outputs", [1, 7, 23])
def test_a_request_goes_on_after_the_outputs_that_it_has(peer: Peer, num_outputs: int) -> None:
    whole = peer.add(f"whole-{num_outputs}", PROMPT, max_tokens=24)
    peer.finish(whole)
    had = whole.tokens[:num_outputs]
    rest = peer.add(f"rest-{num_outputs}", PROMPT, epoch=5, max_tokens=24, outputs=had)
    peer.finish(rest)
    assert (rest.tokens, rest.finish) == (whole.tokens, FinishReason.LENGTH)
    assert sum(len(each.new_token_ids) for each in rest.outputs) == 24 - num_outputs
    assert all(each.prefill_stats is None for each in rest.outputs), "its prompt counted before"


def test_a_request_that_has_all_its_outputs_cannot_go_on(peer: Peer) -> None:
    over = peer.add("over", PROMPT, max_tokens=4, outputs=[301] * 4)
    peer.finish(over)
    assert (len(over.tokens), over.finish) == (4, FinishReason.ERROR)


@pytest.mark.parametrize("payload", [[], [b""], [b"\xc1"], [encode(["r"])]], ids=str)
def test_an_unreadable_request_ends_with_an_error(peer: Peer, payload: list[bytes]) -> None:
    stream = peer.add_raw("unreadable", payload, epoch=4)
    peer.finish(stream)
    assert stream.finish is FinishReason.ERROR
    assert stream.tokens == []


def test_a_payload_of_another_id_ends_with_an_error(peer: Peer) -> None:
    message = EngineCoreRequest(
        "inner", PROMPT, None, SamplingParams(), None, 1.0, None, None, None, external_req_id="i"
    )
    stream = peer.add_raw("outer", [encode(message)])
    peer.finish(stream)
    assert stream.finish is FinishReason.ERROR


# ---------------------------------------------------------------- several peers


def test_two_peers_get_their_own_outputs(peer: Peer, other: Peer) -> None:
    # A stranger's output would be a KeyError in Peer._file_outputs.
    mine = peer.add("mine", PROMPT, max_tokens=30)
    theirs = other.add("theirs", PROMPT, max_tokens=30)
    peer.finish(mine)
    other.finish(theirs)
    assert mine.tokens == theirs.tokens


def test_bye_aborts_what_is_left_and_nothing_else(engine: Instance, other: Peer) -> None:
    theirs = other.add("bye-theirs", PROMPT, max_tokens=60)
    with engine.joined() as leaver:
        stream = leaver.add("bye-mine", PROMPT, max_tokens=LONG)
        leaver.until(lambda: len(stream.tokens) > 0)
        leaver.bye()
        other.finish(theirs)
        wait_load(other, running=0)
    assert len(theirs.tokens) == 60


def test_a_silent_peer_loses_its_requests_with_its_lease(impatient_engine: Instance) -> None:
    engine = impatient_engine
    with engine.joined() as other, engine.joined(is_pinging=False) as silent:
        # More than can be done within the lease, most of it in the queue.
        streams = [silent.add(f"silent-{k}", PROMPT, max_tokens=LONG) for k in range(40)]
        silent.until(lambda: len(streams[0].tokens) > 0)
        other.until_load(lambda load: load.num_running > 0)
        other.until_load(is_idle, timeout_s=engine.lease_s + WAIT_S)
        while silent.read(0.2):  # what it was sent until then; reading it is no ping
            pass
        assert any(each.finish is None for each in streams), "all came to ends of their own"


def test_a_peer_that_pings_keeps_its_lease(impatient_engine: Instance) -> None:
    with impatient_engine.joined() as peer:
        last = peer.add("patient-0", PROMPT)
        peer.finish(last)
        with pytest.raises(AssertionError, match="nothing came of it"):
            peer.until(lambda: False, timeout_s=impatient_engine.lease_s * 1.5)
        stream = peer.add("patient-1", PROMPT)
        peer.finish(stream)


def test_a_new_session_supersedes_the_old(engine: Instance, other: Peer) -> None:
    with engine.joined(name="same-name") as old:
        stream = old.add("old", PROMPT, max_tokens=LONG)
        old.until(lambda: len(stream.tokens) > 0)
        with engine.joined(name="same-name") as new:
            fresh = new.add("new", PROMPT, max_tokens=40)
            new.finish(fresh)
            wait_load(other, running=0)
            again = new.add("old", PROMPT)
            new.finish(again)


def test_a_superseded_connection_that_speaks_and_goes_is_harmless(engine: Instance) -> None:
    # libzmq 4.3.5 aborts the whole process when its heartbeat falls due on a connection that
    # ROUTER_HANDOVER has replaced and that has sent something and closed since.
    with engine.peer(name="restless") as old:
        old.join()
        with engine.joined(name="restless") as new:
            old.send(Ping(old.session))
            old.close()
            with pytest.raises(AssertionError, match="nothing came of it"):
                new.until(lambda: engine.process.poll() is not None, timeout_s=2.5)
            new.sync()


# ---------------------------------------------------------------- utilities


def test_utilities_on_the_list_answer(peer: Peer) -> None:
    assert peer.call("get_supported_tasks")[1] == ["generate"]
    assert peer.call("is_sleeping")[1] is False
    assert peer.call("reset_mm_cache")[1] is None
    assert peer.call("reset_prefix_cache")[1] is True


@pytest.mark.parametrize(
    "method", ["collective_rpc", "shutdown", "save_sharded_state", "__init__", "", "x" * 99_999]
)
def test_utilities_off_the_list_are_refused_unread(peer: Peer, method: str) -> None:
    reply, result = peer.call(method, b"arguments")
    assert "not an admitted utility" in reply.error
    assert result is None
    peer.sync()


# ---------------------------------------------------------------- what operators ask for


def views(peer: Peer) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in peer.call("llx_requests")[1]}


def test_the_oldest_are_told_and_how_many_there_are(peer: Peer) -> None:
    streams = [peer.add(f"old-{k}", PROMPT, max_tokens=LONG) for k in range(3)]
    peer.until(lambda: all(stream.tokens for stream in streams))
    by_age = sorted(views(peer).values(), key=lambda each: each["arrival"])
    found = peer.call("llx_oldest_requests", 2)[1]
    assert found["num"] == 3
    assert [each["id"] for each in found["views"]] == [each["id"] for each in by_age[:2]]
    assert peer.call("llx_oldest_requests")[0].error
    for k in range(3):
        peer.abort(f"old-{k}")
    wait_load(peer, running=0)


def test_a_priority_can_be_changed_of_what_runs_and_of_what_waits(peer: Peer) -> None:
    running = [peer.add(f"full-{k}", PROMPT, max_tokens=LONG, priority=5) for k in range(8)]
    peer.until(lambda: all(stream.tokens for stream in running))
    first = peer.add("first", PROMPT, max_tokens=LONG, priority=7)
    second = peer.add("second", PROMPT, max_tokens=LONG, priority=7)
    peer.until_load(lambda load: load.num_waiting == 2)
    assert peer.call("llx_set_priority", "second", 6)[1] is True
    assert peer.call("llx_set_priority", "full-1", 9)[1] is True
    found = views(peer)
    assert (found["second"]["priority"], found["second"]["state"]) == (6, "waiting")
    assert (found["full-1"]["priority"], found["full-1"]["state"]) == (9, "running")
    peer.until(lambda: peer.loads[-1].classes.keys() == {5, 6, 7, 9})
    assert {key: each[:2] for key, each in peer.loads[-1].classes.items()} == {
        5: (7, 0), 6: (0, 1), 7: (0, 1), 9: (1, 0)
    }  # fmt: skip
    peer.abort("full-0")
    peer.until(lambda: bool(second.tokens))
    assert first.tokens == []
    for request in ("first", "second", *(f"full-{k}" for k in range(1, 8))):
        peer.abort(request)
    peer.until_load(is_idle)


def test_what_is_not_there_has_neither_priority_nor_pin(peer: Peer) -> None:
    assert peer.call("llx_set_priority", "nobody", 1)[1] is False
    assert peer.call("llx_pin", "nobody", "by ann")[1] == "it is not here"
    assert peer.call("llx_set_priority", "nobody")[0].error
    peer.sync()


def test_a_pin_is_shown_until_it_is_taken_back_or_the_request_ends(peer: Peer) -> None:
    stream = peer.add("pin", PROMPT, max_tokens=LONG)
    peer.until(lambda: bool(stream.tokens))
    before = views(peer)["pin"]["pinned"]
    assert peer.call("llx_pin", "pin", "by ann")[1] == ""
    assert views(peer)["pin"]["pinned"] == "by ann"
    assert peer.call("llx_pin", "pin", "")[1] == ""
    assert views(peer)["pin"]["pinned"] == before
    assert peer.call("llx_pin", "pin", "by bob")[1] == ""
    peer.abort("pin")
    wait_load(peer, running=0)
    again = peer.add("pin", PROMPT, epoch=2, max_tokens=LONG)
    peer.until(lambda: bool(again.tokens))
    assert views(peer)["pin"]["pinned"] == before
    peer.abort("pin", epoch=2)
    wait_load(peer, running=0)


# ---------------------------------------------------------------- steps


def test_what_steps_cost_is_told(peer: Peer) -> None:
    """All that was computed is in some step, and no time is in two."""
    before = msgspec.convert(peer.call("llx_steps")[1], StepRows)
    begun = time.monotonic_ns()
    streams = [peer.add(f"steps-{k}", PROMPT, max_tokens=30) for k in range(2)]
    for stream in streams:
        peer.finish(stream)
    lasted = time.monotonic_ns() - begun
    seen = msgspec.convert(peer.call("llx_steps")[1], StepRows)
    rows = seen.rows[before.first + len(before.rows) - seen.first :]
    assert sum(each.num_prefill_tokens for each in rows) == 2 * len(PROMPT)
    assert sum(each.num_decodes for each in rows) == 2 * 29
    assert sum(each.num_square_tokens for each in rows) == 2 * len(PROMPT) ** 2
    contexts = sum(len(PROMPT) + k for k in range(1, 30))
    assert sum(each.num_decode_context_tokens for each in rows) == 2 * contexts
    assert all(each.num_context_tokens >= each.num_decode_context_tokens for each in rows)
    assert all(each.duration_ns > 0 for each in rows)
    assert sum(each.duration_ns for each in rows) <= lasted


# ---------------------------------------------------------------- load reports


def test_load_reports_follow_changes_and_quote_the_add_they_cover(peer: Peer, other: Peer) -> None:
    peer.until_load(is_idle)
    streams = [peer.add(f"load-{k}", PROMPT, max_tokens=200, priority=5) for k in range(3)]
    peer.until_load(lambda load: load.seen == 3)
    peer.until_load(lambda load: load.num_running == 3)
    load = peer.loads[-1]
    assert load.free < load.total
    assert load.classes[5][0] == 3
    other.until_load(lambda load: load.num_running == 3)
    assert other.loads[-1].seen == 0
    peer.finish(*streams)
    peer.until_load(is_idle)
    assert peer.loads[-1].seen == 3
    assert [load.at for load in peer.loads] == sorted(load.at for load in peer.loads)


def test_an_idle_instance_is_quiet(peer: Peer) -> None:
    peer.until_load(is_idle)
    peer.sync()
    deadline = time.monotonic() + WAIT_S
    while peer.read(0.4):
        assert time.monotonic() < deadline, "it goes on reporting"


# ---------------------------------------------------------------- prefix cache


def test_who_asks_is_told_what_is_in_the_prefix_cache_and_what_becomes_of_it(
    peer: Peer, other: Peer
) -> None:
    assert peer.ready is not None
    size = peer.ready.info.prefix_block
    peer.prefix_ask = other.prefix_ask = 1
    assert peer.call("reset_prefix_cache")[1]
    prompt = list(range(300, 400))
    peer.finish(peer.add("prefix-1", prompt, max_tokens=4))
    if not size:  # the simulated engine has none
        peer.until_load(is_idle)
        assert peer.num_prefix_reports == 0
        return
    peer.until(lambda: len(peer.cached) == len(prompt) // size)
    first = peer.cached
    peer.finish(peer.add("prefix-2", [*prompt[: 2 * size], *reversed(prompt)], max_tokens=4))
    peer.until(lambda: len(peer.cached) == len(first) + (100 // size))
    assert len(first & peer.cached) == len(first), "what both have is one block"
    other.until(lambda: other.cached == peer.cached)
    assert other.num_prefix_reports == 1, "who comes late is told everything at once"
    assert peer.call("reset_prefix_cache")[1]
    for each in (peer, other):
        each.until(lambda one=each: not one.cached)  # type: ignore[misc]


# ---------------------------------------------------------------- noise, strangers, the end


def test_malformed_frames_do_not_end_the_instance(engine: Instance, peer: Peer) -> None:
    version = bytes([WIRE_VERSION])
    long_id = Add(RequestId("x" * (MAX_ID_BYTES + 1)), Epoch(1), 1)
    for frames in (
        [b""],
        [b"\xff" * 64],
        [version],
        [version + b"\xc1"],
        [version + b"\x91\xa5nonce"],
        [version + b"\x81\xa1a\x01"],
        [version + b"\x91" * 5000],
        [encode_header(Reply(1))],
        [encode_header(long_id), b""],
        [encode_header(Ping(1))] * (MAX_FRAMES + 1),
        [encode_header(Call(1, "get_supported_tasks")), b"\xc1 no arguments"],
        [encode_header(Abort([(RequestId(""), Epoch(1))]))],
    ):
        peer.send_raw(frames)
    stream = peer.add("after-noise", PROMPT)
    peer.finish(stream)
    assert engine.process.poll() is None


def strangers(keys: ClusterKeys) -> dict[str, ClusterKeys | None]:
    foreign = ClusterKeys.create()
    return {
        "no key": None,
        "a key of its own": replace(
            keys, dialer_public=foreign.dialer_public, dialer_secret=foreign.dialer_secret
        ),
        "another cluster's keys": foreign,
        "the listener's public key as its own": replace(
            foreign, listener_public=keys.listener_public
        ),
    }


@pytest.mark.parametrize("who", sorted(strangers(ClusterKeys.create())))
@pytest.mark.parametrize("socket_name", ["address_in", "address_out"])
def test_a_stranger_gets_no_connection(engine: Instance, who: str, socket_name: str) -> None:
    keys = strangers(engine.keys)[who]
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    if keys is not None:
        make_dialer(socket, keys)
    monitor = socket.get_monitor_socket()
    socket.connect(getattr(engine, socket_name))
    socket.send(b"hello?")
    events: list[int] = []
    while not any(
        event & (zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED) for event in events
    ):
        assert monitor.poll(round(WAIT_S * 1000)), f"the handshake hangs after {events}"
        events.append(int(recv_monitor_message(monitor)["event"]))
    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in events
    assert not socket.poll(0)
    socket.disable_monitor()
    monitor.close(0)
    context.destroy(linger=0)


@pytest.mark.slow
def test_a_frame_beyond_the_limit_drops_the_connection(engine: Instance, peer: Peer) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    make_dialer(socket, engine.keys)
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    socket.connect(engine.address_in)
    socket.send(bytearray(MAX_MESSAGE_BYTES + 1), copy=False)
    peer.until(lambda: bool(monitor.poll(0)))  # dropped; meanwhile this peer renews its lease
    socket.disable_monitor()
    monitor.close(0)
    context.destroy(linger=0)
    stream = peer.add("after-flood", PROMPT)
    peer.finish(stream)


def test_sigterm_ends_an_idle_instance(mortal_engine: Instance) -> None:
    os.kill(mortal_engine.process.pid, signal.SIGTERM)
    assert mortal_engine.process.wait(WAIT_S) == 0


def test_sigterm_ends_streams_with_an_abort(engine: Instance) -> None:
    """The last test of all: it ends the shared instance."""
    with engine.peer() as peer:
        peer.join()
        streams = [peer.add(f"end-{k}", PROMPT, max_tokens=LONG) for k in range(3)]
        peer.until(lambda: all(stream.tokens for stream in streams))
        os.kill(engine.process.pid, signal.SIGTERM)
        peer.until(lambda: peer.dead is not None)
        assert {stream.finish for stream in streams} == {FinishReason.ABORT}
    assert engine.process.wait(WAIT_S) == 0
    assert engine.status().phase is Phase.STOPPING

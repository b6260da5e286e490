"""Moves requests of a real vLLM engine core to themselves under another id, step by step.

    python tests/e2e/check_vllm_migration.py MODEL sync|async

Run by the node's Python (`test_vllm_migration.py` starts it). One engine core, no gateway and no
llumlet: this script is both, and drives the core by hand, so that every cut is at a known token.
The target is the same engine: what is compared is what a request says with and without a move, and
the count of free blocks before and after. Exits non-zero with the first difference.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest

from llx.agent.vllm import migrating
from llx.core.migration import Begun, Cut, Progress, Reservation
from llx.core.model import Epoch, MigrationId, RequestId
from llx.wire import Add, Call, Reserve
from tests.e2e.check_prefixes import check_prefixes
from tests.e2e.check_vllm_recovery import check_recovery
from tests.e2e.core_rig import (
    BLOCK,
    PEER,
    REGEX,
    Rig,
    Said,
    build,
    check,
    prompt_of,
)


def move(
    rig: Rig, prompt: list[int], params: dict[str, Any], *, after: int, reuse: bool = False
) -> tuple[Said, Reservation]:
    """Run a request to `after` tokens, move it live in two stages, run it to its end."""
    source = rig.add(prompt, params)
    rig.until(lambda: len(rig.said(source).tokens) >= after, "the first tokens")
    begun = rig.begin(source)
    target, prepared = rig.prepare(prompt, params)
    reserved = rig.reserve("m", prepared, begun.progress.num_tokens + 1, reuse)
    assert isinstance(reserved, Reservation), reserved
    first = reserved.num_reused // BLOCK
    settled = begun.progress.num_settled // BLOCK
    rig.copy(begun.progress.blocks[first:settled], reserved.blocks[first:settled])
    for _ in range(6):  # it goes on meanwhile
        rig.step()
    progress = rig.port.progress(source)
    assert isinstance(progress, Progress), progress
    more = rig.port.extend(MigrationId("m"), progress.num_tokens + 2)
    assert isinstance(more, Reservation), more
    cut = rig.cut(source)
    assert cut is not None
    running = rig.endpoint.load.num_running
    assert running >= 1, "a request that is leaving counts as running"
    last = -(-cut.num_computed // BLOCK)
    start = max(first, settled)
    rig.copy(cut.blocks[start:last], more.blocks[start:last])
    rig.store.keep_sampler_state(MigrationId("m"), rig.store.sampler_state(source))
    assert list(cut.outputs) == rig.said(source).tokens, "outputs left before the cut was said"
    reason = rig.port.commit(MigrationId("m"), PEER, Epoch(2), cut.outputs, cut.num_computed)
    assert reason == "", reason
    rig.port.release(source)
    end = rig.run(target)
    whole = Said(
        rig.said(source).tokens + end.tokens,
        rig.said(source).logprobs + end.logprobs,
        rig.said(source).stamps + end.stamps,
        end.finish,
    )
    assert end.stamps[0] == (2, len(cut.outputs)), end.stamps[0]
    return whole, reserved


def check_same(rig: Rig, name: str, prompt: list[int], params: dict[str, Any], after: int) -> None:
    rig.idle()
    free = rig.free
    alone = rig.run(rig.add(prompt, params))
    moved, _ = move(rig, prompt, params, after=after)
    check(f"{name}: tokens", moved.tokens == alone.tokens, moved.tokens, alone.tokens)
    check(f"{name}: finish", moved.finish == alone.finish, moved.finish, alone.finish)
    check(f"{name}: logprobs", moved.logprobs == alone.logprobs)
    rig.is_quiet(free, name)


def check_identity(rig: Rig) -> None:
    seeded = {"temperature": 1.0, "seed": 11, "top_p": 0.9, "presence_penalty": 0.4,
              "frequency_penalty": 0.3, "repetition_penalty": 1.2}  # fmt: skip
    check_same(rig, "greedy", prompt_of(70, 1), {"max_tokens": 60}, after=20)
    check_same(rig, "greedy, early", prompt_of(5, 2), {"max_tokens": 40}, after=1)
    check_same(rig, "seeded", prompt_of(40, 3), {"max_tokens": 60, **seeded}, after=25)
    check_same(rig, "logprobs", prompt_of(40, 4), {"max_tokens": 30, "logprobs": 3}, after=8)
    plain = rig.run(rig.add(prompt_of(33, 5), {"max_tokens": 60})).tokens
    stop = next(token for n, token in enumerate(plain) if n > 30 and token not in plain[:30])
    stopping = {"max_tokens": 60, "stop_token_ids": [stop]}
    check_same(rig, "stop token", prompt_of(33, 5), stopping, after=12)
    early = {"max_tokens": 60, "stop_token_ids": [plain[5]], "min_tokens": 35}
    check_same(rig, "min_tokens", prompt_of(33, 5), early, after=12)
    check_same(rig, "regex", prompt_of(20, 6), {"max_tokens": 40, "regex": REGEX}, after=10)


def check_prefix(rig: Rig) -> None:
    """Blocks of the prompt that the target has are not copied; the others are."""
    prompt, params = prompt_of(100, 7), {"max_tokens": 40}
    rig.idle()
    free = rig.free
    alone = rig.run(rig.add(prompt, params))
    moved, cold = move(rig, prompt, params, after=10, reuse=False)
    check("no reuse: tokens", moved.tokens == alone.tokens, moved.tokens, alone.tokens)
    check("no reuse: copied all", cold.num_reused == 0)
    moved, warm = move(rig, prompt, params, after=10, reuse=True)
    check("reuse: tokens", moved.tokens == alone.tokens, moved.tokens, alone.tokens)
    check("reuse: the prompt's full blocks", warm.num_reused == 96, warm.num_reused)
    rig.is_quiet(free, "prefix")
    assert rig.core.scheduler.reset_prefix_cache()
    # What a migration brought is in the prefix cache of its target.
    move(rig, prompt, params, after=10)
    again, prepared = rig.prepare([*prompt, *alone.tokens[:20]], params)
    found = rig.reserve("again", prepared, 130, True)
    check("arrived blocks are published", found.num_reused == 96, again, found)
    rig.port.abandon(MigrationId("again"))
    rig.is_quiet(free, "published")


def check_prefill(rig: Rig) -> None:
    """Stopped in the middle of its prompt: what is computed goes along, with no output yet."""
    prompt, params = prompt_of(380, 16), {"max_tokens": 20}
    rig.idle()
    free = rig.free
    alone = rig.run(rig.add(prompt, params))
    assert rig.core.scheduler.reset_prefix_cache()
    busy = rig.add(prompt_of(10, 17), {"max_tokens": 30})
    rig.until(lambda: len(rig.said(busy).tokens) >= 1, "a token")
    source = rig.add(prompt, params)
    begun = rig.begin(source)
    check("prefill: waits", begun.progress.is_waiting)
    rig.step()
    progress = rig.port.progress(source)
    assert progress is not None
    rig.until(lambda: rig.port.progress(source).num_settled >= 96, "a part of the prompt")
    cut = rig.cut(source)
    assert cut is not None
    check("prefill: cut in it", 96 <= cut.num_computed < 380 and not cut.outputs, cut)
    target, prepared = rig.prepare(prompt, params)
    assert isinstance(rig.reserve("f", prepared, 0, False), Reservation)
    more = rig.port.extend(MigrationId("f"), cut.num_computed)
    assert isinstance(more, Reservation), more
    used = -(-cut.num_computed // BLOCK)
    rig.copy(cut.blocks[:used], more.blocks[:used])
    assert rig.port.commit(MigrationId("f"), PEER, Epoch(2), (), cut.num_computed) == ""
    rig.port.release(source)
    end = rig.run(target)
    check("prefill: tokens", end.tokens == alone.tokens, end.tokens, alone.tokens)
    check("prefill: its statistics", end.prefilled == 380, end.prefilled)
    rig.run(busy)
    rig.is_quiet(free, "prefill")


def check_return(rig: Rig) -> None:
    """It ends here, comes back at once, and goes away again: an id lives several times."""
    prompt, params = prompt_of(45, 18), {"max_tokens": 40, "temperature": 1.0, "seed": 9}
    rig.idle()
    free = rig.free
    alone = rig.run(rig.add(prompt, params))
    request = rig.add(prompt, params)
    rig.until(lambda: len(rig.said(request).tokens) >= 10, "ten tokens")
    for hop in range(2, 5):
        rig.port.begin(request)
        cut = rig.cut(request)
        assert cut is not None
        # What leaves here lies elsewhere for a moment.
        away = memoryview(bytearray(len(cut.blocks) * rig.store.block_bytes))
        rig.store.pack(cut.blocks, away)
        state = rig.store.sampler_state(request)
        rig.port.release(request)
        header = Reserve(
            MigrationId("b"), request, Epoch(hop), "gateway", f"name-of-{request}", "", 0
        )
        prepared = rig.port.prepare(header, rig.payload(request, prompt, params, 0))
        migration = f"back-{hop}"
        reserved = rig.reserve(migration, prepared, cut.num_computed + 1, False)
        assert isinstance(reserved, Reservation), reserved
        rig.store.unpack(reserved.blocks[: len(cut.blocks)], away)
        rig.store.keep_sampler_state(MigrationId(migration), state)
        reason = rig.port.commit(
            MigrationId(migration), PEER, Epoch(hop), cut.outputs, cut.num_computed
        )
        assert reason == "", reason
        check(f"hop {hop}: not yet in the batch", isinstance(rig.port.begin(request), str))
        seen = len(rig.said(request).tokens)
        rig.until(lambda seen=seen: len(rig.said(request).tokens) >= seen + 5, "five tokens")
    check("returned: tokens", rig.run(request).tokens == alone.tokens)
    offsets = [offset for _, offset in rig.said(request).stamps]
    check("returned: offsets", offsets == list(range(40)), offsets)
    rig.is_quiet(free, "returned")

    # Aborted, and added again under the same id before that is known to the workers.
    for later in (Epoch(2), Epoch(3)):
        again = rig.add(prompt, params)
        rig.until(lambda again=again: len(rig.said(again).tokens) >= 5, "five tokens")
        seen = len(rig.said(again).tokens)
        rig.sink.abort(PEER, [(again, Epoch(1))])
        frames = rig.payload(again, prompt, params, 0)
        rig.sink.add(PEER, Add(again, later, 99, "again"), frames)
        if later == 3:
            rig.sink.abort(PEER, [(again, Epoch(3))])
            rig.is_quiet(free, "added again, and aborted again")
        else:
            check("added again: tokens", rig.run(again).tokens[seen:] == alone.tokens)
            rig.is_quiet(free, "added again")

    # Committed, and aborted before its first step.
    target, prepared = rig.prepare(prompt, params)
    rig.reserve("short", prepared, 47, False)
    rig.store.keep_sampler_state(MigrationId("short"), b"g1" + bytes(5056))
    assert rig.port.commit(MigrationId("short"), PEER, Epoch(2), alone.tokens[:3], 47) == ""
    rig.sink.abort(PEER, [(target, Epoch(2))])
    rig.pump()
    rig.step()
    rig.is_quiet(free, "aborted on arrival")


def check_waiting(rig: Rig) -> None:
    """More than the batch holds: the rest waits, and moves without KV."""
    rig.idle()
    free, params = rig.free, {"max_tokens": 12}
    alone = rig.run(rig.add(prompt_of(30, 8), params))
    busy = [rig.add(prompt_of(10, 20 + n), {"max_tokens": 40}) for n in range(4)]
    for _ in range(3):
        rig.step()
    waiting = rig.add(prompt_of(30, 8), params)
    rig.step()
    begun = rig.begin(waiting)
    check("waiting: seen", begun.progress.is_waiting and not begun.progress.blocks, begun)
    cut = rig.cut(waiting)
    assert cut is not None
    check("waiting: cut", (cut.outputs, cut.num_computed, cut.blocks) == ((), 0, ()), cut)
    rig.port.resume(waiting, Epoch(1))
    rig.begin(waiting)
    cut = rig.cut(waiting)
    target, prepared = rig.prepare(prompt_of(30, 8), params)
    assert isinstance(rig.reserve("w", prepared, 0, True), Reservation)
    assert rig.port.commit(MigrationId("w"), PEER, Epoch(2), (), 0) == ""
    rig.port.release(waiting)
    check("waiting: tokens", rig.run(target).tokens == alone.tokens)
    for each in busy:
        rig.run(each)
    rig.is_quiet(free, "waiting")


def check_kept(rig: Rig) -> None:
    """What does not leave after all, and what ends on the way."""
    prompt, params = prompt_of(50, 9), {"max_tokens": 40, "temperature": 1.0, "seed": 5}
    rig.idle()
    free = rig.free
    alone = rig.run(rig.add(prompt, params))
    source = rig.add(prompt, params)
    other = rig.add(prompt_of(10, 10), {"max_tokens": 60})
    rig.until(lambda: len(rig.said(source).tokens) >= 9, "nine tokens")
    rig.begin(source)
    assert rig.cut(source) is not None
    for _ in range(5):
        rig.step()
    rig.port.resume(source, Epoch(3))
    check("resumed: tokens", rig.run(source).tokens == alone.tokens)
    check("resumed: epoch", rig.said(source).stamps[-1][0] == 3, rig.said(source).stamps)
    rig.run(other)
    rig.is_quiet(free, "resumed")

    source = rig.add(prompt, params)
    rig.until(lambda: len(rig.said(source).tokens) >= 4, "four tokens")
    rig.begin(source)
    assert rig.cut(source) is not None  # and the engine idles
    rig.port.resume(source, Epoch(1))
    check("resumed at once: tokens", rig.run(source).tokens == alone.tokens)
    rig.is_quiet(free, "resumed at once")

    rig.lost.clear()
    source = rig.add(prompt, params)
    rig.until(lambda: len(rig.said(source).tokens) >= 4, "four tokens")
    rig.begin(source)
    assert rig.cut(source) is not None
    rig.sink.abort(PEER, [(source, Epoch(1))])
    rig.pump()
    check("aborted while cut: told", rig.lost == [(source, "aborted")], rig.lost)
    rig.port.release(source)
    rig.port.resume(source, Epoch(2))
    rig.is_quiet(free, "aborted while cut")

    # The engine that schedules ahead has a token of it in flight now; the other has not.
    is_ahead = type(rig.core.scheduler).__name__ == "MigratingAsyncScheduler"
    source = rig.add(prompt, params)
    rig.until(lambda: len(rig.said(source).tokens) >= 4, "four tokens")
    rig.begin(source)
    done: list[Cut | None] = []
    rig.port.cut(source, done.append)
    check("cut: waits for what is in flight", bool(done) is not is_ahead, done)
    rig.port.resume(source, Epoch(1))
    done.clear()
    check("resumed while it drained: tokens", rig.run(source).tokens == alone.tokens)
    check("resumed while it drained: nothing said", not done)
    rig.is_quiet(free, "resumed while it drained")

    source = rig.add(prompt, params)
    rig.until(lambda: len(rig.said(source).tokens) >= 4, "four tokens")
    rig.begin(source)
    done.clear()
    rig.port.cut(source, done.append)
    rig.sink.abort(PEER, [(source, Epoch(1))])
    rig.pump()
    check("aborted while it drained: said", len(done) == 1 and (done[0] is None) is is_ahead, done)
    rig.is_quiet(free, "aborted while it drained")

    check_writes_in_flight(rig, prompt, params, is_ahead)

    rig.lost.clear()
    source = rig.add(prompt, params)
    rig.until(lambda: len(rig.said(source).tokens) >= 4, "four tokens")
    rig.begin(source)
    rig.run(source)
    check("finished: told", rig.lost == [(source, "finished")], rig.lost)
    check("finished: no progress", rig.port.progress(source) is None)
    check("finished: no cut", rig.cut(source) is None)
    rig.is_quiet(free, "finished")

    source = rig.add(prompt, params | {"max_tokens": 12})
    rig.until(lambda: len(rig.said(source).tokens) >= 11, "eleven tokens")
    rig.begin(source)
    cut = rig.cut(source)  # its last token is in flight if the engine schedules ahead
    if cut is not None:
        rig.port.resume(source, Epoch(1))
        rig.run(source)
    check("cut before its last token", len(rig.said(source).tokens) == 12)
    rig.is_quiet(free, "cut before its last token")
    check("unknown", rig.port.begin(RequestId("nobody")) == "no such request here")


def check_room(rig: Rig) -> None:
    """A target that is full, at the beginning and later; preemption of what is watched."""
    rig.idle()
    free, params = rig.free, {"max_tokens": 200}
    target, prepared = rig.prepare(prompt_of(200, 11), {"max_tokens": 400})
    _, filler = rig.prepare(prompt_of(200, 11), {"max_tokens": 400})
    assert isinstance(rig.reserve("filler", filler, 12 * BLOCK, False), Reservation)
    refused = rig.reserve("full", prepared, 15 * BLOCK, False)
    check("full at once: refused", isinstance(refused, str) and "no room" in refused, refused)
    reserved = rig.reserve("full", prepared, 210, False)
    check("asked for less", len(reserved.blocks) == 7, reserved)
    refused = rig.port.extend(MigrationId("full"), 15 * BLOCK)
    check("full later: refused", isinstance(refused, str) and "no room" in refused, refused)
    more = rig.port.extend(MigrationId("full"), 230)
    check("what was reserved stays", isinstance(more, Reservation) and len(more.blocks) == 8, more)
    check("taken", rig.free == free - 8 - 12)
    check("twice", isinstance(rig.reserve("full", prepared, 10, False), str))
    check("cache stays", not rig.core.scheduler.reset_prefix_cache(True))
    rig.store.keep_sampler_state(MigrationId("full"), b"g1" + bytes(5056))  # of its last stage
    for migration in ("full", "full", "filler"):
        rig.port.abandon(MigrationId(migration))
    gone = rig.port.commit(MigrationId("full"), PEER, Epoch(2), (1,), 5)
    check("abandoned: no commit", gone != "", gone)
    rig.is_quiet(free, "abandoned")

    for odd, outputs, computed in (("too much", (1,), 60), ("too little", (), 40)):
        target, prepared = rig.prepare(prompt_of(40, 11), {"max_tokens": 40})
        rig.reserve(odd, prepared, 41, False)
        gone = rig.port.commit(MigrationId(odd), PEER, Epoch(2), outputs, computed)
        check(f"{odd}: no commit", gone != "", gone)
        rig.is_quiet(free, odd)
    target, prepared = rig.prepare(prompt_of(40, 11), {"max_tokens": 40, "regex": REGEX})
    rig.reserve("grammar", prepared, 41, False)
    gone = rig.port.commit(MigrationId("grammar"), PEER, Epoch(2), (5, 6), 40)
    check("wrong words: no commit", "grammar" in gone, gone)
    rig.is_quiet(free, "wrong words")

    rig.lost.clear()
    counted = rig.core._llx_load().num_preemptions
    first = rig.add(prompt_of(300, 12), params)
    rig.until(lambda: len(rig.said(first).tokens) >= 3, "three tokens")
    second = rig.add(prompt_of(310, 13), params)
    rig.until(lambda: len(rig.said(second).tokens) >= 3, "three tokens")
    rig.begin(second)
    rig.until(lambda: bool(rig.lost), "a preemption")
    check("preempted: counted", rig.core._llx_load().num_preemptions == counted + 1)
    check("preempted: told", rig.lost == [(second, "preempted")], rig.lost)
    check("preempted: no progress", rig.port.progress(second) is None)
    view = next(each for each in rig.core.llx_requests() if each["id"] == second)
    check("preempted: shown", view["state"] == "preempted", view)
    # Preempted, with outputs and without KV: it moves like one that waits.
    begun = rig.begin(second)
    check("preempted: waits", begun.progress.is_waiting, begun.progress)
    before = rig.said(second).tokens
    cut = rig.cut(second)
    assert cut is not None
    check("preempted: cut", list(cut.outputs) == before and cut.num_computed == 0, cut)
    target, prepared = rig.prepare(prompt_of(310, 13), params)
    assert isinstance(rig.reserve("p", prepared, 0, True), Reservation)
    assert rig.port.commit(MigrationId("p"), PEER, Epoch(2), cut.outputs, 0) == ""
    rig.port.release(second)
    rest = rig.run(target).tokens
    rig.run(first)
    rig.idle()
    alone = rig.run(rig.add(prompt_of(310, 13), params))
    check("preempted: tokens", before + rest == alone.tokens)
    rig.is_quiet(free, "preempted")


def check_requests(rig: Rig) -> None:
    """What operators see, and what cannot move."""
    rig.idle()
    free = rig.free
    one = rig.add(prompt_of(40, 14), {"max_tokens": 60, "prompt_logprobs": 1}, priority=3)
    waits = rig.port.begin(one)
    check("prompt logprobs may wait elsewhere", isinstance(waits, Begun), waits)
    rig.port.unwatch(one)
    rig.until(lambda: len(rig.said(one).tokens) >= 2, "two tokens")
    rig.sink.call(PEER, Call(1, "llx_requests"), [])
    rig.pump()
    error, (view,) = rig.endpoint.replies[-1]
    assert error == ""
    expected = {
        "id": one, "name": f"name-of-{one}", "peer": PEER, "priority": 3, "state": "running",
        "num_prompt": 40, "num_blocks": 2, "size_bytes": 2 * rig.store.block_bytes, "pinned": "",
    }  # fmt: skip
    check("shown", expected.items() <= view.items(), view)
    by_plan = migrating._block_bytes(rig.core)
    check("bytes by vLLM's plan", by_plan == rig.store.block_bytes, by_plan)
    rig.core.llx_ownership.pin(one, "by ann")
    check("pinned", rig.port.begin(one) == "pinned: by ann")
    rig.core.llx_ownership.pin(one, "")
    rig.begin(one)
    check("pinned too late", rig.core.llx_pin(one, "by ann") == "it is being moved")
    check("another priority", rig.port.set_priority(one, 8))
    cut = rig.cut(one)
    check("given away with it", cut is not None and cut.priority == 8, cut)
    check("no other while it is cut", not rig.port.set_priority(one, 9))
    (view,) = rig.core.llx_requests()
    check("shown as leaving", view["state"] == "leaving", view)
    held = rig.reserve("same", rig.core.llx_migrating.prepare(
        Reserve(MigrationId("same"), one, Epoch(2), "gateway", "name", "", 0),
        rig.payload(one, prompt_of(40, 14), {"max_tokens": 60}, 0),
    ), 10, False)  # fmt: skip
    check("its id is taken", held == "still held here", held)
    rig.port.release(one)
    rig.is_quiet(free, "shown")
    _, adapted = rig.prepare(prompt_of(40, 14), {"max_tokens": 60})
    adapted.lora_request = LoRARequest("adapter", 1, "/nowhere")
    refused = rig.reserve("lora", adapted, 10, False)
    check("no such adapter", "'adapter'" in refused, refused)
    _, long = rig.prepare(prompt_of(40, 14), {"max_tokens": 4000})
    refused = rig.reserve("long", long, 10, False)
    check("too long for here", "640" in refused, refused)
    failed: list[int] = []
    rig.port.on_core(lambda: failed.append(1 // 0))
    rig.port.on_core(lambda: failed.append(1))
    rig.pump()
    check("a failing action is survived", failed == [1])


def check_writes_in_flight(
    rig: Rig, prompt: list[int], params: dict[str, Any], is_ahead: bool
) -> None:
    """Blocks that a step in flight still writes are nobody's, least of all an arrival's."""
    free = rig.free
    source = rig.add(prompt, params)
    rig.until(lambda: len(rig.said(source).tokens) >= 4, "four tokens")
    held = free - rig.free
    rig.sink.abort(PEER, [(source, Epoch(1))])
    rig.pump()
    check("written still: held back", rig.free == (free - held if is_ahead else free), rig.free)
    rig.is_quiet(free, "written still")


def check_ends(rig: Rig) -> None:
    """Shutting down with a shadow and a request that was cut."""
    source = rig.add(prompt_of(40, 15), {"max_tokens": 60})
    rig.until(lambda: len(rig.said(source).tokens) >= 3, "three tokens")
    rig.begin(source)
    assert rig.cut(source) is not None
    _, prepared = rig.prepare(prompt_of(40, 15), {"max_tokens": 60})
    assert isinstance(rig.reserve("end", prepared, 40, False), Reservation)
    rig.sink.drop_peer(PEER)
    rig.pump()
    check("its gateway left", not rig.core.scheduler.requests)
    from vllm.v1.engine.core import EngineShutdownState

    rig.core.shutdown_state = EngineShutdownState.REQUESTED
    check("goes on to its end", rig.core._handle_shutdown() or True)
    rig.idle()
    check("ends", not rig.core._handle_shutdown())


def check_steps(rig: Rig) -> None:
    """Every token is in one step, and no time in two, though steps may overlap."""
    rig.idle()
    before = rig.core.llx_steps()
    begun = time.perf_counter_ns()
    requests = [rig.add(prompt_of(40, seed), {"max_tokens": 30}) for seed in (71, 72)]
    for request in requests:
        rig.run(request)
    rig.idle()
    lasted = time.perf_counter_ns() - begun
    seen = rig.core.llx_steps()
    rows = seen["rows"][before["first"] + len(before["rows"]) - seen["first"] :]
    prefill, decodes = (sum(row[i] for row in rows) for i in (0, 1))
    check("prompts in steps", prefill == 80, rows)
    check("decodes in steps", decodes == 58, rows)
    check("steps take time", all(row[-1] > 0 for row in rows), rows)
    check("no time is in two", sum(row[-1] for row in rows) <= lasted, (rows, lasted))


def main(model: str, mode: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(build(model, mode, Path(folder)))
        print("scheduler", type(rig.core.scheduler).__name__, rig.store.layout)
        print("compatibility", rig.core.llx_migrating.compatibility)
        for part in (check_identity, check_prefix, check_prefill, check_return, check_waiting,
                     check_kept, check_room,
                     check_requests, check_steps, check_recovery, check_prefixes,
                     check_ends):  # fmt: skip
            part(rig)
        rig.core.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])

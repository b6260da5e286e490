"""What is told of vLLM's prefix cache is what is in it, under the names that a gateway computes.

Run by `check_vllm_migration.py`, in whose engine core there is room for it.
"""

from typing import Any

from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request
from vllm.v1.serial_utils import MsgpackDecoder

from llx.agent.prefix_reports import PrefixReports
from llx.agent.vllm.cached_prefixes import block_name
from llx.core.migration import Reservation
from llx.core.model import Epoch, MigrationId
from llx.core.prefix_blocks import unpacked
from llx.gateway.prefixes import PromptBlocks
from tests.e2e.core_rig import BLOCK, NUM_BLOCKS, PEER, Rig, check, prompt_of


class Listener:
    """A peer that is told, and what it knows by that."""

    def __init__(self, rig: Rig, reports: PrefixReports, number: int) -> None:
        self.rig = rig
        self.reports = reports
        self.number = number
        self.known: set[int] = set()
        reports.ask(number, 1)

    def look(self) -> set[int]:
        self.rig.step()  # what was posted to the core
        self.rig.core.llx_report(is_forced=True)
        report = self.reports.next(self.number, session=1)
        if report is not None:
            if report.is_whole:
                self.known.clear()
            self.known |= set(unpacked(report.added))
            self.known -= set(unpacked(report.removed))
        return self.known


def table(rig: Rig) -> dict[bytes, Any]:
    """Where vLLM finds blocks: by hash, one or several."""
    found = rig.core.scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block._cache
    assert isinstance(found, dict)
    return found


def cached(rig: Rig) -> set[int]:
    return {block_name(key[:-4]) for key in table(rig)}


def message(rig: Rig, prompt: list[int], **changes: Any) -> EngineCoreRequest:
    payload = rig.payload("r", prompt, {"max_tokens": 9}, 0)
    request: EngineCoreRequest = MsgpackDecoder(EngineCoreRequest).decode(payload)
    for key, value in changes.items():
        setattr(request, key, value)
    return request


def names(rig: Rig, prompt: list[int], outputs: list[int], **changes: Any) -> list[int]:
    payload = rig.encoder.encode(message(rig, prompt, **changes))
    return list(unpacked(PromptBlocks().of(payload, outputs, BLOCK)))


def image(name: str) -> MultiModalFeatureSpec:
    where = PlaceholderRange(offset=3, length=40)
    return MultiModalFeatureSpec(None, "image", name, where)


def check_names(rig: Rig, prompt: list[int]) -> None:
    """Whatever KV hangs on is in the names, as it is in those that vLLM gives itself."""
    seen: set[int] = set()
    for change in (
        {},
        {"cache_salt": "s"},
        {"lora_request": LoRARequest("a", 1, "/a")},
        {"mm_features": [image("x")]},
        {"mm_features": [image("y")]},
    ):
        found = names(rig, prompt, [], **change)
        own = Request.from_engine_core_request(
            message(rig, prompt, **change), rig.core.request_block_hasher
        )
        check(f"prefixes: names with {[*change]}", found == [*map(block_name, own.block_hashes)])
        check("prefixes: they are others", bool(found) and not seen.intersection(found))
        seen.update(found)


def check_prefixes(rig: Rig) -> None:
    """Stored, shared, dropped by others, brought by a migration, reset."""
    rig.idle()
    assert rig.core.scheduler.reset_prefix_cache()
    pool = rig.core.scheduler.kv_cache_manager.block_pool
    check("prefixes: no event is made while nobody asks", not pool.enable_kv_cache_events)
    assert rig.core.llx_prefixes is not None
    reports = rig.core.llx_prefixes.reports()
    assert reports is not None
    one = Listener(rig, reports, 1)
    prompt = prompt_of(3 * BLOCK + 5, 51)
    said = rig.run(rig.add(prompt, {"max_tokens": 2 * BLOCK}))
    whole = [*names(rig, [*prompt, *said.tokens], []), *names(rig, prompt, said.tokens)]
    check("prefixes: stored", one.look() == cached(rig) == set(whole), one.known, whole)
    check("prefixes: outputs count", len(whole) == 2 * 5 and whole[:5] == whole[5:], whole)
    short = names(rig, prompt[: 3 * BLOCK], [])
    check("prefixes: not the last token's block", short == whole[:2], short)
    check_names(rig, prompt)
    skipping = rig.payload("r", prompt, {"skip_reading_prefix_cache": True}, 0)
    check("prefixes: none is read", PromptBlocks().of(skipping, [], BLOCK) == b"")
    check_dropped(rig, one)
    late = Listener(rig, reports, 2)
    check("prefixes: who comes late is told all", late.look() == cached(rig) != set())
    check_arrival(rig, one)
    assert rig.core.scheduler.reset_prefix_cache()
    check("prefixes: reset", one.look() == late.look() == set(), one.known)
    reports.leave(1)
    reports.leave(2)
    rig.step()
    check("prefixes: the switch is off again", not pool.enable_kv_cache_events)


def check_dropped(rig: Rig, one: Listener) -> None:
    """Two make the same block at the same time; then others take all the blocks."""
    first = one.look().copy()
    twins = [rig.add(prompt_of(BLOCK + 20, 52), {"max_tokens": 20}) for _ in range(2)]
    for each in twins:
        rig.run(each)
    check("prefixes: a block is there twice", any(isinstance(b, dict) for b in table(rig).values()))
    check("prefixes: twins", one.look() == cached(rig) > first)
    for seed in range(53, 53 + NUM_BLOCKS // 6):
        rig.run(rig.add(prompt_of(8 * BLOCK + 1, seed), {"max_tokens": 3}))
        check(f"prefixes: dropped for {seed}", one.look() == cached(rig), one.known, cached(rig))
    check("prefixes: the first are gone", not one.known & first)


def check_arrival(rig: Rig, one: Listener) -> None:
    """A migration takes blocks while no step runs, and its request's are found at its target."""
    before = cached(rig)
    prompt = prompt_of(5 * BLOCK + 3, 60)
    target, prepared = rig.prepare(prompt, {"max_tokens": 4})
    reserved = rig.reserve("m", prepared, (rig.free - 4) * BLOCK, reuse=False)
    assert isinstance(reserved, Reservation), reserved
    check("prefixes: reserved for what comes", one.look() == cached(rig) != before)
    reason = rig.port.commit(MigrationId("m"), PEER, Epoch(2), [], 5 * BLOCK)
    assert reason == "", reason
    rig.run(target)
    expected = set(names(rig, prompt, []))
    check("prefixes: brought by a migration", expected <= one.look() == cached(rig), one.known)

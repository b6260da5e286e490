"""What became of streams and cluster, and whether that is good enough. Pure."""

import statistics
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from llx.chaos.by_kind import KindRow, rows_by_kind
from llx.chaos.faults import FaultRecord, ids_hit, is_excused, overlaps
from llx.chaos.integrity import Flaw, StreamEnd, StreamRecord
from llx.chaos.plan import ChaosPlan

_MOST_SHOWN = 20


class ChaosVerdict(BaseModel):
    """As ``llx chaos run -o json`` prints it. Counts of streams, unless said otherwise.

    Attributes:
        is_passed: Nothing of `problems`.
        seed: Of the plan.
        faults: That were done.
        skipped: That were not: nobody could be hit.
        faults_by: Likewise, ``kill instance: 12``.
        streams: That began and ended.
        complete: To the last token.
        excused: That ended with an error because their own gateway was hit.
        failed: With an error, without that excuse.
        silent: That neither ended nor went on.
        hit: Whose instance was hit while they ran there, through gateways that were not.
        hit_complete: Of these.
        tokens: Tokens that came, in all streams.
        lost: With tokens missing.
        doubled: With tokens that came twice.
        reordered: With tokens in another order.
        wrong: With other tokens.
        miscounted: Whose usage or reason to finish is wrong.
        leaks: Blocks, slots, moves, processes, files that were left: in words.
        recovery_p50_s: Of the faults.
        recovery_max_s: Of the faults.
        pause_p50_s: The longest pause of each stream that was hit.
        pause_max_s: The longest pause of each stream that was hit.
        by_kind: The same, for each kind of fault.
        problems: Why it is not passed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_version: Literal["v1"] = "v1"
    is_passed: bool
    seed: int
    faults: int
    skipped: int
    faults_by: dict[str, int]
    streams: int
    complete: int
    excused: int
    failed: int
    silent: int
    hit: int
    hit_complete: int
    tokens: int
    lost: int
    doubled: int
    reordered: int
    wrong: int
    miscounted: int
    leaks: list[str]
    recovery_p50_s: float | None
    recovery_max_s: float | None
    pause_p50_s: float | None
    pause_max_s: float | None
    by_kind: list[KindRow] = []
    problems: list[str]


def judge(
    plan: ChaosPlan,
    faults: Sequence[FaultRecord],
    streams: Sequence[StreamRecord],
    leaks: Sequence[str],
) -> ChaosVerdict:
    """The verdict on everything that was kept."""
    excused = [each for each in streams if is_excused(each, faults)]
    answerable = [each for each in streams if not is_excused(each, faults)]
    hit_ids = ids_hit(faults, streams)
    hit = [each for each in answerable if each.id in hit_ids]
    done = [each for each in faults if not each.skipped]
    recoveries = [each.recovered_s for each in done if each.recovered_s is not None]
    pauses = [each.pause_s for each in hit if each.end is StreamEnd.COMPLETE]
    flaws = {flaw: sum(each.flaw is flaw for each in streams) for flaw in Flaw}
    failed = [each for each in answerable if each.end is StreamEnd.FAILED]
    problems = [
        *_fault_problems(plan, faults),
        *_aim_problems(done, streams),
        *_stream_problems(plan, streams, failed, hit_ids),
        *_hit_problems(plan, hit),
        *leaks,
    ]
    return ChaosVerdict(
        is_passed=not problems,
        seed=plan.seed,
        faults=len(done),
        skipped=len(faults) - len(done),
        faults_by=_counted([f"{each.kind} {each.role}" for each in done]),
        streams=len(streams),
        complete=sum(each.end is StreamEnd.COMPLETE for each in streams),
        excused=len(excused),
        failed=len(failed),
        silent=sum(each.end is StreamEnd.SILENT for each in streams),
        hit=len(hit),
        hit_complete=sum(each.end is StreamEnd.COMPLETE for each in hit),
        tokens=sum(each.tokens for each in streams),
        lost=flaws[Flaw.LOST],
        doubled=flaws[Flaw.DOUBLED],
        reordered=flaws[Flaw.REORDERED],
        wrong=flaws[Flaw.WRONG],
        miscounted=sum(bool(each.miscounted) for each in streams),
        leaks=list(leaks),
        recovery_p50_s=round(statistics.median(recoveries), 2) if recoveries else None,
        recovery_max_s=round(max(recoveries), 2) if recoveries else None,
        pause_p50_s=round(statistics.median(pauses), 2) if pauses else None,
        pause_max_s=round(max(pauses), 2) if pauses else None,
        by_kind=rows_by_kind(faults, streams),
        problems=problems,
    )


def _fault_problems(plan: ChaosPlan, faults: Sequence[FaultRecord]) -> list[str]:
    found = []
    for each in faults:
        what = f"fault {each.number + 1}, {each.kind} {each.victim or each.role}"
        if each.skipped:
            found.append(f"{what}: not done: {each.skipped}")
        elif each.error:
            found.append(f"{what}: {each.error}")
        elif each.recovered_s is None:
            limit = plan.bounds.healed_s
            found.append(f"{what}: the cluster was not whole again within {limit:g} s")
    if missing := len(plan.faults) - len(faults):
        found.append(f"{missing} of {len(plan.faults)} faults were not reached")
    return found


def _aim_problems(faults: Sequence[FaultRecord], streams: Sequence[StreamRecord]) -> list[str]:
    """A fault that no stream had to bear has tested nothing."""
    found = []
    for each in faults:
        what = f"fault {each.number + 1}, {each.kind} {each.victim}"
        beside = [one for one in streams if overlaps(one, each)]
        if each.instances and not any(one.id in each.hit for one in beside):
            found.append(f"{what}: hit no stream")
        elif each.gateways and not any(one.gateway in each.gateways for one in beside):
            found.append(f"{what}: no stream went through it")
        elif not beside:
            found.append(f"{what}: no stream ran beside it")
    return found


def _stream_problems(
    plan: ChaosPlan,
    streams: Sequence[StreamRecord],
    failed: Sequence[StreamRecord],
    hit_ids: set[str],
) -> list[str]:
    found = [] if streams else ["no stream ended: there was no traffic"]
    for each in streams:
        if each.flaw is not None and plan.traffic.compares_tokens:
            found.append(f"stream {each.id}: tokens {each.flaw} from token {each.flaw_at} on")
        elif each.miscounted:
            found.append(f"stream {each.id}: {each.miscounted}")
        if each.end is StreamEnd.SILENT:
            found.append(f"stream {each.id}: silent for {plan.traffic.silence_s:g} s")
    found += [
        f"stream {each.id}: failed, and nothing it was on was hit: {each.error}"
        for each in failed
        if each.id not in hit_ids
    ]
    if len(found) > _MOST_SHOWN:
        found = [*found[:_MOST_SHOWN], f"and {len(found) - _MOST_SHOWN} streams more"]
    return found


def _hit_problems(plan: ChaosPlan, hit: Sequence[StreamRecord]) -> list[str]:
    complete = sum(each.end is StreamEnd.COMPLETE for each in hit)
    if not hit or complete >= plan.bounds.completed * len(hit):
        return []
    first = next(each for each in hit if each.end is not StreamEnd.COMPLETE)
    share = f"{complete} of {len(hit)} streams on what was hit are complete"
    return [f"{share}, {plan.bounds.completed:.0%} should be; {first.id}: {first.error}"]


def _counted(words: Sequence[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}

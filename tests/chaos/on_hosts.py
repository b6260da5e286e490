"""`make chaos`: every kind of fault, many times over, on three namespace hosts with real vLLM.

    python -m tests.chaos.on_hosts --out build/chaos --rounds 3

Each round is a plan of `llx chaos run` drawn from the seed, every kind of fault to every kind of
process once and the cheap ones again, and the silent power cut of a host. What kills an instance
does so while many streams are on it. After --minutes it is interrupted wherever it is; with the
same --out it goes on from there. Needs root and .node. Exit code 8 if anything was not as it
should be.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from llx.chaos.by_kind import rows_by_kind
from llx.chaos.faults import FaultRecord
from llx.chaos.integrity import StreamRecord
from llx.chaos.plan import Bounds, ChaosPlan, Fault, FaultKind, Role, Traffic, draw_faults
from llx.chaos.record import RunDirectory
from llx.chaos.verdict import ChaosVerdict
from llx.cli.chaos_tables import print_by_kind
from tests.e2e.rig import ROOT
from tests.hosts.operator_machine import SIM, Operator, eventually
from tests.hosts.rig import HostOptions, new_rig, python_binds, why_no_hosts
from tests.hosts.traffic import Traffic as Streams
from tests.node import node_environment

NAMES = ("h1", "h2", "h3")
PAIRS = 21
"""Kinds of fault times whom they hit: a plan of so many has each of them once."""
CHEAP = {
    FaultKind.KILL: [Role.HEAD, Role.AGENT],
    FaultKind.FREEZE: [Role.GATEWAY, Role.HEAD, Role.AGENT, Role.SHIM, Role.RAY],
    FaultKind.SLOW: [each for each in Role if each is not Role.HOST],
}
"""What comes again in each round, besides partitions: nobody has to load an engine."""
BURST = 288
"""Streams that begin before an instance is killed; it has a third of them."""
ENGINE_ARGS = {
    "max_model_len": 2048,
    "block_size": 32,
    "max_num_seqs": 128,
    "num_gpu_blocks_override": 1600,
    "enforce_eager": True,
    "dtype": "float32",
    "enable_prefix_caching": False,
}
PROMPT, LENGTH = list(range(3, 40)), 200
SHORT_S = {FaultKind.SLOW: 3.0, FaultKind.PARTITION: 6.0}
POWERLESS_S = 10.0
POWER_CUT_S = 240.0
"""None begins with less time left."""
HEALED_S = 400.0
PARTIAL_SUCCESS, CHECK_FAILED = 6, 8


@dataclass(frozen=True)
class PowerCut:
    """A host switched off silently, and on again, beside streams through another host's gateway."""

    host: str
    streams: int
    failures: list[str]
    recovered_s: float


def main() -> int:
    words = _arguments()
    if reason := why_no_hosts():
        sys.exit(f"no namespace hosts: {reason}")
    words.out = words.out.resolve()  # llx runs in another directory
    words.out.mkdir(parents=True, exist_ok=True)
    if not all(_is_done(words.out, number) for number in range(words.rounds)):
        _go_on(words)
    return sum_up(words.out, words.rounds)


def _go_on(words: Any) -> None:
    deadline = time.monotonic() + words.minutes * 60
    with new_rig() as rig, tempfile.TemporaryDirectory() as folder:
        node = ROOT / ".node" / "bin" / "python"
        rig.up(len(NAMES), HostOptions(python_binds(node), size="16g", keeps_disk=True))
        operator = Operator(rig, python=str(node), variables={"PYTHONPATH": str(ROOT)})
        config = _configure(operator, words.engine, node, Path(folder))
        try:
            _up(operator, config)
            for number in range(words.rounds):
                _round(operator, config, words, number, deadline)
        finally:
            operator("down", "-y", "--purge", "--deadline", "1s")


def _arguments() -> Any:
    parser = argparse.ArgumentParser(prog="tests.chaos.on_hosts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=57.0, help="it is interrupted after them")
    parser.add_argument("--engine", choices=("vllm", "sim"), default="vllm")
    return parser.parse_args()


def _configure(operator: Operator, engine: str, node: Path, folder: Path) -> str:
    """Three instances, two gateways; llx is root on the hosts, as partitions take that."""
    if engine == "sim":
        model = {**SIM, "engine_args": {"max_model_len": 2048}, "sim": {"step_base_ms": 5.0}}
    else:
        make = [str(node), str(ROOT / "tests/e2e/oracle_model.py"), "make", f"{folder}/oracle"]
        subprocess.run(make, env=node_environment(), check=True, capture_output=True)
        model = {"model": f"{folder}/oracle", "engine_args": ENGINE_ARGS}
    return operator.config(
        hosts=operator.rig.cluster_hosts(user="root"),
        models=[{**model, "name": "m", "instances": {"min": len(NAMES)}}],
        gateway={"host": "0.0.0.0", "count": 2},
    )


def _up(operator: Operator, config: str) -> None:
    """Bring it up; again, as it says itself, where a host of a busy machine was too slow."""
    for _ in range(3):
        done = operator("up", "-y", config, timeout_s=1200)
        if done.returncode != PARTIAL_SUCCESS:
            break
    if done.returncode != 0:
        sys.exit(f"llx up: {done.stderr[-3000:]}")


def _is_done(out: Path, number: int) -> bool:
    return _verdict_of(out, number).exists() and _cut_of(out, number).exists()


def _verdict_of(out: Path, number: int) -> Path:
    return out / f"round-{number + 1}" / "verdict.json"


def _cut_of(out: Path, number: int) -> Path:
    return out / f"power-{number + 1}.json"


def _round(operator: Operator, config: str, words: Any, number: int, deadline: float) -> None:
    verdict, cut = _verdict_of(words.out, number), _cut_of(words.out, number)
    if not verdict.exists() and deadline > time.monotonic():
        plan = words.out / f"plan-{number + 1}.json"
        if not plan.exists():
            plan.write_text(plan_of(words.seed + number).model_dump_json(indent=1))
        shown = ["chaos", "run", str(plan), "-y", "--out", str(verdict.parent)]
        _interrupted_at(deadline, operator, *shown)
    if verdict.exists() and not cut.exists() and deadline - time.monotonic() > POWER_CUT_S:
        host = NAMES[-1 - number % len(NAMES)]
        cut.write_text(json.dumps(asdict(_cut_power(operator, config, host))) + "\n")


def _interrupted_at(deadline: float, operator: Operator, *words: str) -> None:
    """Run `llx` here, in sight; interrupt it when it is time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llx", *words], env=operator.environment, cwd=operator.rig.home
    )
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    finally:
        process.kill()
        process.wait()


def plan_of(seed: int) -> ChaosPlan:
    """A round: each pair of a kind and a role once, and the cheap ones again, in any order."""
    faults = draw_faults(seed, PAIRS, list(FaultKind), list(Role))
    for kind, roles in CHEAP.items():
        faults += draw_faults(seed + 1000, len(roles), [kind], roles)
    faults += draw_faults(seed + 1000, 2, [FaultKind.PARTITION], [Role.HOST])
    random.Random(f"round {seed}").shuffle(faults)
    return ChaosPlan(
        seed=seed,
        traffic=Traffic(streams=4, prompts=4, prompt_tokens=32, output_tokens=160, silence_s=120),
        bounds=Bounds(healed_s=HEALED_S, settled_s=60),
        faults=[_sized(each) for each in faults],
    )


def _sized(fault: Fault) -> Fault:
    """As long, and beside as many streams, as fits into an hour of a hundred."""
    kills = fault.kind is FaultKind.KILL and fault.role in {Role.INSTANCE, Role.SHIM}
    return fault.model_copy(
        update={
            "for_s": SHORT_S.get(fault.kind, fault.for_s),
            "after_s": round(fault.after_s / 3, 2),
            "burst": BURST if kills else 0,
        }
    )


def _cut_power(operator: Operator, config: str, name: str) -> PowerCut:
    host = operator.rig[name]
    gateways = operator.json("status")["gateways"]
    url = next(each["url"] for each in gateways if each["host"] != name)
    cases: list[tuple[list[int], list[int]]] = []
    with _asking(url, cases) as streams:
        before = streams.finished
        eventually(lambda: streams.finished >= before + 4 or bool(streams.failures), 120)
        began = time.monotonic()
        host.off()
        time.sleep(POWERLESS_S)
        host.on()
        _up(operator, config)
        eventually(lambda: _is_well(operator), HEALED_S)
        recovered_s = round(time.monotonic() - began, 1)
    return PowerCut(name, streams.finished, streams.failures, recovered_s)


def _asking(url: str, cases: list[tuple[list[int], list[int]]]) -> Streams:
    streams = Streams(url, "m", cases, threads=4)
    cases.append((PROMPT, streams.ask(PROMPT, LENGTH)))
    return streams


def _is_well(operator: Operator) -> bool:
    done = operator("status", "-o", "json")
    return done.returncode == 0 and json.loads(done.stdout)["state"] == "ready"


def sum_up(out: Path, rounds: int) -> int:
    """Print what came of each round, those that were done before included, and a table of all."""
    has_failed = False
    faults: list[FaultRecord] = []
    streams: list[StreamRecord] = []
    cuts: list[PowerCut] = []
    for number in range(rounds):
        directory = RunDirectory(_verdict_of(out, number).parent)
        faults, streams = faults + directory.faults(), streams + directory.streams()
        if _cut_of(out, number).exists():
            cuts.append(PowerCut(**json.loads(_cut_of(out, number).read_text())))
        if not _verdict_of(out, number).exists():
            print(f"round {number + 1}: {len(directory.faults())} faults, not done to its end")
            has_failed = True
            continue
        said = ChaosVerdict.model_validate_json(_verdict_of(out, number).read_text())
        print(f"round {number + 1}: {'passed' if said.is_passed else 'FAILED'}: {_in_words(said)}")
        for each in said.problems:
            print(f"  {each}")
        has_failed |= not said.is_passed
    console = Console(width=160)
    print_by_kind(console, rows_by_kind(faults, streams))
    for cut in cuts:
        print(
            f"power cut of {cut.host}: {cut.streams} streams, {len(cut.failures)} failed, ready "
            f"again after {cut.recovered_s} s {' '.join(cut.failures)}"
        )
        has_failed |= bool(cut.failures)
    has_failed |= len(cuts) < rounds
    done = sum(not each.skipped for each in faults) + len(cuts)
    print(f"{done} faults: {'FAILED, or not done to the end' if has_failed else 'passed'}")
    return CHECK_FAILED if has_failed else 0


def _in_words(said: ChaosVerdict) -> str:
    return (
        f"{said.faults} faults, {said.complete} of {said.streams} streams complete, "
        f"{said.excused} ended with their gateway, {said.hit_complete} of {said.hit} that were "
        f"hit complete, {said.tokens} tokens; left behind: {'; '.join(said.leaks) or 'nothing'}"
    )


if __name__ == "__main__":
    sys.exit(main())

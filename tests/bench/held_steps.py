"""Engines on a CPU whose steps last as long as a GPU's would, and leave the processor alone.

Where four engines share two cores, an engine that idles makes the others faster, and a move is paid
by everybody: what is measured there is how cores are shared. On GPUs an engine's step takes what it
takes, whatever its neighbours do. So here vLLM is as it is, tokens, KV blocks, scheduling and moves
too, but a step of its worker waits, without using a core, until as long has passed as the step time
of a simulator's file says (`examples/sim/kv-bound.yaml`): for the work that is in it.

An engine of one rank runs its model in its own process, as it does on a GPU and as llx has it do on
a CPU. vLLM by itself adds a worker process there, and the two would spin for each other for as long
as a step is held.

A GPU is not slowed down by what else goes on in its host: not by front ends, not by another engine
that is being started. So the thread that does the steps goes before others (`NICENESS`; as root,
else it cannot).

`held` makes the environment for `llx up` and `vllm serve`: both find a plugin of vLLM in it, which
is `install`. Steps that ended more than `TOLERANCE_S` after their time, because the cores were too
busy, are counted (`overrun`), for each process: if they are many, the figures are not what they
say. What an engine does between two steps is not held, and comes on top.
"""

import contextlib
import json
import os
import threading
import time
from functools import cache, wraps
from pathlib import Path
from typing import Any, Final

from llx.agent.vllm.step_work import work_of
from llx.core.engine_state import StepTime

_SPEC: Final = "LLX_BENCH_HELD_STEPS"
"""Names a directory: of `step.json`, and of what each process counts."""
_TELL_EVERY: Final = 100
TOLERANCE_S: Final = 0.002
NICENESS: Final = -10
"""Of the thread that does the steps, from the first one that is held."""
IDLE_S: Final = 0.05
"""An engine that begins no other step for so long has had nothing to do, it is taken."""


def held(folder: Path, step_time: StepTime, python_path: str) -> dict[str, str]:
    """The environment in which vLLM's steps last so long.

    Args:
        folder: A new directory, which has to stay as long as the engines run.
        step_time: Of a step by its work.
        python_path: Where this repository is.
    """
    metadata = folder / "held_steps-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: held-steps\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nheld_steps = tests.bench.held_steps:install\n"
    )
    fields = {name: getattr(step_time, name) for name in StepTime.__slots__}
    (folder / "step.json").write_text(json.dumps(fields))
    return {"PYTHONPATH": f"{python_path}{os.pathsep}{folder}", _SPEC: str(folder)}


def counted(folder: Path) -> list[dict[str, float]]:
    """Of each engine that has done some steps: how many, and how many `late`.

    `over_ms` is by how much they took longer than they were held for, `between_ms` the time from
    one to the next one of an engine that goes on: means. `idle`: how often it did not, or was kept
    from a core for as long.
    """
    return [json.loads(each.read_text()) for each in folder.glob("steps-*.json")]


def overrun(folder: Path) -> list[float]:
    """The share of each engine's steps that took longer than they were held for."""
    return sorted(each["late"] / each["steps"] for each in counted(folder))


def told_overrun(folder: Path) -> str:
    """The least and the most of any engine, in words."""

    def told(values: list[float], digits: str) -> str:
        return f"{min(values):{digits}} to {max(values):{digits}}"

    found = counted(folder)
    return (
        f"steps that took longer than they were held: {told(overrun(folder), '.1%')}, "
        f"on average {told([each['over_ms'] for each in found], '.2f')} ms; "
        f"{told([each['between_ms'] for each in found], '.2f')} ms from one to the next"
    )


def expect_held(folder: Path, num_engines: int) -> None:
    """After each engine has done some hundred steps.

    Raises:
        ValueError: Not all of them are held: they did not find the plugin.
    """
    found = len(overrun(folder))
    if found != num_engines:
        raise ValueError(f"{found} of {num_engines} engines hold their steps ({folder})")


def install() -> None:
    """What vLLM calls in each of its processes."""
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.worker.cpu_worker import CPUWorker

    if hasattr(CPUWorker, _SPEC):  # vLLM may call a plugin more than once
        return
    folder = Path(os.environ[_SPEC])
    step = HeldStep(StepTime(**json.loads((folder / "step.json").read_text())), folder)
    execute, sample = CPUWorker.execute_model, CPUWorker.sample_tokens
    complete = CpuPlatform.check_and_update_config

    @wraps(execute)
    def execute_held(self: Any, scheduler_output: Any) -> Any:
        if scheduler_output.total_num_scheduled_tokens:
            go_first(threading.get_native_id())
        step.begin(scheduler_output)
        output = execute(self, scheduler_output)
        if output is not None:
            step.end()
        return output

    @wraps(sample)
    def sample_held(self: Any, grammar_output: Any) -> Any:
        output = sample(self, grammar_output)
        step.end()
        return output

    def complete_in_process(vllm_config: Any) -> None:
        complete(vllm_config)
        if vllm_config.parallel_config.world_size == 1:
            vllm_config.parallel_config.distributed_executor_backend = "uni"

    CPUWorker.execute_model, CPUWorker.sample_tokens = execute_held, sample_held
    CpuPlatform.check_and_update_config = staticmethod(complete_in_process)
    setattr(CPUWorker, _SPEC, True)


@cache
def go_first(thread: int) -> None:
    """Let it have a core before others, if that is allowed."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, thread, NICENESS)


class HeldStep:
    """One step at a time, of one worker."""

    def __init__(self, step_time: StepTime, folder: Path) -> None:
        self._step_time = step_time
        self._counts = folder / f"steps-{os.getpid()}.json"
        self._until: float | None = None
        self._ended_at = 0.0
        self._num_steps = self._num_late = self._num_gaps = self._num_idle = 0
        self._over_s = self._gaps_s = 0.0

    def begin(self, scheduler_output: Any) -> None:
        """The model is about to be run on that."""
        self._until = None
        if scheduler_output.total_num_scheduled_tokens:
            now = time.perf_counter()
            lasts_ns = self._step_time.of(*work_of(scheduler_output))
            self._until = now + lasts_ns / 1e9
            if now - self._ended_at < IDLE_S:
                self._num_gaps += 1
                self._gaps_s += now - self._ended_at
            else:
                self._num_idle += 1

    def end(self) -> None:
        """Its outputs are known: wait until they may be."""
        if self._until is None:
            return
        until, self._until = self._until, None
        time.sleep(max(0.0, until - time.perf_counter()))
        self._ended_at = time.perf_counter()
        self._num_steps += 1
        self._num_late += self._ended_at > until + TOLERANCE_S
        self._over_s += self._ended_at - until
        if self._num_steps % _TELL_EVERY == 0:
            counts = {
                "steps": self._num_steps,
                "late": self._num_late,
                "over_ms": self._over_s * 1000 / self._num_steps,
                "idle": self._num_idle,
                "between_ms": self._gaps_s * 1000 / max(1, self._num_gaps),
            }
            self._counts.write_text(json.dumps(counts))

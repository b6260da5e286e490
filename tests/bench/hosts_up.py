"""How long hosts take from the first connection to their agents, one host against three.

    .venv/bin/python -m tests.bench.hosts_up NODE_PYTHON [PAIRS]

As root, on namespace hosts, with a node environment and a model that are there, and simulated
engines (whose start is not counted). All hosts share this machine's cores, which is what limits
three of them. Interleaved; each cluster is taken down and purged in between. Prints the
times, the ratio with its 95% interval, and how long an `up` takes that finds nothing to do.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.intervals import interval_of_median
from tests.hosts.operator_machine import SIM, Operator
from tests.hosts.rig import HostOptions, Rig, new_rig, python_binds

_COUNTS = (1, 3)


def main(argv: list[str]) -> None:
    python, pairs = Path(argv[0]).absolute(), int(argv[1]) if len(argv) > 1 else 5
    ready: dict[int, list[float]] = {count: [] for count in _COUNTS}
    again: dict[int, list[float]] = {count: [] for count in _COUNTS}
    with tempfile.TemporaryDirectory() as folder, new_rig() as rig:
        model = make_model(python, Path(folder) / "model")
        binds = (*python_binds(python), model)
        for pair in range(pairs):
            for count in _COUNTS if pair % 2 == 0 else reversed(_COUNTS):
                rig.up(count, HostOptions(binds=binds, size="16g"))
                first, second = _measure(rig, str(python), model)
                ready[count].append(first)
                again[count].append(second)
                sys.stderr.write(f"{count} hosts: agents {first:.1f} s, up again {second:.1f} s\n")
    one, three = ready[1], ready[3]
    ratios = [b / a for a, b in zip(one, three, strict=True)]
    print(
        json.dumps(
            {
                "connect_to_agents_s": {n: statistics.median(ready[n]) for n in _COUNTS},
                "ratio_three_to_one": statistics.median(ratios),
                "ratio_95": interval_of_median(ratios),
                "second_up_s": {n: statistics.median(again[n]) for n in _COUNTS},
                "second_up_max_s": {n: max(again[n]) for n in _COUNTS},
                "pairs": pairs,
            }
        )
    )


@contextmanager
def sim_cluster(
    python: Path, count: int, gateway: dict[str, Any], **model: object
) -> Iterator[Operator]:
    """A cluster on so many hosts, of simulated engines as `model` changes them; its operator."""
    with tempfile.TemporaryDirectory() as folder, new_rig() as rig:
        path = make_model(python, Path(folder) / "model")
        rig.up(count, HostOptions(binds=(*python_binds(python), path), size="16g"))
        operator = Operator(rig, python=str(python), gateway=gateway)
        config = operator.config(models=[{**SIM, "model": str(path), **model}])
        try:
            done = operator("up", "-y", config)
            assert done.returncode == 0, done.stderr
            yield operator
        finally:
            operator("down", "-y", "--purge", "--deadline", "1s")


def make_model(python: Path, model: Path) -> Path:
    """The tiny model: making it is no part of bringing a host up."""
    words = ["-m", "llx.agent.vllm.tiny_model", "--out", str(model)]
    subprocess.run([str(python), *words], check=True, capture_output=True)
    for path in (model.parent, model, *model.iterdir()):
        path.chmod(0o755)
    return model


def _measure(rig: Rig, python: str, model: Path) -> tuple[float, float]:
    """Seconds from the first connection to the agents, and of a second `up`."""
    operator = Operator(rig, python=python)
    path = operator.config(models=[{**SIM, "model": str(model)}])
    process = operator.start("up", "-y", path)
    assert process.stderr is not None
    began = agents = 0.0
    said = ""
    for line in process.stderr:
        said += line
        if " connect\n" in line:
            began = time.monotonic()
        elif " agents done" in line:
            agents = time.monotonic()
    process.communicate()
    assert process.returncode == 0, said
    at = time.monotonic()
    done = operator("up", "-y", path)
    second = time.monotonic() - at
    assert "nothing to change" in done.stdout, done.stdout + done.stderr
    operator("down", "-y", "--purge", "--deadline", "1s")
    return agents - began, second


if __name__ == "__main__":
    main(sys.argv[1:])

"""What tests of agents share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llx.agent import processes, shim
from llx.agent.processes import list_processes


@pytest.fixture(autouse=True)
def _shims_may_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_ANSWER_S", 30)


@pytest.fixture
def procs(tmp_path: Path) -> Iterator[Path]:
    """A directory of processes; whatever runs there is ended with the test."""
    yield tmp_path
    for process in list_processes(tmp_path):
        process.stop(0)
        shim.kill_marked(process.status().mark)

"""Worlds for the fault matrix, and the workers that try its cases in them."""

import contextlib
import queue
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.cases import Case
from tests.chaos.children import Zygote
from tests.chaos.forwarder import Switchboard
from tests.chaos.trial import Trial, settled_s
from tests.chaos.world import Model, World

NUM_WORKERS = 6
"""Cases mostly wait: for steps of a simulated engine, leases and deadlines."""


class Matrix:
    """Tries the selected cases, several at a time, each in the world of its worker."""

    def __init__(self, cases: list[Case], folder: Path) -> None:
        self._folder = folder
        self._zygote = Zygote(folder)
        self._switchboard = Switchboard()
        self._model = Model(folder)
        self._worlds: queue.SimpleQueue[World] = queue.SimpleQueue()
        self._num_worlds = 0
        self._pool = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="chaos")
        self._results: dict[Case, Future[str]] = {}
        for _ in range(min(NUM_WORKERS, len(cases))):
            self._worlds.put(self._new_world())
        for case in sorted(cases, key=lambda each: -settled_s(each)):
            self._results[case] = self._pool.submit(self._try, case)

    def result(self, case: Case) -> str:
        """What is wrong; empty if nothing is."""
        return self._results[case].result()

    def close(self) -> None:
        """End everything."""
        self._pool.shutdown(cancel_futures=True)
        with contextlib.suppress(queue.Empty):
            while True:
                self._worlds.get_nowait().close()
        self._zygote.close()
        self._switchboard.close()

    def _new_world(self) -> World:
        self._num_worlds += 1
        name = f"world-{self._num_worlds}"
        return World(self._zygote, self._switchboard, self._folder, self._model, name)

    def _try(self, case: Case) -> str:
        world, is_sound = self._worlds.get(), False
        try:
            Trial(world, case).run()
            is_sound = True
        except AssertionError as error:
            return f"{error}\n{world.tail()}"
        finally:
            if not is_sound:
                world.close()
                world = self._new_world()
            self._worlds.put(world)
        return ""


@pytest.fixture(scope="module")
def matrix(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Matrix]:
    """All cases that this run has selected, under way."""
    cases = [
        item.callspec.params["case"]
        for item in request.session.items
        if "matrix" in getattr(item, "fixturenames", ()) and hasattr(item, "callspec")
    ]
    made = Matrix(cases, tmp_path_factory.mktemp("chaos"))
    try:
        yield made
    finally:
        made.close()

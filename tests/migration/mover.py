"""Moves running requests to and fro, at random moments, until its standard input ends.

    python -m tests.migration.mover URL TOKEN_FILE SEED AT_ONCE CHECKED MODEL… < until it closes

CHECKED is the share of moves that compare the KV at both ends. Run on the head's host. Prints a
JSON line per migration when it is over, and at the end one line with all of them as the head knows
them then, with what gateways saw.
"""

import json
import random
import sys
import threading
import time
from pathlib import Path

from llx.api import MigrateRequest, MigrationStatus
from llx.client import Cluster
from llx.errors import ConflictError, NotFoundError
from llx.secret import Secret


class Mover:
    def __init__(
        self, control: Cluster, seed: int, at_once: int, checked: float, models: list[str]
    ) -> None:
        self._control = control
        self._rng = random.Random(seed)
        self._at_once = at_once
        self._checked = checked
        self._models = models
        self._open: set[str] = set()
        self._over: list[str] = []

    def look(self) -> None:
        self._collect()
        room = self._at_once - len(self._open)
        if room <= 0:
            return
        instances: dict[str, list[str]] = {}
        for each in self._control.status().instances:
            instances.setdefault(each.model, []).append(each.name)
        found = [
            each
            for each in self._control.requests().requests
            if each.model in self._models and not each.migration
        ]
        for request in self._rng.sample(found, min(room, len(found))):
            others = [name for name in instances[request.model] if name != request.instance]
            self._move(request.id, self._rng.choice(others))

    def finish(self) -> list[MigrationStatus]:
        deadline = time.monotonic() + 60
        while self._open and time.monotonic() < deadline:
            self._collect()
            time.sleep(0.05)
        time.sleep(1.5)  # gateways tell what they saw with their next heartbeats
        return [self._control.migration(each) for each in [*self._over, *self._open]]

    def _collect(self) -> None:
        if not self._open:
            return
        for each in self._control.migrations(sorted(self._open)):
            if each.outcome is not None:
                self._open.discard(each.id)
                self._over.append(each.id)
                print(json.dumps({"outcome": each.outcome, "reason": each.reason}), flush=True)

    def _move(self, request: str, target: str) -> None:
        order = MigrateRequest(
            request=request,
            target=target,
            is_checked=self._rng.random() < self._checked,
            is_blocking=self._rng.random() < 0.1,
            reuse_prefix=self._rng.random() < 0.5,
            user="mover",
        )
        try:
            self._open.update(each.id for each in self._control.migrate(order).migrations)
        except (NotFoundError, ConflictError):
            return  # it has ended, or left, meanwhile


def main() -> None:
    url, token, seed, at_once, checked, *models = sys.argv[1:]
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    with Cluster(url, Secret(Path(token).read_text().strip())) as control:
        mover = Mover(control, int(seed), int(at_once), float(checked), models)
        while not over.is_set():
            mover.look()
            time.sleep(0.05)
        print(json.dumps({"all": [each.model_dump(mode="json") for each in mover.finish()]}))


if __name__ == "__main__":
    main()

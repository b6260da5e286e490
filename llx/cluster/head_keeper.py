"""Keeps the head of a cluster on this machine: ``python -m llx.cluster.head_keeper SPEC``.

    shim ──spawns──► keeper ──spawns──► head, again whenever a signal has killed it

A head that ends by itself has been stopped, or cannot run: the keeper ends with its exit code. On
hosts Ray restarts the head, and there is no keeper. Whoever kills the keeper kills the head, too:
the shim ends their process group.
"""

import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Final

from llx.log import configure_logging, get_log

log = get_log("llx.cluster.head_keeper")

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 5.0
"""A head that has lived so long, which is several starts, begins with the first pause again."""
_MOST: Final = 10
"""So many in a row that did not live so long, and it is given up."""


class Keeper:
    """Starts one command again and again.

    Args:
        command: The head's.
    """

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._head: subprocess.Popen[bytes] | None = None
        self._is_ending = False

    def end(self, number: int, _frame: FrameType | None) -> None:
        """Signal handler: pass it on, and start nothing any more."""
        self._is_ending = True
        if self._head is not None:
            self._head.send_signal(number)

    def run(self) -> int:
        """Until the head ends by itself; returns its exit code, 128 + n if signal n ended it."""
        failures = 0
        while True:
            began = time.monotonic()
            self._head = subprocess.Popen(self._command)
            if self._is_ending:  # asked while it was being started
                self._head.terminate()
            code = self._head.wait()
            failures = 1 if time.monotonic() - began >= _STEADY_S else failures + 1
            if code >= 0 or self._is_ending or failures > _MOST:
                return code if code >= 0 else 128 - code
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (failures - 1))
            log.warning("head.killed", signal=-code, times=failures, again_in_s=pause_s)
            if self._is_ended_within(pause_s):
                return 128 - code

    def _is_ended_within(self, pause_s: float) -> bool:
        end = time.monotonic() + pause_s
        while time.monotonic() < end and not self._is_ending:
            time.sleep(0.02)
        return self._is_ending


def main(argv: list[str]) -> int:
    """Keep the head that the spec file describes; returns the exit code."""
    configure_logging()
    keeper = Keeper([sys.executable, "-m", "llx.cluster.head", *argv])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, keeper.end)
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How a command ends when it does not end well: messages, exit codes, interruptions."""

import functools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ParamSpec

import typer

from llx.errors import ExitCode, LlxError

P = ParamSpec("P")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = b"\x1b[?25h"


def command(function: Callable[P, None]) -> Callable[P, None]:
    """A verb whose expected failures become a message on stderr and an exit code.

    What is not expected, and everything with ``LLX_DEBUG=1``, shows its traceback.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except LlxError as error:
            show(error)
            raise typer.Exit(int(error.exit_code)) from None
        except (KeyboardInterrupt, typer.Abort):
            sys.stderr.write("interrupted\n")
            raise typer.Exit(int(ExitCode.INTERRUPTED)) from None
        except BrokenPipeError:
            # The reader of our stdout has left, as `head` does: nothing more to say to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(int(ExitCode.OK)) from None

    return guarded


def show(error: LlxError) -> None:
    """Write `error` to stderr: what, the evidence, what to do."""
    from llx.environment import Environment

    if Environment.current().is_debug:
        traceback.print_exception(error)
    lines = [f"error: {error.message}"]
    lines += [f"  | {line}" for line in error.detail.splitlines()]
    if error.remedy:
        lines.append(f"remedy: {error.remedy}")
    sys.stderr.write("\n".join(lines) + "\n")


class Interruptions:
    """SIGINT, SIGTERM and SIGHUP while something is being built up or taken down.

    The first raises KeyboardInterrupt, after the end of a `shield` if there is one, and again at
    each `sleep` until it is acknowledged: an exception may get lost in a place that ignores them.
    The second leaves at once.

    Args:
        last_words: Said on the way out.
        last_deed: Done on the way out; must be quick.
    """

    def __init__(
        self,
        last_words: str = "left at once; `llx down` clears what is left",
        last_deed: Callable[[], None] = lambda: None,
    ) -> None:
        self._is_requested = False
        self._is_pending = False
        self._shields = 0
        self._last_words = last_words
        self._last_deed = last_deed

    @contextmanager
    def installed(self) -> Iterator["Interruptions"]:
        """Be the handler of these signals for a while."""
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Let an interruption wait until the end of this block."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        self._raise_if_pending()

    def sleep(self, seconds: float) -> None:
        """Sleep, unless there is an interruption to be heeded."""
        self._raise_if_pending()
        time.sleep(seconds)

    def acknowledge(self) -> None:
        """The interruption is being heeded: from now on only a second one counts."""
        self._is_pending = False

    def _raise_if_pending(self) -> None:
        if self._is_pending and not self._shields:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_requested:
            if sys.stderr.isatty():
                os.write(2, _SHOW_CURSOR)
            os.write(2, f"\n{self._last_words}\n".encode())
            self._last_deed()
            os._exit(int(ExitCode.INTERRUPTED))
        self._is_requested = self._is_pending = True
        self._raise_if_pending()

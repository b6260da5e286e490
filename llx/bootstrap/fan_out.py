"""The same work on many hosts at once: one that fails never stops the others."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

from llx.errors import ExitCode, LlxError

_T = TypeVar("_T")
_AWAKE_S = 0.2  # how soon a signal is seen to


class FanOutError(LlxError):
    """Work that failed on some hosts. The exit code says whether the others have it.

    Args:
        headline: What failed, and on which hosts.
        errors: Why, by host.
        is_partial: It was done on the others.
        remedy: What to do; None: what the errors say.
    """

    def __init__(
        self,
        headline: str,
        errors: Mapping[str, LlxError],
        *,
        is_partial: bool,
        remedy: str | None = None,
    ) -> None:
        lines = [f"  {_by_name(name, error)}" for name, error in errors.items()]
        super().__init__(
            "\n".join([headline, *lines]),
            remedy=remedies_of(errors) if remedy is None else remedy,
            detail=_evidence(errors),
        )
        codes = {each.exit_code for each in errors.values()}
        common = codes.pop() if len(codes) == 1 else ExitCode.FAILURE
        self.exit_code = ExitCode.PARTIAL if is_partial else common


def remedies_of(errors: Mapping[str, LlxError]) -> str:
    """What the errors say is to be done, each thing once."""
    return "; ".join(dict.fromkeys(each.remedy for each in errors.values() if each.remedy))


def fan_out(
    items: Sequence[str],
    work: Callable[[str], _T],
    *,
    limit: int = 32,
    cancelled: threading.Event | None = None,
) -> dict[str, _T | LlxError]:
    """``work(item)`` for all of `items`, at most `limit` at a time; results in that order.

    An LlxError is a result. Anything else that is raised is a bug, or an interruption of the
    caller: it is raised here at once, `cancelled` is set for those under way to see, and no
    further item is begun. Threads left behind do not keep the process alive.
    """
    stop = threading.Event()
    futures: dict[str, Future[_T | LlxError]] = {item: Future() for item in items}
    waiting = iter(futures.items())
    lock = threading.Lock()

    def carry_out() -> None:
        while not stop.is_set():
            with lock:
                item, future = next(waiting, (None, None))
            if item is None or future is None:
                return
            try:
                future.set_result(work(item))
            except LlxError as error:
                future.set_result(error)
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                future.set_exception(error)

    try:
        for number in range(min(limit, len(futures))):
            threading.Thread(target=carry_out, name=f"fan-out-{number}", daemon=True).start()
        return _gathered(futures)
    except BaseException:
        stop.set()
        if cancelled is not None:
            cancelled.set()
        raise


def _gathered(futures: dict[str, "Future[_T | LlxError]"]) -> dict[str, _T | LlxError]:
    rest = set(futures.values())
    while rest:
        # Not for ever in one go: a wait without an end would not let a signal through.
        done, rest = wait(rest, timeout=_AWAKE_S, return_when=FIRST_COMPLETED)
        for each in done:
            each.result()
    return {item: future.result() for item, future in futures.items()}


def _by_name(name: str, error: LlxError) -> str:
    """Most messages begin with the host's name."""
    return error.message if error.message.startswith(name) else f"{name}: {error.message}"


def _evidence(errors: Mapping[str, LlxError]) -> str:
    """What each of them shows, by host."""
    shown = {name: each.detail.splitlines() for name, each in errors.items() if each.detail}
    return "\n".join(
        f"{name}: {line}" if len(errors) > 1 else line
        for name, lines in shown.items()
        for line in lines
    )

"""`llx.bootstrap.fan_out`: all at once, each failure its own, interruptions at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from llx.bootstrap.fan_out import fan_out
from llx.errors import HostError, LlxError


def test_results_are_in_the_order_of_the_items_and_work_is_parallel() -> None:
    together = threading.Barrier(5, timeout=30)

    def work(item: str) -> str:
        together.wait()
        time.sleep(0.05 - int(item) / 100)
        return item * 2

    results = fan_out(list("01234"), work)
    assert list(results.items()) == [(item, item * 2) for item in "01234"]
    assert fan_out([], work) == {}


def test_one_failing_host_stops_no_other() -> None:
    def work(item: str) -> str:
        if item == "bad":
            raise HostError("no disk", host=item, step="write")
        time.sleep(0.05)
        return "fine"

    results = fan_out(["a", "bad", "b"], work)
    assert isinstance(results["bad"], LlxError)
    assert (results["a"], results["b"]) == ("fine", "fine")


def test_no_more_than_the_limit_at_a_time() -> None:
    lock, together = threading.Lock(), threading.Barrier(3, timeout=30)
    running: list[str] = []
    most = 0

    def work(item: str) -> None:
        nonlocal most
        with lock:
            running.append(item)
            most = max(most, len(running))
        together.wait()
        with lock:
            running.remove(item)

    fan_out([str(number) for number in range(12)], work, limit=3)
    assert most == 3


def test_a_bug_is_raised_at_once_and_the_rest_is_told() -> None:
    cancelled = threading.Event()
    begun: list[str] = []
    saw = threading.Event()

    def work(item: str) -> None:
        begun.append(item)
        if item == "buggy":
            raise ZeroDivisionError
        if cancelled.wait(60):
            saw.set()

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        fan_out(["slow", "buggy", "never"], work, limit=2, cancelled=cancelled)
    assert time.monotonic() - began < 30, "it does not wait for what is slow"
    assert saw.wait(30)
    # "never" may be taken by the thread that met the bug, before the caller has heard of it.
    assert set(begun) >= {"slow", "buggy"}


_INTERRUPTED = """
import os, signal, threading, time
from llx.bootstrap.fan_out import fan_out
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a script starts aside
cancelled = threading.Event()
def work(item):
    os.write(1, f"begun {item}\\n".encode())  # whole: two threads do
    time.sleep(600)
try:
    fan_out(["a", "b"], work, cancelled=cancelled)
except KeyboardInterrupt:
    print("interrupted", cancelled.is_set(), flush=True)
    raise SystemExit(130)
"""


def test_ctrl_c_is_heeded_at_once_and_threads_keep_nothing_alive() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        begun = [process.stdout.readline() for _ in range(2)]
        assert sorted(begun) == ["begun a\n", "begun b\n"]
        os.kill(process.pid, signal.SIGINT)
        try:
            assert process.wait(30) == 130
        finally:
            process.kill()
        assert process.stdout.read() == "interrupted True\n"

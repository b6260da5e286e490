"""The poller: one look after the other, a new connection whenever one fails."""

import queue
import threading
import time

import pytest

from llx.errors import RemoteError, UnreachableError
from llx.top.source import Poller
from tests.top.cluster import FakeControl

WAIT_S = 10.0


@pytest.fixture
def control():
    return FakeControl()


@pytest.fixture
def poll(control):
    """Starts a poller; what it tells comes out of the queue."""
    told, pollers = queue.Queue(), []

    def start(interval_s=0.01):
        pollers.append(Poller(control.connect, interval_s, told.put, told.put))
        pollers[0].start()
        return pollers[0], told

    yield start
    for each in pollers:
        each.stop()


def until(told, kind):
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        found = told.get(timeout=WAIT_S)
        if isinstance(found, kind):
            return found
    raise AssertionError(f"no {kind}")


def test_one_look_after_the_other_over_one_connection(poll, control):
    _, told = poll()
    for _ in range(5):
        assert told.get(timeout=WAIT_S) is control.found
    assert (control.num_connects, control.most_at_once) == (1, 1)


def test_it_starts_over_until_somebody_answers(poll, control):
    _, told = poll()
    told.get(timeout=WAIT_S)
    control.error = UnreachableError("nobody there")
    assert until(told, UnreachableError).message == "nobody there"
    num_connects = control.num_connects
    until(told, UnreachableError)
    control.error = None
    until(told, type(control.found))
    assert control.num_connects > num_connects


def test_an_answer_that_makes_no_sense_is_no_end(poll, control):
    control.error = RemoteError("<html>")
    _, told = poll()
    until(told, RemoteError)
    control.error = None
    until(told, type(control.found))


def test_it_can_be_hurried_and_asks_for_what_is_wanted_then(poll, control):
    poller, told = poll(interval_s=3600)
    told.get(timeout=WAIT_S)
    poller.match = "tiny-1"
    poller.hurry()
    told.get(timeout=WAIT_S)
    assert control.matches == ["", "tiny-1"]


def test_it_ends(poll):
    poller, told = poll()
    told.get(timeout=WAIT_S)
    poller.stop()
    end = time.monotonic() + WAIT_S
    while any(each.name == "llx-top-poller" for each in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)

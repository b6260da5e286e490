"""Turns: one at a time, urgent ones first, and nobody waits for ever."""

import queue
import threading
import time

import pytest

from llx.agent.transport.turn import Turn
from llx.errors import EngineError
from tests.contract.kv_rig import wait_until

WAIT_S = 30.0


def never() -> bool:
    return False


def test_urgent_ones_go_first_then_by_arrival() -> None:
    turn, order = Turn("it"), queue.SimpleQueue[str]()

    def take(name: str, is_urgent: bool) -> None:
        with turn.taken(WAIT_S, never, is_urgent=is_urgent):
            order.put(name)

    threads = []
    with turn.taken(WAIT_S, never):
        for number, name in enumerate(("first", "second", "urgent", "urgent too"), start=1):
            threads.append(threading.Thread(target=take, args=(name, name.startswith("u"))))
            threads[-1].start()
            wait_until(lambda number=number: len(turn._waiting) == number)
        assert order.empty()
    for thread in threads:
        thread.join(WAIT_S)
    assert [order.get() for _ in threads] == ["urgent", "urgent too", "first", "second"]


def test_it_is_one_at_a_time() -> None:
    turn, inside, most = Turn("it"), 0, 0

    def take() -> None:
        nonlocal inside, most
        for _ in range(50):
            with turn.taken(WAIT_S, never):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert most == 1
    assert inside == 0


def test_waiting_ends_in_time_and_on_being_cancelled() -> None:
    turn = Turn("the turn")
    with turn.taken(WAIT_S, never):
        begin = time.monotonic()
        with pytest.raises(EngineError, match="the turn was not to be had"), turn.taken(0.1, never):
            pass
        with (
            pytest.raises(EngineError, match="gave up waiting for the turn"),
            turn.taken(WAIT_S, lambda: True),
        ):
            pass
        assert time.monotonic() - begin < WAIT_S
    with turn.taken(0.1, never):
        pass


def test_it_is_given_back_by_what_fails_inside() -> None:
    turn = Turn("it")
    with pytest.raises(ValueError, match="x"), turn.taken(1, never):
        raise ValueError("x")
    with turn.taken(0.1, never):
        pass

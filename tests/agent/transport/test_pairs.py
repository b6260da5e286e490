"""Pairs: closed once, by whoever uses them last; how many there are, and for how long."""

import threading
import time

import pytest

from llx.agent.transport.pairs import Pair, Pairs
from llx.errors import EngineError
from tests.contract.kv_rig import wait_until

A, B = b"a" * 16, b"b" * 16


class End:
    """As much of a `llx.ports.PairEnd` as is held here."""

    def __init__(self) -> None:
        self.num_closed = 0

    def close(self) -> None:
        self.num_closed += 1
        raise EngineError("it does not end well")  # which is logged, and changes nothing


def made(peer: bytes = A) -> tuple[Pair, End]:
    end = End()
    return Pair(b"id", peer, end, 4), end  # type: ignore[arg-type]


def test_what_is_dropped_is_closed_at_once_and_once() -> None:
    pair, end = made()
    with pair.used():
        pass
    assert end.num_closed == 0
    pair.drop()
    pair.drop()
    assert (pair.is_dropped, end.num_closed) == (True, 1)
    with pytest.raises(EngineError, match="dropped"), pair.used():
        pass


def test_what_is_in_use_is_closed_by_its_user_on_the_way_out() -> None:
    pair, end = made()
    with pair.used():
        pair.drop()
        assert end.num_closed == 0
    assert end.num_closed == 1


def test_what_fails_inside_closes_it_before_it_is_left() -> None:
    pair, end = made()
    with pytest.raises(ValueError, match="x"), pair.used():
        raise ValueError("x")
    assert (pair.is_dropped, end.num_closed) == (True, 1)


def test_many_that_drop_it_close_it_once() -> None:
    for _ in range(50):
        pair, end = made()
        threads = [threading.Thread(target=pair.drop) for _ in range(4)]
        with pair.used():
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join()
        assert end.num_closed == 1


def test_a_new_pair_takes_the_place_of_the_former_in_its_direction() -> None:
    pairs = Pairs()
    (first, first_end), (second, second_end), (third, third_end) = made(), made(), made()
    pairs.add(first, is_source=True)
    pairs.add(second, is_source=False)
    assert pairs.find(A, is_source=True) is first
    pairs.add(third, is_source=True)
    assert (first_end.num_closed, second_end.num_closed, third_end.num_closed) == (1, 0, 0)
    assert pairs.find(A, is_source=True) is third
    assert pairs.find(A, is_source=False, pair_id=b"another") is None
    assert pairs.find(B, is_source=True) is None
    pairs.close()
    assert (second_end.num_closed, third_end.num_closed) == (1, 1)


def test_the_longest_unused_makes_room_and_one_in_use_does_not() -> None:
    pairs = Pairs(most=2)
    (old, old_end), (used, used_end) = made(A), made(B)
    pairs.add(old, is_source=True)
    pairs.release(old)
    pairs.add(used, is_source=True)
    with pairs.room():
        assert old_end.num_closed == 1
        with pytest.raises(EngineError, match="in use"), pairs.room():
            pass  # one is being joined already
    assert used_end.num_closed == 0
    assert len(pairs) == 1


def test_unused_pairs_are_idle_after_a_while() -> None:
    pairs = Pairs(idle_s=0.1)
    (idle, idle_end), (used, used_end) = made(A), made(B)
    pairs.add(idle, is_source=True)
    pairs.add(used, is_source=False)
    pairs.release(idle)
    assert not pairs.has_idle
    wait_until(lambda: pairs.has_idle)
    pairs.close_idle()
    assert (idle_end.num_closed, used_end.num_closed) == (1, 0)
    assert not pairs.has_idle


def test_a_closed_rank_keeps_no_pair() -> None:
    pairs = Pairs()
    pairs.close()
    late, end = made()
    pairs.add(late, is_source=True)
    assert end.num_closed == 1
    with pytest.raises(EngineError, match="ends"), pairs.room():
        pass


def test_a_peer_is_shunned_for_a_while() -> None:
    pairs = Pairs(shun_s=0.1)
    assert pairs.shunned(A) == ""
    pairs.shun(A, "no route")
    assert pairs.shunned(A) == "could not be joined 0 s ago: no route"
    assert pairs.shunned(B) == ""
    time.sleep(0.12)
    assert pairs.shunned(A) == ""


def test_one_makes_a_pair_with_a_peer_at_a_time() -> None:
    pairs = Pairs()
    with pairs.making(A, 1, lambda: False):
        with pytest.raises(EngineError), pairs.making(A, 0.05, lambda: False):
            pass
        with pairs.making(B, 0.05, lambda: False):
            pass
    with pairs.making(A, 0.05, lambda: False):
        pass
    assert not pairs._making

"""Stamps: every token once, in order, under the epoch it was made in."""

from hypothesis import given
from hypothesis import strategies as st

from llx.agent.ownership import Ownership
from llx.core.model import Epoch, RequestId
from llx.wire import Add

R = RequestId("r")


def add(epoch=1, seq=1, request=R):
    return Add(request, Epoch(epoch), seq)


def test_offsets_count_the_tokens_before():
    table = Ownership()
    assert table.add(0, add())
    stamps = [table.stamp([(R, n, False)])[0] for n in (1, 3, 2)]
    assert stamps == [(1, 0), (1, 1), (1, 4)]


def test_a_finished_request_is_forgotten_and_may_come_again():
    table = Ownership()
    table.add(0, add())
    assert table.stamp([(R, 1, True), (R, 1, False)]) == [(1, 0), None]
    assert len(table) == 0
    assert table.add(0, add(epoch=2, seq=2))


def test_a_second_add_of_a_held_id_is_refused_and_disturbs_nothing():
    table = Ownership()
    table.add(0, add())
    table.stamp([(R, 5, False)])
    assert not table.add(1, add(epoch=9))
    assert table.peer_of(R) == 0
    assert table.stamp([(R, 1, False)]) == [(1, 5)]


def test_an_abort_of_an_older_epoch_is_ignored():
    table = Ownership()
    table.add(0, add(epoch=3))
    assert table.held(0, [(R, Epoch(2))]) == []
    assert table.held(0, [(R, Epoch(3))]) == [R]
    assert table.held(0, [(RequestId("other"), Epoch(9))]) == []


def test_an_abort_of_another_peer_is_ignored():
    table = Ownership()
    table.add(0, add())
    assert table.held(1, [(R, Epoch(9))]) == []


def test_a_request_that_arrives_goes_on_at_its_offset_under_its_epoch():
    table = Ownership()
    assert table.adopt(R, 3, Epoch(4), 7)
    assert table.stamp([(R, 2, False), (R, 1, False)]) == [(4, 7), (4, 9)]
    assert (table.peer_of(R), table.epoch_of(R)) == (3, 4)
    assert not table.adopt(R, 5, Epoch(9), 0)
    assert not table.add(5, add(epoch=9))
    assert table.held(3, [(R, Epoch(3))]) == []
    assert table.seen == {5: 1}


def test_a_request_that_stays_goes_on_under_another_epoch():
    table = Ownership()
    table.add(0, add(epoch=1))
    table.stamp([(R, 5, False)])
    table.set_epoch(R, Epoch(3))
    assert table.stamp([(R, 1, False)]) == [(3, 5)]
    assert table.held(0, [(R, Epoch(2))]) == []
    table.drop(R)
    table.set_epoch(R, Epoch(4))
    assert table.epoch_of(R) is None


def test_a_peer_that_goes_takes_its_requests_and_its_mark():
    table = Ownership()
    table.add(0, add(request=RequestId("a"), seq=1))
    table.add(1, add(request=RequestId("b"), seq=1))
    table.add(0, add(request=RequestId("c"), seq=2))
    assert table.seen == {0: 2, 1: 1}
    assert sorted(table.of_peer(0)) == ["a", "c"]
    assert table.seen == {1: 1}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), max_size=60))
def test_offsets_of_each_request_are_contiguous(steps):
    table = Ownership()
    for seq, name in enumerate("abc"):
        table.add(0, add(request=RequestId(name), seq=seq + 1))
    next_offset = dict.fromkeys("abc", 0)
    for name, count in steps:
        assert table.stamp([(RequestId(name), count, False)]) == [(1, next_offset[name])]
        next_offset[name] += count


def test_an_add_under_a_later_epoch_ends_the_life_before():
    ownership = Ownership()
    first, second = Add(RequestId("r"), Epoch(1), 1), Add(RequestId("r"), Epoch(1_000_000), 2)
    assert not ownership.is_superseded(0, first)
    assert ownership.add(0, first)
    assert not ownership.is_superseded(0, first)
    assert ownership.is_superseded(0, second)
    assert not ownership.is_superseded(1, second), "it is another peer's"
    ownership.drop(RequestId("r"))
    assert ownership.add(0, second)


def test_a_pin_ends_with_the_request_and_its_successor_has_none():
    table = Ownership()
    assert not table.pin(R, "by ann")
    table.adopt(R, 1, Epoch(1), 0)
    assert table.pin(R, "by ann")
    table.set_epoch(R, Epoch(5))
    assert table.pin_of(R) == "by ann"
    table.drop(R)
    assert table.pin_of(R) == ""
    table.adopt(R, 1, Epoch(6), 0)
    assert table.pin_of(R) == ""
    assert table.pin(R, ""), "what is not pinned can be unpinned"

"""Each token once, in order, from one owner at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.core import epochs
from llx.core.model import Epoch, InstanceId, RequestId
from llx.core.streams import VERDICTS, Claim, OwnerIs, Place, Streams, Verdict

R, A, B = RequestId("r"), InstanceId("A"), InstanceId("B")
OFFSETS = {Place.BEFORE: 2, Place.NEXT: 3, Place.AFTER: 4}
"""Of a stream with three tokens."""


@pytest.mark.parametrize(("claim", "place"), VERDICTS)
def test_every_output_is_judged_as_the_table_says(claim, place):
    streams = Streams()
    former = streams.own(R, B)
    epoch = streams.own(R, A)
    assert streams.judge(R, A, epoch, 0, 3) is Verdict.COUNTS
    sender, claimed = {
        Claim.OWNER: (A, epoch),
        Claim.HEIR: (B, epochs.next_owner(epoch)),
        Claim.PAST: (A, former),
        Claim.OTHER: (B, epoch),
    }[claim]
    verdict = VERDICTS[claim, place]
    assert streams.judge(R, sender, claimed, OFFSETS[place], 1) is verdict
    assert streams.get(R).num_tokens == 3 + (verdict in {Verdict.COUNTS, Verdict.MOVES})


def test_outputs_of_the_owner_count_in_order():
    streams = Streams()
    epoch = streams.own(R, A)
    assert streams.judge(R, A, epoch, 0, 2) is Verdict.COUNTS
    assert streams.judge(R, A, epoch, 0, 2) is Verdict.REPEATED
    assert streams.judge(R, A, epoch, 3, 1) is Verdict.GAP
    assert streams.judge(R, A, epoch, 2, 1) is Verdict.COUNTS
    assert streams.get(R).num_tokens == 3


def test_a_move_fences_the_former_owner():
    streams = Streams()
    first = streams.own(R, A)
    second = streams.own(R, B)
    assert second == epochs.next_reign(first)
    assert streams.judge(R, A, first, 0, 1) is Verdict.STALE
    assert streams.judge(R, A, second, 0, 1) is Verdict.STALE
    assert streams.judge(R, B, first, 0, 1) is Verdict.PAST
    assert streams.judge(R, B, second, 0, 1) is Verdict.COUNTS


def test_an_ended_stream_hears_nothing():
    streams = Streams()
    epoch = streams.own(R, A)
    assert streams.end(R).owner == A
    assert streams.end(R) is None
    assert streams.judge(R, A, epoch, 0, 1) is Verdict.STALE
    assert R not in streams


def test_the_owner_gives_a_stream_away_by_the_next_epoch():
    streams = Streams()
    epoch = streams.own(R, A)
    assert streams.judge(R, A, epoch, 0, 3) is Verdict.COUNTS
    assert streams.judge(R, B, Epoch(epoch + 1), 4, 1) is Verdict.EARLY
    assert streams.judge(R, A, epoch, 3, 1) is Verdict.COUNTS
    assert streams.judge(R, B, Epoch(epoch + 1), 4, 1) is Verdict.MOVES
    assert streams.judge(R, A, epoch, 5, 1) is Verdict.STALE
    assert streams.judge(R, B, Epoch(epoch + 1), 5, 1) is Verdict.COUNTS
    assert streams.ask(R, A, epoch) == OwnerIs(Epoch(epoch + 1), is_yours=False)


def test_an_owner_that_asks_first_has_it_back_and_the_target_is_fenced():
    streams = Streams()
    epoch = streams.own(R, A)
    again = OwnerIs(epochs.next_reign(epoch), is_yours=True)
    assert streams.ask(R, A, epoch) == again
    assert streams.ask(R, A, epoch) == again, "the first answer may have been lost"
    assert streams.judge(R, B, Epoch(epoch + 1), 0, 1) is Verdict.STALE
    assert streams.judge(R, A, again.epoch, 0, 1) is Verdict.COUNTS


def test_a_target_is_known_until_the_owner_goes_on_after_all():
    streams = Streams()
    epoch = streams.own(R, A)
    streams.note_target(R, B, epoch, B)
    streams.note_target(R, A, Epoch(epoch + 1), B)
    assert streams.get(R).target is None, "only its owner can say so"
    streams.note_target(R, A, epoch, B)
    assert streams.get(R).target == B
    streams.judge(R, A, epoch, 0, 1)
    assert streams.get(R).target is None, "B has refused, and A goes on"


def test_an_output_from_before_it_was_taken_back_does_not_end_what_the_owner_holds():
    streams = Streams()
    epoch = streams.own(R, A)
    streams.judge(R, A, epoch, 0, 1)
    streams.ask(R, A, epoch)
    assert streams.judge(R, A, epoch, 0, 1) is Verdict.PAST, "it has yet to hear of the new epoch"


def test_a_late_question_is_not_answered_with_what_ends_the_present_hold():
    streams = Streams()
    first = streams.own(R, A)
    second = streams.ask(R, A, first).epoch
    third = streams.ask(R, A, second).epoch
    late = streams.ask(R, A, first)
    assert not late.is_yours
    assert first < late.epoch <= second < third


def test_zombies_that_move_on_among_themselves_never_reach_the_present_reign():
    streams = Streams()
    epoch = streams.own(R, A)
    streams.ask(R, A, epoch)
    for number in range(1, 9):
        zombie = InstanceId(f"zombie-{number}")
        assert streams.judge(R, zombie, Epoch(epoch + number), 0, 1) is Verdict.STALE


def test_a_second_move_may_be_heard_of_before_the_first():
    streams = Streams()
    epoch, third = streams.own(R, A), InstanceId("C")
    assert streams.judge(R, third, Epoch(epoch + 2), 1, 1) is Verdict.EARLY
    assert streams.ask(R, B, Epoch(epoch + 1)) is None, "not decided: its outputs are on the way"
    assert streams.judge(R, B, Epoch(epoch + 1), 0, 1) is Verdict.MOVES
    assert streams.judge(R, third, Epoch(epoch + 2), 1, 1) is Verdict.MOVES
    assert not streams.ask(R, B, Epoch(epoch + 1)).is_yours


def test_nobody_has_a_stream_that_has_ended():
    streams = Streams()
    epoch = streams.own(R, A)
    streams.end(R)
    assert not streams.ask(R, A, epoch).is_yours


outputs = st.tuples(st.sampled_from([A, B]), st.integers(-3, 3), st.integers(0, 6))


@given(st.lists(st.one_of(outputs, st.sampled_from([A, B])), max_size=60))
def test_whatever_arrives_the_delivered_offsets_are_contiguous_and_the_owners(steps):
    """Zombies, repeats and reordering, interleaved with changes of owner."""
    streams = Streams()
    owner, epoch = A, streams.own(R, A)
    delivered = []
    for step in steps:
        if isinstance(step, str):
            owner, epoch = step, streams.own(R, step)
            continue
        sender, off, offset = step
        claimed = Epoch(epoch + off)
        verdict = streams.judge(R, sender, claimed, offset, 1)
        if verdict is Verdict.COUNTS:
            assert (sender, claimed) == (owner, epoch)
            delivered.append(offset)
        if verdict is Verdict.MOVES:
            assert epochs.follows(claimed, epoch)
            owner, epoch = sender, claimed
            delivered.append(offset)
    assert delivered == list(range(len(delivered)))

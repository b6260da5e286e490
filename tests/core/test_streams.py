"""Each token once, in order, from one owner at a time."""

from hypothesis import given
from hypothesis import strategies as st

from llx.core.model import Epoch, InstanceId, RequestId
from llx.core.streams import Streams, Verdict

R, A, B = RequestId("r"), InstanceId("A"), InstanceId("B")


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
    assert second == first + 1
    assert streams.judge(R, A, first, 0, 1) is Verdict.STALE
    assert streams.judge(R, A, second, 0, 1) is Verdict.STALE
    assert streams.judge(R, B, first, 0, 1) is Verdict.STALE
    assert streams.judge(R, B, second, 0, 1) is Verdict.COUNTS


def test_an_ended_stream_hears_nothing():
    streams = Streams()
    epoch = streams.own(R, A)
    assert streams.end(R).owner == A
    assert streams.end(R) is None
    assert streams.judge(R, A, epoch, 0, 1) is Verdict.STALE
    assert R not in streams


outputs = st.tuples(st.sampled_from([A, B]), st.integers(1, 6), st.integers(0, 6))


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
        sender, claimed, offset = step
        if streams.judge(R, sender, Epoch(claimed), offset, 1) is Verdict.COUNTS:
            assert (sender, claimed) == (owner, epoch)
            delivered.append(offset)
    assert delivered == list(range(len(delivered)))

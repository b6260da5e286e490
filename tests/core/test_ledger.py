"""The in-flight ledger never loses, doubles or forgets a charge."""

from hypothesis import given
from hypothesis import strategies as st

from llx.core.ledger import InFlightLedger
from llx.core.model import Blocks


def test_a_report_strikes_off_everything_up_to_what_it_has_seen():
    ledger = InFlightLedger()
    assert [ledger.charge(Blocks(n)) for n in (3, 5, 7)] == [1, 2, 3]
    ledger.settle(2)
    assert (ledger.num_requests, ledger.demand) == (1, 7)


def test_an_older_report_changes_nothing():
    ledger = InFlightLedger()
    for _ in range(3):
        ledger.charge(Blocks(1))
    ledger.settle(3)
    ledger.charge(Blocks(4))
    ledger.settle(2)
    assert (ledger.num_requests, ledger.demand) == (1, 4)


@given(st.lists(st.one_of(st.tuples(st.just("charge"), st.integers(0, 50)),
                          st.tuples(st.just("settle"), st.integers(0, 40)))))  # fmt: skip
def test_it_equals_a_plain_list_of_unsettled_charges(steps):
    ledger, charges, settled = InFlightLedger(), [], 0
    for kind, value in steps:
        if kind == "charge":
            assert ledger.charge(Blocks(value)) == len(charges) + 1
            charges.append(value)
        else:
            ledger.settle(value)
            settled = max(settled, min(value, len(charges)))
        assert ledger.num_requests == len(charges) - settled
        assert ledger.demand == sum(charges[settled:])

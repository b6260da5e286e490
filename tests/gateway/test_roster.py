"""Who takes requests: links that stand, report, and are not cordoned."""

from types import SimpleNamespace
from typing import Any

from llx.core.ledger import InFlightLedger
from llx.core.model import Blocks, InstanceId, InstanceLoad, PoolName, Tokens
from llx.gateway.roster import Roster
from llx.wire import Member

LOAD = InstanceLoad(Blocks(10), Blocks(10), Tokens(16))


def link(name: str, *, is_cordoned: bool = False) -> Any:
    member = Member(InstanceId(name), PoolName("m"), "tcp://a", "tcp://b", is_cordoned)
    return SimpleNamespace(member=member, is_ready=True, load=LOAD, ledger=InFlightLedger())


def test_a_pool_whose_instances_are_all_cordoned_takes_nothing() -> None:
    roster = Roster(4)
    one, other = link("m-0"), link("m-1")
    for each in (one, other):
        roster.join(each)
    roster.update()
    assert roster.ready_event.is_set()
    one.member = link("m-0", is_cordoned=True).member
    roster.update()
    assert roster.ready_event.is_set()
    choice = roster.choose(16)
    assert choice is not None
    assert choice[0] is other
    other.member = link("m-1", is_cordoned=True).member
    roster.update()
    assert not roster.ready_event.is_set()
    assert roster.choose(16) is None
    one.member = link("m-0").member
    roster.update()
    assert roster.ready_event.is_set()

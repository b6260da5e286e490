"""Who may not cut hosts off hears of it before anything is done."""

import pytest

from llx.bootstrap.shell import Completed
from llx.chaos.plan import ChaosPlan, Fault
from llx.chaos.preflight import check_partitions
from llx.errors import ConflictError


class Host:
    def __init__(self, why_not: str = "") -> None:
        self.why_not = why_not

    def run(self, argv, *, timeout_s=30.0, stdin=b""):
        return Completed(4 if self.why_not else 0, "", self.why_not)


HANDS = {"h1": Host("takes root"), "h2": Host(), "h3": Host("no nft")}


def plan(target, kind="partition"):
    return ChaosPlan(faults=[Fault(kind=kind, target=target)])


def test_each_host_that_refuses_is_named():
    with pytest.raises(ConflictError, match=r"h1: takes root; h3: no nft"):
        check_partitions(plan("host"), HANDS)
    with pytest.raises(ConflictError, match=r"done: h3: no nft"):
        check_partitions(plan("h3"), HANDS)


def test_who_is_not_cut_off_is_not_asked():
    check_partitions(plan("h2"), HANDS)
    check_partitions(plan("instance", "kill"), HANDS)

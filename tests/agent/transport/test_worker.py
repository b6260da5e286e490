"""Steering a rank in another process: who may, and what happens when either goes."""

import contextlib
import dataclasses
import pickle
import random
import threading

import pytest

from llx.agent.transport.remote import GONE, connect_ranks
from llx.agent.transport.sockets import connect_local
from llx.agent.transport.worker import RankAddress, serve_rank
from llx.core.model import MigrationId
from llx.errors import ConflictError, UnreachableError
from llx.secret import Secret
from tests.contract.kv_rig import (
    BLOCK_BYTES,
    SPEC,
    Answer,
    BytesStore,
    Heard,
    count_fds,
    wait_until,
)

M = MigrationId("m-1")
TOKEN = b"0123456789abcdef"


@pytest.fixture
def address():
    """A rank that anybody may steer who knows how; it ends with whoever joined last."""
    num_fds, num_threads = count_fds(), threading.active_count()
    address = serve_rank(BytesStore(8), SPEC, "127.0.0.1")
    yield address
    with contextlib.suppress(UnreachableError):
        connect_ranks([address], Heard()).stop()
    wait_until(lambda: threading.active_count() <= num_threads)
    assert count_fds() <= num_fds


def test_an_address_travels_and_does_not_show_its_secret(address: RankAddress) -> None:
    assert pickle.loads(pickle.dumps(address)) == address
    assert address.secret.reveal() not in repr(address)


def test_a_wrong_secret_and_nonsense_are_refused_and_the_core_still_gets_in(address) -> None:
    wrong = dataclasses.replace(address, secret=Secret("wrong"))
    with pytest.raises(UnreachableError):
        connect_ranks([wrong], Heard())
    for said in (b"", b"\xff\xff\xff\xff", random.Random(1).randbytes(100)):
        with connect_local(address.control) as connection:
            connection.sendall(said)
    transport = connect_ranks([address], Heard())
    assert transport.routes == [address.route]
    with pytest.raises(UnreachableError):  # there is one core
        connect_ranks([address], Heard())
    transport.stop()


def test_a_rank_that_is_not_there_is_said_and_the_others_are_left(address) -> None:
    nobody = dataclasses.replace(address, control="llx-rank-nobody")
    with pytest.raises(UnreachableError):
        connect_ranks([address, nobody], Heard())


def test_what_is_asked_of_a_rank_that_has_gone_is_answered(address) -> None:
    heard = Heard()
    transport = connect_ranks([address], heard)
    [rank] = transport._ranks
    transport.expect(M, TOKEN, [1])
    rank.stop()  # as if its process had gone: the connection ends
    assert heard.next() == (M, GONE)
    done, fenced = Answer(), Answer()
    transport.send(M, 0, [0], [1], state_of=None, done=done)
    assert done.get() == GONE
    transport.fence(M, fenced)
    fenced.get()
    transport.expect(MigrationId("m-2"), TOKEN, [1])
    assert heard.next() == ("m-2", GONE)
    transport.stop()


def test_a_block_table_of_many_blocks_gets_through(address) -> None:
    heard = Heard()
    transport = connect_ranks([address], heard)
    transport.expect(M, TOKEN, range(500_000))
    transport.open(M, transport.routes, TOKEN, is_checked=False)
    done = Answer()
    transport.send(M, 0, [0, 1], [6, 7], state_of=None, done=done)
    assert done.get() == 2 * BLOCK_BYTES
    assert heard.next() == (M, 0)
    transport.finish(M)
    transport.close(M)
    transport.stop()


def test_a_port_that_is_taken_leaves_nothing() -> None:
    num_fds = count_fds()
    with pytest.raises(ConflictError):
        serve_rank(BytesStore(1), SPEC, "203.0.113.7", (1, 1))
    assert count_fds() == num_fds

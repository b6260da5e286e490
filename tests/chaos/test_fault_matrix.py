"""Live migration under faults, over real processes: every message, everybody killed around it.

The same matrix in virtual time, with more of each, is `tests/core/test_migration_faults.py`.
"""

import pytest

from tests.chaos.cases import Case, all_cases, messages_of_a_move
from tests.chaos.conftest import Matrix

pytestmark = pytest.mark.chaos


def test_every_message_of_a_move_has_its_cases() -> None:
    killed = {
        (step.point.edge, step.point.message)
        for case in all_cases()
        for step in case.steps
        if step.deed == "kill"
    }
    for message in messages_of_a_move():
        assert ("receive", message) in killed or message == "migration-news", message
        assert ("send", message) in killed or message in {"migrate", "cancel-migration"}, message


@pytest.mark.node
@pytest.mark.parametrize("case", [pytest.param(each, id=each.name) for each in all_cases()])
def test_a_move_survives(matrix: Matrix, case: Case) -> None:
    failure = matrix.result(case)
    assert not failure, failure

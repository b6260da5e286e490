"""tests/scenarios/*.txt: each says what it shows; `--rewrite` makes the answers anew."""

from pathlib import Path

import pytest

from llx.core.scheduler.dispatch import DISPATCH
from llx.core.scheduler.rescheduling import RESCHEDULING
from llx.core.scheduler.scaling import SCALING
from tests.core.scheduler_script import Script

SCENARIOS = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))

pytestmark = pytest.mark.scenarios


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path, request):
    text = path.read_text(encoding="utf-8")
    played = Script().play(text)
    if request.config.getoption("--rewrite"):
        path.write_text(played, encoding="utf-8")
    assert played == path.read_text(encoding="utf-8"), f"see {path}; pytest --rewrite"


def test_every_policy_has_a_scenario():
    text = "\n".join(path.read_text(encoding="utf-8") for path in SCENARIOS)
    missing = [name for name in [*DISPATCH, *RESCHEDULING, *SCALING] if name not in text]
    assert not missing

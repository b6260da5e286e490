"""tests/scenarios/*.txt: each says what it shows; `--rewrite` makes the answers anew."""

import re
from pathlib import Path

import pytest

from llx.core.scheduler.dispatch import DISPATCH
from llx.core.scheduler.rescheduling import RESCHEDULING
from llx.core.scheduler.scaling import SCALING
from tests.core.scheduler_script import Script

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted((ROOT / "tests" / "scenarios").glob("*.txt"))
NAMES = [*DISPATCH, *RESCHEDULING, *SCALING]

pytestmark = pytest.mark.scenarios


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path, request):
    text = path.read_text(encoding="utf-8")
    played = Script().play(text)
    if request.config.getoption("--rewrite"):
        path.write_text(played, encoding="utf-8")
    assert played == path.read_text(encoding="utf-8"), f"see {path}; pytest --rewrite"


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_has_a_scenario_and_a_line_in_the_documentation(name):
    scenarios = "\n".join(path.read_text(encoding="utf-8") for path in SCENARIOS)
    assert re.search(rf"(^|\W){name}\W", scenarios), f"no scenario names {name}"
    documentation = (ROOT / "docs" / "scheduler.md").read_text(encoding="utf-8")
    assert f"\n| `{name}` |" in documentation, f"docs/scheduler.md has no line for {name}"

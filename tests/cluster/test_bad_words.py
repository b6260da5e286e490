"""What operators get wrong, at a real head: exit code, words, remedy; one table."""

import json
import os

import pytest
from typer.testing import CliRunner

from llx.cli.main import app
from tests.cluster.test_moves import home_of, idle, is_busy, request, up

NOT_FOUND, CONFLICT, USAGE = 4, 5, 2
CASES = [
    # unknown, with what is near
    ("inst get mm-0", NOT_FOUND, ['no instance "mm-0"; did you mean "m-0"?']),
    ("inst get x", NOT_FOUND, ['no instance "x"', "there are: m-0, m-1"]),
    ("inst cordon m-00", NOT_FOUND, ['no instance "m-00"; did you mean "m-0"?']),
    ("inst drain m-9", NOT_FOUND, ['no instance "m-9"']),
    ("inst restart m-9 -y", NOT_FOUND, ['no instance or gateway "m-9"']),
    ("host cordon h9", NOT_FOUND, ['no host "h9"']),
    ("logs m-7", NOT_FOUND, ['no process "m-7"; did you mean "m-']),
    ("req get llx-77", NOT_FOUND, ['no request "llx-77"', "llx req ls"]),
    ("req get llx-", NOT_FOUND, ["did you mean llx-1"]),
    ("req cancel llx-77 -y", NOT_FOUND, ['no request "llx-77"']),
    ("explain llx-77", NOT_FOUND, ["llx-77"]),
    ("migrate llx-1 --to m-9", NOT_FOUND, ['no instance "m-9"']),
    ("migrate --from m-9 --to m-1", NOT_FOUND, ['no instance "m-9"']),
    ("mig get m9-9", NOT_FOUND, ['no migration "m9-9"', "llx mig ls"]),
    ("mig cancel m9-9", NOT_FOUND, ['no migration "m9-9"']),
    ("queue btch", NOT_FOUND, ['no priority class "btch"; did you mean "batch"?']),
    ("req set-priority llx-1 btch", NOT_FOUND, ['no priority class "btch"', "mean batch?"]),
    ("policy show --model mm", NOT_FOUND, ['no model "mm"; did you mean "m"?']),
    ("policy pause --model mm", NOT_FOUND, ['no model "mm"; did you mean "m"?']),
    ("scale mm 2 -y", NOT_FOUND, ['no model "mm"; did you mean "m"?']),
    ("rollout mm --set max_num_seqs=4 -y", NOT_FOUND, ['no model "mm"']),
    ("status --context nope", NOT_FOUND, ['no cluster "nope"']),
    # several
    ("req get mine", CONFLICT, ['2 requests carry the id "mine"', "llx-4, llx-5"]),
    ("req cancel mine -y", CONFLICT, ['2 requests carry the id "mine"']),
    # it cannot be so now
    ("migrate --from m-0 --to m-0", CONFLICT, ["both source and target"]),
    ("inst cordon gateway-0", NOT_FOUND, ['no instance "gateway-0"']),
    ("scale m --min 3 --max 1", USAGE, ["max"]),
    ("scale m -3", USAGE, []),
    ("policy set nope=1", USAGE, ['no key "nope"']),
    ("policy set dispatch=random", USAGE, ["dispatch"]),
    ("queue -o xml", USAGE, ["xml"]),
    ("events --since yesterday", USAGE, ["yesterday"]),
]


@pytest.mark.slow
def test_bad_words(rig) -> None:
    variables = os.environ | {"XDG_STATE_HOME": str(home_of(rig)), "COLUMNS": "200"}
    wrong = []
    with up(rig, idle()) as client:
        mine = [request(4, id="cmpl-mine-0-0123abcd"), request(5, id="cmpl-mine-0-4567abcd")]
        rig.give("m-0", request(1), request(2), request(3), *mine)
        rig.eventually(lambda: is_busy(client, "m-0", 5), "they are reported")
        before = done_by_somebody(rig)
        for words, code, said in CASES:
            done = CliRunner().invoke(app, words.split(), env=variables, prog_name="llx")
            told = " ".join(done.stderr.split())
            missing = [each for each in said if each not in told]
            if done.exit_code != code or missing or done.stdout or "Traceback" in told:
                wrong.append((words, done.exit_code, missing, done.stdout, told))
        assert not wrong, "\n".join(map(str, wrong))
        assert done_by_somebody(rig) == before, "nothing was done"


def done_by_somebody(rig):
    lines = rig.state.events.read_text().splitlines()
    return [each for each in map(json.loads, lines) if each.get("user")]

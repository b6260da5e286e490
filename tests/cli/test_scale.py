"""`llx scale` against a head that pretends."""

import json

import pytest


def test_a_number_fixes_it(llx, head):
    done = llx("scale", "tiny", "3", "-y")
    assert done.exit_code == 0, done.stderr
    assert [(each.min, each.max, each.is_dry_run) for each in head.scaled] == [
        (3, 3, True),
        (3, 3, False),
    ]
    assert head.scaled[1].user
    assert done.stderr.splitlines() == ["model tiny: 2 to 4 → 3 instances", "tiny-2 is started"]
    head_line, row = done.stdout.splitlines()
    assert head_line.split() == ["MODEL", "READY", "WANTED", "MIN", "MAX", "SHORT", "OF"]
    assert row.split() == ["tiny", "1", "2", "2", "4", "-"]


def test_a_range_lets_the_load_decide(llx, head):
    assert llx("scale", "tiny", "--min", "1", "--max", "4").exit_code == 0
    assert llx("scale", "tiny", "--max", "6").exit_code == 0
    assert [(each.min, each.max) for each in head.scaled if not each.is_dry_run] == [
        (1, 4),
        (None, 6),
    ]


def test_a_dry_run_changes_nothing(llx, head):
    done = llx("scale", "tiny", "3", "--dry-run")
    assert done.exit_code == 0
    assert "tiny-2 is started" in done.stderr
    assert "nothing was changed" in done.stderr
    assert [each.is_dry_run for each in head.scaled] == [True]


def test_without_a_number_it_shows(llx, head):
    head.found = head.found.model_copy(
        update={
            "models": [head.found.models[0].model_copy(update={"shortage": "needs 1 free GPU(s)"})]
        }
    )
    assert "needs 1 free GPU(s)" in llx("scale").stdout
    assert "needs 1 free GPU(s)" in llx("status", "-o", "wide").stdout
    found = json.loads(llx("scale", "tiny", "-o", "json").stdout)
    assert [each["instances_wanted"] for each in found] == [2]
    assert head.scaled == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["tiny", "2", "--max", "3"], 2, "not both"),
        (["--min", "3"], 2, "of a MODEL"),
        (["tniy"], 4, 'did you mean "tiny"?'),
        (["other", "2"], 4, 'no "instances"'),
    ],
)
def test_what_makes_no_sense(llx, head, words, code, says):
    done = llx("scale", *words)
    assert (done.exit_code, head.scaled) == (code, [])
    assert says in done.stderr

"""docs/licences.md: every package that llx installs, under terms that somebody has looked at."""

import re
import runpy
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from llx.bootstrap.locks import lock_text, parse_lock

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([a-z0-9-]+) \| (?:\*\*)?([^|*]+)(?:\*\*)? \| ([a-z, ]+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / ".ci" / "licences.py"))


@pytest.fixture(scope="module")
def rows():
    text = (ROOT / "docs" / "licences.md").read_text()
    found = {name: (licence, places.split(", ")) for name, licence, places in ROW.findall(text)}
    assert len(found) == text.count("\n| ")  # no line is anything else
    del found["package"]
    return found


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_it_lists_what_the_locks_install(rows, platform):
    listed = {name for name, (_, places) in rows.items() if platform in places}
    locked = {canonicalize_name(each.name) for each in parse_lock(lock_text(platform))}
    assert listed == locked, "make licences"


def test_every_licence_in_it_is_known(rows, script):
    assert {
        name: licence for name, (licence, _) in rows.items() if script["unknown_in"](licence)
    } == {}


def test_what_may_not_be_changed_is_said(script):
    places = {"cuda": {"a", "b"}}
    found = {
        "a": {"license_expression": "MIT"},
        "b": {"license": "NVIDIA Proprietary Software\nmore of it"},
    }
    text = script["page"](found, places)
    assert text.endswith("| a | MIT | cuda |\n| b | **LicenseRef-NVIDIA-Proprietary** | cuda |\n")


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ({"license_expression": "Apache-2.0 OR BSD-2-Clause"}, "Apache-2.0 OR BSD-2-Clause"),
        ({"license": "Apache 2.0", "classifier": []}, "Apache-2.0"),
        (
            {
                "license": "Copyright (c) 2005",
                "classifier": ["License :: OSI Approved :: MIT License"],
            },
            "MIT",
        ),
        (
            {"classifier": ["Topic :: System", "License :: OSI Approved :: BSD License"]},
            "LicenseRef-BSD",
        ),
    ],
)
def test_what_packages_say_is_understood(script, metadata, licence):
    assert script["licence_of"](metadata) == licence


@pytest.mark.parametrize("metadata", [{}, {"license": "GPL-3.0-only"}, {"license": "ask us"}])
def test_what_nobody_has_looked_at_is_refused(script, metadata):
    with pytest.raises(script["Unknown"], match="pkg: "):
        script["page"]({"pkg": metadata}, {"cpu": {"pkg"}})

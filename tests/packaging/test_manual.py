"""The manual pages: what the command line says now, and troff that a terminal can show."""

import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "man"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / ".ci" / "manual.py"))


@pytest.mark.golden
def test_they_say_what_the_command_says(script, request):
    if request.config.getoption("--rewrite"):
        script["write"](PAGES)
    there = {each.name: each.read_text() for each in PAGES.iterdir()}
    assert there == script["pages"](), "make man"


def test_every_verb_is_found_in_them(script):
    pages = script["pages"]()
    for golden in (ROOT / "tests/golden/help").glob("*.txt"):
        usage = golden.read_text().partition("\n")[0].removeprefix("Usage: ")
        words = usage.partition(" [")[0].split()
        name = "-".join(words[:2]) + ".1" if words[1:] else "llx.1"
        assert name in pages
        if words[2:]:
            assert f".SS {' '.join(words)}\n".replace("-", "\\-") in pages[name]


def test_pages_of_verbs_that_are_gone_are_removed(script, tmp_path):
    (tmp_path / "llx-levitate.1").write_text("once")
    script["write"](tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == set(script["pages"]())


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff here")
def test_troff_has_nothing_to_complain_about():
    pages = sorted(map(str, PAGES.iterdir()))
    done = subprocess.run(
        ["groff", "-ww", "-Kutf8", "-man", "-Tutf8", *pages], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 10 * len(pages)

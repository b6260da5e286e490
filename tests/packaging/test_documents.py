"""What the documents name is there."""

import re

import pytest

from tests.node import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_MODULE = re.compile(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)`")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_module_that_is_named_exists(path):
    """From the repository's root or, as ARCHITECTURE.md has them, from the package."""
    named = set(_MODULE.findall(path.read_text(encoding="utf-8")))
    gone = {
        each
        for each in named
        if not (ROOT / each).is_file() and not (ROOT / "llx" / each).is_file()
    }
    assert not gone

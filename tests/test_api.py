"""The control API's resources as a package: all there, each module only when it is needed."""

import subprocess
import sys

import pytest

from llx import api


def test_all_that_is_named_is_there():
    homes = [name for names in api._HOMES.values() for name in names]
    constants = [name for name in api.__all__ if name.isupper()]
    assert sorted([*homes, *constants]) == sorted(api.__all__)
    assert all(getattr(api, name) is not None for name in api.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = api.Nonsense


def test_a_module_is_imported_when_it_is_needed():
    code = (
        "import sys, llx.client; from llx.api import HostStatus;"
        "print(sorted(each for each in sys.modules if each.startswith('llx.api.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['llx.api.resource', 'llx.api.status']"

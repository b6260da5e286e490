"""Importing without."""

import subprocess
import sys

import pytest

from llx.lean_import import without


def test_within_it_is_not_there_and_afterwards_it_is(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with without("wave"), pytest.raises(ImportError):
        import wave
    import wave

    with without("wave"):  # loaded: it stays
        import wave as again
    assert again is wave


@pytest.mark.parametrize(
    ("module", "library", "part"),
    [("llx.bootstrap.ssh", "paramiko", "invoke"), ("llx.client", "httpx", "httpx._main")],
)
def test_what_is_not_used_is_not_imported(module, library, part):
    code = f"import sys, {module}; print('{library}' in sys.modules, '{part}' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]

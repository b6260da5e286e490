"""Importing without."""

import subprocess
import sys

import pytest

from llx.bootstrap.lean_import import without


def test_within_it_is_not_there_and_afterwards_it_is(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with without("wave"), pytest.raises(ImportError):
        import wave
    import wave

    with without("wave"):  # loaded: it stays
        import wave as again
    assert again is wave


def test_ssh_leaves_out_what_paramiko_needs_for_its_configuration_alone():
    code = (
        "import sys, llx.bootstrap.ssh; print('invoke' in sys.modules, 'paramiko' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, "invoke", "paramiko"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]

"""The GPU check as tests: `pytest -m gpu tests/gpu`, with a Python that has torch, beside a GPU."""

import importlib

import pytest

from tests.gpu.report import Report

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("section", ["kernels", "load", "nccl", "ipc"])
def test_all_that_is_claimed_of_a_gpu_holds(section: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    report = Report()
    report.run(section, importlib.import_module(f"tests.gpu.{section}").run)
    missed = [claim for claim in report.claims if claim.is_met is False]
    assert not missed, missed

"""What every tier shares: golden files, the node environment, the oracle model."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import node

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script's background job ignores Ctrl-C, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("llx", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# `make check`: enough to see most mistakes while one works; `make test` and CI do them all.
settings.register_profile("quick", settings.get_profile("llx"), max_examples=20)
# `make fuzz`: the same properties, for as long as one has the patience.
settings.register_profile("fuzz", settings.get_profile("llx"), max_examples=3000)
settings.load_profile("llx")

FAILURE_CHARACTERS = 6000
"""How much of a failure is told at once; the summary has all of it."""
GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write golden files anew; review them as diffs"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was collected stays to the end: no garbage collection need go through it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Have what former tests left collected before hypothesis reads source.

    A failed test may leave tasks whose exception nobody has asked for. When they are collected, the
    log tells it with a traceback, which parses source; where that comes in the middle of another
    parsing, CPython 3.11 raises `SystemError: AST constructor recursion depth mismatch`.
    """
    if pyfuncitem.get_closest_marker("hypothesis") is not None:
        gc.collect()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once, on stderr, why a test failed: what ends a run early leaves no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        title = f" {report.nodeid} ({report.when}, after {report.duration:.0f} s) "
        print(f"\n{title:=^100}\n{report.longreprtext[-FAILURE_CHARACTERS:]}", file=sys.__stderr__)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)``: `text` is what the golden file of that name says."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--rewrite"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: pytest --rewrite makes it"
        assert text == path.read_text(encoding="utf-8"), f"see {path}; pytest --rewrite"

    return compare


@pytest.fixture(scope="session")
def node_python() -> str:
    """The node environment's interpreter; `make test` makes it before pytest runs."""
    prefix = os.environ.get("LLX_NODE_PREFIX")
    assert prefix, "tests of the node tier need LLX_NODE_PREFIX: run them with `make test`"
    return f"{prefix}/bin/python"


@pytest.fixture(scope="session")
def node_environment() -> dict[str, str]:
    """The environment llx gives its own CPU processes."""
    return node.node_environment()


@pytest.fixture(scope="session")
def oracle(tmp_path_factory, node_python, node_environment) -> Path:
    """The oracle model's directory."""
    folder = tmp_path_factory.mktemp("oracle") / "model"
    script = str(node.ROOT / "tests/e2e/oracle_model.py")
    subprocess.run(
        [node_python, script, "make", str(folder)],
        env=node_environment, check=True, capture_output=True,
    )  # fmt: skip
    return folder

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest


@contextlib.contextmanager
def served(*words: str):
    """URL of a server of set pace, in a process of its own."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.sse_server", *words],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="module")
def sse_server():
    """20 ms, then a token each 10 ms."""
    with served() as url:
        yield url


@pytest.fixture(scope="module")
def swift_server():
    """For those who want an answer, and nothing of its pace."""
    with served("--ttft-ms", "1", "--itl-ms", "0.5") as url:
        yield url

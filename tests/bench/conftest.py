import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def sse_server():
    """URL of a server of set pace (20 ms, then a token each 10 ms), in a process of its own."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.sse_server"],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()

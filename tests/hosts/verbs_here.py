"""`llx` typed in this process, at a cluster on hosts: the verbs' own code without what a process
and an SSH connection cost each time.

The head's control API listens on its host's loopback alone. While `Here` is open, a relay on that
host carries connections there, and a directory here names it as the head of a cluster here.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from llx.cli.main import app
from llx.client import HEAD_STATUS_FILE, TOKEN_FILE
from llx.environment import Environment
from llx.specs import Phase, StatusFile
from tests.hosts.operator_machine import CONTROL_PORT, Operator
from tests.hosts.rig import USER

_RELAY = """
import asyncio, sys

async def carry(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()

async def join(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    await asyncio.gather(carry(reader, there[1]), carry(there[0], writer), return_exceptions=True)

async def main():
    server = await asyncio.start_server(join, sys.argv[2], 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Here:
    """Answers as `Operator` does. A verb that fails unexpectedly raises."""

    variables: dict[str, str]

    def __call__(self, *words: str) -> "subprocess.CompletedProcess[str]":
        others = dict.fromkeys(os.environ)  # an operator has none of the tests' own
        done = CliRunner().invoke(app, words, env={**others, **self.variables}, prog_name="llx")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


@contextlib.contextmanager
def verbs_here(operator: Operator, model: str, home: Path) -> Iterator[Here]:
    """Verbs in this process, about the operator's cluster; `home` is for what they keep."""
    head = operator.rig.hosts[0]
    token = head.x("cat", f"/home/{USER}/.llx/clusters/c/token", check=True).stdout
    relay = head.spawn(
        "/usr/bin/python3", "-c", _RELAY, str(CONTROL_PORT), head.address,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert relay.stdout is not None
        url = f"http://{head.address}:{int(relay.stdout.readline())}"
        state = {"HOME": str(home), "XDG_STATE_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
        here = Here({**operator.environment, **state})
        register(Environment(here.variables, home).cluster_dir("c"), model, url, token)
        yield here
    finally:
        relay.communicate()  # it ends with what it reads


def register(folder: Path, model: str, url: str, token: str) -> None:
    """Have a directory name the head at `url` as that of a cluster on this machine."""
    status = folder / HEAD_STATUS_FILE
    status.parent.mkdir(parents=True, mode=0o700)
    StatusFile(status).write(Phase.READY, addresses=[url])
    settings = {"cluster": folder.name, "models": [{"name": model, "model": "/m"}]}
    (folder / "cluster.yaml").write_text(json.dumps(settings))
    (folder / TOKEN_FILE).write_text(token)

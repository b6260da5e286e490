"""This machine as a host whose node environment answers in the place of `llx.agent.hub_model`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from llx.bootstrap.shell import Completed, OnLine
from tests.bootstrap.fake_shell import LocalShell, completed

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "fedcba9876543210fedcba9876543210fedcba98"
WEIGHTS = b"w" * 100


class HubHost(LocalShell):
    """`branch` is the commit the hub tells it; `says`, what it says instead of obeying.

    `asked` are the arguments of each call, `stdin` and `environment` those of the last one.
    """

    def __init__(self, host: str = "h1", branch: str = COMMIT) -> None:
        super().__init__(host)
        self.branch = branch
        self.says: Sequence[str] | None = None
        self.done = completed()
        self.asked: list[tuple[str, ...]] = []
        self.stdin = b""
        self.environment: Mapping[str, str] = {}

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 30.0,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> Completed:
        if "llx.agent.hub_model" not in argv:
            return super().run(argv, timeout_s=timeout_s, stdin=stdin, on_line=on_line)
        words = tuple(argv)
        self.asked.append(words[words.index("llx.agent.hub_model") + 1 :])
        self.stdin, self.environment = stdin, environment or {}
        for line in self._obey(*self.asked[-1]) if self.says is None else self.says:
            assert on_line is not None
            on_line(line)
        return self.done

    def _obey(self, repository: str, *options: str) -> list[str]:
        if "--look-up" in options:
            return [json.dumps({"llx": "found", "commit": self.branch})]
        revision = options[-1].removeprefix("--revision=")
        commit = revision if revision in (COMMIT, LATER) else self.branch
        put_model(Path(options[options.index("--to") + 1]), f"hub:{repository}@{commit}")
        return [
            json.dumps({"llx": "progress", "done": 50, "total": 100}),
            json.dumps({"llx": "fetched", "source": f"hub:{repository}@{commit}"}),
        ]


def put_model(place: Path, source: str) -> None:
    """A complete model."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_bytes(WEIGHTS)
    files = {"config.json": {"size": len(WEIGHTS), "sha256": "", "mtime_ns": 0}}
    manifest = json.dumps({"source": source, "files": files}, indent=1)
    (place / "llx-model.json").write_text(manifest)

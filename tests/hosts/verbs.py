"""The verbs of `llx` on a cluster that serves, as operators type them: one table each.

Each verb that reads is typed once over SSH, as a process; a process costs half a second of CPU, and
here engines have the cores. What else there is to a verb, its other formats say, is asked of the
same code in this process (`tests.hosts.verbs_here`). What steers is done to a request or an
instance and undone. Requests end while they are looked at: a verb about one is tried on the next.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.hosts.operator_machine import Operator, eventually
from tests.hosts.verbs_here import Here

FORMATS = ("json", "yaml", "table", "wide", "name")
READS = (
    "status", "top --once", "host ls", "inst ls", "inst get {instance}", "req ls", "queue", "scale",
    "mig ls", "mig get {migration}", "policy show", "rollout", "events --since 1h", "context ls",
)  # fmt: skip
TEXTS = ("metrics", "metrics {gateway}")
TEXTS_OVER_SSH = (
    "logs {instance} --tail 3", "logs head --tail 3", "inst logs {gateway} --tail 3",
)  # fmt: skip
OF_A_REQUEST = (
    *(f"{verb} {{request}} -o {name}" for verb in ("req get", "explain") for name in FORMATS),
    "req pin {request}",
    "req unpin {request}",
    "req set-priority {request} interactive",
    "migrate {request} --to {other} --dry-run",
    "migrate {request} --to {other} --wait",
    "req cancel {request} --dry-run",
    "req cancel {request} -y",
)
STEERS = (
    "policy pause",
    "policy resume",
    "policy step",
    "policy set rescheduling.rest_s=2 --dry-run",
    "policy set rescheduling.rest_s=2",
    "policy revert",
    "inst cordon {instance}",
    "inst uncordon {instance}",
    "scale {model} --min 2 --max 2 --dry-run",
)
WRONG = (
    ("inst get nobody", 4, 'no instance "nobody"'),
    ("req get nobody", 4, 'no request "nobody"'),
    ("migrate --from {instance} --to {instance}", 5, "both source and target"),
    ("host cordon nobody", 4, 'no host "nobody"'),
    ("mig get m0-0", 4, 'no migration "m0-0"'),
    ("req ls --limit x", 2, "limit"),
)
OVER_SSH = frozenset({
    "migrate {request} --to {other} --wait", "req cancel {request} -y", "inst cordon {instance}",
    "inst get nobody",
})  # fmt: skip
"""Of those that change something or go wrong: a process for one of each kind."""
_LONGEST_S = 120

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True, slots=True)
class Verbs:
    """A cluster with two instances of one model or more; `here` reaches it, too."""

    operator: Operator
    here: Here
    model: str

    def check(self) -> None:
        """All tables, while a stream runs; every verb that goes wrong is told."""
        status = self._json("status")
        instances = [each["name"] for each in status["instances"] if each["model"] == self.model]
        names = {
            "model": self.model, "instance": instances[0], "other": instances[1],
            "gateway": status["gateways"][0]["name"],
        }  # fmt: skip
        with self._streams(status["url"]):
            wrong = [*self._of_requests(instances, names)]
            names["migration"] = next((each["id"] for each in self._json("mig", "ls")), "none")
            wrong += self._reads(names)
            wrong += self._texts(names)
            wrong += self._steers(names)
            wrong += self._refusals(names)
            wrong += self._completions(instances)
        assert not wrong, "\n".join(wrong)
        eventually(lambda: not self._json("req", "ls")["requests"], 60, "streams were left")

    def _type(self, verb: str, names: dict[str, str]) -> Done:
        """A verb of the tables, over SSH if it is one of those."""
        words = verb.format(**names).split()
        return self.operator(*words) if verb in OVER_SSH else self.here(*words)

    def _json(self, *words: str) -> Any:
        done = self.here(*words, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def _streams(self, url: str) -> Iterator[None]:
        """Long answers, one after the other."""
        script = (
            'while kill -0 "$PPID" 2>/dev/null; do curl -s -o /dev/null '
            '-H "Content-Type: application/json" -d "$2" "$1/v1/completions" || sleep 0.2; done'
        )
        asked = {"model": self.model, "prompt": [5, 6, 7], "max_tokens": 1500, "ignore_eos": True}
        shell = subprocess.Popen(
            ["sh", "-c", script, "sh", url, json.dumps(asked)], start_new_session=True
        )
        try:
            eventually(lambda: bool(self._running()), 120, "no request runs")
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()

    def _running(self) -> list[dict[str, Any]]:
        """The youngest first: it has the most time left."""
        found = self._json("req", "ls", "--state", "running")["requests"]
        return found[::-1]

    def _of_requests(self, instances: list[str], names: dict[str, str]) -> Iterator[str]:
        request: dict[str, Any] | None = None
        for verb in OF_A_REQUEST:
            done: Done | None = None
            for _ in _until(_LONGEST_S):
                request = request or next(iter(self._running()), None)
                if request is None:
                    continue
                other = next(each for each in instances if each != request["instance"])
                done = self._type(verb, names | {"request": request["id"], "other": other})
                if done.returncode == 0:
                    break
                request = None  # it may have ended: the next
            else:
                yield "no request runs" if done is None else _told(verb, done)

    def _reads(self, names: dict[str, str]) -> Iterator[str]:
        """In every format; one of them over SSH, each verb another."""
        for verb, over_ssh in zip(READS, itertools.cycle(FORMATS), strict=False):
            words = verb.format(**names).split()
            is_empty = self._json(*words) == []
            for name in FORMATS:
                machine = self.operator if name == over_ssh else self.here
                done = machine(*words, "-o", name)
                if done.returncode != 0 or not _is_of_format(name, done.stdout, is_empty):
                    yield _told(f"{verb} -o {name}", done)

    def _texts(self, names: dict[str, str]) -> Iterator[str]:
        for verb in (*TEXTS, *TEXTS_OVER_SSH):
            machine = self.operator if verb in TEXTS_OVER_SSH else self.here
            done = machine(*verb.format(**names).split())
            if done.returncode != 0 or not done.stdout.strip() or "\x1b" in done.stdout:
                yield _told(verb, done)

    def _steers(self, names: dict[str, str]) -> Iterator[str]:
        for verb in STEERS:
            done = self._type(verb, names)
            if done.returncode != 0:
                yield _told(verb, done)

    def _refusals(self, names: dict[str, str]) -> Iterator[str]:
        for verb, code, words in WRONG:
            done = self._type(verb, names)
            if done.returncode != code or words not in done.stderr or done.stdout:
                yield _told(verb, done)

    def _completions(self, instances: list[str]) -> Iterator[str]:
        """What the shell is offered: live names and ids; nothing if the answer takes 3 s."""
        for line, words in (("llx inst get ", instances), ("llx req get ", ["llx-"])):
            end = time.monotonic() + _LONGEST_S
            done = self._offered(line)
            while not (is_whole := all(each in done.stdout for each in words)):
                if time.monotonic() > end:
                    break
                done = self._offered(line)
            if not is_whole:
                yield _told(f"completion of {line!r}", done)

    def _offered(self, line: str) -> Done:
        variables = {
            "_LLX_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(line.count(" ")),
        }
        return subprocess.run(
            [sys.executable, "-m", "llx"], capture_output=True, text=True, timeout=300,
            env=self.operator.environment | variables,
        )  # fmt: skip


def _is_of_format(name: str, text: str, is_empty: bool) -> bool:
    """Whether it can be read as that; what lists nothing may print nothing."""
    if name in {"json", "yaml"}:
        read = json.loads if name == "json" else yaml.safe_load
        return isinstance(read(text), (dict, list))
    if not text.strip():
        return is_empty
    return "\x1b" not in text and (name != "name" or all(len(n.split()) == 1 for n in _lines(text)))


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()


def _until(limit_s: float) -> Iterator[None]:
    """Tries: the first at once, and for so long further ones."""
    end = time.monotonic() + limit_s
    yield
    while time.monotonic() < end:
        time.sleep(0.5)
        yield


def _told(verb: str, done: Done) -> str:
    return f"llx {verb}: {done.returncode} {done.stderr[-400:]} {done.stdout[:200]}"

"""The work of a step, ready to be done: look, do, look again. Data alone.

A `Probe` is a command that changes nothing and what makes it hold; whether it does is
`llx.bootstrap.step_looks`'s to say. A `Deed` is what changes a host.
"""

from dataclasses import dataclass
from pathlib import Path

from llx.bootstrap.shell import quoted
from llx.secret import Secret

PROBE_TIMEOUT_S = 60.0
LISTING_TIMEOUT_S = 900.0
"""For what reads a whole wheelhouse."""


@dataclass(frozen=True, slots=True)
class Prints:
    """A probe holds if the command ends with 0 and prints exactly this."""

    text: str


@dataclass(frozen=True, slots=True)
class HashOf:
    """A probe holds if the command prints the mode and SHA-256 of this file of the operator's."""

    source: Path
    mode: str


@dataclass(frozen=True, slots=True)
class HashesOf:
    """A probe holds if the command prints the SHA-256 of every file in this directory."""

    source: Path


@dataclass(frozen=True, slots=True)
class Rules:
    """A probe holds if the table that the command prints has these marks on its rules, in order."""

    marks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lacks:
    """A probe holds if the command ends with 0 and does not print this line."""

    line: str


Expectation = Prints | HashOf | HashesOf | Rules | Lacks | None
"""None: the command ends with 0."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A command that changes nothing, and what makes it hold."""

    argv: tuple[str, ...]
    expects: Expectation = None
    timeout_s: float = PROBE_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Run:
    """Run a command."""

    argv: tuple[str, ...]
    stdin: str = ""
    timeout_s: float = PROBE_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Put:
    """Write a file."""

    content: str | Secret
    path: str
    mode: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a file of the operator's."""

    source: Path
    to: str
    mode: str


@dataclass(frozen=True, slots=True)
class SendMissing:
    """Send those files of a directory that the probe did not list."""

    source: Path
    to: str


@dataclass(frozen=True, slots=True)
class Collect:
    """Unpack the archive that a command prints (tar, gzip, base64) in the operator's `to`."""

    argv: tuple[str, ...]
    to: Path


Deed = Run | Put | Send | SendMissing | Collect


@dataclass(frozen=True, slots=True)
class Work:
    """One step, ready to be done.

    Attributes:
        step: Its name.
        check: Holds if there is nothing to do; None: it changes nothing on the host.
        deed: What to do otherwise.
        verify: Must hold afterwards.
        wait_s: It may take so long to hold.
    """

    step: str
    check: Probe | None
    deed: Deed
    verify: Probe | None
    wait_s: float = 0.0


def described(work: Work) -> list[str]:
    """What `work` would do, a line each: the exact commands. A secret is ``***``."""
    lines = [] if work.check is None else [f"check: {quoted(work.check.argv)}"]
    match work.deed:
        case Run(argv, stdin):
            lines.append(f"apply: {quoted(argv)}")
            lines += [f"stdin: {line}" for line in stdin.splitlines()]
        case Put(content, path, mode):
            what = f"{content}" if isinstance(content, Secret) else f"{len(content.encode())} bytes"
            lines.append(f"apply: put {what} -> {path} ({mode})")
        case Send(source, to, mode):
            lines.append(f"apply: send {source} -> {to} ({mode})")
        case SendMissing(source, to):
            lines.append(f"apply: send what is missing of {source}/ -> {to}/")
        case Collect(argv, to):
            lines.append(f"apply: {quoted(argv)}")
            lines.append(f"apply: unpack in {to}/")
    if work.verify is not None and work.verify != work.check:
        lines.append(f"verify: {quoted(work.verify.argv)}")
    if work.wait_s:
        lines.append(f"verify: again for up to {work.wait_s:g} s")
    return lines


def file_state(sha256: str, mode: str) -> str:
    """What the probe of a file prints."""
    return f"{shown_mode(mode)}\n{sha256}  -"


def shown_mode(mode: str) -> str:
    """A mode as `stat` prints it."""
    return f"{int(mode, 8):o}"

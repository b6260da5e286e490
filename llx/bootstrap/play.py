"""Playing a playbook on a host: look, act only where something is not as it should be, look again.

What the steps are is `llx.bootstrap.playbook`'s. Each command and its output goes to a log on the
operator's side; a secret goes there and into messages as ``***``, and to the host by `Shell.put`.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import assert_never

from llx.bootstrap import archive
from llx.bootstrap import work as deeds
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.local_ports import Observer, StepEvent, StepState
from llx.bootstrap.play_log import PlayLog
from llx.bootstrap.playbook import Playbook, Values, compile_playbook
from llx.bootstrap.shell import Completed, OnLine, Shell, quoted
from llx.bootstrap.step_looks import holds, listing
from llx.bootstrap.work import Probe, Work, described
from llx.errors import DeadlineError, HostError, LlxError
from llx.host_ports import HostPorts
from llx.secret import Secret
from llx.settings import ClusterSettings, HostSettings

_POLL_S = 0.5
_REST = 2.0
"""Between two looks, in lengths of a look."""
_PROGRESS_EVERY_S = 0.25
_SUDO_REFUSES = re.compile(
    r"\bsudo: (not found|a password|a terminal|sorry)|[Ss]orry, user|sudoers"
)
_SUDO_REMEDY = (
    "log in as root (hosts[].user), or let the user run nft there by sudo without a password: "
    "NOPASSWD in /etc/sudoers.d"
)

Proceed = Callable[[], None]


class Outcome(Enum):
    """What a step came to."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    FETCHED = "fetched"


@dataclass(frozen=True, slots=True)
class StepCommands:
    """What a step would do: its exact commands, a line each."""

    step: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlayResult:
    """What a playbook did to a host, or, played dry, would do.

    Attributes:
        changed: Steps that changed something.
        unchanged: Steps that found all as it should be.
        fetched: Steps that copied files here, with how many.
        commands: Of the steps with something to do, when played dry.
    """

    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    fetched: tuple[str, ...] = ()
    commands: tuple[StepCommands, ...] = ()


def play(
    playbook: Playbook,
    shell: Shell,
    values: Values,
    *,
    layout: HostLayout | None = None,
    observe: Observer = lambda event: None,
    dry_run: bool = False,
    offline: bool = False,
    log: Path | None = None,
    proceed: Proceed = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
) -> PlayResult:
    """Bring a host into the shape that `playbook` describes.

    Args:
        playbook: What is to be so.
        shell: The host.
        values: Of the parameters; there may be more than it has.
        layout: The host's; its `layout_values` are there without being given, and win.
        observe: Told of each step.
        dry_run: Look only, and say what would be done.
        offline: With `dry_run`: do not even look.
        log: Commands and their output are appended to this file, 0600.
        proceed: Called before each step; an exception from it ends the play.
        sleep: Waits between looks.

    Raises:
        ConfigError: A parameter has no value; a step reaches beyond what it may touch.
        HostError: A step failed on the host, or did not do what it was to do.
        DeadlineError: A command took too long.
        UnreachableError: The host does not answer.
    """
    if layout is not None:
        values = {**values, **layout_values(layout)}
    works = compile_playbook(playbook, values)
    journal = PlayLog(log, playbook.name, [v for v in values.values() if isinstance(v, Secret)])
    player = _Player(playbook, shell, observe, journal, sleep)
    if dry_run:
        return _played_dry(works, player, journal, proceed, offline=offline)
    done: dict[Outcome, list[str]] = {each: [] for each in Outcome}
    for work in works:
        proceed()
        outcome, detail = player.do(work)
        is_fetch = outcome is Outcome.FETCHED
        done[outcome].append(f"{work.step} ({detail})" if is_fetch else work.step)
    return PlayResult(
        tuple(done[Outcome.CHANGED]),
        tuple(done[Outcome.UNCHANGED]),
        tuple(done[Outcome.FETCHED]),
    )


def layout_values(layout: HostLayout) -> dict[str, str]:
    """Values for the parameters that are paths on the host, and the like."""
    return {
        "home": str(layout.home),
        "uid": str(layout.uid),
        "cluster": layout.cluster,
        "root": str(layout.root),
        "claim": str(layout.claim),
        "wheels": str(layout.wheels),
        "wheelhouse": str(layout.wheelhouse),
        "models": str(layout.models),
        "state": str(layout.state),
        "procs": str(layout.procs),
        "spec": str(layout.spec),
        "ray_tmp": str(layout.ray_tmp),
    }


def standard_values(
    layout: HostLayout,
    settings: ClusterSettings,
    host: HostSettings,
    *,
    platform: str,
    cluster_addresses: Sequence[str] = (),
) -> dict[str, str]:
    """Values for the parameters that follow from the layout and the settings.

    Args:
        layout: The host's.
        settings: The cluster's.
        host: The host.
        platform: ``cpu`` or ``cuda``: what the node environment there is made for.
        cluster_addresses: IP addresses of all hosts of the cluster.
    """
    ports = HostPorts(settings.network.first_port)
    given = host.python or settings.runtime.python
    python = layout.node_python(platform) if given is None else layout.there(given)
    v4 = [each for each in cluster_addresses if ":" not in each]
    v6 = [each for each in cluster_addresses if ":" in each]
    return {
        **layout_values(layout),
        "host": host.name,
        "platform": platform,
        "prefix": str(layout.node(platform)),
        "python": str(python),
        "first_port": str(ports.first),
        "last_port": str(ports.last),
        # Never empty: a set of the packet filter must not be.
        "cluster_addresses": ", ".join(["127.0.0.1", *v4]),
        "cluster_addresses_v6": ", ".join(["::1", *v6]),
    }


def _played_dry(
    works: Sequence[Work],
    player: "_Player",
    journal: PlayLog,
    proceed: Proceed,
    *,
    offline: bool,
) -> PlayResult:
    """What would be done."""
    changed: list[str] = []
    unchanged: list[str] = []
    commands: list[StepCommands] = []
    for work in works:
        proceed()
        if not offline and player.is_done(work):
            unchanged.append(work.step)
            continue
        lines = tuple(journal.masked(line) for line in described(work))
        commands.append(StepCommands(work.step, lines))
        if work.check is not None:
            changed.append(work.step)
    return PlayResult(tuple(changed), tuple(unchanged), commands=tuple(commands))


class _Player:
    """Plays steps on one host."""

    def __init__(
        self,
        playbook: Playbook,
        shell: Shell,
        observe: Observer,
        journal: PlayLog,
        sleep: Callable[[float], None],
    ) -> None:
        self._playbook = playbook
        self._shell = shell
        self._observe = observe
        self._journal = journal
        self._sleep = sleep

    def do(self, work: Work) -> tuple[Outcome, str]:
        """Do what is to be done; says what that came to, and something about it."""
        self._tell(work, StepState.RUNNING)
        try:
            found, is_fine = self._look(work, work.check)
            if is_fine and work.check is not None:
                self._tell(work, StepState.DONE, "unchanged")
                return Outcome.UNCHANGED, ""
            detail = self._act(work, found)
            self._verify(work)
        except BaseException as error:
            self._journal.write(f"failed: {error}")
            reason = error.message if isinstance(error, LlxError) else type(error).__name__
            self._tell(work, StepState.FAILED, self._journal.masked(reason))
            raise
        self._tell(work, StepState.DONE, detail)
        return (Outcome.FETCHED if work.check is None else Outcome.CHANGED), detail

    def is_done(self, work: Work) -> bool:
        """Whether there is nothing to do; changes nothing."""
        return work.check is not None and self._look(work, work.check)[1]

    def _look(self, work: Work, probe: Probe | None) -> tuple[Completed, bool]:
        if probe is None:
            return Completed(0, "", ""), True
        done = self._run(work, probe.argv, b"", probe.timeout_s)
        return done, holds(probe.expects, done)

    def _verify(self, work: Work) -> None:
        deadline = time.monotonic() + work.wait_s
        while True:
            began = time.monotonic()
            done, is_fine = self._look(work, work.verify)
            if is_fine:
                return
            took_s = time.monotonic() - began
            if time.monotonic() >= deadline:
                waited = f" within {work.wait_s:g} s" if work.wait_s else ""
                raise self._failure(work, f"it was done, but is not so{waited}", done)
            # What is waited for needs the host's cores more than the question does.
            rest_s = max(_POLL_S, _REST * took_s)
            self._sleep(min(rest_s, max(0.0, deadline - time.monotonic())))

    def _act(self, work: Work, found: Completed) -> str:
        """Do the deed; says something about it, or "changed"."""
        deed = work.deed
        match deed:
            case deeds.Run():
                stdin = deed.stdin.encode()
                on_line = self._tell_lines(work)
                done = self._run(work, deed.argv, stdin, deed.timeout_s, on_line=on_line)
                if not done.is_success:
                    problem, remedy = _why(deed, done)
                    raise self._failure(work, problem, done, remedy)
            case deeds.Put():
                content, mode = deed.content, int(deed.mode, 8)
                plain = content.reveal() if isinstance(content, Secret) else content
                self._journal.write(f"put {deed.path} ({deed.mode})")
                self._shell.put(plain.encode(), deed.path, mode=mode)
            case deeds.Send():
                self._send(work, deed.source, deed.to, int(deed.mode, 8))
            case deeds.SendMissing():
                return self._send_missing(work, deed, found)
            case deeds.Collect():
                return self._collect(work, deed)
            case _:
                assert_never(deed)
        return "changed"

    def _send_missing(self, work: Work, deed: deeds.SendMissing, found: Completed) -> str:
        there = set(found.stdout.splitlines())
        missing = [name for name, line in listing(deed.source).items() if line not in there]
        parents = sorted({str(PurePosixPath(deed.to, name).parent) for name in missing})
        made = self._run(work, ("mkdir", "-p", "--", deed.to, *parents), b"", 30.0)
        if not made.is_success:
            raise self._failure(work, f"exit code {made.exit_code}", made)
        for index, name in enumerate(missing, 1):
            to = str(PurePosixPath(deed.to, name))
            self._send(work, deed.source / name, to, 0o644, f" ({index} of {len(missing)} files)")
        return f"{len(missing)} files sent"

    def _send(self, work: Work, source: Path, to: str, mode: int, note: str = "") -> None:
        self._journal.write(f"send {source} -> {to}")
        next_at = 0.0

        def on_progress(done: int, total: int) -> None:
            nonlocal next_at
            if time.monotonic() >= next_at:
                next_at = time.monotonic() + _PROGRESS_EVERY_S
                amount = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"
                self._tell(work, StepState.RUNNING, f"{source.name}: {amount}{note}")

        self._shell.put_file(source, to, mode=mode, on_progress=on_progress)

    def _collect(self, work: Work, deed: deeds.Collect) -> str:
        with archive.Receiver() as receiver:
            done = self._run(
                work, deed.argv, b"", deeds.LISTING_TIMEOUT_S, on_line=receiver.take_line
            )
            if not done.is_success:
                raise self._failure(work, f"exit code {done.exit_code}", done)
            try:
                count, size_bytes = receiver.unpack(deed.to)
            except archive.BrokenArchiveError as error:
                raise self._failure(work, f"the files did not come whole: {error}", done) from None
        return f"{count} {'file' if count == 1 else 'files'}, {size_bytes / 1e6:.1f} MB"

    def _tell_lines(self, work: Work) -> OnLine:
        def on_line(line: str) -> None:
            self._journal.write(f"| {line}")
            if line.strip():
                self._tell(work, StepState.RUNNING, self._journal.masked(line.strip()))

        return on_line

    def _run(
        self,
        work: Work,
        argv: tuple[str, ...],
        stdin: bytes,
        timeout_s: float,
        *,
        on_line: OnLine | None = None,
    ) -> Completed:
        """Run a command. Without `on_line` all of its output is kept, and logged at its end."""
        self._journal.write(f"{work.step}\n$ {quoted(argv)}")
        try:
            done = self._shell.run(argv, timeout_s=timeout_s, stdin=stdin, on_line=on_line)
        except DeadlineError as error:
            raise DeadlineError(
                f"{self._shell.host}: {self._step(work)}: no end within {timeout_s:g} s: "
                f"{self._journal.masked(quoted(argv))}",
                remedy=self._remedy(),
                detail=self._journal.masked(error.detail),
            ) from None
        if on_line is None:
            for line in (done.stdout + done.stderr).splitlines():
                self._journal.write(f"| {line}")
        self._journal.write(f"= exit code {done.exit_code}")
        return done

    def _failure(self, work: Work, message: str, done: Completed, remedy: str = "") -> HostError:
        evidence = replace(done, stderr=done.stderr if done.stderr.strip() else done.stdout)
        return HostError(
            message,
            host=self._shell.host,
            step=self._step(work),
            process_exit_code=done.exit_code,
            stderr_tail=self._journal.masked(evidence.stderr_tail),
            remedy=remedy or self._remedy(),
        )

    def _step(self, work: Work) -> str:
        return f"{self._playbook.name}: {work.step}"

    def _remedy(self) -> str:
        return "" if self._journal.path is None else f"see {self._journal.path}"

    def _tell(self, work: Work, state: StepState, detail: str = "") -> None:
        self._observe(StepEvent(work.step, state, detail))


def _why(deed: deeds.Run, done: Completed) -> tuple[str, str]:
    """What a failed command means, and what to do about it; "" where that is not known."""
    if deed.argv[0] == "sudo" and _SUDO_REFUSES.search(done.stderr):
        return "the user is not root and has no sudo without a password", _SUDO_REMEDY
    return f"exit code {done.exit_code}", ""

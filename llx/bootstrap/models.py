"""Models on hosts: copying an operator's directory there, listing, removing.

Each is a directory of ``~/.llx/models``, complete once its manifest is there
(`llx.bootstrap.model_files`); in specs and in cluster.yaml it is ``@models/NAME``. Only what
differs is sent, whole files at a time, so a copy that was interrupted goes on with the file it was
at. Models of the hub are `llx.bootstrap.hub_models`'s.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.hosts_plan import model_on_hosts
from llx.bootstrap.model_files import (
    MANIFEST_NAME,
    CopyDue,
    Manifest,
    ModelFile,
    check_name,
    digest,
    is_unchanged,
    scan,
    size_text,
)
from llx.bootstrap.shell import OnProgress, Shell
from llx.errors import HostError
from llx.settings import ClusterSettings
from llx.specs import MODELS

_PROGRESS_EVERY_S = 1.0
_HASH_BYTES_PER_S = 30e6
_MAX_MANIFEST_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class HostModel:
    """A model's directory on a host.

    Attributes:
        name: As in ``@models/NAME``.
        size_bytes: On disk.
        is_complete: It can be served.
        source: Where it came from; "" if that was not written down.
    """

    name: str
    size_bytes: int
    is_complete: bool
    source: str = ""


def list_models(shell: Shell, layout: HostLayout) -> list[HostModel]:
    """What lies in the host's models directory, by name."""
    done = shell.run(["sh", "-c", _LIST, "-", str(layout.models)], timeout_s=120)
    found = []
    for line in done.stdout.splitlines():
        size, mark, name = line.split("\t", 2)
        manifest = read_manifest(shell, layout.models / name) if mark else None
        source = manifest.source if manifest is not None else ""
        found.append(HostModel(name, int(size) * 1024, bool(mark), source))
    return sorted(found, key=lambda each: each.name)


def remove_model(shell: Shell, layout: HostLayout, name: str) -> bool:
    """Remove a model's directory; returns whether there was one."""
    place = layout.models / check_name(name)
    if not shell.run(["test", "-e", str(place)]).is_success:
        return False
    _checked(shell, name, ["rm", "-rf", str(layout.hub_home(name))])
    # First what makes it complete: half a model must not look like one.
    _checked(shell, name, ["rm", "-f", str(place / MANIFEST_NAME)])
    _checked(shell, name, ["rm", "-rf", str(place)], timeout_s=600)
    return True


def ensure_model(
    shell: Shell,
    layout: HostLayout,
    name: str,
    source: Path,
    on_progress: OnProgress | None = None,
) -> bool:
    """Make the host's model `name` equal to the directory `source` here.

    Args:
        shell: The host.
        layout: Of the host.
        name: As in ``@models/NAME``.
        source: With a ``config.json``; hidden files are left out.
        on_progress: Told, about once a second, how many bytes of those to be sent have been.

    Returns:
        Whether anything had to be done.

    Raises:
        HostError: There is too little space, or something could not be written.
        ConfigError: `source` is no model's directory, or changes while it is copied.
    """
    return _Copy(shell, layout.models / check_name(name), source, scan(source)).run(on_progress)


def copy_due(shell: Shell, layout: HostLayout, name: str, source: Path) -> CopyDue:
    """What `ensure_model` would do. Changes nothing; raises as it does."""
    return _Copy(shell, layout.models / check_name(name), source, scan(source)).due()


def read_manifest(shell: Shell, place: PurePosixPath) -> Manifest | None:
    """That of the model in the directory `place` of the host; None: it is not complete."""
    content = shell.read(str(place / MANIFEST_NAME), limit=_MAX_MANIFEST_BYTES)
    return None if content is None else Manifest.load(content)


def is_whole(shell: Shell, place: PurePosixPath, manifest: Manifest) -> bool:
    """Whether all files of the manifest are there, in their size."""
    sizes = _sizes(shell, place, manifest.files)
    return sizes == {name: file.size for name, file in manifest.files.items()}


def users_of(name: str, *settings: ClusterSettings) -> list[str]:
    """The models of these settings that are served from ``@models/NAME``."""
    models = [each for one in settings for each in one.models]
    found = [each.name for each in models if model_on_hosts(each) == f"{MODELS}{name}"]
    return list(dict.fromkeys(found))


# --- one copy --------------------------------------------------------------------------------


class _Copy:
    """A directory here on its way to one there."""

    def __init__(
        self, shell: Shell, place: PurePosixPath, source: Path, files: Mapping[str, ModelFile]
    ) -> None:
        self._shell = shell
        self._place = place
        self._source = source
        self._files = files

    def run(self, on_progress: OnProgress | None) -> bool:
        due = self.due()
        if due.is_nothing:
            return False
        names = list(due.files)
        self._require_space(names)
        self._begin()
        self._send(names, on_progress)
        self._each('rm -f -- "$name"', due.stale)
        self._finish()
        return True

    def due(self) -> CopyDue:
        """What differs; only looks."""
        before = read_manifest(self._shell, self._place)
        sizes = _sizes(self._shell, self._place, self._files)
        known = before.files if before is not None else self._hashes(sizes)
        due = {
            name: file.size
            for name, file in self._files.items()
            if sizes.get(name) != file.size or not self._is_same(name, known.get(name))
        }
        stale = sorted(set(before.files) - set(self._files)) if before is not None else []
        return CopyDue(due, tuple(stale), is_complete=before is not None)

    def _hashes(self, sizes: Mapping[str, int]) -> dict[str, ModelFile]:
        """Of what an interrupted copy left: the host's own word, as nothing else vouches for it."""
        there = {name: s for name, s in sizes.items() if s == self._files[name].size}
        timeout_s = 60 + sum(there.values()) / _HASH_BYTES_PER_S
        lines = self._each('sha256sum -- "$name"', there, timeout_s=timeout_s)
        pairs = (line.split(maxsplit=1) for line in lines)
        return {name: ModelFile(there[name], sha) for sha, name in pairs if name in there}

    def _is_same(self, name: str, known: ModelFile | None) -> bool:
        file = self._files[name]
        if known is None or known.size != file.size:
            return False
        if known.mtime_ns and known.mtime_ns == file.mtime_ns:
            return True
        return known.sha256 == digest(self._source / name, file)

    def _require_space(self, due: Sequence[str]) -> None:
        there = self._place.parent
        self._checked(["mkdir", "-p", "-m", "700", str(there.parent)])
        self._checked(["mkdir", "-p", "-m", "700", str(there)])
        listing = self._checked(["df", "-Pk", str(there)]).splitlines()
        free = int(listing[-1].split()[-3]) * 1024
        needed = sum(self._files[name].size for name in due)
        if needed > free:
            raise HostError(
                f"needs {size_text(needed)} in {there}, and {size_text(free)} are free",
                host=self._shell.host,
                step=f"model {self._place.name}",
                remedy=f"`llx model rm` what is not needed, or make {there} a link to another disk",
            )

    def _begin(self) -> None:
        """From here on it is no complete model; what an ended copy had begun goes."""
        script = 'mkdir -p -m 700 "$1" && rm -f "$1/$2" && find "$1" -name ".*.part" -delete'
        self._checked(["sh", "-c", script, "-", str(self._place), MANIFEST_NAME])
        folders = {str(PurePosixPath(name).parent) for name in self._files} - {"."}
        self._each('mkdir -p -- "$name"', sorted(folders))

    def _send(self, due: Sequence[str], on_progress: OnProgress | None) -> None:
        total = sum(self._files[name].size for name in due)
        tell = _Throttle(on_progress)
        num_sent = 0
        for name in due:
            source, there = self._source / name, str(self._place / name)
            self._shell.put_file(source, there, on_progress=_beyond(num_sent, total, tell))
            self._require_unchanged(name)
            num_sent += self._files[name].size
        tell(total, total, is_last=True)

    def _require_unchanged(self, name: str) -> None:
        if not is_unchanged(self._source / name, self._files[name]):
            raise HostError(
                f"{self._source / name} changed while it was copied",
                host=self._shell.host,
                step=f"model {self._place.name}",
                remedy="wait until it is finished, then repeat",
            )

    def _finish(self) -> None:
        hashed = {
            name: replace(file, sha256=digest(self._source / name, file))
            for name, file in self._files.items()
        }
        for name in self._files:
            self._require_unchanged(name)
        manifest = Manifest(f"copy:{self._source}", hashed)
        self._shell.put(manifest.dump(), str(self._place / MANIFEST_NAME), mode=0o644)

    def _each(self, command: str, names: Iterable[str], timeout_s: float = 120) -> list[str]:
        return _each(self._shell, self._place, command, names, timeout_s)

    def _checked(self, argv: Sequence[str]) -> str:
        return _checked(self._shell, self._place.name, argv)


# --- talking to the host ---------------------------------------------------------------------

# KiB, a mark if it is complete, the name.
_LIST = f"""
cd "$1" 2>/dev/null || exit 0
for each in *; do
    [ -d "$each" ] || continue
    case $each in *[!A-Za-z0-9._-]*) continue ;; esac
    size=$(du -skL -- "$each" 2>/dev/null | cut -f 1)
    mark=
    [ -r "$each/{MANIFEST_NAME}" ] && mark=complete
    printf '%s\\t%s\\t%s\\n' "${{size:-0}}" "$mark" "$each"
done
"""


def _sizes(shell: Shell, place: PurePosixPath, names: Iterable[str]) -> dict[str, int]:
    """Of those files in `place` that are there."""
    lines = _each(shell, place, 'stat -Lc "%s %n" -- "$name" 2>/dev/null', names)
    pairs = (line.split(" ", 1) for line in lines)
    return {name: int(size) for size, name in pairs}


def _each(
    shell: Shell, place: PurePosixPath, command: str, names: Iterable[str], timeout_s: float = 120
) -> list[str]:
    """Run `command` in the model's directory for each ``$name``; lines of what it prints."""
    given = "".join(f"{name}\n" for name in names)
    if not given:
        return []
    script = f'cd "$1" 2>/dev/null || exit 0; while IFS= read -r name; do {command}; done; :'
    argv = ["sh", "-c", script, "-", str(place)]
    done = shell.run(argv, stdin=given.encode(), timeout_s=timeout_s)
    return done.stdout.splitlines()


def _beyond(base: int, total: int, tell: OnProgress) -> OnProgress:
    """One file's progress as that of all."""
    return lambda num_done, _: tell(base + num_done, total)


class _Throttle:
    """Progress about once a second."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._next_at = 0.0

    def __call__(self, num_done: int, total: int, *, is_last: bool = False) -> None:
        now = time.monotonic()
        if self._on_progress is not None and (is_last or now >= self._next_at):
            self._next_at = now + _PROGRESS_EVERY_S
            self._on_progress(num_done, total)


def _checked(shell: Shell, name: str, argv: Sequence[str], *, timeout_s: float = 60) -> str:
    done = shell.run(argv, timeout_s=timeout_s)
    if not done.is_success:
        raise HostError(
            f"{argv[0]} failed with exit code {done.exit_code}",
            host=shell.host,
            step=f"model {name}",
            process_exit_code=done.exit_code,
            stderr_tail=done.stderr_tail,
        )
    return done.stdout

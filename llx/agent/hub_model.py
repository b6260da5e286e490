"""Fetches a model from the Hugging Face hub: run on a host, in the node environment.

``python -m llx.agent.hub_model ORG/NAME [--revision R] --to DIR``; with ``--look-up`` instead of a
directory it says only which commit that is.

A token is read from stdin; if that is empty, from where the hub's library looks
(``HF_TOKEN_PATH``). Which hub, and where its library keeps its own things, is the environment's
business, too (``HF_ENDPOINT``, ``HF_HOME``). Sizes are asked first, and compared with the free
space. What is said is a line of JSON each, on stdout: progress, then one of found, fetched,
unchanged, away (the hub), failed. The directory's ``llx-model.json`` is written last; until then a
repetition goes on from what is there.
"""

import argparse
import hashlib
import importlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llx.errors import LlxError
from llx.secret import Secret

MANIFEST_NAME = "llx-model.json"

_EVERY_S = 1.0
_OWN_FILES = ".cache"
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite")
_OTHER_FOLDERS = ("original", "metal", "onnx", "openvino", "coreml")


class PullError(LlxError):
    """The model cannot be had."""


class HubAwayError(PullError):
    """The hub does not answer."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. `sha256` is known of large files only."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit, less what vLLM does not load."""

    repository: str
    commit: str
    files: Mapping[str, RemoteFile]

    @property
    def source(self) -> str:
        """Names it in the manifest."""
        return f"hub:{self.repository}@{self.commit}"

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(each.size for each in self.files.values())


def wanted(files: Mapping[str, RemoteFile]) -> dict[str, RemoteFile]:
    """Those that serving needs: where there are safetensors, no weights in other formats."""
    kept = {n: f for n, f in files.items() if not PurePosixPath(n).name.startswith(".")}
    if not any(name.endswith(".safetensors") and "/" not in name for name in kept):
        return kept
    return {
        name: file
        for name, file in kept.items()
        if not name.endswith(_OTHER_WEIGHTS) and PurePosixPath(name).parts[0] not in _OTHER_FOLDERS
    }


def look_up(repository: str, revision: str | None, token: Secret | None = None) -> Snapshot:
    """Ask the hub what there is.

    Raises:
        PullError: It does not say.
    """
    hub = importlib.import_module("huggingface_hub")
    with _explained(repository):
        api = hub.HfApi(token=_revealed(token))
        info = api.model_info(repository, revision=revision, files_metadata=True)
    files = {
        each.rfilename: RemoteFile(each.size or 0, each.lfs.sha256 if each.lfs else "")
        for each in info.siblings or ()
    }
    return Snapshot(repository, str(info.sha), wanted(files))


def pull(snapshot: Snapshot, place: Path, token: Secret | None = None) -> bool:
    """Make `place` hold `snapshot`; returns whether anything was to be done.

    Raises:
        PullError: There is no room, or a file does not come as announced.
    """
    if _is_there(snapshot, place):
        return False
    place.mkdir(parents=True, exist_ok=True)
    (place / MANIFEST_NAME).unlink(missing_ok=True)
    _require_space(snapshot, place)
    _remove_others(snapshot, place)
    hub = importlib.import_module("huggingface_hub")
    with _progress(snapshot, place), _explained(snapshot.repository):
        hub.snapshot_download(
            snapshot.repository,
            revision=snapshot.commit,
            local_dir=place,
            token=_revealed(token),
            allow_patterns=[_literal(name) for name in snapshot.files],
        )
    _write_manifest(snapshot, place)
    shutil.rmtree(place / _OWN_FILES, ignore_errors=True)
    return True


def _revealed(token: Secret | None) -> str | None:
    """None: the library finds one itself, or does without."""
    return None if token is None else token.reveal()


def _literal(name: str) -> str:
    """A pattern that matches this name only."""
    return "".join(f"[{each}]" if each in "*?[" else each for each in name)


def _is_there(snapshot: Snapshot, place: Path) -> bool:
    try:
        manifest = json.loads((place / MANIFEST_NAME).read_text(encoding="utf-8"))
        source = manifest["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    sizes = {name: _size(place / name) for name in snapshot.files}
    return bool(source == snapshot.source) and sizes == {
        name: file.size for name, file in snapshot.files.items()
    }


def _require_space(snapshot: Snapshot, place: Path) -> None:
    """Room for what is still to come; a file that was begun is counted as far as it is there."""
    missing = snapshot.size_bytes - _bytes_there(snapshot, place)
    free = shutil.disk_usage(place).free
    if missing > free:
        raise PullError(
            f"needs {missing / 1e9:.1f} GB more in {place}, and {free / 1e9:.1f} GB are free",
            remedy="`llx model rm` what is not needed",
        )


def _remove_others(snapshot: Snapshot, place: Path) -> None:
    """What another revision had; not what the hub's library knows of a download that was cut."""
    for path in place.rglob("*"):
        name = path.relative_to(place)
        is_other = name.parts[0] != _OWN_FILES and name.as_posix() not in snapshot.files
        if is_other and not path.is_dir():
            path.unlink()


def _write_manifest(snapshot: Snapshot, place: Path) -> None:
    files: dict[str, dict[str, Any]] = {}
    for name, announced in snapshot.files.items():
        size = _size(place / name)
        if size != announced.size:
            raise PullError(
                f"{name} has {size} bytes, the hub announced {announced.size}", remedy="repeat it"
            )
        with (place / name).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if announced.sha256 and sha256 != announced.sha256:
            (place / name).unlink()
            raise PullError(
                f"{name} does not have the hash that the hub announced", remedy="repeat it"
            )
        files[name] = {"size": size, "sha256": sha256, "mtime_ns": 0}
    text = json.dumps({"source": snapshot.source, "files": files}, indent=1)
    unfinished = place / f".{MANIFEST_NAME}.new"
    unfinished.write_text(f"{text}\n", encoding="utf-8")
    unfinished.replace(place / MANIFEST_NAME)


@contextmanager
def _progress(snapshot: Snapshot, place: Path) -> Iterator[None]:
    """Says once a second how many bytes are there."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(_EVERY_S):
            say("progress", done=_bytes_there(snapshot, place), total=snapshot.size_bytes)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
    say("progress", done=_bytes_there(snapshot, place), total=snapshot.size_bytes)


def _bytes_there(snapshot: Snapshot, place: Path) -> int:
    finished = sum(_size(place / name) or 0 for name in snapshot.files)
    begun = sum(_size(path) or 0 for path in (place / _OWN_FILES).rglob("*.incomplete"))
    return min(finished + begun, snapshot.size_bytes)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


_KNOWN = {
    "GatedRepoError": (
        "is gated, and there is no token that may read it",
        "accept its terms on the hub, and give a token that may: export HF_TOKEN=…, then repeat",
    ),
    "RepositoryNotFoundError": (
        "does not exist on the hub, or is private",
        "correct the name; for what is private, give a token: export HF_TOKEN=…, then repeat",
    ),
    "RevisionNotFoundError": ("has no such revision", "correct the revision"),
    "OfflineModeIsEnabled": ("cannot be fetched: HF_HUB_OFFLINE is set there", "unset it"),
}
_AWAY = frozenset({"ConnectionError", "LocalEntryNotFoundError", "TransportError"})


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Failures of the hub's library, in words."""
    try:
        yield
    except Exception as error:
        for kind in type(error).__mro__:
            if kind.__name__ in _KNOWN:
                problem, remedy = _KNOWN[kind.__name__]
                raise PullError(f"{repository} {problem}", remedy=remedy) from error
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if any(kind.__name__ in _AWAY for kind in type(error).__mro__):
            raise HubAwayError(f"the hub is out of reach: {said}") from error
        raise PullError(f"{repository}: {said}") from error


def say(what: str, **fields: object) -> None:
    """One line for whoever runs this."""
    print(json.dumps({"llx": what, **fields}), flush=True)  # noqa: T201 - its only output


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m llx.agent.hub_model")
    parser.add_argument("repository")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--to", type=Path, help="fetch it into this directory")
    task.add_argument("--look-up", action="store_true")
    parser.add_argument("--revision")
    args = parser.parse_args(argv)
    given = sys.stdin.read().strip()
    token = Secret(given) if given else None
    try:
        snapshot = look_up(args.repository, args.revision, token)
        if args.to is None:
            say("found", commit=snapshot.commit)
            return 0
        is_new = pull(snapshot, args.to, token)
    except HubAwayError as error:
        say("away", problem=error.message)
        return int(error.exit_code)
    except LlxError as error:
        say("failed", problem=error.message, remedy=error.remedy)
        return int(error.exit_code)
    except OSError as error:
        say("failed", problem=f"{args.to}: {error.strerror or error}", remedy="")
        return 1
    say("fetched" if is_new else "unchanged", source=snapshot.source)
    return 0


if __name__ == "__main__":
    sys.exit(main())

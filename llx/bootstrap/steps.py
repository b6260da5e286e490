"""The kinds of steps a playbook may have: what YAML says, and the work it comes to. Pure.

`Step` is one entry of ``steps:``; `compile_step` fills in its parameters and gives a `Work`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from llx.bootstrap.archive import MARK
from llx.bootstrap.host_layout import ROOT_NAME
from llx.bootstrap.work import (
    LISTING_TIMEOUT_S,
    Collect,
    HashesOf,
    HashOf,
    Lacks,
    Prints,
    Probe,
    Put,
    Rules,
    Run,
    Send,
    SendMissing,
    Work,
    file_state,
    shown_mode,
)
from llx.errors import ConfigError
from llx.secret import Secret

_RAY_TMP_PREFIX = "llx-"
_TABLE_PREFIX = "llx_"

Mode = Annotated[str, Field(pattern=r"^0[0-7]{3}$")]


def _some(words: tuple[str, ...]) -> tuple[str, ...]:
    if not words:
        raise PydanticCustomError("empty", "there is nothing in it")
    return words


Words = Annotated[tuple[Annotated[str, Field(strict=True)], ...], AfterValidator(_some)]

Fill = Callable[[str], str]
"""A text with its parameters filled in; raises ConfigError."""
FillContent = Callable[[str], str | Secret]
"""Likewise, where a secret may be."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DirectoryStep(_Strict):
    """A directory of the SSH user's with these rights; its parents are the owner's alone."""

    path: str
    mode: Mode = "0700"


class FileStep(_Strict):
    """A small file. A secret content never shows in a command."""

    path: str
    content: str
    mode: Mode = "0600"


class UploadStep(_Strict):
    """A file of the operator's; a relative `source` is beside the playbook."""

    source: str
    to: str
    mode: Mode = "0644"


class UploadDirectoryStep(_Strict):
    """The files of a directory of the operator's; others that are there stay."""

    source: str
    to: str


class AbsentStep(_Strict):
    """Nothing is at `path`, in llx's own directories. Below it, files named in `keep` may stay."""

    path: str
    keep: tuple[str, ...] = ()


class RunStep(_Strict):
    """A command, where the check fails. `verify`, by default the check, holds within `wait_s`."""

    check: Words
    apply: Words
    verify: Words | None = None
    timeout_s: float = Field(default=60.0, gt=0, le=86400)
    wait_s: float = Field(default=0.0, ge=0, le=3600)
    stdin: str = ""


class FetchStep(_Strict):
    """The files below `path` with one of these names (``*`` allowed) to the operator's `to`."""

    path: str
    to: str
    names: Words


class NftablesStep(_Strict):
    """A table of the packet filter, of the family inet, with one chain of rules; none: no table.

    Loaded in one transaction, as root or with ``sudo -n``. Each rule carries a comment made of all
    rules' hash, so that a later look tells whether it is still these.
    """

    table: str
    rules: tuple[str, ...]
    hook: str = "type filter hook input priority -10; policy accept;"


class Step(_Strict):
    """One entry of ``steps:``: a name and exactly one of the kinds."""

    name: str = Field(min_length=1)
    directory: DirectoryStep | None = None
    file: FileStep | None = None
    upload: UploadStep | None = None
    upload_directory: UploadDirectoryStep | None = None
    absent: AbsentStep | None = None
    run: RunStep | None = None
    fetch: FetchStep | None = None
    nftables: NftablesStep | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [name for name in type(self).model_fields if name != "name"]
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError("kind", f"a step has one of {', '.join(kinds)}")
        return self

    def texts(self) -> list[str]:
        """Every text in it that may hold parameters."""
        found: list[str] = []
        _collect_texts(self.model_dump(exclude_none=True, exclude={"name"}), found)
        return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step stands and what it may touch.

    Attributes:
        base: Directory of relative sources: the playbook's.
        fill: Fills in parameters.
        fill_content: Likewise, where a secret may be.
    """

    base: Path
    fill: Fill
    fill_content: FillContent


def compile_step(step: Step, place: Place) -> Work:
    """The work that `step` comes to.

    Raises:
        ConfigError: A path, table or rule is not one that a playbook may touch.
    """
    name, fill = step.name, place.fill
    if step.directory is not None:
        return _directory(name, _path(fill(step.directory.path)), step.directory.mode)
    if step.file is not None:
        content = place.fill_content(step.file.content)
        return _file(name, _path(fill(step.file.path)), content, step.file.mode)
    if step.upload is not None:
        source = place.base / fill(step.upload.source)
        return _upload(name, source, _path(fill(step.upload.to)), step.upload.mode)
    if step.upload_directory is not None:
        source = place.base / fill(step.upload_directory.source)
        return _upload_directory(name, source, _path(fill(step.upload_directory.to)))
    if step.absent is not None:
        return _absent(name, _path(fill(step.absent.path)), step.absent.keep, place)
    if step.run is not None:
        return _run(name, step.run, fill)
    if step.fetch is not None:
        to = Path(fill(step.fetch.to))
        names = tuple(fill(each) for each in step.fetch.names)
        return _fetch(name, _path(fill(step.fetch.path)), to, names)
    assert step.nftables is not None, "a step has one kind"
    return _nftables(name, step.nftables, fill)


_DIRECTORY_PROBE = 'test -d "$1" && test -O "$1" && stat -L -c %a -- "$1"'
_DIRECTORY_APPLY = 'umask 077 && mkdir -p -- "$1" && chmod "$2" "$1"'
_FILE_PROBE = 'test -f "$1" && test ! -L "$1" && stat -c %a -- "$1" && sha256sum < "$1"'
_LISTING_PROBE = 'test ! -d "$1" || { cd -- "$1" && find . -type f -exec sha256sum {} +; }'
_ABSENT_PROBE = 'test ! -e "$1" && test ! -L "$1"'
_KEPT_PROBE = 'test ! -d "$1" || test -z "$(find -H "$@")"'
_KEPT_APPLY = 'find -H "$@" -exec rm -f -- {} + && find -H "$1" -depth -type d -empty -delete'
# Text lines are what a shell hands on as they come, marked, because others may come in between;
# gzip's checksum tells whether all came.
_COLLECT = (
    'cd -- "$1" 2>/dev/null || exit 0; shift; '
    'find . "$@" -print0 2>/dev/null | tar --null -T - -czf - 2>/dev/null | base64 | '
    f"sed 's/^/{MARK}/'"
)


def _sh(script: str, *arguments: str) -> tuple[str, ...]:
    return ("sh", "-c", script, "sh", *arguments)


def _directory(name: str, path: str, mode: str) -> Work:
    probe = Probe(_sh(_DIRECTORY_PROBE, path), Prints(shown_mode(mode)))
    return Work(name, probe, Run(_sh(_DIRECTORY_APPLY, path, mode)), probe)


def _file(name: str, path: str, content: str | Secret, mode: str) -> Work:
    plain = content.reveal() if isinstance(content, Secret) else content
    digest = hashlib.sha256(plain.encode()).hexdigest()
    probe = Probe(_sh(_FILE_PROBE, path), Prints(file_state(digest, mode)))
    return Work(name, probe, Put(content, path, mode), probe)


def _upload(name: str, source: Path, to: str, mode: str) -> Work:
    probe = Probe(_sh(_FILE_PROBE, to), HashOf(source, mode), LISTING_TIMEOUT_S)
    return Work(name, probe, Send(source, to, mode), probe)


def _upload_directory(name: str, source: Path, to: str) -> Work:
    probe = Probe(_sh(_LISTING_PROBE, to), HashesOf(source), LISTING_TIMEOUT_S)
    return Work(name, probe, SendMissing(source, to), probe)


def _absent(name: str, path: str, keep: tuple[str, ...], place: Place) -> Work:
    root, ray_tmp = place.fill("{root}"), place.fill("{ray_tmp}")
    if PurePosixPath(root).name != ROOT_NAME:
        raise ConfigError(f'"{root}" is not llx\'s own directory: nothing is removed there')
    if not PurePosixPath(ray_tmp).name.startswith(_RAY_TMP_PREFIX):
        raise ConfigError(f'"{ray_tmp}" is not llx\'s own directory: nothing is removed there')
    if not any(PurePosixPath(path).is_relative_to(each) for each in (root, ray_tmp)):
        raise ConfigError(f'"{path}" lies neither in {root} nor in {ray_tmp}: not removed')
    if keep:
        tests = tuple(word for each in keep for word in ("!", "-name", each))
        probe = Probe(_sh(_KEPT_PROBE, path, "!", "-type", "d", *tests))
        return Work(name, probe, Run(_sh(_KEPT_APPLY, path, "!", "-type", "d", *tests)), probe)
    probe = Probe(_sh(_ABSENT_PROBE, path))
    return Work(name, probe, Run(("rm", "-rf", "--", path), timeout_s=LISTING_TIMEOUT_S), probe)


def _run(name: str, step: RunStep, fill: Fill) -> Work:
    def filled(argv: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(fill(each) for each in argv)

    check = Probe(filled(step.check))
    verify = check if step.verify is None else Probe(filled(step.verify))
    deed = Run(filled(step.apply), fill(step.stdin), step.timeout_s)
    return Work(name, check, deed, verify, step.wait_s)


def _fetch(name: str, path: str, to: Path, names: tuple[str, ...]) -> Work:
    tests = [word for each in names for word in ("-o", "-name", each)][1:]
    argv = _sh(_COLLECT, path, "-type", "f", "(", *tests, ")")
    return Work(name, None, Collect(argv, to), None)


def _nftables(name: str, step: NftablesStep, fill: Fill) -> Work:
    table, rules = fill(step.table), [fill(each) for each in step.rules]
    if not table.startswith(_TABLE_PREFIX) or not table.replace("-", "_").isidentifier():
        raise ConfigError(f'table "{table}": its name begins with "{_TABLE_PREFIX}" (a-z, 0-9, -)')
    for each in rules:
        if any(mark in each for mark in '\n;"'):
            raise ConfigError(f'rule {each!r}: one rule, without ";" and quotes')
    sudo = () if fill("{uid}") == "0" else ("sudo", "-n")
    fresh = f"add table inet {table}\ndelete table inet {table}\n"
    if not rules:
        gone = Probe((*sudo, "nft", "list", "tables", "inet"), Lacks(f"table inet {table}"))
        return Work(name, gone, Run((*sudo, "nft", "-f", "-"), fresh), gone)
    hook = fill(step.hook)
    digest = hashlib.sha256("\n".join([hook, *rules]).encode()).hexdigest()[:12]
    marks = tuple(f"llx:{digest}:{index}" for index in range(len(rules)))
    lines = [f'    {rule} comment "{mark}"\n' for rule, mark in zip(rules, marks, strict=True)]
    body = f"table inet {table} {{\n  chain rules {{\n    {hook}\n{''.join(lines)}  }}\n}}\n"
    probe = Probe((*sudo, "nft", "list", "table", "inet", table), Rules(marks))
    return Work(name, probe, Run((*sudo, "nft", "-f", "-"), fresh + body), probe)


def _path(text: str) -> str:
    """An absolute path in one way of writing it."""
    path = PurePosixPath(text)
    is_plain = path.is_absolute() and ".." not in path.parts and text.isprintable()
    if not is_plain or len(path.parts) < 2:
        raise ConfigError(f'"{text}" is not an absolute path without ".."')
    return str(path)


def _collect_texts(value: object, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, dict):
        for each in value.values():
            _collect_texts(each, found)
    elif isinstance(value, list | tuple):
        for each in value:
            _collect_texts(each, found)

"""llx's own wheel, packed again from the llx that is running.

A node environment must hold the very llx that manages it. Rather than ask an index for it, or
need a build tool on the operator's machine, we zip what the installed distribution's RECORD lists.
From an ordinary install that gives llx itself; from an editable one, a wheel with the same ``.pth``
file: a node environment on this machine then follows the working tree too.
"""

import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from pathlib import Path

from llx.errors import InstallError

_WRITTEN_BY_INSTALLER = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold: same content, same bytes


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in memory. The same installed files always give the same bytes."""

    filename: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Hex digest of the whole file."""
        return hashlib.sha256(self.content).hexdigest()

    def write_into(self, folder: Path) -> Path:
        """Write the file under its proper name; return where it is."""
        path = folder / self.filename
        path.write_bytes(self.content)
        return path


def own_wheel() -> Wheel:
    """Pack the llx that is running.

    Raises:
        InstallError: llx runs from a source tree that is not installed, or is damaged.
    """
    try:
        installed = distribution("llx")
    except PackageNotFoundError:
        raise InstallError(
            "llx runs from a folder that is not installed, so it cannot be put on a node",
            remedy="install it, e.g. `pip install -e .` in the repository",
        ) from None
    return repack(installed)


def repack(installed: Distribution) -> Wheel:
    """Pack an installed pure-Python distribution again.

    Raises:
        InstallError: Its RECORD is missing, names a file that is gone, or it is not pure Python.
    """
    members = {path.as_posix(): _read(path, installed) for path in _members(installed)}
    dist_info = _dist_info(installed, members)
    tag = HeaderParser().parsestr(members[f"{dist_info}/WHEEL"].decode()).get("Tag", "")
    if not tag.endswith("-none-any"):
        raise InstallError(f"{installed.name} is not pure Python ({tag}): cannot pack it again")
    return Wheel(
        filename=f"{dist_info.removesuffix('.dist-info')}-{tag}.whl",
        content=_zip(members, f"{dist_info}/RECORD"),
    )


def _members(installed: Distribution) -> Iterator[PackagePath]:
    """Yield what belongs in the wheel: not scripts, bytecode, or the installer's own notes."""
    for path in installed.files or ():
        outside = path.parts[0] == ".." or path.is_absolute()
        notes = path.parent.name.endswith(".dist-info") and path.name in _WRITTEN_BY_INSTALLER
        if not (outside or notes or path.suffix == ".pyc"):
            yield path


def _read(path: PackagePath, installed: Distribution) -> bytes:
    try:
        return Path(str(path.locate())).read_bytes()
    except OSError as error:
        raise InstallError(
            f"the installed {installed.name} is damaged: {path}: {error.strerror}",
            remedy=f"reinstall it: pip install --force-reinstall {installed.name}",
        ) from error


def _dist_info(installed: Distribution, members: dict[str, bytes]) -> str:
    for name in members:
        folder, _, file = name.partition("/")
        if file == "WHEEL" and folder.endswith(".dist-info"):
            return folder
    raise InstallError(
        f"the installed {installed.name} has no RECORD to pack it from",
        remedy=f"reinstall it with pip: pip install --force-reinstall {installed.name}",
    )


def _zip(members: dict[str, bytes], record_name: str) -> bytes:
    # RECORD comes last and lists itself without a hash (the wheel format's rule).
    lines = [f"{name},{_digest(data)},{len(data)}\n" for name, data in sorted(members.items())]
    record = "".join([*lines, f"{record_name},,\n"]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [*sorted(members.items()), (record_name, record)]:
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return "sha256=" + urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

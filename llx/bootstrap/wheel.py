"""llx's own wheel, packed again from the llx that is running.

A node environment must hold the very llx that manages it. Rather than ask an index for it, or
need a build tool on the operator's machine, we zip what the installed distribution's RECORD lists.
From an ordinary install that is llx itself. An editable one lists only a ``.pth`` file that names
the repository: good for a node environment on this machine, which then follows the working tree
(`own_wheel`), and useless on any other, where the tree itself must be packed (`portable_wheel`).
Standard library and ``llx.errors`` only.
"""

import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from pathlib import Path, PurePosixPath

import llx
from llx.errors import InstallError

_WRITTEN_BY_INSTALLER = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold: same content, same bytes

_SHARED = "__mypyc"
"""How the name of that ends which the modules that mypyc has compiled have in common."""
_TREE = {"llx": "**/*", "playbooks": "*.yaml", "examples": "cluster.yaml"}
"""What of the repository belongs in a wheel, and `_PLACES` where: pyproject.toml says the same."""
_PLACES = {"llx": "llx", "playbooks": "llx/_data/playbooks", "examples": "llx/_data/examples"}


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in memory. The same installed files always give the same bytes."""

    filename: str
    content: bytes

    @classmethod
    def read(cls, path: Path) -> "Wheel":
        """A wheel that lies somewhere.

        Raises:
            InstallError: It cannot be read, or is none.
        """
        try:
            wheel = cls(path.name, path.read_bytes())
        except OSError as error:
            raise InstallError(f"cannot read {path}: {error.strerror}") from error
        if path.suffix != ".whl" or not zipfile.is_zipfile(io.BytesIO(wheel.content)):
            raise InstallError(f"{path} is not a wheel", remedy="send it again")
        return wheel

    @property
    def version(self) -> str:
        """The version it installs, as its name says."""
        return self.filename.split("-")[1]

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
    """Pack the llx that is running, for this machine: from an editable install, a link to it.

    Raises:
        InstallError: llx runs from a source tree that is not installed, or is damaged.
    """
    return repack(_installed_llx())


def portable_wheel() -> Wheel:
    """Pack the llx that is running, for any machine.

    Raises:
        InstallError: As `own_wheel`; or the tree of an editable install is not complete, or has
            another version than was installed.
    """
    installed, tree = _installed_llx(), Path(llx.__file__).parents[1]
    if installed.version != llx.__version__:  # an editable install's metadata stays as it was made
        raise InstallError(
            f"llx in {tree} is {llx.__version__}, but was installed as {installed.version}",
            remedy=f"install it again: pip install -e {tree}",
        )
    return repack(installed, tree=tree)


def repack(installed: Distribution, *, tree: Path | None = None) -> Wheel:
    """Pack an installed pure-Python distribution again.

    Where modules were compiled and lie beside their sources, these alone are packed.

    Args:
        installed: What to pack.
        tree: If it is an editable install, the repository to take its content from.

    Raises:
        InstallError: Its RECORD is missing, names a file that is gone, or it is not pure Python.
    """
    members = {path.as_posix(): _read(path, installed) for path in _members(installed)}
    dist_info = _dist_info(installed, members)
    members = _without_compiled(members, f"{dist_info}/WHEEL")
    tag = HeaderParser().parsestr(members[f"{dist_info}/WHEEL"].decode()).get("Tag", "")
    if not tag.endswith("-none-any"):
        raise InstallError(f"{installed.name} is not pure Python ({tag}): cannot pack it again")
    if tree is not None and any(name.endswith(".pth") for name in members):
        metadata = {name: data for name, data in members.items() if name.startswith(dist_info)}
        members = metadata | _tree_members(tree)
    return Wheel(
        filename=f"{dist_info.removesuffix('.dist-info')}-{tag}.whl",
        content=_zip(members, f"{dist_info}/RECORD"),
    )


def _without_compiled(members: dict[str, bytes], wheel_file: str) -> dict[str, bytes]:
    """A wheel's members without what mypyc made of some; as they are if anything else is in it."""
    extensions = {name for name in members if name.endswith(".so")}
    paths = (PurePosixPath(name) for name in extensions)
    modules = [path.with_name(path.name.partition(".")[0]) for path in paths]
    if not extensions or not all(
        f"{each}.py" in members or each.name.endswith(_SHARED) for each in modules
    ):
        return members
    pure = {name: data for name, data in members.items() if name not in extensions}
    says = HeaderParser().parsestr(members[wheel_file].decode())
    says.replace_header("Root-Is-Purelib", "true")
    del says["Tag"]  # all of them
    says["Tag"] = "py3-none-any"
    pure[wheel_file] = f"{says.as_string().rstrip()}\n".encode()
    return pure


def _installed_llx() -> Distribution:
    try:
        return distribution("llx")
    except PackageNotFoundError:
        raise InstallError(
            "llx runs from a folder that is not installed, so it cannot be put on a node",
            remedy="install it, e.g. `pip install -e .` in the repository",
        ) from None


def _tree_members(tree: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for top, pattern in _TREE.items():
        for path in (tree / top).glob(pattern):
            inside = path.relative_to(tree / top)
            is_hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
            if is_hidden or path.suffix in {".pyc", ".pyo"} or not path.is_file():
                continue
            try:
                found[f"{_PLACES[top]}/{inside.as_posix()}"] = path.read_bytes()
            except OSError as error:
                raise InstallError(f"cannot read {path}: {error.strerror}") from error
        if not any(name.startswith(f"{_PLACES[top]}/") for name in found):
            raise InstallError(
                f"{tree / top} is missing: llx cannot be packed for other machines",
                remedy="restore the repository, or install llx without -e",
            )
    return found


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

"""Releases of llx made of this working tree, alike but for their version, and where they run.

    DIR/<version>/   what `pip install` would have put into site-packages
    DIR/node/        a node environment on all hosts: one release, and the packages of the real one

As an operator's own environment (`runtime.python`) is brought to another release in place.
"""

import io
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from llx import __version__
from llx.bootstrap.wheel import portable_wheel


@dataclass(frozen=True)
class Releases:
    """Releases in a directory."""

    directory: Path
    base: Path
    """The interpreter of a node environment."""

    @property
    def python(self) -> Path:
        """The interpreter that hosts use."""
        return self.directory / "node" / "bin" / "python"

    def release(self, version: str) -> Path:
        """The directory of a release, made if need be."""
        folder = self.directory / version
        if folder.exists():
            return folder
        with zipfile.ZipFile(io.BytesIO(portable_wheel().content)) as wheel:
            wheel.extractall(folder)
        former, info = f"llx-{__version__}.dist-info", f"llx-{version}.dist-info"
        (folder / former).rename(folder / info)
        for path in ("llx/__init__.py", f"{info}/METADATA"):
            text = (folder / path).read_text()
            assert __version__ in text
            (folder / path).write_text(text.replace(__version__, version, 1))
        record = folder / info / "RECORD"
        record.write_text(record.read_text().replace(former, info))
        return folder

    def install(self, version: str) -> None:
        """Have the node environment hold that release; what runs goes on with what it has."""
        prefix = self.directory / "node"
        release = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        [packages] = self.base.parent.parent.glob("lib/python3*/site-packages")
        assert packages.parent.name == release, "the tests run with the node's Python"
        own = prefix / "lib" / release / "site-packages"
        own.mkdir(parents=True, exist_ok=True)
        if not self.python.exists():
            self.python.parent.mkdir(parents=True)
            self.python.symlink_to(self.base.resolve())
            config = (self.base.parent.parent / "pyvenv.cfg").read_text()
            (prefix / "pyvenv.cfg").write_text(config)
        (own / "llx.pth").write_text(f"{self.release(version)}\n{packages}\n")

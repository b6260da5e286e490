"""Builds a wheel whose simulator and scheduler core are compiled, where that is asked for.

``HATCH_BUILD_HOOKS_ENABLE=1 pip install .`` has mypyc translate the modules that pyproject.toml
names to C, and packs what comes of it beside their sources. Wanted are a C compiler and Python's
headers; the wheel fits one version of Python, on one kind of machine.

It is for long simulations (docs/simulator.md, *Speed*). What runs on hosts is never compiled, and
neither is an editable install, which follows its sources.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface[Any]):
    """Hatchling's custom hook, of wheels; not enabled by default."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the results packed."""
        if version == "editable":
            return
        root = Path(self.root)
        folder = root / "build" / "compiled"
        shutil.rmtree(folder, ignore_errors=True)
        for path in compile_modules(root, self.config["modules"], folder):
            build_data["force_include"][str(path)] = path.relative_to(folder / "lib").as_posix()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def compile_modules(root: Path, modules: list[str], folder: Path) -> list[Path]:
    """Extension modules, as they are to lie in the wheel, below `folder`/lib.

    ``MYPYC_OPT_LEVEL`` is the C compiler's: 3; with 0 it takes half of the time. Whatever it is, a
    product and a sum are rounded one after the other, as Python does: runs are to be the same.
    """
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    lib, temp = folder / "lib", folder / "temp"
    with contextlib.chdir(root):
        extensions = mypycify(
            ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports", *modules],
            opt_level=os.environ.get("MYPYC_OPT_LEVEL", "3"),
            debug_level="0",
            group_name="llx",
            target_dir=str(folder / "c"),
        )
        for each in extensions:
            each.extra_compile_args += ["-ffp-contract=off", "-Wno-error"]
        command = build_ext(Distribution({"ext_modules": extensions}))
        command.build_lib, command.build_temp = str(lib), str(temp)
        command.ensure_finalized()
        command.run()
    return [path for path in lib.rglob("*") if path.is_file()]

#!/usr/bin/env python3
"""Writes docs/licences.md: under what terms each package is that llx has installed.

    .ci/licences.py

Asked about are the packages of both locks, and what `pip install llx` brings besides. Nothing is
installed; pip (25 or newer) reads the metadata of each from the index. Exit code 1: a licence is
not one of those that are known here, or a package does not say; nothing is written then. Run by
`make licences`, after `make locks`.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name

from llx.bootstrap.locks import LockEntry, lock_text, parse_lock

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
PLATFORMS = ("cpu", "cuda")
OPERATORS = "llx"
"""How the page calls what the operator's own environment has."""

PERMISSIVE = (
    "0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 CNRI-Python HPND ISC MIT MIT-0 "
    "MIT-CMU PSF-2.0 Python-2.0 Unlicense Zlib ZPL-2.1 LicenseRef-BSD LicenseRef-Repoze"
).split()
WEAK_COPYLEFT = "LGPL-2.1 LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-or-later MPL-2.0".split()
PROPRIETARY = "LicenseRef-NVIDIA-Proprietary LicenseRef-Intel-Developer-Tools".split()
EXCEPTIONS = ["LLVM-exception"]
KNOWN = {*PERMISSIVE, *WEAK_COPYLEFT, *PROPRIETARY, *EXCEPTIONS}

SAID = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "bsd": "LicenseRef-BSD",
    "bsd license": "LicenseRef-BSD",
    "bsd-derived (http://www.repoze.org/license.txt)": "LicenseRef-Repoze",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "licenseref-nvidia-proprietary": "LicenseRef-NVIDIA-Proprietary",
    "intel end user license agreement for developer tools": "LicenseRef-Intel-Developer-Tools",
    "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
}
"""What packages write that are no SPDX expressions, in small letters."""

NVIDIA = "LicenseRef-NVIDIA-Proprietary"
READ = {
    "cuda-toolkit": NVIDIA,  # no files of its own: it asks for NVIDIA's libraries
    "instanttensor": "Apache-2.0",
    "nvidia-cutlass-dsl": NVIDIA,
    "nvidia-cutlass-dsl-libs-base": NVIDIA,
    "nvidia-cutlass-dsl-libs-core": NVIDIA,
    "nvidia-cutlass-dsl-libs-cu12": NVIDIA,
    "nvidia-cutlass-dsl-libs-cu13": NVIDIA,
    "oss-harmony": "Apache-2.0",
    "quack-kernels": "Apache-2.0",
    "setuptools": "MIT",
    "torchcodec": f"BSD-3-Clause AND {NVIDIA}",  # libnvjpeg is in it
}
"""Packages whose metadata does not say, or not all: what the licence in the package is."""

HEAD = """\
# Licences of what llx installs

llx itself is under Apache-2.0 ([LICENSE](../LICENSE)) and contains nothing of others. It has these
packages installed, each from the package index, under its own terms: `llx` is the operator's
environment, `cpu` and `cuda` are node environments. `LicenseRef-BSD` is a BSD licence whose package
does not say which, `LicenseRef-Repoze` one derived from it. **Proprietary** are NVIDIA's libraries
of CUDA and Intel's OpenMP, which PyTorch and vLLM bring: they may be used, not changed.

Written by `make licences` from the packages' metadata, which is what their authors say; it fails at
a licence that it does not know.

| package | licence | in |
|---|---|---|
"""


class Unknown(Exception):
    """A package whose terms nobody has looked at."""


def main() -> int:
    locked = {platform: parse_lock(lock_text(platform)) for platform in PLATFORMS}
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    entries = one_of_each(each for entries in locked.values() for each in entries)
    found = ask(["--no-deps"], [each.requirement.partition("+")[0] for each in entries])
    operators = ask([], own)
    places = {
        platform: {canonicalize_name(e.name) for e in locked[platform]} for platform in PLATFORMS
    }
    places[OPERATORS] = set(operators)
    try:
        PAGE.write_text(page(operators | found, places), encoding="utf-8")
    except Unknown as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{PAGE.relative_to(ROOT)}: {len(operators | found)} packages")
    return 0


def one_of_each(entries: Iterable[LockEntry]) -> list[LockEntry]:
    """Where releases differ by Python, the one for this one."""
    chosen: dict[str, LockEntry] = {}
    for each in entries:
        if each.name not in chosen or Marker(each.marker or "os_name != ''").evaluate():
            chosen[each.name] = each
    return list(chosen.values())


def ask(options: list[str], requirements: list[str]) -> dict[str, dict]:
    """Name → metadata of what pip would install."""
    with tempfile.TemporaryDirectory(prefix="llx-licences-") as folder:
        wanted, report = Path(folder) / "wanted.txt", Path(folder) / "report.json"
        wanted.write_text("".join(f"{each}\n" for each in requirements))
        argv = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        # fast-deps: of a wheel nothing but its metadata is fetched.
        argv += ["--dry-run", "--ignore-installed", "--use-feature=fast-deps", *options]
        argv += ["--report", str(report), "-r", str(wanted)]
        subprocess.run(argv, check=True, stdout=sys.stderr)
        installs = json.loads(report.read_text())["install"]
    return {canonicalize_name(each["metadata"]["name"]): each["metadata"] for each in installs}


def page(found: dict[str, dict], places: dict[str, set[str]]) -> str:
    """The whole page; raises `Unknown` for all that nobody has looked at."""
    rows, faults = [], []
    for name, metadata in sorted(found.items()):
        licence = READ.get(name) or licence_of(metadata)
        if unknown := unknown_in(licence):
            faults.append(f"{name}: {licence or 'does not say'} ({', '.join(unknown)})")
        bold = "**" if set(PROPRIETARY) & set(identifiers(licence)) else ""
        where = ", ".join(place for place in sorted(places) if name in places[place])
        rows.append(f"| {name} | {bold}{licence}{bold} | {where} |\n")
    if faults:
        raise Unknown("licences to be looked at:\n" + "\n".join(faults))
    return HEAD + "".join(rows)


def licence_of(metadata: dict) -> str:
    """What a package says of itself, as an SPDX expression where that can be told."""
    first = str(metadata.get("license") or "").strip().partition("\n")[0]
    classifiers = [
        each.rpartition("::")[2].strip()
        for each in metadata.get("classifier", [])
        if each.startswith("License ::")
    ]
    said = [metadata.get("license_expression") or "", first, *classifiers]
    for each in said:
        spelt = SAID.get(each.lower(), each)
        if spelt and not unknown_in(spelt):
            return spelt
    return next((each for each in said if each), "")


def identifiers(expression: str) -> list[str]:
    words = re.split(r"[\s()]+", expression)
    return [word for word in words if word and word not in {"AND", "OR", "WITH"}]


def unknown_in(expression: str) -> list[str]:
    return [each for each in identifiers(expression) or ["nothing"] if each not in KNOWN]


if __name__ == "__main__":
    sys.exit(main())

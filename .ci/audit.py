#!/usr/bin/env python3
"""Asks osv.dev whether any package that llx installs has a known vulnerability.

    .ci/audit.py [--url URL] [LOCK ...]

Looked at are the locks of the node environment and what is installed beside the Python that runs
this. Exit codes: 0 none is known; 1 some are, each is named; 3 the data could not be had, so
nothing is known and nothing has passed. `.ci/audit-accepted` names those that are known and lived
with, one ``ID reason`` a line.
"""

import argparse
import http.client
import importlib.metadata
import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = [ROOT / "llx" / "bootstrap" / "locks" / f"{name}.lock" for name in ("cpu", "cuda")]
ACCEPTED = Path(__file__).with_name("audit-accepted")
SERVICE = "https://api.osv.dev"
BATCH = 500
TIMEOUT_S = 30
UNKNOWN = 3

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)

Package = tuple[str, str]


class NotKnown(Exception):
    """The data could not be had."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default=SERVICE, help="of a service that speaks as osv.dev does")
    parser.add_argument("locks", nargs="*", type=Path, default=LOCKS)
    options = parser.parse_args(argv)
    packages = sorted(installed().union(*(pinned(each) for each in options.locks)))
    try:
        found = ask(options.url, packages)
    except NotKnown as error:
        print(f"NOT AUDITED: {len(packages)} packages: {options.url}: {error}", file=sys.stderr)
        print("remedy: run it where that can be reached; nothing has passed", file=sys.stderr)
        return UNKNOWN
    accepted = accepted_ids()
    wrong = 0
    for (name, version), ids in found.items():
        for each in ids:
            word = "accepted" if each in accepted else "VULNERABLE"
            wrong += each not in accepted
            print(f"{word}: {name} {version}: https://osv.dev/vulnerability/{each}")
    print(f"{len(packages)} packages audited, {wrong} known vulnerabilities to see to")
    return 1 if wrong else 0


def pinned(lock: Path) -> set[Package]:
    """What a lock installs. A local version (``+cpu``) is another build of the same release."""
    found = {
        (name.lower(), version.partition("+")[0])
        for name, version in _PIN.findall(lock.read_text())
    }
    if not found:
        raise SystemExit(f"{lock}: no package is pinned there")
    return found


def installed() -> set[Package]:
    """What lies beside this Python, llx itself apart."""
    return {
        (each.metadata["Name"].lower(), each.version.partition("+")[0])
        for each in importlib.metadata.distributions()
        if each.metadata["Name"] and each.metadata["Name"].lower() != "llx"
    }


def accepted_ids() -> set[str]:
    lines = ACCEPTED.read_text().splitlines() if ACCEPTED.exists() else []
    return {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}


def ask(url: str, packages: list[Package]) -> dict[Package, list[str]]:
    """The vulnerabilities of each package that has some; raises `NotKnown`."""
    found: dict[Package, list[str]] = {}
    for begin in range(0, len(packages), BATCH):
        batch = packages[begin : begin + BATCH]
        results = ask_batch(url, batch)
        for package, result in zip(batch, results, strict=True):
            ids = [str(each["id"]) for each in result.get("vulns", [])]
            if ids:
                found[package] = ids
    return found


def ask_batch(url: str, batch: list[Package]) -> list[dict]:
    queries = [
        {"package": {"name": name, "ecosystem": "PyPI"}, "version": version}
        for name, version in batch
    ]
    request = urllib.request.Request(
        f"{url}/v1/querybatch",
        data=json.dumps({"queries": queries}).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            results = json.load(answer)["results"]
    except (OSError, http.client.HTTPException) as error:
        raise NotKnown(f"cannot be reached: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise NotKnown(f"its answer makes no sense: {error!r}") from None
    is_whole = isinstance(results, list) and all(isinstance(each, dict) for each in results)
    if not is_whole or len(results) != len(batch):
        raise NotKnown(f"its answer is not about the {len(batch)} packages that were asked for")
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

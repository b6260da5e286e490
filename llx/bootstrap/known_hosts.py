"""known_hosts files: is a host's key the known one, and writing down a new one.

Knows OpenSSH's format: lists, ``[host]:port``, patterns, hashed names, ``@revoked``. Host
certificates (``@cert-authority``) are left to `ssh`.
"""

import base64
import binascii
import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llx.bootstrap.ssh_config import matches_pattern


@dataclass(frozen=True, slots=True)
class HostKey:
    """A public key: its type, such as ``ssh-ed25519``, and its bytes."""

    type: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As ``ssh-keygen -l`` shows it."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest())
        return f"SHA256:{digest.decode().rstrip('=')}"


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A line of a known_hosts file that holds for a host."""

    key: HostKey
    path: Path
    line: int
    is_revoked: bool


def known_keys(name: str, files: Iterable[Path]) -> list[KnownKey]:
    """What `files` say about the host `name` (``host`` or ``[host]:port``)."""
    return [known for path in files for known in _lines(path, name.lower())]


def remember(name: str, key: HostKey, path: Path, *, hashed: bool) -> None:
    """Write down that `key` is `name`'s; safe among threads and processes, nothing is doubled.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if any(known.key == key for known in _lines(path, name.lower())):
            return
        text = file.read()
        written = _hashed(name.lower(), secrets.token_bytes(20)) if hashed else name.lower()
        line = f"{written} {key.type} {base64.b64encode(key.blob).decode()}\n".encode()
        file.write((b"" if not text or text.endswith(b"\n") else b"\n") + line)


def _lines(path: Path, name: str) -> Iterator[KnownKey]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for number, line in enumerate(lines, 1):
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#") or marker == "@cert-authority":
            continue
        if not _names(fields[0], name):
            continue
        try:
            blob = base64.b64decode(fields[2], validate=True)
        except binascii.Error:
            continue
        yield KnownKey(HostKey(fields[1], blob), path, number, marker == "@revoked")


def _names(listed: str, name: str) -> bool:
    if listed.startswith("|1|"):
        try:
            salt = base64.b64decode(listed.split("|")[2], validate=True)
        except binascii.Error:
            return False
        return hmac.compare_digest(_hashed(name, salt), listed)
    patterns = listed.split(",")
    if any(each.startswith("!") and matches_pattern(name, each[1:]) for each in patterns):
        return False
    return any(matches_pattern(name, each) for each in patterns)


def _hashed(name: str, salt: bytes) -> str:
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"

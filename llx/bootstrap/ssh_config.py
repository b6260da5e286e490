"""``~/.ssh/config`` as `ssh` reads it: Host, Match and Include; the first value found wins.

Pure but for reading files. Which of the values llx follows is `llx.bootstrap.ssh_target`'s.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_KEYWORD = re.compile(r"(\w+)(?:\s*=\s*|\s+)(.*)")
_MANY = frozenset({"identityfile"})
_MAX_DEPTH = 16  # of Include, as in OpenSSH


@dataclass(frozen=True, slots=True)
class SshConfig:
    """Configuration files, the first the most important.

    Attributes:
        files: The user's and the system's file; those that are not there are left out.
        home: What ``~`` stands for.
    """

    files: tuple[Path, ...]
    home: Path

    def lookup(self, alias: str, *, user: str | None, local_user: str) -> dict[str, list[str]]:
        """What holds for ``ssh alias``: lower-case keywords to their values as written.

        Only IdentityFile has more than one value. `user` is the one asked for, if any.
        """
        found = _Found(alias, user, local_user)
        for path in self.files:
            for keyword, value in self._matching(path, found, depth=0):
                if keyword in _MANY:
                    found.values.setdefault(keyword, []).append(value)
                else:
                    found.values.setdefault(keyword, [value])
        return found.values

    def _matching(self, path: Path, found: "_Found", depth: int) -> Iterator[tuple[str, str]]:
        """The settings of a file and those it includes, as far as they hold."""
        is_active = True
        for keyword, value in _read(path):
            if keyword == "host":
                is_active = _matches_any(found.alias, _words(value))
            elif keyword == "match":
                is_active = found.matches(_words(value))
            elif not is_active:
                continue
            elif keyword == "include":
                if depth < _MAX_DEPTH:
                    for each in self._included(path, _words(value)):
                        yield from self._matching(each, found, depth + 1)
            else:
                yield keyword, _unquoted(value)

    def _included(self, path: Path, patterns: Sequence[str]) -> Iterator[Path]:
        in_home = path.is_relative_to(self.home)
        base = self.home / ".ssh" if in_home else Path("/etc/ssh")
        for pattern in patterns:
            full = base / expanded(pattern, self.home)
            yield from sorted(Path(full.anchor).glob(str(full.relative_to(full.anchor))))


@dataclass(slots=True)
class _Found:
    alias: str
    user: str | None
    local_user: str
    values: dict[str, list[str]] = field(default_factory=dict)

    def matches(self, words: Sequence[str]) -> bool:
        """Whether a Match line holds; what llx cannot judge (exec, canonical, …) does not."""
        host = self.values.get("hostname", [self.alias])[0].replace("%h", self.alias)
        user = self.user or self.values.get("user", [self.local_user])[0]
        known = {
            "host": host,
            "originalhost": self.alias,
            "user": user,
            "localuser": self.local_user,
        }
        rest = iter(words)
        for word in rest:
            is_negated, criterion = word.startswith("!"), word.lstrip("!").lower()
            if criterion == "all":
                continue
            pattern = next(rest, None)
            if criterion not in known or pattern is None:
                return False
            if _matches_any(known[criterion], pattern.split(",")) is is_negated:
                return False
        return bool(words)


def matches_pattern(name: str, pattern: str) -> bool:
    """Whether `pattern`, with ``*`` and ``?``, matches all of `name`."""
    expression = "".join({"*": ".*", "?": "."}.get(each, re.escape(each)) for each in pattern)
    return re.fullmatch(expression, name, re.IGNORECASE) is not None


def expanded(path: str, home: Path) -> Path:
    """`path` with a leading ``~`` replaced."""
    return home / path[1:].lstrip("/") if path == "~" or path.startswith("~/") else Path(path)


def _matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of `patterns` matches and none with ``!`` does."""
    if any(each.startswith("!") and matches_pattern(name, each[1:]) for each in patterns):
        return False
    return any(not each.startswith("!") and matches_pattern(name, each) for each in patterns)


def _read(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            found = _KEYWORD.fullmatch(stripped)
            if found is not None:
                yield found[1].lower(), found[2].strip()


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def _words(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError:
        return value.split()

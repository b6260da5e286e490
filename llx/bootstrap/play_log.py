"""The log of what was done to a host, on the operator's side. Secrets never get into it."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

from llx.secret import Secret

MASK = "***"

_SHORTEST = 8
_WORD = re.compile(r"[^\s\"',]{12,}")


class PlayLog:
    """Lines with time and playbook, appended to `path` (0600); None: only masks."""

    def __init__(self, path: Path | None, playbook: str, secrets: Sequence[Secret]) -> None:
        self.path = path
        self._playbook = playbook
        words: set[str] = set()
        for each in secrets:
            text = each.reveal()
            words |= {text.strip(), *text.split(), *_WORD.findall(text)}
        # Longest first, so that no part of a secret is left beside a shorter one's mask.
        self._words = sorted(
            (word for word in words if len(word) >= _SHORTEST), key=len, reverse=True
        )
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)

    def masked(self, text: str) -> str:
        """`text` without secrets."""
        for word in self._words:
            text = text.replace(word, MASK)
        return text

    def write(self, text: str) -> None:
        """Append a line."""
        if self.path is not None:
            at = time.strftime("%Y-%m-%d %H:%M:%S")
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{at} {self._playbook}: {self.masked(text)}\n")

"""The audit trail: what was done to the cluster, when and by whom; one JSON object per line."""

import json
import os
import time
from collections import Counter
from pathlib import Path

from llx.log import get_log

log = get_log(__name__)

MAX_BYTES = 10 << 20


class AuditTrail:
    """Appends to `path`; when that grows past `max_bytes` it becomes ``<path>.1``."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self.counts: Counter[str] = Counter()
        """How many of each kind, since the head's start."""

    def record(self, kind: str, *, user: str = "", **fields: str | float | None) -> None:
        """Append an event: its kind, such as ``instance.failed``, and who caused it.

        A full disk must not stop the cluster from being run: then the event goes to the log alone.
        """
        self.counts[kind] += 1
        event = {"at": round(time.time(), 3), "kind": kind, "user": user, **fields}
        line = json.dumps(event, ensure_ascii=False).encode(errors="replace") + b"\n"
        try:
            self._append(line)
        except OSError as error:
            log.error("audit.not_written", error=error, event=line.decode())

    def _append(self, line: bytes) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and size + len(line) > self._max_bytes:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                os.close(fd)
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(fd, line)
        finally:
            os.close(fd)
